"""The lambda-return against its definition: a weighted sum of n-step returns."""

import math

import numpy as np
import pytest

from async_dqn.algorithms.returns import composed_returns, lambda_returns, rescale, unscale

GAMMA = 0.9


def forward_view(rewards, discounts, ends, values, lam):
    """G[t] as the explicit sum over the n-step returns from t, weighted by products of lam."""
    length, count = rewards.shape
    returns = np.zeros((length, count))
    for b in range(count):
        for t in range(length):
            last = next(k for k in range(t, length) if ends[k, b] or k == length - 1)
            for n in range(1, last - t + 2):
                rows = range(t, t + n)
                n_step = sum(
                    math.prod(float(discounts[j, b]) for j in range(t, k)) * rewards[k, b]
                    for k in rows
                )
                n_step += math.prod(float(discounts[k, b]) for k in rows) * values[t + n - 1, b]
                weight = math.prod(float(lam[k, b]) for k in range(t, t + n - 1))
                if t + n - 1 < last:
                    weight *= 1 - float(lam[t + n - 1, b])
                returns[t, b] += weight * n_step
    return returns


def random_case(rng: np.random.Generator, lam: float | None = None) -> tuple[np.ndarray, ...]:
    """Rewards, discounts, ends, values and lam [T, B]; both kinds of end."""
    shape = tuple(rng.integers(1, (10, 4)))
    terminated = rng.random(shape) < 0.15
    ends = terminated | (rng.random(shape) < 0.15)
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    discounts = (GAMMA * ~terminated).astype(np.float32)
    if lam is None:
        traces = rng.choice([0, 1, 0.65, rng.random()], size=shape)
    else:
        traces = np.full(shape, lam)
    return rewards, discounts, ends, values, traces.astype(np.float32)


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0, None])
def test_equals_the_weighted_sum_of_n_step_returns(lam: float | None) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        case = random_case(rng, lam)
        returns = lambda_returns(*case)
        assert returns.dtype == np.float32
        np.testing.assert_allclose(returns, forward_view(*case), rtol=1e-5, atol=1e-5)


def test_leaves_its_arguments_as_they_were() -> None:
    case = random_case(np.random.default_rng(2))
    before = [array.copy() for array in case]
    lambda_returns(*case)
    for array, old in zip(case, before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("terminated", [True, False])
def test_what_follows_a_boundary_moves_no_target_before_it(terminated: bool) -> None:
    rng = np.random.default_rng(3)
    rewards, values = rng.normal(size=(2, 8, 1)).astype(np.float32)
    discounts = np.full((8, 1), GAMMA, np.float32)
    ends = np.zeros((8, 1), bool)
    ends[3], discounts[3] = True, 0.0 if terminated else GAMMA
    lam = np.ones((8, 1), np.float32)
    before = lambda_returns(rewards, discounts, ends, values, lam)
    rewards[4:] += 100
    values[4:] -= 50
    after = lambda_returns(rewards, discounts, ends, values, lam)
    np.testing.assert_array_equal(after[:4], before[:4])
    assert (after[4:] != before[4:]).all()
    values[3] += 1  # the bootstrap at the boundary itself: read only if the episode was truncated
    moved = lambda_returns(rewards, discounts, ends, values, lam)[:4] != before[:4]
    assert moved.all() if not terminated else not moved.any()


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_constant_reward_truncated_at_10_has_the_endless_sum_as_fixed_point(lam: float) -> None:
    ends = np.zeros((25, 1), bool)
    ends[9::10] = True
    ones = np.ones((25, 1), np.float32)
    endless = 1 / (1 - GAMMA)
    returns = lambda_returns(ones, GAMMA * ones, ends, endless * ones, lam * ones)
    np.testing.assert_allclose(returns, endless, rtol=1e-6)


def test_a_composed_return_is_the_lambda_return_taken_apart() -> None:
    """For lam of 0 and 1: G = R + D * v of the row it names."""
    rng = np.random.default_rng(4)
    for _ in range(100):
        rewards, discounts, ends, values, lam = random_case(rng)
        lam = (lam > 0.5).astype(np.float32)
        returns, products, rows = composed_returns(rewards, discounts, ends, lam)
        expected = forward_view(rewards, discounts, ends, values, lam)
        composed = returns + products * values.reshape(-1)[rows]
        np.testing.assert_allclose(composed, expected, rtol=1e-5, atol=1e-5)


def test_rescaling_compresses_and_unscaling_undoes_it() -> None:
    x = np.array([-1e6, -300.0, -1.0, 0.0, 0.5, 3.0, 99.0, 1e6], np.float64)
    np.testing.assert_allclose(rescale(np.array([3.0, -8.0])), [1.003, -2.008])  # by hand
    np.testing.assert_allclose(unscale(rescale(x)), x, rtol=1e-8, atol=1e-12)
    assert (np.diff(rescale(x)) > 0).all()
    single = np.linspace(-200, 200, 101, dtype=np.float32)
    np.testing.assert_allclose(unscale(rescale(single)), single, rtol=2e-3, atol=2e-3)
