"""Q(lambda): Peng's (Peng & Williams 1996; PQN, Gallici et al. 2024) or Watkins' (1989) form.

Peng's trace runs on through exploratory actions; Watkins' is cut there and so unbiased.
"""

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config import AlgorithmConfig


def build(config: AlgorithmConfig) -> QLearning:
    return QLearning(lam=config.lam, double=config.double, watkins=config.trace == "watkins")
