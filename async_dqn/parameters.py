"""The global parameters: `ParameterStore` is one process's view of the shared block.

Every word has exactly one writer (design section 2); theta and a shared optimiser state are
written by all workers without a lock (Hogwild). Counters are read as the SUM over the slots: a
counter that several processes increment loses increments.
"""

import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.memory import Section, SharedBlock
from async_dqn.optimizers import Optimizer

# Words of a slot, one int64 each; a slot is written by its child only.
STEPS, UPDATES, EPISODES, SKIPPED, ENV_ERRORS, CPU_NS, HEARTBEAT_NS, PHASE = range(8)
INCARNATION, PID = 8, 9
FAILING = 10  # gradients in a row that were not finite
KEPT_UP = 11  # evaluator's, players': global step at which a piece of work was last finished
PLAYING = 12  # the evaluator's: sequence number of the snapshot that is being scored, or 0
STARTUP_NS = 13  # evaluator's, players': CPU time of their starts
SLOT_WORDS = 16  # two cache lines
# Phase codes: what a child was doing when it died or hung.
PHASES = ("starting", "env.step", "learning", "waiting", "evaluating")
STARTING, ENV_STEP, LEARNING, WAITING, EVALUATING = range(len(PHASES))

# Control words, written by the trainer.
WORKERS_STOP, EVALUATOR_ORDER, ACKNOWLEDGED, SHARED_OUT = range(4)
RUN, FINISH, QUIT = range(3)  # the evaluator's orders

SEATS = 20  # episodes that one player plays at once, at most


LOOKS_PER_SECOND = 10_000  # of all workers that wait for budget


def sections(
    workers: int, size: int, optimizer_rows: int, shared: bool = True, players: int = 0
) -> tuple[Section, ...]:
    """The table of the block for these workers, `size` parameters (padded) and most players.

    `optimizer_rows` state vectors are there once if `shared`, else once for every worker.
    """
    owners = 1 if shared else workers
    return (
        Section("control", "int64", (8,)),
        Section("multipliers", "float64", (2,)),  # learning rate, epsilon
        Section("limits", "int64", (workers,)),  # step limit (lease) of each worker's slot
        # one row per worker, one for the evaluator, one per player, and one with what earlier
        # sessions of the run did
        Section("slots", "int64", (workers + 2 + players, SLOT_WORDS)),
        Section("theta", "float32", (size,)),
        Section("optimizer", "float32", (owners, optimizer_rows, size)),
        *_double_buffer("target", size),
        *_double_buffer("snapshot", size),
        Section("seats", "int64", (players, SEATS)),  # written by the evaluator
        Section("results", "int64", (players, SEATS, 4)),  # a row by its player
    )


def _double_buffer(name: str, size: int) -> tuple[Section, ...]:
    return (
        Section(name, "float32", (2, size)),
        Section(f"{name}_stamps", "int64", (2, 2)),
        Section(f"{name}_sequence", "int64", (1,)),
    )


