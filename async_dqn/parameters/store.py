"""The global parameters: `ParameterStore` is one process's view of the shared block.

Every word has exactly one writer, but theta and a shared optimiser state (Hogwild): see the design.
"""

import os
import time

import torch

from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.moments import RunMoments
from async_dqn.parameters.optimizers import Optimizer
from async_dqn.parameters.published import DoubleBuffer
from async_dqn.parameters.target import Copy, Target

COPY = Copy()
LOOKS_PER_SECOND = 10_000  # of all workers that wait for budget


class ParameterStore:
    """Pull, push and count on the shared block, as the owner of one slot.

    `target_rule` makes the target network, `target_every` global steps apart (None: never).
    """

    def __init__(
        self,
        block: SharedBlock,
        optimizer: Optimizer,
        slot: int,
        target_rule: Target = COPY,
        target_every: int | None = None,
    ):
        self.block = block
        self.target_rule, self.target_every = target_rule, target_every
        self.optimizer = optimizer
        self.theta = torch.from_numpy(block["theta"])
        self.states = torch.from_numpy(block["optimizer"])  # [1 or workers, rows, P]
        # Nothing for trainer and evaluator where each worker has its own: a push of theirs, which
        # would be a mistake, fails instead of moving a worker's state.
        own = 0 if len(self.states) == 1 else slot
        self.state = list(self.states[own : own + 1].flatten(0, 1))
        self.target = DoubleBuffer(block, "target")
        self.snapshot = DoubleBuffer(block, "snapshot")
        self.control = block["control"]
        self.slots = block["slots"]
        self.slot = self.slots[slot]
        self._steps, self._updates = self.slots[:, layout.STEPS], self.slots[:, layout.UPDATES]
        self._multipliers = block["multipliers"]
        self.moments = RunMoments(block, slot)
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
    def learning_rate_multiplier(self) -> float:
        """Factor on every learning rate, written by the trainer."""
        return float(self._multipliers[0])

    @property
    def _updates_of_others(self) -> int:
        return self.updates - int(self.slot[layout.UPDATES])

    @property
    def leaving(self) -> bool:
        """Whether the workers are told to stop."""
        return bool(self.control[layout.WORKERS_STOP])

    def enter(self, incarnation: int) -> None:
        """This process has the slot from now on; its CPU time comes on top of what is there."""
        self._cpu_before = int(self.slot[layout.CPU_NS])
        self.slot[layout.PID], self.slot[layout.INCARNATION] = os.getpid(), incarnation
        self.slot[layout.PHASE] = layout.STARTING

    def count_cpu(self) -> None:
        """Write down the CPU time of this process, after `enter`."""
        self.slot[layout.CPU_NS] = self._cpu_before + time.process_time_ns()

    def beat(self) -> None:
        """A sign of life."""
        self.slot[layout.HEARTBEAT_NS] = time.monotonic_ns()

    def idle(self, lr: float) -> None:
        """Wait a moment for more budget; `lr` is for stores whose workers update together."""
        self.slot[layout.PHASE] = layout.WAITING
        self.beat()
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
        self.moments.publish(self.theta, 0)
        if gradient is None:
            return staleness
        if max_staleness is not None and staleness > max_staleness:
            self.slot[layout.SKIPPED] += 1
            return staleness
        lr *= self.learning_rate_multiplier
        if staleness_scaling:
            lr /= max(1, staleness)
        self.optimizer.step(self.theta, gradient, self.state, lr, self.updates)
        self.slot[layout.UPDATES] += 1
        return staleness

    @property
    def target_due(self) -> bool:
        """Whether a boundary has passed since the target network was published."""
        every = self.target_every
        return every is not None and self.steps // every > self.target.step // every

    def sync_target(self, step: int, anew: bool = False) -> bool:
        """Publish the next target network; False if that is not finite.

        At first, or `anew`, it is nothing but theta.
        """
        rule = self.target_rule
        if anew or not self.target.sequence:
            vectors = self.theta.expand(rule.networks, -1)
        else:
            every = self.target_every or max(1, step)
            intervals = max(1, step // every - self.target.step // every)
            kept = self.target.newest.view(rule.networks, -1)
            vectors = rule.following(kept, self.theta, intervals)
        return self.target.publish(vectors.flatten(), step)
