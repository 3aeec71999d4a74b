"""EnvPool's environments, written in C++, for workers; the evaluator keeps gymnasium's own.

https://github.com/sail-sg/envpool. Its episodes are reset in the step after their end (NEXT_STEP),
it takes seeds only when made, and counts a lost life of Atari nowhere. An episode that ends by
itself in the very step of its limit is told as cut.
"""

import importlib.util
import warnings
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from async_dqn.config.config import UserError
from async_dqn.envs.spec import EnvInfo, EnvSpec

# What ale-py calls otherwise, or leaves to the caller (None).
ATARI_NAMES = {
    "game": None,
    "max_num_frames_per_episode": None,
    "frameskip": "frame_skip",
    "grayscale": "gray_scale",
}


class PoolVectorEnv(VectorEnv):
    """EnvPool's version of an environment, as one gymnasium vector environment of `num_envs`.

    `kwargs` are those of gymnasium's version, which `info` describes. Raises UserError where the
    package or the environment is missing, or differs from gymnasium's in its spaces.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, spec: EnvSpec, num_envs: int, info: EnvInfo, kwargs: dict[str, Any]):
        if importlib.util.find_spec("envpool") is None:
            raise UserError('--env-backend envpool needs EnvPool; pip install -e ".[envpool]"')
        import envpool  # almost a second

        self.num_envs, self._envpool, self._ends = num_envs, envpool, spec.life_loss_ends
        self._id = spec.name.rpartition("/")[2]
        if spec.id is None or self._id not in envpool.list_all_envs():
            raise UserError(f"EnvPool has no {spec.name}; drop --env-backend envpool")
        renamed = {ATARI_NAMES.get(name, name): value for name, value in kwargs.items()}
        renamed.pop(None, None)
        limit = {"max_episode_steps": info.max_episode_steps}
        self._kwargs = {**renamed, **limit, "num_envs": num_envs, "num_threads": 1}
        own = envpool.make_spec(self._id, **self._kwargs)
        shape, actions = own.observation_space.shape, own.action_space.n
        if (shape, actions) != (info.observation_shape, info.num_actions):
            raise UserError(
                f"EnvPool's {spec.name} has observations {shape} and {actions} actions, "
                f"gymnasium's {info.observation_shape} and {info.num_actions}; "
                "drop --env-backend envpool"
            )
        self._pool: Any = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Make all anew, with seeds from `seed`, a number or several."""
        self.close()
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) >> 1  # int32
        with warnings.catch_warnings(action="ignore"):  # its spaces lose precision, each time
            self._pool = self._envpool.make_gymnasium(
                self._id, **self._kwargs, env_seed=seeds.tolist()
            )
        observations, infos = self._pool.reset()
        self._lives = infos["lives"].copy() if self._ends and "lives" in infos else None
        return observations, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of VectorEnv; a lost life of Atari terminates, as in ale-py, where it is to."""
        observations, rewards, terminated, truncated, infos = self._pool.step(actions)
        if self._lives is not None:
            terminated = terminated | (infos["lives"] < self._lives)
            self._lives = infos["lives"].copy()
        return observations, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        """Free the environments; safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
