"""Environments that keep books of their own, for `--import benchmarks.chaos.chaos_envs`.

What they count is in files that outlive a SIGKILL: one byte a step, one byte a fault.
"""

import os
import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class TallyEnv(gymnasium.Env):
    """Ten random numbers an episode, in the workers only with faults and books.

    A `share` of the steps (and of the resets, if they raise) has the `fault`: "raise", "malformed"
    (what is not finite, None or of the wrong shape, in turn) or "" for none. `folder` takes the
    books.
    """

    def __init__(self, folder: str, fault: str = "", share: float = 0.0) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.fault, self.share = fault, share
        self._books: dict[str, int] = {}
        self._draw = random.Random(os.urandom(8))
        self._time = self._kind = 0
        title = Path("/proc/self/cmdline").read_text()
        if "async-dqn worker" in title:
            for book in ("steps", "faults"):
                path = f"{folder}/{book}-{os.getpid()}"
                self._books[book] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        if self.fault == "raise" and self._is_due():
            raise RuntimeError("injected into reset")
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        self._time += 1
        observation, reward, over = self._observe(), 1.0, self._time == 10
        if self._is_due():
            if self.fault == "raise":
                raise RuntimeError("injected into step")
            self._kind += 1
            wrong = [(observation * np.nan, 1.0), (observation, None), (observation[:1], 1.0)]
            wrong += [(observation, float("inf")), (None, 1.0), (observation + np.inf, 1.0)]
            return *wrong[self._kind % len(wrong)], over, False, {}
        if self._books:
            os.write(self._books["steps"], b".")
        return observation, reward, over, False, {}

    def close(self) -> None:
        for descriptor in self._books.values():
            os.close(descriptor)
        self._books = {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def _is_due(self) -> bool:
        due = bool(self._books) and self._draw.random() < self.share
        if due:
            os.write(self._books["faults"], b".")
        return due


gymnasium.register("Chaos/Tally-v0", TallyEnv)
