"""The registry: `--algorithm NAME` -> how to build it from its settings."""

from collections.abc import Callable

from async_dqn.algorithms import n_step_q, one_step_q, q_lambda
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config import AlgorithmConfig

Algorithm = QLearning  # act(output, epsilon, generator) and loss(online, target, rollout)

ALGORITHMS: dict[str, Callable[[AlgorithmConfig], Algorithm]] = {
    "one-step-q": one_step_q.build,
    "n-step-q": n_step_q.build,
    "q-lambda": q_lambda.build,
}


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """Build the algorithm that the settings name."""
    return ALGORITHMS[config.algorithm](config)
