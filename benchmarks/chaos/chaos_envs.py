"""CartPole with faults, and with books of its own, for `--import benchmarks.chaos.chaos_envs`.

What it counts is in files that outlive a SIGKILL: one byte a step, one byte a fault.
"""

import os
import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class TallyEnv(CartPoleEnv):
    """CartPole; in the workers, and only there, with faults and books.

    A `share` of the steps (and of the resets, if they raise) has the `fault`: "raise", "malformed"
    (what is not finite, None or of the wrong shape, in turn) or "" for none. `folder` takes the
    books; a faulty step counts as a fault only.
    """

    def __init__(self, folder: str, fault: str = "", share: float = 0.0) -> None:
        super().__init__()
        self.fault, self.share = fault, share
        self._books: dict[str, int] = {}
        self._draw = random.Random(os.urandom(8))
        self._kind = 0
        title = Path("/proc/self/cmdline").read_text()
        if "async-dqn worker" in title:
            for book in ("steps", "faults"):
                path = f"{folder}/{book}-{os.getpid()}"
                self._books[book] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        observation = super().reset(seed=seed, options=options)
        if self.fault == "raise" and self._is_due():
            raise RuntimeError("injected into reset")
        return observation

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        observation, reward, *rest = super().step(action)
        due = self._is_due()
        if self._books and not due:
            os.write(self._books["steps"], b".")
        if due:
            if self.fault == "raise":
                raise RuntimeError("injected into step")
            self._kind += 1
            wrong = [(observation * np.nan, 1.0), (observation, None), (observation[:1], 1.0)]
            wrong += [(observation, float("inf")), (None, 1.0), (observation + np.inf, 1.0)]
            observation, reward = wrong[self._kind % len(wrong)]
        return observation, reward, *rest

    def close(self) -> None:
        for descriptor in self._books.values():
            os.close(descriptor)
        self._books = {}

    def _is_due(self) -> bool:
        due = bool(self._books) and self._draw.random() < self.share
        if due:
            os.write(self._books["faults"], b".")
        return due


gymnasium.register("Chaos/CartPole-v1", TallyEnv, max_episode_steps=500)
