"""Pulls and pushes of one worker, on one thread, against a copy of as many bytes."""

import statistics
import time
from timeit import Timer

import torch
from torch import nn

from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import sections
from async_dqn.parameters.optimizers import OPTIMIZERS
from async_dqn.parameters.store import ParameterStore
from async_dqn.runs.preflight import check_memory

FLOAT = 4  # bytes
LR = 1e-6
LEAST_TURNS, LEAST_S = 3, 2e-4  # a turn has as many calls as last that long


class Transfer:
    """A shared block of `parameters` floats and its one worker; and a copy for comparison.

    A pull reads theta and writes the private copy; a push reads the gradient, and reads and writes
    theta and every row of the optimiser's state. The copy is `torch.Tensor.copy_` of one vector
    whose reading and writing moves as many bytes as both together.
    """

    def __init__(self, parameters: int, optimizer: str):
        torch.set_num_threads(1)
        rule = OPTIMIZERS[optimizer]()
        floats = 2 + 1 + 2 * (1 + rule.rows)  # of pull and push, for each parameter
        # The block has beside theta and state two vectors that are published, each twice.
        check_memory(FLOAT * parameters * (7 + rule.rows + floats))
        self.network = FlatNetwork(nn.ParameterList([nn.Parameter(torch.randn(parameters))]))
        size = len(self.network.vector)
        block = SharedBlock(sections(1, size, rule.rows))
        block["multipliers"][:] = 1.0
        self.store = ParameterStore(block, rule, 0)
        self.network.gradient.normal_()
        moved = {"pull": 2, "push": floats - 2, "copy": floats}
        self.bytes = {what: FLOAT * size * count for what, count in moved.items()}
        self.source, self.copied = torch.ones(2, size * floats // 2)

    def pull(self) -> None:
        self.store.pull(self.network)

    def push(self) -> None:
        self.store.push(self.network.gradient, LR)

    def copy(self) -> None:
        self.copied.copy_(self.source)

    def seconds(self, period: float) -> dict[str, float]:
        """CPU seconds of one pull, one push and one copy: medians of turns for `period` seconds."""
        timers = {name: Timer(getattr(self, name), timer=time.thread_time) for name in self.bytes}
        spent: dict[str, list[float]] = {name: [] for name in timers}
        counts = {}
        for name, timer in timers.items():
            timer.timeit(1)  # its pages are there from now on
            counts[name] = max(1, round(LEAST_S / max(timer.timeit(1), 1e-9)))
        end = time.perf_counter() + period
        while time.perf_counter() < end or len(spent["copy"]) < LEAST_TURNS:
            for name, timer in timers.items():
                spent[name].append(timer.timeit(counts[name]) / counts[name])
        return {name: statistics.median(each) for name, each in spent.items()}
