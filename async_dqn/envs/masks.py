"""Which actions are legal now: where an environment says so, and how that gets into observations.

Three conventions are known: `info["action_mask"]` at every reset and step (gymnasium's Taxi), the
key "action_mask" of a Dict observation (PettingZoo, RLlib), and a method `action_masks()`
(sb3-contrib). The mask [A] of zeros and ones becomes the last part of the observation.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from async_dqn.config.config import UserError
from async_dqn.envs.actions import DiscretizeAction, MixedRadixAction
from async_dqn.envs.spaces import MASK
from async_dqn.envs.spec import EnvInfo

METHOD = "action_masks"
# Where masks come from (`EnvSpec.masks`), in words.
SOURCES = {
    "info": "info['action_mask']",
    "observation": "the observation's 'action_mask'",
    "method": "action_masks()",
}


class Masked(gymnasium.Wrapper):
    """Observations become {"observation": ..., "action_mask": ...}, the mask None if missing."""

    def __init__(self, env: gymnasium.Env, source: str) -> None:
        super().__init__(env)
        self.source = source
        flags = spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = spaces.Dict({"observation": env.observation_space, MASK: flags})
        self._ask = env.get_wrapper_attr(METHOD) if source == "method" else None

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As of the environment."""
        observation, info = self.env.reset(**kwargs)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """As of the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get(MASK) if self._ask is None else self._ask()
        return {"observation": observation, MASK: mask}


def source_of(env: gymnasium.Env) -> str | None:
    """Where an environment tells legal actions, as far as that can be seen without a reset."""
    if isinstance(env, Masked):
        return env.source
    if isinstance(env.observation_space, spaces.Dict) and MASK in env.observation_space.spaces:
        return "observation"
    return "method" if env.has_wrapper_attr(METHOD) else None


def with_masks(env: gymnasium.Env, masks: str, name: str) -> gymnasium.Env:
    """The environment with the masks it tells, if any, in its observations.

    `masks` is `EnvSpec.masks`; `env` has numbered actions. Raises UserError where masks do not fit
    the actions.
    """
    source = source_of(env) if masks == "auto" else masks
    if source in (None, "none"):
        return env
    if isinstance(env, DiscretizeAction | MixedRadixAction):
        raise UserError(
            f"{name} masks actions ({SOURCES[source]}) that are not Discrete, which is not "
            "supported; --action-masks none ignores the masks"
        )
    if source != "observation":
        return Masked(env, source)
    space, actions = env.observation_space.spaces[MASK], int(env.action_space.n)
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or space.shape != (actions,):
        raise UserError(
            f"{name} has {space} at '{MASK}' for {actions} actions; make it "
            f"MultiBinary({actions}), or --action-masks none takes it for features"
        )
    return env


def told_mask(env: gymnasium.Env, told: str | None, info: Mapping[str, Any]) -> Any:
    """The mask [A] that goes beside an observation, `told` as `EnvInfo.masks`; None without one."""
    if told == "method":
        return env.get_wrapper_attr(METHOD)()
    return info.get(MASK) if told == "info" else None


def legal_actions(
    info: EnvInfo, observations: NDArray, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Random ones [B], each as likely, by the masks in observations [B, ...] if there are any."""
    if info.masks is None:
        return generator.integers(info.num_actions, size=len(observations))
    legal = observations[:, -info.num_actions :]
    return ((1 - generator.random(legal.shape)) * legal).argmax(axis=1)


def some_legal(info: EnvInfo, observations: NDArray) -> NDArray[np.int64]:
    """The first legal ones [B]."""
    if info.masks is None:
        return np.zeros(len(observations), np.int64)
    return observations[:, -info.num_actions :].argmax(axis=1)


def first_legal(env: gymnasium.Env, mask: Any) -> Any:
    """The first legal one of the environment's own actions; simply the first without a mask."""
    legal = np.ravel(np.asarray(mask) == 1)
    number = int(legal.argmax()) if legal.size == env.action_space.n else 0
    return env.action_space.dtype.type(env.action_space.start + number)
