"""Interquartile mean and bootstrap intervals, against hand counts and full enumeration."""

import itertools

import numpy as np
import pytest

from async_dqn.report.bootstrap import bootstrap_interval, iqm, ratio_interval


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7], 7),
        ([1, 2, 6], 3),  # nothing to cut from three
        ([100, 1, 2, -50], 1.5),
        ([3, 1000, 1, 2, -9], 2),
        ([8, 1, 2, 3, 4, 5, 6, 7], 4.5),  # two cut at each end
        ([[1, 2], [3, 100]], 2.5),  # of all, whatever the shape
    ],
)
def test_interquartile_mean_of_known_scores(scores, expected):
    assert iqm(scores) == expected


def test_interquartile_mean_along_an_axis():
    scores = np.array([[1.0, 10], [2, 20], [3, 30], [999, -999]])
    np.testing.assert_array_equal(iqm(scores, axis=0), [2.5, 15])


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="no scores"):
        iqm([])
    with pytest.raises(ValueError, match="without runs"):
        bootstrap_interval([[1.0], []])


@pytest.mark.parametrize("statistic", [iqm, np.mean, np.median])
def test_interval_of_one_stratum_is_that_of_all_resamples(statistic):
    runs = [1.0, 2.0, 4.0, 9.0]
    every = [statistic(np.array(draw), axis=0) for draw in itertools.product(runs, repeat=4)]
    expected = np.quantile(every, [0.1, 0.9])
    found = bootstrap_interval([runs], statistic, level=0.8, resamples=100_000)
    # The quantiles of a discrete distribution are its own values.
    np.testing.assert_allclose(found, expected)


def test_strata_are_resampled_each_by_itself():
    # Each task is constant: drawn within tasks, the mean never moves; drawn over all, it would.
    low, high = bootstrap_interval([[0.0] * 3, [10.0] * 3], np.mean)
    assert (low, high) == (5.0, 5.0)


def test_points_in_time_are_kept():
    curves = np.array([[1.0, 0.0], [1.0, 5.0], [1.0, 10.0]])
    low, high = bootstrap_interval([curves])
    assert low.shape == high.shape == (2,)
    assert low[0] == high[0] == 1
    assert 0 <= low[1] < 5 < high[1] <= 10


def test_a_higher_level_is_wider_and_levels_are_checked():
    runs = [list(range(10))]
    narrow, wide = bootstrap_interval(runs, level=0.5), bootstrap_interval(runs, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(runs, level=95)


def test_the_seed_decides():
    runs = [np.random.default_rng(0).normal(size=20)]
    assert bootstrap_interval(runs, seed=1) == bootstrap_interval(runs, seed=1)
    assert bootstrap_interval(runs, seed=1) != bootstrap_interval(runs, seed=2)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        sample = generator.normal(3.0, 1.0, 30)
        low, high = bootstrap_interval([sample], np.mean, level=0.9, resamples=500)
        covered += low <= 3.0 <= high
    assert 165 <= covered <= 195  # 180 expected, less a little as with every percentile interval


def test_ratio_of_two_groups_is_that_of_all_pairs_of_resamples():
    above, below = [2.0, 4.0, 8.0], [1.0, 2.0, 4.0]
    medians = [
        [np.median(draw) for draw in itertools.product(runs, repeat=3)] for runs in (above, below)
    ]
    every = [a / b for a, b in itertools.product(*medians)]
    found = ratio_interval(above, below, level=0.8, resamples=100_000)
    np.testing.assert_allclose(found, np.quantile(every, [0.1, 0.9]))


@pytest.mark.parametrize(
    ("above", "below"), [([1, 2], [0, 1]), ([1, np.inf], [1, 2]), ([1, 2], [np.nan]), ([-1], [1])]
)
def test_ratio_needs_finite_values_above_0(above, below):
    with pytest.raises(ValueError, match="finite values above 0"):
        ratio_interval(above, below)
