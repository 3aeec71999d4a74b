"""The sequential test: how often it errs, when it helps, and what it must not conclude from."""

import numpy as np
import pytest

from async_dqn.evaluation.sequential import ERROR, MIN_RETURNS, falls_short


def given_up_at(returns: np.ndarray, goal: float) -> int:
    """After how many episodes it gives up; all of them if it never does."""
    for count in range(len(returns)):
        if falls_short(returns[:count], len(returns), goal):
            return count
    return len(returns)


@pytest.mark.parametrize("kind", ["normal", "uniform", "mostly-the-limit"])
def test_it_hardly_ever_gives_up_what_would_have_reached_the_goal(kind) -> None:
    """At the worst place: the policy's mean is the goal, so that half of all evaluations reach it.

    "mostly-the-limit" is CartPole's: 500, or any length.
    """
    rng, wrong, good = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        returns = rng.normal(size=100) if kind == "normal" else rng.uniform(size=100)
        if kind == "mostly-the-limit":
            returns = np.where(rng.uniform(size=100) < 0.8, 1.0, returns)
        goal = {"normal": 0.0, "uniform": 0.5, "mostly-the-limit": 0.9}[kind]
        if returns.mean() >= goal:
            good += 1
            wrong += given_up_at(returns, goal) < 100
    assert good > 400 and wrong <= 2 * ERROR * good


def test_it_gives_up_what_is_far_off_soon() -> None:
    returns = np.random.default_rng(0).normal(size=100)
    assert given_up_at(returns, 2.0) == MIN_RETURNS
    assert given_up_at(returns, 0.5) < 60
    assert given_up_at(returns, -0.5) == 100


def test_equal_returns_do_not_tell_how_far_off_the_others_are() -> None:
    assert not falls_short([0.0] * 50, 100, 0.05)  # jackpots may come
    assert falls_short([0.0] * 49 + [0.001], 100, 0.05)


def test_without_a_goal_nothing_falls_short() -> None:
    assert not falls_short(list(range(50)), 100, -np.inf)
