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
from async_dqn.parameters.upkeep import Upkeep

NONE = Upkeep()
LOOKS_PER_SECOND = 10_000  # of all workers that wait for budget


class ParameterStore:
    """Pull, push and count on the shared block, as the owner of one slot.

    One of the processes calls `keep_up` when something of `upkeep` is due.
    """

    def __init__(
        self,
        block: SharedBlock,
        optimizer: Optimizer,
        slot: int,
        upkeep: Upkeep = NONE,
    ):
        self.block, self.optimizer, self.upkeep = block, optimizer, upkeep
        self.theta = torch.from_numpy(block["theta"])
        self.states = torch.from_numpy(block["optimizer"])  # [1 or workers, rows, P]
        # Nothing for trainer and evaluator where each worker has its own: a push of theirs, which
        # would be a mistake, fails instead of moving a worker's state.
        own = 0 if len(self.states) == 1 else slot
        self.state = list(self.states[own : own + 1].flatten(0, 1))
        self.target = DoubleBuffer(block, "target")
        self.average = DoubleBuffer(block, "average")
        self.snapshot = DoubleBuffer(block, "snapshot")
        self.control = block["control"]
        self.slots = block["slots"]
        self.slot = self.slots[slot]
        self._steps, self._updates = self.slots[:, layout.STEPS], self.slots[:, layout.UPDATES]
        self._multipliers = block["multipliers"]
        self.moments = RunMoments(block, slot)
        self._pulled_others = 0

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
        self._update(self.theta, gradient, self.state, lr, self.updates)
        self.slot[layout.UPDATES] += 1
        return staleness

    def _update(
        self,
        theta: torch.Tensor,
        gradient: torch.Tensor,
        state: list[torch.Tensor],
        lr: float,
        updates: int,
        first: int = 0,
    ) -> None:
        """An optimiser step on a part of the parameters, which begins with number `first`.

        Running moments, which are the first of all, do not decay.
        """
        if self.upkeep.weight_decay:
            decaying = theta[max(0, self.moments.parameters - first) :]
            decaying.mul_(1 - lr * self.upkeep.weight_decay)
        self.optimizer.step(theta, gradient, state, lr, updates)

    # The upkeep

    @property
    def _done(self) -> list[int]:
        """The boundaries of target network, average and resets up to which all is done."""
        steps = self.target.step, self.average.step, int(self.control[layout.RESET_STEP])
        return self.upkeep.boundaries(*steps)

    @property
    def due(self) -> bool:
        """Whether a boundary has passed since."""
        return self.upkeep.boundaries(*[self.steps] * 3) != self._done

    def keep_up(self) -> bool:
        """Do what is due at the global step of now; say whether the target network is new."""
        step = self.steps
        passed = self.upkeep.boundaries(*[step] * 3)
        target, average, reset = (now > done for now, done in zip(passed, self._done, strict=True))
        if reset:
            self._reset(step)
        elif average:
            self._follow_average(step)
        return reset or (target and self.sync_target(step))

    def begin(self, step: int) -> None:
        """Publish theta as target network, and as the average if there is one."""
        self.target.publish(self.theta.repeat(self.upkeep.target_rule.networks), step)
        if self.average.exists:
            self.average.publish(self.theta, step)

    def begin_anew(self, step: int) -> None:
        """The same after theta was changed from outside: means of gradients are cleared.

        Those of their squares stay, as without them the first steps would be many times as long as
        any before.
        """
        for row in self.optimizer.directions:
            self.states[:, row].zero_()
        self.begin(step)

    def sync_target(self, step: int) -> bool:
        """Publish the next target network; False if that is not finite."""
        rule, every = self.upkeep.target_rule, self.upkeep.target_every or max(1, step)
        intervals = max(1, step // every - self.target.step // every)
        kept = self.target.newest.view(rule.networks, -1)
        source = self.average.newest if self.upkeep.averages_target else self.theta
        return self.target.publish(rule.following(kept, source, intervals).flatten(), step)

    def _follow_average(self, step: int) -> None:
        kept, passed = self.average, step - self.average.step
        kept.publish(self.upkeep.averaged(kept.newest, self.theta, passed), step)

    def _reset(self, step: int) -> None:
        resets = self.upkeep.resets
        fresh = resets.fresh(self.upkeep.boundaries(step, step, step)[2])
        self.theta.lerp_(fresh, resets.share)
        self.control[layout.RESET_STEP] = step
        self.begin_anew(step)

    def publish_snapshot(self) -> bool:
        """Publish what is to be scored; False if that is not finite."""
        vector = self.theta
        if self.upkeep.averages_score:
            vector = torch.empty_like(vector)
            if self.average.read(vector) is None:
                return False
        return self.snapshot.publish(vector, self.steps)
