"""A vector that one process publishes and all may read, without a lock."""

import math

import numpy as np
import torch

from async_dqn.parameters.block import SharedBlock


class DoubleBuffer:
    """A vector published by one process: write the idle half, then bump the sequence number.

    A reader never waits and never sees a torn vector: sequence and checksum are compared after
    the copy (correct on weakly ordered processors too).
    """

    def __init__(self, block: SharedBlock, name: str):
        self._halves = torch.from_numpy(block[name])
        self._stamps = block[f"{name}_stamps"]
        self._sequence = block[f"{name}_sequence"]
        self._pulled = 0

    @property
    def exists(self) -> bool:
        """Whether the block has room for such a vector."""
        return self._halves.numel() > 0

    @property
    def sequence(self) -> int:
        """How many vectors were published."""
        return int(self._sequence[0])

    @property
    def step(self) -> int:
        """The global step at which the newest vector was published."""
        return int(self._stamps[self.sequence & 1, 0])

    @property
    def newest(self) -> torch.Tensor:
        """A view of the newest vector, for its writer alone."""
        return self._halves[self.sequence & 1]

    def publish(self, vector: torch.Tensor, step: int) -> bool:
        """Publish a copy of `vector` stamped with its global step; False if it is not finite."""
        sequence = self.sequence + 1
        half = self._halves[sequence & 1]
        half.copy_(vector)
        if not math.isfinite(half.norm().item()):
            return False
        self._stamps[sequence & 1] = step, _checksum(half)
        self._sequence[0] = sequence
        return True

    def read(self, into: torch.Tensor) -> tuple[int, int] | None:
        """Copy the newest vector; return (sequence, step), or None if there is no whole one."""
        for _ in range(3):
            sequence = self.sequence
            if sequence == 0:
                return None
            into.copy_(self._halves[sequence & 1])
            step, checksum = self._stamps[sequence & 1].tolist()
            if self.sequence == sequence and checksum == _checksum(into):
                return sequence, step
        return None

    def pull(self, vector: torch.Tensor) -> bool:
        """Copy a vector newer than the last one pulled, if there is one, to any device."""
        if self.sequence == self._pulled:
            return False
        host = vector.cpu()  # itself, unless it is on a GPU
        read = self.read(host)
        if read is not None:
            vector.copy_(host)
            self._pulled = read[0]
        return read is not None


def _checksum(vector: torch.Tensor) -> int:
    return int(vector.numpy().view(np.int64).sum())
