"""`doctor`: what is wrong with an environment or a machine is found, and nothing else."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from async_dqn import cli
from async_dqn.config.presets import resolve
from async_dqn.doctor import machine
from async_dqn.doctor.environment import about_environment
from async_dqn.doctor.findings import FINE, NOTE, WARNING


class Patient(gymnasium.Env):
    """Five numbers for twenty steps; each illness is on demand."""

    observation_space = spaces.Box(-1, 1, (5,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, illness: str = ""):
        self.illness = illness

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        reward = 0.0 if self.illness == "rewards" else float(action == 0)
        ended = self.steps == 20 and self.illness != "endless"
        return self._observation(), reward, ended, False, {}

    def _observation(self):
        if self.illness == "global":
            return np.random.uniform(-1, 1, 5).astype(np.float32)
        if self.illness == "unseeded":
            return np.random.default_rng().uniform(-1, 1, 5).astype(np.float32)
        size = 3.0 if self.illness == "outside" else 1.0
        return self.np_random.uniform(-size, size, 5).astype(np.float32)


gymnasium.register("Doctor/Patient-v0", Patient)


def ill(illness: str = "", **settings) -> dict[tuple[str, str], str]:
    """What is not fine, by level and topic."""
    given = {"env": "Doctor/Patient-v0", "env_arg": {"illness": illness}, **settings}
    config, _ = resolve(given)
    return {
        (finding.level, finding.topic): str(finding)
        for finding in about_environment(config)
        if finding.level != FINE
    }


def test_a_sound_environment_is_left_in_peace() -> None:
    assert ill() == {}
    assert {level for level, _ in ill(env="CartPole-v1", env_arg={})} <= {NOTE}


@pytest.mark.parametrize(
    ("illness", "level", "topic", "words"),
    [
        ("global", WARNING, "seeds", "global generator"),
        ("unseeded", WARNING, "seeds", "another play"),
        ("outside", WARNING, "observations", "do not fit the space declared"),
        ("rewards", NOTE, "rewards", "nothing to learn from"),
        ("endless", NOTE, "episodes", "none ended"),
    ],
)
def test_each_illness_is_found_and_named_with_a_cure(illness, level, topic, words) -> None:
    found = ill(illness)
    assert words in found[level, topic] and ";" in found[level, topic]


def test_the_random_generators_of_the_caller_stay_as_they_were() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    ill()
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("env", ["Taxi-v4", "ALE/Pong-v5", "MinAtar/Breakout-v1"])
def test_games_and_masked_environments_are_played(env, capsys) -> None:
    assert cli.main(["doctor", "--env", env]) == 0
    said = capsys.readouterr().out
    assert (
        "a step" in said and "seeds" in said and "the same seed and actions give the same" in said
    )
    if env == "Taxi-v4":
        assert "masked by info['action_mask']" in said


def test_the_machine_is_judged(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 10**8)
    monkeypatch.setattr(machine, "free_tasks", lambda: 3)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    levels = {finding.topic: finding.level for finding in machine.about_machine(tmp_path / "runs")}
    assert levels["memory"] == levels["processes"] == WARNING and levels["load"] == NOTE
    assert levels["cores"] == levels["disk"] == FINE


def test_what_training_would_refuse_is_refused(capsys) -> None:
    assert cli.main(["doctor", "--env", "Nowhere-v0"]) == 2
    assert "Nowhere-v0" in capsys.readouterr().err