def padded_size(net: nn.Module) -> int:
    """Number of parameters, rounded up to whole cache lines."""
    return -(-sum(p.numel() for p in net.parameters()) // 16) * 16


class FlatNetwork:
    """A module whose parameters and gradients are views into two flat vectors [P] on its device.

    Pulling is then one copy and clearing the gradient one `zero_()`. Never call `zero_grad()` on
    the module: it replaces the gradient views by None and silently cuts them off.
    """

    def __init__(self, net: nn.Module, gradient: bool = True):
        self.net = net
        self.vector = torch.zeros(padded_size(net), device=next(net.parameters()).device)
        self.gradient = torch.zeros_like(self.vector) if gradient else None
        start = 0
        for parameter in net.parameters():
            window = slice(start, start + parameter.numel())
            self.vector[window] = parameter.detach().flatten()
            parameter.data = self.vector[window].view(parameter.shape)
            parameter.requires_grad_(gradient)
            if self.gradient is not None:
                parameter.grad = self.gradient[window].view(parameter.shape)
            start = window.stop


def named_tensors(net: nn.Module, vector: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Copy a flat vector [P] into arrays by parameter name, for a checkpoint."""
    arrays, start = {}, 0
    for name, parameter in net.named_parameters():
        window = vector[start : start + parameter.numel()]
        arrays[name] = window.view(parameter.shape).numpy().copy()
        start += parameter.numel()
    return arrays


def flat_vector(net: nn.Module, tensors: dict[str, NDArray[np.float32]]) -> torch.Tensor:
    """The inverse of `named_tensors`. Raises ValueError as `check_named` does."""
    expected = {name: tuple(p.shape) for name, p in net.named_parameters()}
    check_named(expected, tensors)
    vector, start = torch.zeros(padded_size(net)), 0
    for name, shape in expected.items():
        count = math.prod(shape)
        vector[start : start + count] = torch.from_numpy(tensors[name]).flatten()
        start += count
    return vector


def check_named(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, NDArray]) -> None:
    """Raise ValueError on a missing, extra, misshapen or not float32 tensor."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"tensor {name} is {'missing' if name in expected else 'unexpected'}")
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            raise ValueError(f"tensor {name} is {list(found.shape)}, expected {list(shape)}")
        if found.dtype != np.float32:
            raise ValueError(f"tensor {name} is {found.dtype}, expected float32")


class DoubleBuffer:
    """A vector published by one process: write the idle half, then bump the sequence number.

    A reader never waits and never sees a torn vector: sequence and checksum are compared after
    the copy (correct on weakly ordered processors too).
    """

    def __init__(self, block: SharedBlock, name: str):
        self._halves = torch.from_numpy(block[name])
        self._stamps = block[f"{name}_stamps"]
        self._sequence = block[f"{name}_sequence"]

    @property
    def sequence(self) -> int:
        """How many vectors were published."""
        return int(self._sequence[0])

    @property
    def step(self) -> int:
        """The global step at which the newest vector was published."""
        return int(self._stamps[self.sequence & 1, 0])

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


def _checksum(vector: torch.Tensor) -> int:
    return int(vector.numpy().view(np.int64).sum())


def _own_state(states: torch.Tensor, slot: int) -> list[torch.Tensor]:
    """The rows [P] that pushes from `slot` update.

    None for trainer and evaluator where each worker has its own: a push of theirs, which would
    be a mistake, fails instead of moving a worker's state.
    """
    if len(states) == 1:
        return list(states[0])
    return list(states[slot]) if slot < len(states) else []


class ParameterStore:
    """Pull, push and count on the shared block, as the owner of one slot."""

    def __init__(self, block: SharedBlock, optimizer: Optimizer, slot: int):
        self.block = block
        self.optimizer = optimizer
        self.theta = torch.from_numpy(block["theta"])
        self.states = torch.from_numpy(block["optimizer"])  # [1 or workers, rows, P]
        self.state = _own_state(self.states, slot)
        self.target = DoubleBuffer(block, "target")
        self.snapshot = DoubleBuffer(block, "snapshot")
        self.control = block["control"]
        self.slots = block["slots"]
        self.slot = self.slots[slot]
        self._steps, self._updates = self.slots[:, STEPS], self.slots[:, UPDATES]
        self._multipliers = block["multipliers"]
        self._pulled_others = 0
        self._seen_target = 0

    @property
    def steps(self) -> int:
        """Global steps: the sum over all workers and all sessions of the run."""
        return int(self._steps.sum())

    @property
    def updates(self) -> int:
        """Global updates."""
        return int(self._updates.sum())

    @property
    def epsilon_multiplier(self) -> float:
        """Factor on every epsilon, written by the trainer."""
        return float(self._multipliers[1])

    @property
    def learning_rate_multiplier(self) -> float:
        """Factor on every learning rate, written by the trainer."""
        return float(self._multipliers[0])

    @property
    def _updates_of_others(self) -> int:
        return self.updates - int(self.slot[UPDATES])

    @property
    def leaving(self) -> bool:
        """Whether the workers are told to stop."""
        return bool(self.control[WORKERS_STOP])

    def idle(self, lr: float) -> None:
        """Wait a moment for more budget; `lr` is for stores whose workers update together."""
        self.slot[PHASE], self.slot[HEARTBEAT_NS] = WAITING, time.monotonic_ns()
        # All together look no oftener than that: hundreds that wait would leave no core to work.
        time.sleep(max(0.001, len(self.slots) / LOOKS_PER_SECOND))

    def total(self, word: int) -> int:
        """Sum of one word over all slots."""
        return int(self.slots[:, word].sum())

    def pull(self, network: FlatNetwork) -> None:
        """Copy theta into a private network."""
        self._pulled_others = self._updates_of_others
        network.vector.copy_(self.theta)

    def pull_target(self, network: FlatNetwork) -> bool:
        """Copy the target if a newer one was published; say whether there was."""
        if self.target.sequence == self._seen_target:
            return False
        host = network.vector.cpu()  # itself, unless the network is on a GPU
        read = self.target.read(host)
        if read is not None:
            network.vector.copy_(host)
            self._seen_target = read[0]
        return read is not None

    def push(
        self,
        gradient: torch.Tensor | None,
        lr: float,
        staleness_scaling: bool = False,
        max_staleness: int | None = None,
    ) -> int:
        """Apply a private gradient [P] to theta, in place and without a lock; None: nothing.

        Returns the staleness: updates by others between the pull and this push. With
        `staleness_scaling` the learning rate is divided by it, if above 1 (Zhang et al. 2016,
        staleness-aware async-SGD). Above `max_staleness` the gradient is dropped: nothing changes
        but the slot's count of skipped updates.
        """
        staleness = self._updates_of_others - self._pulled_others
        if gradient is None:
            return staleness
        if max_staleness is not None and staleness > max_staleness:
            self.slot[SKIPPED] += 1
            return staleness
        lr *= self.learning_rate_multiplier
        if staleness_scaling:
            lr /= max(1, staleness)
        self.optimizer.step(self.theta, gradient, self.state, lr, self.updates)
        self.slot[UPDATES] += 1
        return staleness

    def lower_learning_rate(self) -> None:
        """Half of it from now on; the trainer's word."""
        self._multipliers[0] *= 0.5

    def sync_target(self, step: int) -> bool:
        """Publish theta as the target network; False if theta is not finite."""
        return self.target.publish(self.theta, step)
