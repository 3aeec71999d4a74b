"""Asynchronous one-step Q-learning (Mnih et al. 2016, algorithm 1): y = r + gamma max Q(s')."""

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config import AlgorithmConfig


def build(config: AlgorithmConfig) -> QLearning:
    return QLearning(lam=0.0, double=config.double)
