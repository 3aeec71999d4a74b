"""Numbers that environments tell in `info`, for the logs: means between two reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

EPISODE_METRICS = "episode_metrics"  # a dict in `info`, usually of the last step


class Notes:
    """Sums of the numbers under `keys`, in `info` itself or in its "episode_metrics"."""

    def __init__(self, keys: Sequence[str]):
        self.keys = keys
        self.sums: dict[str, tuple[float, int]] = {}  # by key: sum and count

    def add(self, info: Mapping[str, Any]) -> None:
        """What is no finite number is passed over."""
        metrics = info.get(EPISODE_METRICS)
        inner = metrics if isinstance(metrics, Mapping) else {}
        for key in self.keys:
            number = as_number(info.get(key, inner.get(key)))
            if number is not None:
                total, count = self.sums.get(key, (0.0, 0))
                self.sums[key] = total + number, count + 1

    def clear(self) -> None:
        """Begin anew."""
        self.sums = {}


class Noted(gymnasium.Wrapper):
    """Every step's `info` goes into `notes`."""

    def __init__(self, env: gymnasium.Env, notes: Notes):
        super().__init__(env)
        self.notes = notes

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of the environment."""
        step = self.env.step(action)
        self.notes.add(step[4])
        return step


def as_number(value: Any) -> float | None:
    """A number, a flag or an array of one; None for all else, and for what is not finite."""
    if isinstance(value, str):
        return None
    try:
        number = float(np.asarray(value, np.float64).item())
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
