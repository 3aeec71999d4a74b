"""An exploration that starts again: epsilon falls along a cosine, in ever longer cycles.

python launch.py --import warm_restarts --exploration warm_restarts:WarmRestarts
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmRestarts:
    """After SGDR (Loshchilov & Hutter 2017, eq. 5), for epsilon in place of the learning rate."""

    first: int = 20_000  # global steps of the first cycle
    factor: float = 2.0  # each is so many times as long as the one before
    low: float = 0.02

    def __call__(self, step, count):
        """The epsilon at a global step, one for all `count` environments."""
        length = float(self.first)
        while step >= length:
            step, length = step - length, length * self.factor
        return self.low + (1 - self.low) * (1 + math.cos(math.pi * step / length)) / 2
