"""Munchausen Q-learning (Vieillard et al. 2020, eq. 1): soft values, and log pi in the reward.

With pi = softmax(Q / tau) of the target network (the acting one where there is none), the reward
grows by alpha tau log pi(a|s), cut at l_0, and v = tau log sum exp(Q / tau). Any trace fits.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.algorithms.exploration import Floats
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import actions_taken, forward_rollout

ALPHA, TAU, LOWEST = 0.9, 0.03, -1.0


class Munchausen(QLearning):
    """Q-learning with the maximum replaced by its soft form."""

    asks_network = True

    def rewards(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> Floats:
        q_values = forward_rollout(online if target is None else target, rollout).q_values
        log_pi = (q_values / TAU).log_softmax(1).gather(1, actions_taken(rollout))
        bonus = ALPHA * (TAU * log_pi).clamp(LOWEST, 0.0)
        return rollout.rewards + bonus.numpy().reshape(rollout.rewards.shape)

    def bootstrap(
        self, q_values: Floats, acting: Floats | None, rollout: Rollout, rows: NDArray[np.int64]
    ) -> Floats:
        return TAU * (torch.from_numpy(q_values) / TAU).logsumexp(1).numpy()
