"""Asynchronous one-step Sarsa (Mnih et al. 2016, section 4): y = r + gamma Q(s', a').

a' is the action really taken next, also across rollouts (it is pending). A truncated episode has
none: there the expectation under the exploring policy stands for it (Expected Sarsa, van Seijen et
al. 2009).
"""

import numpy as np
from numpy.typing import NDArray

from async_dqn.algorithms.exploration import Floats
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.rollout import Rollout


class Sarsa(QLearning):
    """On-policy: values what the exploring policy does."""

    def asks_acting(self, rollout: Rollout) -> bool:
        """At truncations, to know the policy."""
        return True

    def bootstrap(
        self, q_values: Floats, acting: Floats | None, rollout: Rollout, rows: NDArray[np.int64]
    ) -> Floats:
        taken = q_values[np.arange(len(rows)), rollout.actions[1:].reshape(-1)[rows]]
        epsilon = rollout.epsilon[rows % rollout.rewards.shape[1]]
        expected = (self.policy.probabilities(acting, epsilon) * q_values).sum(axis=1)
        return np.where(rollout.ends.reshape(-1)[rows], expected, taken)
