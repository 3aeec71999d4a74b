"""What resuming refuses, allows and says, from the command line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from async_dqn.cli import main
from async_dqn.config.presets import resolve
from async_dqn.runs.folder import RunFolder
from async_dqn.training import training
from runs import DEVICES, refused

SCRIPTED = ("--import", "scripted_ids", "--env")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short finished serial run."""
    settings = {"mode": "serial", "workers": 1, "envs_per_worker": 2, "steps": 400, "quiet": True}
    folder = tmp_path_factory.mktemp("resume") / "runs"
    settings |= {"eval_episodes": 2, "hidden": (16,), "runs_dir": str(folder), "run_name": "x"}
    return training.train(*resolve(settings)).run


def refuse(capsys, folder: Path, *arguments: str) -> str:
    return refused(capsys, folder, "--runs-dir", str(folder), "--quiet", *arguments)


def test_an_existing_run_is_kept(capsys, run):
    error = refuse(capsys, run.parent.parent, "--run-name", "x")
    assert "already holds a run (400 steps)" in error
    assert "--resume" in error


def test_a_run_in_use_is_refused(capsys, run):
    with RunFolder.open(run):
        assert "is in use by process" in refuse(capsys, run.parent.parent, "--resume", str(run))


def test_automatic_resuming_is_by_seed_or_by_name(capsys, tmp_path):
    command = ["--mode", "serial", "--workers", "1", "--eval-episodes", "2", "--quiet"]
    command += ["--runs-dir", str(tmp_path), "--resume", "auto", "--steps"]

    def runs(*arguments: str) -> dict[str, int]:
        assert main([*command, *arguments]) == 0
        results = tmp_path.glob("CartPole-v1/*/result.json")
        return {path.parent.name: json.loads(path.read_text())["steps"] for path in results}

    assert runs("200", "--seed", "0") == {"q-lambda-s0-1": 200}
    with RunFolder.open(tmp_path / "CartPole-v1/q-lambda-s0-1"):  # still in progress
        assert runs("200", "--seed", "1") == {"q-lambda-s0-1": 200, "q-lambda-s1-1": 200}
        assert runs("300", "--seed", "1") == {"q-lambda-s0-1": 200, "q-lambda-s1-1": 300}
        assert runs("200", "--run-name", "job")["job"] == 200
        killed = tmp_path / "CartPole-v1/early"  # before its first checkpoint
        RunFolder.create(tmp_path, "CartPole-v1", "early", "q-lambda", 0).close()
        (killed / "metrics.csv").write_text("step\n64\n")
        (killed / "config.json").write_text("{}")
        assert runs("200", "--run-name", "early")["early"] == 200
        assert (killed / "metrics.csv").read_text().count("\n64,") == 0
        last = runs("300", "--run-name", "job")
    assert last == {"q-lambda-s0-1": 200, "q-lambda-s1-1": 300, "early": 200, "job": 300}
    assert "starting a new one" in capsys.readouterr().err


def test_runs_are_listed_with_status_and_score(capsys, tmp_path, run):
    place = tmp_path / "CartPole-v1"
    for name in ("damaged", "done", "going"):
        shutil.copytree(run, place / name)
    (place / "damaged/config.json").write_text("{")
    result = json.loads((run / "result.json").read_text())
    (place / "done/result.json").write_text(json.dumps(result | {"final_mean": -119.2508}))
    (place / "going/result.json").unlink()
    with RunFolder.open(place / "going"):
        assert main(["list", "runs", "--runs-dir", str(tmp_path)]) == 0
    rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "status", "steps", "last score"]
    assert rows[1] == [str(place / "damaged"), "damaged", "-", "-"]
    assert rows[2] == [str(place / "done"), "budget reached", str(result["steps"]), "-119.3"]
    assert rows[3][:2] == [str(place / "going"), "running"]


def test_a_missing_run_is_refused(capsys, run):
    error = refuse(capsys, run.parent.parent, "--resume", str(run.parent / "y"))
    assert f"no checkpoint at {run.parent / 'y'}" in error


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--env", "Acrobot-v1", "env CartPole-v1 vs Acrobot-v1"),
        ("--hidden", "32", "hidden"),
        ("--optimizer", "shared-rmsprop", "optimizer shared-adam vs shared-rmsprop"),
    ],
)
def test_another_environment_network_or_optimizer_is_refused(capsys, run, option, value, words):
    error = refuse(capsys, run.parent.parent, "--resume", str(run), option, value)
    assert "checkpoint does not match: " in error
    assert words in error


def test_other_settings_may_change_and_each_is_noted(capsys, run):
    arguments = ["--resume", str(run), "--steps", "800", "--lr", "0.002", "--workers", "2"]
    arguments += ["--epsilon-final", "0.02"]
    assert main(["--quiet", *arguments]) == 0
    error = capsys.readouterr().err
    changes = (
        "workers changed from 1 to 2",
        "lr changed",
        "epsilon_final changed",
        "steps changed",
    )
    assert error.count("\n") == len(changes)
    for words in changes:
        assert f"note: {words}" in error
    assert json.loads((run / "result.json").read_text())["steps"] == 800
    assert main(["--quiet", "--resume", str(run)]) == 0
    assert "note: the budget of 800 steps is already met" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env", "Pendulum-v1", "--action-bins", "5000"), "have 5000 values together, more"),
        (("--env", "CartPole-v99"), "CartPole has versions v0, v1 (asked v99)"),
        (("--env", "evil:Foo-v0"), "add --import evil if you trust it"),
        (("--network", "nature"), "the nature network does not fit a vector"),
        (("--device", "tpu"), f"device 'tpu' is not available (found: {DEVICES})"),
        ((*SCRIPTED, "Scripted/Unbuildable-v0"), "ValueError: no display"),
        ((*SCRIPTED, "Scripted/OldGym-v0"), "env returns no (observation, info) from reset; "),
        ((*SCRIPTED, "Scripted/OldGym-v0", "--env-arg", "old_reset=false"), "4 values from step; "),
    ],
)
def test_an_environment_that_cannot_work_is_told_before_anything_is_written(
    capsys, tmp_path, arguments, words
):
    assert words in refuse(capsys, tmp_path, *arguments)


@pytest.mark.parametrize("env", ["FrozenLake-v1", "Taxi-v4", "Blackjack-v1", "Pendulum-v1"])
def test_discrete_and_tuple_observations_and_continuous_actions_train(tmp_path, env):
    settings = {"env": env, "mode": "serial", "workers": 1, "steps": 400, "quiet": True}
    outcome = training.train(*resolve({**settings, "runs_dir": str(tmp_path), "eval_episodes": 2}))
    result = json.loads((outcome.run / "result.json").read_text())
    assert outcome.exit_code == 0
    assert result["updates"] > 0
