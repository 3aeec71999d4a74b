"""Few seeds, honestly summed up: interquartile mean and bootstrap intervals.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264): the mean of the middle half of the scores, and percentile intervals from
resampling the seeds of each task by themselves. The same seed gives the same interval.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2_000
Statistic = Callable[..., Any]  # reduces one axis, as numpy's own do


def iqm(scores: ArrayLike, axis: int | None = None) -> Any:
    """Interquartile mean along `axis` (None: of all): a quarter of the n scores, rounded down, is
    left out at each end. So three scores give their mean, four or five lose the two extremes.

    Raises ValueError without scores.
    """
    values = np.asarray(scores, float)
    if axis is None:
        values, axis = values.ravel(), 0
    ordered = np.sort(values, axis)
    count = ordered.shape[axis]
    if not count:
        raise ValueError("no scores")
    cut = count // 4
    return np.take(ordered, range(cut, count - cut), axis).mean(axis)


def bootstrap_interval(
    strata: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Stratified bootstrap percentile interval (low, high) of `statistic` over all runs.

    Each stratum is a task: an array [runs, ...] whose runs are drawn with replacement among
    themselves; the rest of its shape (such as points in time) is kept and must be the same in all
    strata. Raises ValueError for an empty stratum or a level outside (0, 1).
    """
    generator = np.random.default_rng(seed)
    samples = [_resampled(stratum, resamples, generator) for stratum in strata]
    return _interval(statistic(np.concatenate(samples, axis=1), axis=1), level)


def ratio_interval(
    above: ArrayLike,
    below: ArrayLike,
    statistic: Statistic = np.median,
    level: float = 0.90,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval (low, high) of statistic(above) / statistic(below).

    The two groups of runs are independent and resampled each by itself. Raises ValueError unless
    every value is finite and above 0: put a bound in the place of a run that did not arrive.
    """
    values = np.concatenate([np.asarray(above, float), np.asarray(below, float)])
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError("a ratio needs finite values above 0")
    generator = np.random.default_rng(seed)
    groups = (_resampled(runs, resamples, generator) for runs in (above, below))
    over, under = (statistic(group, axis=1) for group in groups)
    low, high = _interval(over / under, level)
    return float(low), float(high)


def _resampled(runs: ArrayLike, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """[resamples, runs, ...]: as many runs as there are, drawn with replacement."""
    values = np.asarray(runs, float)
    if not len(values):
        raise ValueError("a stratum without runs")
    return values[generator.integers(len(values), size=(resamples, len(values)))]


def _interval(estimates: np.ndarray, level: float) -> tuple[Any, Any]:
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not at {level}")
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high
