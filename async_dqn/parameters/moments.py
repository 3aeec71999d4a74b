"""Running mean and variance of what the workers see, in the shared block.

Every worker adds to a row of its own, and readers merge the rows (Chan et al. 1983, eq. 2.1): no
word has two writers. What follows for observations lies among the parameters (`layers.Normalize`),
and so goes wherever they go; rewards are divided by the deviation of their discounted sum (as
Engstrom et al. 2020 describe it), by each learner, before it learns from them.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from async_dqn.parameters.block import SharedBlock

COUNT, MEAN, SQUARES = range(3)  # of a row; SQUARES: the sum of squared differences from the mean
NEWS = 1.01  # by what factor what was seen has to grow before the parameters hold it
LEAST_VARIANCE = 1e-8  # added, as in Engstrom et al.'s code
MOST_FACTOR = 1e3  # of rewards: one that is nearly always 0 would grow without bound


class Moments:
    """The view of one worker on `rows` float64 [workers + 1, 3, columns].

    The last row is what earlier sessions of the run saw.
    """

    def __init__(self, rows: NDArray[np.float64], worker: int):
        self.rows = rows
        self.worker = min(worker, len(rows) - 1)  # trainer and evaluator only read
        self._added = 0

    def add(self, values: NDArray) -> None:
        """Take in values [N, columns], all finite."""
        self._added = len(values)
        mean = values.mean(0, np.float64)
        count = np.full(len(mean), float(len(values)))
        seen = np.stack([count, mean, np.square(values - mean).sum(0)])
        own = self.rows[self.worker]
        own[:] = merged(np.stack([own, seen]))

    @property
    def has_news(self) -> bool:
        """Whether what all have seen passed a power of NEWS with what this worker added last.

        Nothing else is remembered, so that a resumed run goes on with the same answers.
        """
        count = self.rows[:, COUNT, 0].sum()
        powers = np.log(np.maximum(1, [count - self._added, count])) // math.log(NEWS)
        return count > 0 and (count <= self._added or powers[0] < powers[1])

    def restore(self, stored: NDArray[np.float64]) -> None:
        """Go on from the rows of an earlier session; other workers than then see them as past."""
        if stored.shape == self.rows.shape:
            self.rows[:] = stored
        else:
            self.rows[-1] = merged(stored)


def merged(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count, mean and sum of squares [3, columns] over all rows [R, 3, columns]."""
    count = rows[:, COUNT].sum(0)
    shares = rows[:, COUNT] / np.maximum(count, 1)
    mean = (shares * rows[:, MEAN]).sum(0)
    apart = rows[:, COUNT] * np.square(rows[:, MEAN] - mean)
    return np.stack([count, mean, rows[:, SQUARES].sum(0) + apart.sum(0)])


class RunMoments:
    """Those of a run: of observations and of discounted sums of rewards, where these are kept."""

    def __init__(self, block: SharedBlock, worker: int):
        self.inputs = Moments(block["input_moments"], worker)
        self.returns = Moments(block["return_moments"], worker)
        self.normalizes = self.inputs.rows.size > 0
        self.scales_rewards = self.returns.rows.size > 0
        self.parameters = 2 * self.inputs.rows.shape[2]  # that hold them, the first of all

        self._known: NDArray[np.float64] | None = None

    def begin(self) -> None:
        """Forget what others saw in this session, as a resumed run has to begin likewise."""
        self._known = None

    @property
    def reward_factor(self) -> float:
        """What rewards are multiplied with, by what all saw before the last push; until the first
        one by what this worker and earlier sessions saw. 1 while that is nothing."""
        known, returns = self._known, self.returns
        if known is None:
            known = merged(returns.rows[[returns.worker, -1]])
        count, _, squares = known[:, 0]
        return min(MOST_FACTOR, (squares / count) ** -0.5) if squares > 0 else 1.0

    def publish(self, theta: torch.Tensor, start: int) -> None:
        """Look at what all have seen, when no other adds to it where workers update together.

        Mean and factor of the inputs go where they lie in `theta`, a part of the parameters from
        number `start` on: they are the first of all.
        """
        if self.scales_rewards:
            self._known = merged(self.returns.rows)
        if start >= self.parameters or not self.inputs.has_news:
            return
        count, mean, squares = merged(self.inputs.rows)
        factor = (squares / count + LEAST_VARIANCE) ** -0.5
        both = np.concatenate([mean, factor]).astype(np.float32)[start:]
        theta[: len(both)] = torch.from_numpy(both[: len(theta)])


class DiscountedSums:
    """The discounted sums of rewards up to now, by environment."""

    def __init__(self, count: int, gamma: float):
        self.gamma, self._sums = gamma, np.zeros(count)

    def reset(self) -> None:
        """All episodes begin anew."""
        self._sums[:] = 0.0

    def after(self, rewards: NDArray[np.float32], ends: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The sums [T, B] after each of these steps; `ends` marks the last ones of episodes."""
        sums = np.empty(rewards.shape)
        for t in range(len(rewards)):
            self._sums = sums[t] = self.gamma * self._sums + rewards[t]
            self._sums = np.where(ends[t], 0.0, self._sums)
        return sums
