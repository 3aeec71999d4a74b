"""What holds where neither the user nor a preset says anything."""

import dataclasses
import json

import pytest

from async_dqn import cli
from async_dqn.config.config import SETTINGS
from async_dqn.config.defaults import FEW_STEPS, SLOW_S, by_environment
from async_dqn.config.presets import resolve
from async_dqn.envs.make import probe
from async_dqn.envs.spec import EnvInfo, EnvSpec
from runs import refused

VECTOR = EnvInfo("vector", (4,), "float32", 1.0, None, None, 2, 1, 500)
IMAGE = dataclasses.replace(VECTOR, kind="image", observation_shape=(3, 20, 20))
PICTURE = dataclasses.replace(IMAGE, observation_shape=(3, 60, 80))
TABLE = dataclasses.replace(VECTOR, counted=True)


def chosen(info, preset="none", **given):
    config, explicit = resolve({"workers": 2, **given}, preset=preset)
    return by_environment(config, explicit, info)


def test_kinds_of_observations_have_settings_of_their_own() -> None:
    vector, image, table = (chosen(info)[0] for info in (VECTOR, IMAGE, TABLE))
    assert vector.network.normalize_observations and not image.network.normalize_observations
    assert not table.network.normalize_observations
    assert all(c.algorithm.scale_rewards for c in (vector, image, table))
    assert all(c.replay.replay == "prioritized" for c in (vector, image, table))


def test_pictures_are_told_from_what_is_always_the_same() -> None:
    codes = dataclasses.replace(PICTURE, codes=5)
    small, picture, codes = (chosen(info)[0].network for info in (IMAGE, PICTURE, codes))
    assert picture.network == "nips" and picture.normalize_observations
    assert picture.layer_norm is False and small.layer_norm is None
    assert not codes.normalize_observations
    without_target = ({"replay": "none"}, {"target_sync_steps": None, "double": False})
    assert all(chosen(PICTURE, **given)[0].network.layer_norm is None for given in without_target)


@pytest.mark.parametrize(
    ("info", "steps", "why"),
    [
        (dataclasses.replace(VECTOR, step_s=2 * SLOW_S), 10**6, "a step takes 4 ms"),
        (VECTOR, FEW_STEPS, "the budget is small"),
    ],
)
def test_few_or_dear_steps_are_learned_from_replay(info, steps, why) -> None:
    config, reasons = chosen(info, steps=steps)
    assert config.parallel.epochs > chosen(VECTOR)[0].parallel.epochs and why in reasons[-1]


@pytest.mark.parametrize("steps", [FEW_STEPS, 10**6])
@pytest.mark.parametrize("info", [VECTOR, IMAGE, TABLE])
def test_rewards_that_random_play_misses_are_looked_for_longer(info, steps) -> None:
    config, reasons = chosen(dataclasses.replace(info, rewards_rare=True), steps=steps)
    assert config.exploration.exploration == "ladder"
    assert any("random play finds no reward" in reason for reason in reasons)


def test_a_tiny_budget_is_learned_from_too() -> None:
    assert chosen(VECTOR, steps=400)[0].replay.replay_start == 20


def test_exploration_falls_in_proportion_to_the_budget() -> None:
    short, long = (chosen(VECTOR, steps=n)[0].exploration.epsilon_steps for n in (200_000, 10**6))
    assert long == 5 * short


def test_what_is_given_stays_and_the_rest_follows_it() -> None:
    given = {"lr": 0.5, "epsilon_steps": 7, "algorithm": "a3c", "envs": 10}
    config, _ = chosen(VECTOR, steps=10_000, **given)
    now = config.by_name()
    assert {name: now[name] for name in given} == given
    assert now["envs_per_worker"] == 5
    assert now["replay"] == "none" and now["epochs"] == 1 and now["persistence"] is None


@pytest.mark.parametrize(
    "given",
    [
        {"munchausen": True},
        {"algorithm": "one-step-sarsa"},
        {"algorithm": "a3c"},
        {"target_sync_steps": None},
        {"input_scaling": True},
        {"recurrent": True},
        {"noisy": True},
        {"distributional": "categorical"},
        {"distributional": "quantile", "dueling": True},
        {"replay": "prioritized", "double": True},
        {"value_rescaling": True},
        {"mode": "sync", "model_parallel": True},
        {"exploration": "boltzmann"},
        {"network": "linear"},
        {"epsilon_final": 0.2},
        {"temperature_final": 0.1, "exploration": "boltzmann"},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [10_000, 10**6])
def test_whatever_is_chosen_goes_with_the_rest(given, steps) -> None:
    rare = [dataclasses.replace(info, rewards_rare=True) for info in (VECTOR, IMAGE, TABLE)]
    for info in (VECTOR, IMAGE, TABLE, PICTURE, *rare):
        config, _ = chosen(info, steps=steps, **given)
        assert {name: config.by_name()[name] for name in given} == given


def test_chosen_once_nothing_is_chosen_again() -> None:
    config, _ = chosen(VECTOR)
    slow = dataclasses.replace(VECTOR, step_s=1.0)
    assert by_environment(config, frozenset(), slow) == (config, [])


@pytest.mark.parametrize("preset", [None, "pqn"])
def test_a_preset_decides_alone(preset) -> None:
    config, explicit = resolve({"env": "CartPole-v1", "workers": 2}, preset=preset)
    assert by_environment(config, explicit, VECTOR) == (config, [])


def test_the_probe_sees_numbered_states() -> None:
    table, vector = probe(EnvSpec("FrozenLake-v1")), probe(EnvSpec("Acrobot-v1"))
    assert (table.counted, vector.counted) == (True, False)


def test_settings_that_would_do_nothing_are_refused_once_the_rest_is_known(
    capsys, tmp_path
) -> None:
    options = ("--env", "Pendulum-v1", "--lam", "0.5", "--runs-dir", str(tmp_path))
    assert "acts only with --algorithm q-lambda" in refused(capsys, tmp_path, *options)


def test_the_printed_settings_are_those_of_the_run(capsys, tmp_path) -> None:
    options = ["--env", "FrozenLake-v1", "--steps", "300", "--workers", "2", "--mode", "serial"]
    assert cli.main([*options, "--print-config"]) == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    quick = ["--quiet", "--eval-episodes", "1", "--runs-dir", str(tmp_path)]
    runs = []
    for name, more in (("a", options), ("b", ["--config", str(tmp_path / "printed.toml")])):
        assert cli.main([*more, *quick, "--run-name", name]) == 0
        (path,) = tmp_path.glob(f"*/{name}/config.json")
        runs.append(json.loads(path.read_text())["settings"])
    for section in runs[0].keys() - {"whole"}:
        for name in SETTINGS.keys() & runs[0][section].keys() - {"run_name"}:
            assert runs[0][section][name] == runs[1][section][name], name
