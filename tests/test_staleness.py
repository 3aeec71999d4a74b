"""Staleness: measured exactly, dividing the learning rate, dropping gradients that are too old."""

import pytest
import torch
from test_learner import Bench
from torch import nn

from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import SKIPPED, UPDATES
from async_dqn.parameters.optimizers import OPTIMIZERS, SharedRMSProp
from async_dqn.parameters.store import ParameterStore

GRADIENT = torch.ones(16)


class Descent:
    """theta -= lr * gradient, so that theta tells the learning rate."""

    rows = 0

    def step(self, theta, gradient, state, lr, updates):
        theta.add_(gradient, alpha=-lr)


class Workers:
    """The stores of `count` workers of one block, all in this process, taking turns by script."""

    def __init__(self, count: int, optimizer=None):
        optimizer = optimizer or Descent()
        self.block = SharedBlock(layout.sections(count, 16, optimizer.rows))
        self.block["multipliers"][:] = 1.0
        self.stores = [ParameterStore(self.block, optimizer, slot) for slot in range(count)]
        self.network = FlatNetwork(nn.Linear(3, 4))

    def play(self, script: str, **policy) -> list[int]:
        """`0p 1p 0u`: worker 0 pulls, worker 1 pulls, worker 0 pushes; each push's staleness."""
        seen = []
        for worker, act in script.split():
            if act == "p":
                self.stores[int(worker)].pull(self.network)
            else:
                seen.append(self.stores[int(worker)].push(GRADIENT, 1.0, **policy))
        return seen

    def total(self, word: int) -> int:
        return self.stores[0].total(word)


@pytest.mark.parametrize(
    ("script", "staleness"),
    [
        ("0p 0u 0p 0u", [0, 0]),
        ("0p 1p 0u 1u 0p 0u", [0, 1, 0]),
        ("0p 1p 1u 1p 1u 1p 1u 0u", [0, 0, 0, 3]),
        ("0p 1p 2p 0u 1u 2u", [0, 1, 2]),
        # its own updates since the pull never count, those of others between them do
        ("0p 1p 0u 0u 1u 0u 1u", [0, 0, 2, 1, 3]),
    ],
)
def test_staleness_is_the_updates_by_others_between_pull_and_push(script, staleness) -> None:
    assert Workers(3).play(script) == staleness


def test_what_earlier_sessions_and_former_incarnations_did_is_not_stale() -> None:
    workers = Workers(2)
    workers.block["slots"][:, UPDATES] = 7, 70, 0, 700  # two workers, evaluator, trainer
    assert workers.play("0p 0u 1p 0p 0u 1u") == [0, 0, 1]


@pytest.mark.parametrize("limit", [0, 1, 2, None])
@pytest.mark.parametrize("stale", range(4))
def test_exactly_the_gradients_older_than_the_limit_are_dropped(stale, limit) -> None:
    workers = Workers(2)
    workers.play("0p " + "1p 1u " * stale)
    assert workers.play("0u", max_staleness=limit) == [stale], "reported in any case"
    dropped = limit is not None and stale > limit
    assert workers.total(SKIPPED) == dropped
    assert workers.total(UPDATES) == stale + (not dropped)
    assert (workers.stores[0].theta == -(stale + (not dropped))).all()


def test_a_dropped_gradient_leaves_theta_state_and_update_count_alone() -> None:
    workers = Workers(2, SharedRMSProp())
    workers.play("0p 1p 1u")
    before = [workers.block[name].copy() for name in ("theta", "optimizer")]
    assert workers.play("0u", max_staleness=0) == [1]
    assert all((workers.block[n] == b).all() for n, b in zip(("theta", "optimizer"), before))
    assert (workers.total(UPDATES), workers.total(SKIPPED)) == (1, 1)
    assert workers.stores[0].slot[SKIPPED] == 1, "counted by its own worker"
    assert workers.play("0p 0u", max_staleness=0) == [0], "a fresh pull mends it"
    assert (workers.total(UPDATES), workers.total(SKIPPED)) == (2, 1)


@pytest.mark.parametrize(
    ("stale", "rate"), [(0, 1.0), (1, 1.0), (2, 1 / 2), (3, 1 / 3), (8, 1 / 8)]
)
def test_scaling_divides_the_learning_rate_by_the_staleness(stale: int, rate: float) -> None:
    workers = Workers(2)
    workers.play("0p " + "1p 1u " * stale)
    before = workers.stores[0].theta.clone()
    workers.block["multipliers"][0] = 0.5  # the trainer's own factor stays
    assert workers.play("0u", staleness_scaling=True) == [stale]
    torch.testing.assert_close(workers.stores[0].theta, before - 0.5 * rate)


def test_without_scaling_the_learning_rate_is_the_same_at_any_staleness() -> None:
    workers = Workers(2)
    workers.play("0p " + "1p 1u " * 5 + "0u")
    assert (workers.stores[0].theta == -6.0).all()


# The learner


def behind(bench: Bench, updates: int) -> None:
    """Let another worker update `updates` times during every rollout of `bench`."""
    collect = bench.learner.collector.collect

    def collect_while_others_learn(*arguments):
        bench.block["slots"][1, UPDATES] += updates
        return collect(*arguments)

    bench.learner.collector.collect = collect_while_others_learn


@pytest.mark.parametrize(("limit", "pushed"), [(2, False), (3, True), (None, True)])
def test_a_learner_drops_what_is_too_stale_and_reports_why(limit, pushed) -> None:
    bench = Bench(max_staleness=limit)
    behind(bench, 3)
    moved = bench.update()
    assert moved.any() == pushed
    assert (bench.slot(UPDATES), bench.slot(SKIPPED)) == ((1, 0) if pushed else (0, 1))
    means = bench.learner.statistics.means()
    assert means["async/staleness_mean"] == means["async/staleness_max"] == 3


def test_a_learner_scales_by_staleness_only_when_told() -> None:
    moves = []
    for scaling in (False, True):
        bench = Bench(staleness_scaling=scaling, lr=0.5, lr_schedule="constant")
        behind(bench, 4)
        moves.append(bench.update())
    torch.testing.assert_close(moves[0], 4 * moves[1], rtol=1e-3, atol=1e-6)
    assert moves[0].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_scaled_step(name: str) -> None:
    """From the same state a step with half the rate is half the step."""
    steps = []
    for scaling in (False, True):
        workers = Workers(2, OPTIMIZERS[name]())
        workers.play("0p 1p 1u 1p 1u")
        before = workers.stores[0].theta.clone()
        workers.play("0u", staleness_scaling=scaling)
        steps.append(workers.stores[0].theta - before)
    torch.testing.assert_close(steps[0], 2 * steps[1], rtol=1e-4, atol=1e-6)
