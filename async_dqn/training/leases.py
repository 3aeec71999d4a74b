"""Leases: how a step budget is met exactly by workers of different speed.

Fixed shares would leave the fast worker idle for the slow one. So each worker may count steps up
to its limit, and the trainer raises the limit before it is reached: by what the worker does in
half a second, and by less and less as the budget runs out.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

LEASE_SECONDS = 0.5
FIRST_ROLLOUTS = 64  # before the speed is known


def grant(
    limits: NDArray[np.int64],
    steps: NDArray[np.int64],
    budget: int,
    rollout: int,
    speeds: Sequence[float] | None = None,
    retired: Collection[int] = (),
) -> None:
    """Raise `limits` [W] in place so that they add up to at most `budget` steps.

    `steps` [W] is what each worker has counted, `rollout` the steps of one whole rollout, `speeds`
    [W] are in steps/s (None: not known yet). A retired worker gets nothing more; the caller has
    cut its limit to its steps.
    """
    for worker, (limit, counted) in enumerate(zip(limits.tolist(), steps.tolist())):
        remaining = budget - int(limits.sum())
        ahead = FIRST_ROLLOUTS * rollout if speeds is None else LEASE_SECONDS * speeds[worker]
        rollouts = max(1, int(min(ahead, remaining // (4 * len(limits))) // rollout))
        share = rollouts * rollout
        if worker not in retired and remaining > 0 and limit - counted < share / 2:
            limits[worker] += min(remaining, share)


def share(limits: NDArray[np.int64], budget: int) -> None:
    """Give all at once, in equal parts: for workers that wait for each other."""
    count = len(limits)
    limits[:] = [budget * (k + 1) // count - budget * k // count for k in range(count)]
