"""Who explores how much: final epsilons over all environments, annealed over global steps.

The ladder is the mix of Mnih et al. 2016 (section 5.1): final epsilons 0.1, 0.01 and 0.5 in the
proportions 0.4, 0.3, 0.3. The paper draws one per worker; here they are dealt over all W x B
environments by largest remainder, so that the mix is the same at every number of workers.
"""

import numpy as np
from numpy.typing import NDArray

LADDER = ((0.1, 0.4), (0.01, 0.3), (0.5, 0.3))


def ladder(count: int) -> NDArray[np.float32]:
    """Return the final epsilons [count] in the ladder's proportions, evenly interleaved."""
    shares = np.array([share for _, share in LADDER]) * count
    counts = np.floor(shares).astype(int)
    neediest = np.argsort(counts - shares, kind="stable")
    counts[neediest[: count - counts.sum()]] += 1
    dealt = [((k + 0.5) / n, epsilon) for (epsilon, _), n in zip(LADDER, counts) for k in range(n)]
    return np.array([epsilon for _, epsilon in sorted(dealt)], np.float32)


def final_epsilons(exploration: str, epsilon_final: float, count: int) -> NDArray[np.float32]:
    """Return the final epsilon of each of `count` environments for `--exploration`."""
    if exploration == "ladder":
        return ladder(count)
    return np.full(count, epsilon_final, np.float32)


def anneal(
    finals: NDArray[np.float32], start: float, anneal_steps: int, step: int
) -> NDArray[np.float32]:
    """Return epsilon [B] at a GLOBAL step: linear from `start` to `finals` over `anneal_steps`."""
    progress = min(1.0, step / anneal_steps) if anneal_steps else 1.0
    return (start + (finals - start) * progress).astype(np.float32)


def epsilon_greedy(
    q_values: NDArray[np.float32], epsilon: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose actions [B] from `q_values` [B, A]; also say which of them are greedy, [B]."""
    best = q_values.argmax(axis=1)
    explore = generator.random(len(best)) < epsilon
    if not explore.any():
        return best, ~explore
    actions = np.where(explore, generator.integers(q_values.shape[1], size=len(best)), best)
    return actions, actions == best
