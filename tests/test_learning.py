"""Learning itself: every algorithm solves a small chain; CartPole and Acrobot are marked slow."""

import json

import pytest
from scripted_envs import ChainEnv

from async_dqn import AsyncDQN
from async_dqn.config.presets import resolve
from async_dqn.training import training

VARIANTS = [
    {"algorithm": "one-step-q"},
    {"algorithm": "one-step-q", "double": True, "dueling": True},
    {"algorithm": "n-step-q"},
    {"algorithm": "n-step-q", "optimizer": "shared-rmsprop", "lr": 3e-3},
    {"algorithm": "q-lambda", "lam": 0.8, "target_sync_steps": None},
    {"algorithm": "q-lambda", "lam": 0.8, "trace": "watkins", "exploration": "ladder"},
    {"algorithm": "one-step-sarsa", "optimizer": "rmsprop"},
    {"algorithm": "a3c", "entropy_weight": 0.02},
    {"munchausen": True, "exploration": "boltzmann", "temperature_final": 0.02},
    {"distributional": "categorical", "v_min": -1.0, "v_max": 1.0, "atoms": 21},
    {"distributional": "quantile", "double": True, "atoms": 11, "exploration": "apex"},
    {"noisy": True, "exploration": "noisy"},
    {"recurrent": True, "value_rescaling": True, "seed": 4},
    {"replay": "prioritized", "algorithm": "one-step-q", "epochs": 2, "optimizer": "momentum"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_every_variant_finds_the_end_of_the_chain(variant, tmp_path):
    settings = {"mode": "serial", "workers": 2, "hidden": (32,), "target_sync_steps": 200}
    settings |= {"lr": 3e-3, "gamma": 0.9, "epsilon_steps": 2000, "epsilon_final": 0.1}
    if variant.get("exploration", "epsilon") != "epsilon" or variant.get("algorithm") == "a3c":
        del settings["epsilon_final"]
    settings |= {"eval_every": 100_000, "runs_dir": str(tmp_path), "max_episode_steps": 40}
    settings["defaults"] = "fixed"
    agent = AsyncDQN(ChainEnv, env_arg={"n": 6}, **settings | variant)
    best = 1.0
    assert agent.evaluate(episodes=5)[0] < best
    agent.learn(8000)
    assert agent.evaluate(episodes=5)[0] == best


def result_of(tmp_path, preset=None, workers=2, **settings):
    given = {**settings, "runs_dir": str(tmp_path), "quiet": True, "workers": workers}
    config, explicit = resolve(given, None, preset)
    outcome = training.train(config, explicit)
    assert outcome.exit_code == 0
    return json.loads((outcome.run / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "baseline",
    [
        {"mode": "sync"},
        {"mode": "sync", "sync_average": "params", "sync_every": 8},
        {"preset": "dqn", "workers": 1},
        {"preset": "pqn", "workers": 1},
    ],
    ids=str,
)
def test_every_baseline_solves_cartpole(tmp_path, baseline):
    result = result_of(tmp_path, env="CartPole-v1", stop_at_return=475.0, seed=0, **baseline)
    assert result["status"] == "threshold reached"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_cartpole_reaches_475_over_100_episodes(tmp_path, seed):
    result = result_of(tmp_path, env="CartPole-v1", stop_at_return=475.0, seed=seed)
    assert result["status"] == "threshold reached"
    assert result["final_mean"] >= 475


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_acrobot_ends_above_minus_100(tmp_path):
    assert result_of(tmp_path, env="Acrobot-v1")["final_mean"] >= -100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lunarlander_reaches_200_over_100_episodes(tmp_path):
    result = result_of(tmp_path, env="LunarLander-v3", stop_at_return=200.0)
    assert result["status"] == "threshold reached"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minatar_breakout_scores_12_within_two_million_steps(tmp_path):
    pytest.importorskip("minatar")
    assert result_of(tmp_path, env="MinAtar/Breakout-v1", steps=2_000_000)["final_mean"] >= 12


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", ["n-step-q", "q-lambda"])
def test_mountaincar_reaches_minus_110(tmp_path, algorithm):
    settings = {"env": "MountainCar-v0", "algorithm": algorithm, "stop_at_return": -110.0}
    assert result_of(tmp_path, **settings)["status"] == "threshold reached"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_lstm_makes_up_for_velocities_that_are_not_observed(tmp_path):
    settings = {
        "env": "Scripted/CartPoleHidden-v1",
        "import_modules": ("scripted_ids",),
        "algorithm": "a3c",
        "recurrent": True,
        "rollout_length": 10,
        "reward_scale": 0.05,
        "lr_schedule": "constant",
    }
    result = result_of(tmp_path, **settings, stop_at_return=475.0)
    assert result["status"] == "threshold reached"
