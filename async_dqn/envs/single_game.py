"""ale-py's vector environment of one game as a single environment: games that end one by one.

A vector of several steps the games that are over until the last one is.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv


class SingleGame(gymnasium.Env):
    """One game of a `vector` of one, with NEXT_STEP autoreset: that is, reset by its caller.

    `twin`, if there is one, plays the same game in the colours and the size of the screen: the same
    seeds and actions make the same game.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's)

    def __init__(self, vector: VectorEnv, twin: VectorEnv | None = None):
        self.vector, self.twin = vector, twin
        self.render_mode = None if twin is None else "rgb_array"
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game; without a seed the next one of its random numbers."""
        if self.twin is not None:
            if seed is None:  # the two have random numbers of their own
                seed = int(self.np_random.integers(2**31))
            self._show(self.twin.reset(seed=np.array([seed])))
        observations, infos = self.vector.reset(seed=None if seed is None else np.array([seed]))
        return observations[0], infos

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action."""
        observations, rewards, terminated, truncated, infos = self.vector.step(np.array([action]))
        if self.twin is not None:
            self._show(self.twin.step(np.array([action])))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos

    def render(self) -> np.ndarray | None:
        """The screen [210, 160, 3]; None without a twin."""
        return None if self.twin is None else self._screen

    def get_action_meanings(self) -> list[str]:
        """What its actions are called."""
        return [action.name for action in self.vector.ale.get_action_set()]

    def close(self) -> None:
        """Free the game."""
        self.vector.close()
        if self.twin is not None:
            self.twin.close()

    def _show(self, answer: tuple) -> None:
        self._screen = answer[0][0, -1]
