"""The registry: `--algorithm NAME` and its variants -> the object that acts and has the loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from async_dqn.algorithms.a3c import ActorCritic
from async_dqn.algorithms.actions import FLAT, Branched, Flat
from async_dqn.algorithms.distributional import Categorical, Quantile
from async_dqn.algorithms.exploration import BOLTZMANN, EPSILON_GREEDY, Choice, Floats, Policy
from async_dqn.algorithms.munchausen import Munchausen
from async_dqn.algorithms.one_step_sarsa import Sarsa
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import LossOutput
from async_dqn.config.config import Config
from async_dqn.networks.network import QOutput


class Algorithm(Protocol):
    """Pure: the same object serves a worker, an evaluation and a test."""

    def act(self, output: QOutput, epsilon: Floats, generator: np.random.Generator) -> Choice:
        """Return actions [B] and which of them are greedy [B]."""

    def loss(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> LossOutput:
        """The loss of the rollout, of which some weight must not be 0."""


def _q_learning(lam: Callable[[Config], float]) -> Callable[[Config, Flat], Algorithm]:
    """Q-learning with this trace, in the variant the settings name."""

    def build(config: Config, actions: Flat) -> Algorithm:
        common = {"lam": lam(config), "double": config.algorithm.double}
        common |= _common(config, actions)
        watkins = config.algorithm.algorithm == "q-lambda" and config.algorithm.trace == "watkins"
        common["watkins"] = watkins
        network = config.network
        if network.distributional == "categorical":
            return Categorical(**common, v_min=network.v_min, v_max=network.v_max)
        if network.distributional == "quantile":
            return Quantile(**common)
        return (Munchausen if config.algorithm.munchausen else QLearning)(**common)

    return build


def _common(config: Config, actions: Flat) -> dict[str, Any]:
    policy = BOLTZMANN if config.exploration.exploration == "boltzmann" else EPSILON_GREEDY
    if isinstance(actions, Branched):
        policy = Policy(actions.explore)
    return {"rescaled": config.algorithm.value_rescaling, "policy": policy, "actions": actions}


BUILDERS: dict[str, Callable[[Config, Flat], Algorithm]] = {
    "one-step-q": _q_learning(lambda config: 0.0),
    "one-step-sarsa": lambda config, actions: Sarsa(lam=0.0, **_common(config, actions)),
    "n-step-q": _q_learning(lambda config: 1.0),
    "q-lambda": _q_learning(lambda config: config.algorithm.lam),
    "a3c": lambda config, actions: ActorCritic(config.algorithm.entropy_weight),
}


def build_algorithm(config: Config, own: Any = None, actions: Flat = FLAT) -> Algorithm:
    """Build the algorithm that the settings name; `own` is that of the user, if it is theirs.

    One built on `QLearning` gets the variants that its traits declare.
    """
    if own is None:
        return BUILDERS[config.algorithm.algorithm](config, actions)
    if not isinstance(own, QLearning):
        return own
    fields = {"double": config.algorithm.double, **_common(config, actions)}
    variants = {"double": "double", "rescaled": "value_rescaling", "actions": "branching"}
    variants["policy"] = "branching" if isinstance(actions, Branched) else "boltzmann"
    taken = {n: value for n, value in fields.items() if variants[n] in own.traits.variants}
    return replace(own, **taken)
