"""The lambda-return: the one recursion behind every target of this package.

With `end = terminated | truncated`, `discount = gamma * (1 - terminated)` and `v[t]` the
bootstrap value of the true successor of step t:

    G[t] = r[t] + discount[t] * ( v[t]                                    if end[t] or t == T-1
                                  (1 - lam[t]) * v[t] + lam[t] * G[t+1]   otherwise )

lam = 0 is the one-step target and lam = 1 the n-step target (Mnih et al. 2016, algorithms 1 and
S2); between them lies Peng's Q(lambda) (Peng & Williams 1996; PQN, Gallici et al. 2024, eq. 4),
and lam[t] = 0 where action t+1 was exploratory is Watkins' cut (Watkins 1989).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def lambda_returns(
    rewards: Floats, discounts: Floats, ends: NDArray[np.bool_], values: Floats, lam: Floats
) -> Floats:
    """Return the targets G, float32 [T, B].

    All arguments are [T, B]; `values[t]` belongs to the true successor of step t (the final
    observation where an episode ended), and is ignored where the discount is 0.
    """
    carry = discounts * lam * ~ends
    carry[-1] = 0.0
    returns = rewards + (discounts - carry) * values
    for t in range(len(rewards) - 2, -1, -1):
        returns[t] += carry[t] * returns[t + 1]
    return returns
