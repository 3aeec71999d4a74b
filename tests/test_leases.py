"""Leases: the budget is met exactly, and nobody waits for a slower worker."""

import numpy as np
import pytest

from async_dqn.training.leases import grant


def simulate(budget: int, speeds: list[float], chunk: int, seed: int = 0, retire_at=None):
    """Workers of the given speeds (chance to count a vector step per tick) until nobody can.

    A second has 1000 ticks; the speeds are known after the first.
    """
    generator = np.random.default_rng(seed)
    per_second = [8000 * speed for speed in speeds]
    limits, steps = np.zeros((2, len(speeds)), np.int64)
    retired: list[int] = []
    for tick in range(1_000_000):
        if tick == retire_at:
            retired = [0]
            limits[0] = steps[0]
        grant(limits, steps, budget, chunk, per_second if tick > 1000 else None, retired)
        assert limits.sum() <= budget
        if steps.sum() >= budget:
            return steps, tick
        for worker, speed in enumerate(speeds):
            if generator.random() < speed and worker not in retired:
                steps[worker] += min(8, limits[worker] - steps[worker])
    raise AssertionError(f"stuck at {steps} of {budget}, limits {limits}")


@pytest.mark.parametrize("budget", [1, 7, 40, 1003, 100_003])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_budget_is_met_exactly(budget, workers):
    steps, _ = simulate(budget, [0.9] * workers, chunk=40)
    assert steps.sum() == budget


def test_a_slow_worker_does_not_hold_up_the_fast_one():
    (slow, fast), ticks = simulate(80_000, [0.05, 1.0], chunk=40)
    assert slow + fast == 80_000
    assert ticks < 1.1 * 80_000 / (8 * 1.05)  # both working to the end, and half a second


def test_the_steps_of_a_retired_worker_go_to_the_others():
    steps, _ = simulate(10_000, [0.9, 0.9], chunk=40, retire_at=100)
    assert steps.sum() == 10_000
    assert steps[0] <= 800
