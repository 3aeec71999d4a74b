"""The store of `--mode sync`: all workers update together, in rounds, summed in a fixed order.

Data parallel: the gradients of a round are averaged and applied once. Or local SGD (Stich 2019):
every worker updates parameters of its own, and every K updates all go on with the average of
parameters and optimiser state. Round numbers in shared words stand in for a lock, and each worker
averages a slice of its own. Nothing but memory lies between them: sockets would be a straw man.
"""

import os
import time
from collections.abc import Callable

import torch

from async_dqn.parameters import layout
from async_dqn.parameters.block import BlockSection, SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.optimizers import Optimizer
from async_dqn.parameters.store import NONE, ParameterStore
from async_dqn.parameters.upkeep import Upkeep

# Words of each worker: the last round it gave its part to, the last it is done with, whether it
# had a part in it. Of worker 0 only: how many boundaries of the upkeep are done, whether all leave.
GIVEN, DONE, PRESENT, PUBLISHED, LEAVE = range(5)
SPINS, YIELDS = 100, 2000  # looks before giving the core away, and before sleeping
PATIENCE_S = 1.0  # with the others, once the order to stop is there


def round_sections(workers: int, size: int, rows: int) -> tuple[BlockSection, ...]:
    """What the block needs beside the usual: `rows` vectors [P] and the words of each worker."""
    return (
        BlockSection("parts", "float32", (workers, rows, size)),
        BlockSection("rounds", "int64", (workers, 8)),
    )


class SynchronousStore(ParameterStore):
    """The store of one worker of `--mode sync`.

    `every`: None averages gradients; K averages parameters and optimiser state, after K updates.
    The optimiser's state must be one for all. Steps are those of the last round, the same for all
    workers, so that schedules depend on no race and a run is reproducible bit for bit.
    """

    def __init__(
        self,
        block: SharedBlock,
        optimizer: Optimizer,
        slot: int,
        every: int | None,
        upkeep: Upkeep = NONE,
    ):
        super().__init__(block, optimizer, slot, upkeep)
        self._rounds = block["rounds"]
        self._own, self._first = self._rounds[slot], slot == 0
        self._parts = torch.from_numpy(block["parts"])  # [W, rows, P]
        self._part = self._parts[slot]
        lines, workers = len(self.theta) // 16, len(self._rounds)  # whole cache lines
        self._slice = slice(16 * (lines * slot // workers), 16 * (lines * (slot + 1) // workers))
        self._every = every
        # A fast worker may have begun: what earlier sessions did is the same for all.
        is_new = self._own[DONE] == 0
        before = self.slots[-1] if is_new else self.slots.sum(axis=0)
        self._known_steps, self._count = int(before[layout.STEPS]), int(before[layout.UPDATES])
        self._since_average, self._learned, self._abandoned = 0, False, False
        self._has_begun = bool(self.control[layout.SHARED_OUT])
        if self._first:
            self._own[PUBLISHED] = max(sum(self._done), self._own[PUBLISHED])
            self._keep_up_together()
        if every is not None and is_new:
            self._take_average()

    @property
    def steps(self) -> int:
        """Global steps at the last round."""
        return self._known_steps

    @property
    def leaving(self) -> bool:
        """Whether the order to stop is there and all have agreed on this round."""
        return self._abandoned or bool(self._rounds[0, LEAVE])

    def pull(self, network: FlatNetwork) -> None:
        """Copy theta, or this worker's own parameters."""
        network.vector.copy_(self.theta if self._every is None else self._part[0])

    def push(self, gradient: torch.Tensor | None, lr: float, *staleness: object) -> int:
        """Take part in the next round, None: with nothing. The staleness is always 0."""
        if self._own[GIVEN] > self._own[DONE]:  # a former incarnation died inside it
            self._finish_round(lr)
        if self._every is None:
            if gradient is not None:
                self._part[0].copy_(gradient)
            self._round(gradient is not None, lr)
            return 0
        if gradient is not None:
            rate = lr * self.learning_rate_multiplier
            self._update(self._part[0], gradient, list(self._part[1:]), rate, self._count)
            self._count_update()
        self._since_average += 1
        self._learned |= gradient is not None
        if self._since_average >= self._every:
            self._round(self._learned, lr)
        return 0

    def idle(self, lr: float) -> None:
        """Without budget: nothing to give, but the others need this worker's slice."""
        super().idle(lr)
        if not self._has_begun:  # nobody begins before all have their budget; then look again
            self._has_begun = bool(self.control[layout.SHARED_OUT])
            return
        if self._own[GIVEN] > self._own[DONE]:
            self._finish_round(lr)
        self._round(self._learned, lr)

    def _round(self, present: bool, lr: float) -> None:
        if not self._abandoned:
            self._own[PRESENT] = present
            self._own[GIVEN] += 1
            self._finish_round(lr)

    def _finish_round(self, lr: float) -> None:
        """Average the own slice when all have given; go on when all are done."""
        number = int(self._own[GIVEN])
        if not self.wait(lambda: self._rounds[:, GIVEN].min() >= number):
            return
        self._known_steps = super().steps
        present = self._rounds[:, PRESENT].any()
        if present:
            self._update_slice(lr)
        if self._first:
            self._own[LEAVE] = self.control[layout.WORKERS_STOP]
        self._own[DONE] = number
        if not self.wait(lambda: self._rounds[:, DONE].min() >= number):
            return
        if present and self._every is None:
            self._count_update()
        self._keep_up_together()
        if self._every is not None:
            self._take_average()

    def _update_slice(self, lr: float) -> None:
        given = zip(self._parts, self._rounds[:, PRESENT].tolist(), strict=True)
        present = [part[:, self._slice] for part, is_present in given if is_present]
        average = present[0].clone()
        for part in present[1:]:  # in the order of the workers: sums are reproducible
            average += part
        average /= len(present)
        rows = [self.theta[self._slice], *(row[self._slice] for row in self.state)]
        if self._every is None:
            rate = lr * self.learning_rate_multiplier
            state, first = rows[1:], self._slice.start
            self._update(rows[0], average[0], state, rate, self._count, first)
        else:
            for row, mean in zip(rows, average, strict=True):
                row.copy_(mean)
        self.moments.publish(rows[0], self._slice.start)  # nobody adds until all are done

    def _take_average(self) -> None:
        for own, row in zip(self._part, [self.theta, *self.state], strict=True):
            own.copy_(row)
        self._since_average, self._learned = 0, False

    def _count_update(self) -> None:
        self._count += 1
        if self._first:
            self.slot[layout.UPDATES] += 1

    def _keep_up_together(self) -> None:
        """Worker 0 has the upkeep when its time has come; the others wait for it."""
        wanted = sum(self.upkeep.boundaries(*[self._known_steps] * 3))
        if self._first and self._own[PUBLISHED] < wanted:
            self.keep_up()
            self._own[PUBLISHED] = wanted
        elif not self._first:
            self.wait(lambda: self._rounds[0, PUBLISHED] >= wanted)

    def wait(self, reached: Callable[[], bool]) -> bool:
        """Until `reached` by words of others; False: told to stop, and the others are gone."""
        looks, deadline = 0, None
        while not reached():
            looks += 1
            if looks <= SPINS:
                continue
            self.slot[layout.PHASE] = layout.WAITING
            self.beat()
            if self.control[layout.WORKERS_STOP]:
                deadline = deadline or time.monotonic() + PATIENCE_S
                if time.monotonic() > deadline:
                    self._abandoned = True
                    return False
            os.sched_yield() if looks <= YIELDS else time.sleep(50e-6)
        return True
