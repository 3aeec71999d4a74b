"""The environment a peer trains on: one of ours, as a plain `gymnasium.Env`.

Observations have the layout that our evaluator gives to networks. Infos of an episode's last step
hold its true score and length under "episode", as the wrappers of other libraries have it.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from async_dqn.envs import make
from async_dqn.envs.rows import row_writer
from async_dqn.envs.spec import EnvInfo, EnvSpec

StepResult = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def training_env(spec: EnvSpec, info: EnvInfo) -> gymnasium.Env:
    """One environment to train on; raises UserError where it cannot be made."""
    return AtariGame(spec, info) if spec.is_atari else SingleEnv(spec, info)


class TrainingEnv(gymnasium.Env):
    """The spaces, and the score of the episode so far."""

    def __init__(self, info: EnvInfo) -> None:
        self.observation_space = _observation_space(info)
        self.action_space = spaces.Discrete(info.num_actions)
        self._score, self._length = 0.0, 0

    def _infos(self, score: float, over: bool) -> dict[str, Any]:
        """Those of a step with this score; after the last one of an episode it counts from 0."""
        episode = {"r": self._score + score, "l": self._length + 1}
        self._score, self._length = (0.0, 0) if over else episode.values()
        return {"episode": episode} if over else {}


class SingleEnv(TrainingEnv):
    """Any environment but Atari, cut at the limit that holds for our methods too."""

    def __init__(self, spec: EnvSpec, info: EnvInfo) -> None:
        super().__init__(info)
        self._env, self._limit = make.make_env(spec)
        self._first_action = int(self._env.action_space.start)
        self._row = np.zeros((1, *info.observation_shape), info.dtype)
        space = self._env.observation_space
        self._write = row_writer(space, self._row, make.layout_of(spec, space))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        observation, _ = self._env.reset(seed=seed)
        self._score, self._length = 0.0, 0
        return self._laid_out(observation), {}

    def step(self, action: Any) -> StepResult:
        """Take one of the numbered actions."""
        observation, reward, terminated, truncated, _ = self._env.step(
            int(action) + self._first_action
        )
        truncated = bool(truncated or self._length + 1 >= self._limit)
        infos = self._infos(float(reward), terminated or truncated)
        return self._laid_out(observation), float(reward), bool(terminated), truncated, infos

    def close(self) -> None:
        """Free the environment."""
        self._env.close()

    def _laid_out(self, observation: Any) -> np.ndarray:
        self._write(0, observation)
        return self._row[0].copy()


class AtariGame(TrainingEnv):
    """Atari as DQN learns it: clipped rewards; a lost life terminates, a reset then goes on."""

    def __init__(self, spec: EnvSpec, info: EnvInfo) -> None:
        super().__init__(info)
        self._batch = make.make_vector(spec, 1, training=True)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """The observation after the last end; with a seed, a new game."""
        if seed is not None:
            self._next = self._batch.reset([seed])[0].copy()
            self._score, self._length = 0.0, 0
        return self._next, {}

    def step(self, action: Any) -> StepResult:
        """Take one action for four frames."""
        step = self._batch.step(np.array([action]))
        over = bool(step.ended[0])
        self._next = step.obs[0].copy()
        observation = step.final_obs[0].copy() if over else self._next
        infos = self._infos(float(step.scores[0]), over)
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        return observation, float(step.rewards[0]), terminated, truncated, infos

    def close(self) -> None:
        """Free the environment."""
        self._batch.close()


def _observation_space(info: EnvInfo) -> spaces.Box:
    """The layout's space. Bytes go up to 255, or 1 where they are flags: SB3 divides the former
    by 255 in images, and leaves the latter as they are."""
    if info.dtype == "uint8" and info.kind != "parts":
        return spaces.Box(0, round(1 / info.scale), info.observation_shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, info.observation_shape, np.float32)
