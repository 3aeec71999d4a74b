"""Asynchronous n-step Q-learning (Mnih et al. 2016, algorithm S2), n = what the rollout leaves.

Carries the return on through exploratory actions: fast, and biased by them.
"""

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config import AlgorithmConfig


def build(config: AlgorithmConfig) -> QLearning:
    return QLearning(lam=1.0, double=config.double)
