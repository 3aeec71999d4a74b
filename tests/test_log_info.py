"""Numbers of an environment in the logs: `--log-info`."""

import csv

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from test_serial import train

from async_dqn import AsyncDQN
from async_dqn.config.config import UserError
from async_dqn.envs.notes import Notes, as_number

KEYS = ("fuel", "goals", "never")


class Talking(gymnasium.Env):
    """Five steps; `fuel` falls by one from 5, `goals` are told at the end, in episode_metrics."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None):
        self._left = 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = 5
        return np.zeros(2, np.float32), {}

    def step(self, action):
        info = {"fuel": np.float32(self._left), "never": "a word"}
        self._left -= 1
        if self._left == 0:
            info["episode_metrics"] = {"goals": 3}
        return np.zeros(2, np.float32), 1.0, self._left == 0, False, info


@pytest.mark.parametrize("mode", ["serial", "async"])
def test_their_means_are_logged(mode, tmp_path) -> None:
    reports = []
    settings = {"mode": mode, "workers": 1, "envs_per_worker": 4, "hidden": (8,), "log_info": KEYS}
    agent = AsyncDQN(Talking, **settings, runs_dir=str(tmp_path), eval_episodes=2)
    agent.learn(8_000, callback=reports.append)
    with (agent.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = [row for row in rows if row["info/fuel"]]
    assert told and all(row["info/never"] == "" for row in rows)
    for row in told:  # a report may begin within an episode
        assert float(row["info/fuel"]) == pytest.approx(3, abs=0.1)
        assert float(row["info/goals"]) == 3
    assert any("info/fuel" in report and "info/never" not in report for report in reports)


def test_what_is_no_finite_number_is_passed_over() -> None:
    notes = Notes(("a", "b"))
    notes.add({"a": 1, "b": np.array([2.5])})
    notes.add({"a": float("nan"), "b": None, "episode_metrics": "none"})
    notes.add({"episode_metrics": {"a": True, "b": [1, 2]}})
    assert notes.sums == {"a": (2.0, 2), "b": (2.5, 1)}
    assert as_number("3") is None and as_number({}) is None


def test_a_vectorised_environment_tells_what_its_single_one_does(tmp_path) -> None:
    agent = train(tmp_path, steps=600, log_info=("nothing",))
    assert "info/nothing" in (agent.run / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("env", "keys", "reason"),
    [
        ("ALE/Pong-v5", ("lives",), "--log-info is for environments but ALE/"),
        ("CartPole-v1", tuple("abcdefghi"), "8 keys of 40 characters"),
        ("CartPole-v1", ("a" * 41,), "8 keys of 40 characters"),
    ],
)
def test_what_cannot_be_logged_is_refused(env, keys, reason) -> None:
    with pytest.raises(UserError, match=reason):
        AsyncDQN(env, log_info=keys)
