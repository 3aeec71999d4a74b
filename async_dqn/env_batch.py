"""Batches of environments behind one interface, whatever vectorises them.

gymnasium's vectorised CartPole resets an ended environment in the NEXT step (a dummy step), ale-py
and our own loop in the SAME step (the true last observation travels in `final_obs`). `EnvBatch`
says which and hides the rest: seeds, the layout of `final_obs`, rewards clipped for learning but
scored in full, lost lives of Atari that end a return but not a game.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from async_dqn.env_spec import EnvInfo
from async_dqn.spaces import ObservationLayout, row_writer

SEED_LIMIT = 2**31  # ale-py takes int32 seeds, numpy's RandomState (MinAtar) 32 bits


class Step(NamedTuple):
    """What one step of B environments gave; arrays may be reused by the next step.

    `rewards` is what learning sees, `scores` the true rewards; `terminated` includes lost lives in
    Atari training, `ended` means that the episode is over and its return complete. `final_obs`
    [K, ...] holds the true last observations of `final_rows` [K], whose `obs` is the first one of
    the next episode. `dummy` rows only reset: no transition, nothing to count.
    """

    obs: np.ndarray  # [B, ...] uint8 or float32
    rewards: np.ndarray  # [B] float32
    scores: np.ndarray  # [B] float64
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    ended: np.ndarray  # [B] bool
    dummy: np.ndarray  # [B] bool
    final_rows: np.ndarray  # [K] int64
    final_obs: np.ndarray  # [K, ...] as obs


class EnvBatch:
    """B environments stepped together, around any gymnasium vector environment.

    `next_step` tells the autoreset mode: True means that the step after an end is a dummy.
    """

    def __init__(self, vector: VectorEnv, info: EnvInfo) -> None:
        self.vector = vector
        self.info = info
        self.num_envs = vector.num_envs
        self.next_step = vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        self._no_dummy = np.zeros(self.num_envs, np.bool_)
        self._dummy = self._no_dummy
        self._no_rows = np.zeros(0, np.int64)
        self._no_finals = np.zeros((0, *info.observation_shape), info.dtype)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start new episodes everywhere, one seed per environment; the observations [B, ...]."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        self._dummy = self._no_dummy
        observations, infos = self.vector.reset(seed=self._seed([int(seed) for seed in seeds]))
        self._started(infos)
        return np.asarray(observations, self.info.dtype)

    def step(self, actions: np.ndarray) -> Step:
        """Take actions int64 [B] from 0..num_actions-1.

        Whatever an environment raises passes through; the batch must then be made anew.
        """
        observations, scores, terminated, truncated, infos = self.vector.step(actions)
        ended = self._ended(terminated, truncated, infos)
        dummy, rows, finals = self._no_dummy, self._no_rows, self._no_finals
        if self.next_step:
            dummy, self._dummy = self._dummy, ended
        elif ended.any():
            rows = np.flatnonzero(ended)
            finals = _final_observations(infos, rows).astype(self.info.dtype, copy=False)
        return Step(
            np.asarray(observations, self.info.dtype),
            self._rewards(scores),
            np.asarray(scores, np.float64),
            terminated,
            truncated,
            ended,
            dummy,
            rows,
            finals,
        )

    def leave_out(self, row: int) -> None:
        """This row is of no interest until the next reset: skip it where that saves time."""

    def close(self) -> None:
        """Free the environments; safe to call twice."""
        self.vector.close()

    def _seed(self, seeds: list[int]) -> Any:
        """The seeds as this vector environment takes them: one generator here, hence one int."""
        return int(np.random.SeedSequence(seeds).generate_state(1, np.uint32)[0])

    def _started(self, infos: Mapping[str, Any]) -> None:
        """Called with the infos of a reset."""

    def _rewards(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores, np.float32)

    def _ended(
        self, terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
    ) -> np.ndarray:
        return terminated | truncated


class LoopBatch(EnvBatch):
    """Single environments in a loop, each with a seed of its own."""

    def _seed(self, seeds: list[int]) -> list[int]:
        return [seed % SEED_LIMIT for seed in seeds]

    def leave_out(self, row: int) -> None:
        self.vector.leave_out(row)


class AtariBatch(EnvBatch):
    """ale-py's vector environment in evaluation: whole games, true rewards."""

    def _seed(self, seeds: list[int]) -> np.ndarray:
        return np.array([seed % SEED_LIMIT for seed in seeds], np.int64)


class AtariTrainingBatch(AtariBatch):
    """Atari as DQN learns it: rewards clipped, a lost life terminates, the game goes on."""

    def _started(self, infos: Mapping[str, Any]) -> None:
        self._lives = infos["lives"].copy()

    def _rewards(self, scores: np.ndarray) -> np.ndarray:
        return np.sign(scores).astype(np.float32)  # scores are whole numbers: sign is clipping

    def _ended(
        self, terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
    ) -> np.ndarray:
        before, self._lives = self._lives, infos["lives"].copy()
        lost = (self._lives > 0) & (self._lives < before)
        return truncated | (terminated & ~lost)


class LoopVectorEnv(VectorEnv):
    """Single environments with SAME_STEP autoreset, in the form of `async_dqn.spaces`.

    Against SyncVectorEnv it keeps final observations of environments that reuse one array, cuts
    episodes without a wrapper per environment, and has under half the overhead per step.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, envs: Sequence[gymnasium.Env], layout: ObservationLayout, limit: int):
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        assert isinstance(actions, spaces.Discrete)
        low, high = (0, 255) if layout.dtype == "uint8" else (-np.inf, np.inf)
        self.single_observation_space = spaces.Box(low, high, layout.shape, layout.dtype)
        self.single_action_space = spaces.Discrete(int(actions.n))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._first_action = int(actions.start)
        self._limit = limit
        self._elapsed = [0] * self.num_envs
        self._playing = dict(enumerate(self.envs))
        self._observations = np.zeros((self.num_envs, *layout.shape), layout.dtype)
        self._finals = np.zeros_like(self._observations)
        self._write = row_writer(space, self._observations)
        self._write_final = row_writer(space, self._finals)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all, with one seed per environment (a list)."""
        for row, env in enumerate(self.envs):
            observation, _ = env.reset(seed=seed[row] if seed is not None else None)
            self._write(row, observation)
        self._elapsed = [0] * self.num_envs
        self._playing = dict(enumerate(self.envs))
        return self._observations, {}

    def leave_out(self, row: int) -> None:
        """Step this environment no more until the next reset; its row keeps what it holds."""
        del self._playing[row]

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all; `final_obs` is dense, valid in the rows of the mask `_final_obs`."""
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), np.bool_)
        elapsed, limit, write = self._elapsed, self._limit, self._write
        chosen = (actions + self._first_action).tolist() if self._first_action else actions.tolist()
        for row, env in self._playing.items():
            observation, rewards[row], terminated, truncated, _ = env.step(chosen[row])
            elapsed[row] += 1
            if terminated or truncated or elapsed[row] >= limit:
                terminations[row] = terminated
                truncations[row] = truncated or elapsed[row] >= limit
                self._write_final(row, observation)
                observation, _ = env.reset()
                elapsed[row] = 0
            write(row, observation)
        infos = {"final_obs": self._finals, "_final_obs": terminations | truncations}
        return self._observations, rewards, terminations, truncations, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()


def _final_observations(infos: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """Final observations [K, ...] of `rows`; both layouts: an object array, or dense."""
    finals = infos["final_obs"]
    return np.stack(list(finals[rows])) if finals.dtype == object else finals[rows]
