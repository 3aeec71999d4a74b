"""A sequential test: whether a mean over all episodes is lost, asked while they are played.

Let X be the first m of N returns in a fixed order, with S[m] their sum, and W = S[m] - m/N S[N].
With independent returns W / (sigma sqrt(N)) is a Brownian bridge at time m/N, whose minimum is
below -b with probability exp(-2 b^2) (Doob 1949; Smirnov 1944). Where the final mean reaches the
goal, S[m] - m goal >= W: so "S[m] - m goal < -b sigma sqrt(N)", asked however often, gives up
such an evaluation with at most that probability. That is exact for known sigma and many returns;
sigma is estimated from those that are there, so there must be some.
"""

import math
from collections.abc import Sequence

import numpy as np

ERROR = 0.01  # probability of giving up what would have reached the goal, over all looks
MIN_RETURNS = 20
BOUND = math.sqrt(-math.log(ERROR) / 2)  # b


def falls_short(returns: Sequence[float], episodes: int, goal: float) -> bool:
    """Whether the mean of `episodes` returns will be below `goal`; these are the first of them.

    They must be a prefix of a fixed order, not those that finished first, which are the short ones.
    """
    count = len(returns)
    if count < MIN_RETURNS:
        return False
    spread = float(np.std(returns, ddof=1))
    if spread == 0:  # they do not tell how far off the others may be
        return False
    return sum(returns) - count * goal < -BOUND * spread * math.sqrt(episodes)
