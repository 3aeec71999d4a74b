"""Random play before a run, of what nobody has settings for."""

import functools
import os

import gymnasium
import numpy as np
import pytest
from scripted_envs import ChainEnv, FaultyEnv, SlowEnv, UnrulyEnv

from async_dqn.config.presets import resolve
from async_dqn.envs.make import EnvSpec
from async_dqn.training.look import LEAST_STEPS, look, looked_at
from runs import wait_gone


class Paid(gymnasium.Env):
    """Every step has `reward`; with `end` episodes come to an end after so many steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, reward: float, end: int | None = None) -> None:
        self.reward, self.end, self.steps = reward, end, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), self.reward, self.steps == self.end, False, {}


@pytest.mark.parametrize(
    ("reward", "end", "rare"),
    [(0.0, None, True), (0.0, 5, True), (-1.0, None, True), (-1.0, 5, False), (1.0, 300, False)],
)
def test_rewards_are_rare_where_random_play_finds_no_difference(reward, end, rare) -> None:
    assert look(EnvSpec(Paid, {"reward": reward, "end": end})).rewards_rare is rare


@pytest.mark.parametrize(
    ("env", "rare"), [("CartPole-v1", False), ("MountainCar-v0", True), ("Taxi-v4", False)]
)
def test_well_known_environments(env, rare) -> None:
    seen = look(EnvSpec(env))
    assert seen.rewards_rare is rare and 0 < seen.step_s < 0.1


def test_few_steps_say_nothing_of_rewards_but_how_slow_they_are() -> None:
    seen = look(EnvSpec(SlowEnv, {"step": 0.01}))
    assert 0.01 <= seen.step_s < 0.1 and not seen.rewards_rare
    assert 4 * 0.15 / 0.01 < LEAST_STEPS


@pytest.mark.parametrize("fault", ["exit", "segfault", "kill", "sys-exit"])
def test_an_environment_that_ends_its_process_ends_not_this_one(fault) -> None:
    assert look(EnvSpec(FaultyEnv, {"fault": fault, "at_step": 50})) is None


def test_that_it_failed_is_said() -> None:
    config, explicit = resolve({"workers": 2}, preset="none")
    spec = EnvSpec(FaultyEnv, {"fault": "exit", "at_step": 50})
    info, settled, reasons = looked_at(spec, config, explicit)
    assert (info.step_s, info.rewards_rare) == (0.0, False)
    assert reasons[-1] == "random play in another process failed"
    assert settled.environment.defaults == "fixed"


def test_one_that_hangs_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr("async_dqn.training.look.PATIENCE_S", 2.0)
    assert look(EnvSpec(FaultyEnv, {"fault": "sleep", "at_step": 50})) is None


def test_what_an_environment_started_ends_and_what_it_prints_is_not_the_answer(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("UNRULY", str(tmp_path / "pids"))
    assert look(EnvSpec(UnrulyEnv)) is not None
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids and os.getpid() not in pids and wait_gone(pids, seconds=2) == []


def test_one_of_a_script_is_looked_at_and_one_that_cannot_travel_is_not() -> None:
    class Local(ChainEnv):
        pass

    assert look(EnvSpec(Local)) is not None
    assert look(EnvSpec(functools.partial(Local, open(os.devnull)))) is None


def test_nobody_looks_where_a_preset_or_the_user_decides(monkeypatch) -> None:
    monkeypatch.setattr("async_dqn.training.look.look", None)  # not to be called
    for given in ({"env": "CartPole-v1"}, {"env": "Acrobot-v1", "defaults": "fixed"}):
        config, explicit = resolve({"workers": 2, **given})
        info, settled, reasons = looked_at(EnvSpec(config.environment.env), config, explicit)
        assert settled == config and reasons == [] and not info.rewards_rare
