"""Single environments in a loop as an `EnvBatch`: each has its own seed, breaks and ends alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

from async_dqn.envs.batch import SEED_LIMIT, EnvBatch, Failures, next_seed
from async_dqn.envs.loop_env import LoopVectorEnv


class LoopBatch(EnvBatch):
    """Single environments in a loop, each with a seed of its own; `make` builds one of them."""

    vector: LoopVectorEnv

    def _rebuild_group(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def _rebuild(self, rows: np.ndarray) -> tuple[np.ndarray, Failures]:
        self.rebuilds += len(rows)
        for row in rows.tolist():
            self._seeds[row] = next_seed(self._seeds[row])
        return self._try_to_begin(rows.tolist(), self._make)

    def _try_to_begin(
        self, rows: list[int], make: Callable[[], Any] | None = None
    ) -> tuple[np.ndarray, Failures]:
        """Start episodes in `rows`, in what `make` builds if given; as `_begin`."""
        failed: Failures = {}
        for row in rows:
            try:
                env = self.vector.envs[row] if make is None else make()
                self.vector.replace(row, env, self._seeds[row] % SEED_LIMIT)
            except Exception as error:
                failed[row] = error
        return self.vector.observations, failed

    def _seed(self, seeds: list[int]) -> list[int]:
        return [seed % SEED_LIMIT for seed in seeds]

    def one_at_a_time(self) -> np.ndarray:
        """From now on a row plays one episode for every `begin`; the observations [B, ...]."""
        self._seeds = [0] * self.num_envs
        self.vector.one_at_a_time()
        return self.vector.observations

    def begin(self, row: int, seed: int) -> np.ndarray:
        """Start an episode in this row; the observations [B, ...]. Raises as `reset` does."""
        self._seeds[row] = seed
        obs, bad = self._attempt(lambda: self._try_to_begin([row]))
        return self._restart(bad)[1] if bad.size else obs
