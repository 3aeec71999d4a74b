"""Single environments stepped in a loop, as one gymnasium vector environment."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from async_dqn.envs.rows import row_writer
from async_dqn.envs.spaces import ObservationLayout

NUMBERS = (float, int)  # a tuple: a union takes twice the time
SLOW_S = 0.5  # a step of all that takes longer


class LoopVectorEnv(VectorEnv):
    """Single environments with SAME_STEP autoreset, in the form of `async_dqn.envs.spaces`.

    Against SyncVectorEnv it keeps final observations of environments that reuse one array, cuts
    episodes without a wrapper per environment, and has under half the overhead per step. What one
    environment raises does not stop the others: infos["failed"] holds the exceptions by row. Where
    single environments are slow, `alive` is called after each.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        envs: Sequence[gymnasium.Env],
        layout: ObservationLayout,
        limit: int,
        alive: Callable[[], None] = lambda: None,
    ):
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
        self._limit, self._alive = limit, alive
        self._slow = True  # until a step has shown otherwise
        self._elapsed = [0] * self.num_envs
        self._playing, self._restarts = dict(enumerate(self.envs)), True
        self.observations = np.zeros((self.num_envs, *layout.shape), layout.dtype)
        self._finals = np.zeros_like(self.observations)
        self._write = row_writer(space, self.observations, layout)
        self._write_final = row_writer(space, self._finals, layout)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all, with one seed per environment (a list)."""
        failed: dict[int, Exception] = {}
        for row, env in enumerate(self.envs):
            try:
                observation, _ = env.reset(seed=seed[row] if seed is not None else None)
                self._write(row, observation)
            except Exception as error:
                failed[row] = error
            self._alive()
        self._elapsed = [0] * self.num_envs
        self._playing = dict(enumerate(self.envs))
        return self.observations, {"failed": failed}

    def one_at_a_time(self) -> None:
        """From now on a row plays only the episode that `replace` starts, and then rests."""
        self._playing, self._restarts = {}, False

    def replace(self, row: int, env: gymnasium.Env, seed: int) -> None:
        """Put `env` in the place of this row's, which is closed, and start an episode."""
        if env is not self.envs[row]:
            with contextlib.suppress(Exception):  # it has failed
                self.envs[row].close()
        self.envs[row] = self._playing[row] = env
        observation, _ = env.reset(seed=seed)
        self._alive()
        self._write(row, observation)
        self._elapsed[row] = 0

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all; `final_obs` is dense, valid in the rows of the mask `_final_obs`."""
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), np.bool_)
        elapsed, limit, write = self._elapsed, self._limit, self._write
        failed: dict[int, Exception] = {}
        begun = time.monotonic()
        chosen = list(actions + self._first_action)  # np.int64, as `action_space.sample()` gives
        for row, env in self._playing.items():
            try:
                observation, reward, terminated, truncated, _ = env.step(chosen[row])
                rewards[row] = reward if isinstance(reward, NUMBERS) else _number(reward)
                elapsed[row] += 1
                if terminated or truncated or elapsed[row] >= limit:
                    self._keep_final(row, observation, terminated)
                    terminations[row] = terminated
                    truncations[row] = truncated or elapsed[row] >= limit
                    elapsed[row] = 0
                    if self._restarts:
                        observation, _ = env.reset()
                        self._alive()
                        write(row, observation)
                else:
                    write(row, observation)
            except Exception as error:
                failed[row] = error
                rewards[row], terminations[row], truncations[row] = 0.0, False, False
            if self._slow:
                self._alive()
        self._slow = time.monotonic() - begun > SLOW_S
        over = terminations | truncations
        if not self._restarts:
            for row in np.flatnonzero(over).tolist():
                del self._playing[row]
        infos = {"final_obs": self._finals, "_final_obs": over, "failed": failed}
        return self.observations, rewards, terminations, truncations, infos

    def _keep_final(self, row: int, observation: Any, terminated: bool) -> None:
        """A terminated episode needs no last observation: nothing is estimated from it."""
        try:
            self._write_final(row, observation)
        except Exception:
            if not terminated:
                raise
            self._finals[row] = 0

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            with contextlib.suppress(Exception):  # the others are closed all the same
                env.close()


def _number(reward: Any) -> float:
    """A reward that may come in an array or a list of one."""
    given = np.asarray(reward, np.float64)
    if given.size != 1:
        raise ValueError(f"reward {reward!r} is not one number")
    return given.item()
