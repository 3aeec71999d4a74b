"""Pulls and pushes of one worker, on one thread, against a copy of as many bytes."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

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


class Bytes(NamedTuple):
    """What a pull and a push must move, each vector read or written counting once."""

    pull: int
    push: int


def bytes_moved(parameters: int, optimizer: str) -> Bytes:
    """Of `parameters` floats: a pull reads theta and writes the private copy; a push reads the
    gradient, and reads and writes theta and every row of the optimiser's state."""
    rows = OPTIMIZERS[optimizer].rows
    return Bytes(2 * FLOAT * parameters, FLOAT * parameters * (1 + 2 * (1 + rows)))


class Transfer:
    """A shared block of `parameters` floats and its one worker; and a copy for comparison.

    The copy is `torch.Tensor.copy_` of one vector whose reading and writing moves as many bytes as
    a pull and a push together.
    """

    def __init__(self, parameters: int, optimizer: str):
        torch.set_num_threads(1)
        rule, moved = OPTIMIZERS[optimizer](), bytes_moved(parameters, optimizer)
        # The block has beside theta and state two vectors that are published, each twice.
        check_memory(FLOAT * parameters * (7 + rule.rows) + sum(moved))
        self.network = FlatNetwork(nn.ParameterList([nn.Parameter(torch.randn(parameters))]))
        size = len(self.network.vector)
        block = SharedBlock(sections(1, size, rule.rows))
        block["multipliers"][:] = 1.0
        self.store = ParameterStore(block, rule, 0)
        self.network.gradient.normal_()
        self.bytes = bytes_moved(size, optimizer)
        self.source, self.copied = torch.ones(2, sum(self.bytes) // (2 * FLOAT))

    def pull(self) -> None:
        self.store.pull(self.network)

    def push(self) -> None:
        self.store.push(self.network.gradient, LR)

    def copy(self) -> None:
        self.copied.copy_(self.source)

    def seconds(self, period: float) -> dict[str, float]:
        """CPU seconds of one pull, one push and one copy: medians of turns for `period` seconds."""
        spent: dict[Callable[[], None], list[float]] = {self.pull: [], self.push: [], self.copy: []}
        calls = {}
        for call in spent:
            _time_of(call, 1)  # its pages are there from now on
            calls[call] = max(1, round(LEAST_S / max(_time_of(call, 1), 1e-9)))
        end = time.perf_counter() + period
        while time.perf_counter() < end or len(spent[self.copy]) < LEAST_TURNS:
            for call, count in calls.items():
                spent[call].append(_time_of(call, count))
        return {call.__name__: statistics.median(each) for call, each in spent.items()}


def _time_of(call: Callable[[], None], count: int) -> float:
    """CPU seconds of one of `count` calls; the clock itself takes most of a microsecond."""
    begun = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - begun) / count
