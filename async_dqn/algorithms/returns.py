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


def composed_returns(
    rewards: Floats, discounts: Floats, ends: NDArray[np.bool_], lam: Floats
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The same targets, taken apart, for lam of only 0 and 1: G = R + D * v[successor].

    Returns R and D, float32 [T, B], and the flat row t * B + b of the step whose true successor
    the return ends in, [T, B]. Distributions are projected once from these (Bellemare et al. 2017),
    not step by step.
    """
    returns, products = rewards.copy(), discounts.copy()
    rows = np.arange(rewards.size).reshape(rewards.shape)
    runs_on = (lam > 0) & ~ends
    for t in range(len(rewards) - 2, -1, -1):
        on = runs_on[t]
        returns[t] += np.where(on, discounts[t] * returns[t + 1], 0)
        products[t] *= np.where(on, products[t + 1], 1)
        rows[t] = np.where(on, rows[t + 1], rows[t])
    return returns, products, rows


# Value rescaling (Pohlen et al. 2018, prop. A.2): h compresses large returns, h^-1 undoes it.

RESCALING_EPS = 1e-3


def rescale(x: Floats) -> Floats:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x."""
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + RESCALING_EPS * x


def unscale(x: Floats) -> Floats:
    """The inverse of `rescale`."""
    eps, size = RESCALING_EPS, np.abs(x, dtype=np.float64)  # cancellation near 0
    root = np.sqrt(1 + 4 * eps * (size + 1 + eps))
    return (np.sign(x) * (((root - 1) / (2 * eps)) ** 2 - 1)).astype(x.dtype)
