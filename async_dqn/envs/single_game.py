"""ale-py's vector environment of one game as a single environment: games that end one by one.

A vector of several steps the games that are over until the last one is.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv


class SingleGame(gymnasium.Env):
    """One game of a `vector` of one, with NEXT_STEP autoreset: that is, reset by its caller."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's)

    def __init__(self, vector: VectorEnv):
        self.vector = vector
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game; without a seed the next one of its random numbers."""
        observations, infos = self.vector.reset(seed=None if seed is None else np.array([seed]))
        self._frame = observations[0, -1]
        return observations[0], infos

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action."""
        observations, rewards, terminated, truncated, infos = self.vector.step(np.array([action]))
        self._frame = observations[0, -1]
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos

    def render(self) -> np.ndarray | None:
        """The newest frame [H, W, 3] of what the agent sees; None without a render mode."""
        return None if self.render_mode is None else np.repeat(self._frame[..., None], 3, axis=2)

    def close(self) -> None:
        """Free the game."""
        self.vector.close()
