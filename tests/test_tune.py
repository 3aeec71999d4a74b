"""`tune`: what is searched, what a trial is worth, and that an interruption loses nothing."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import FixedTrial, TrialState

from async_dqn import cli
from async_dqn.config.config import UserError
from async_dqn.config.options import parse_train
from async_dqn.config.presets import resolve
from async_dqn.tune import space, study
from async_dqn.tune.command import _plan
from async_dqn.tune.study import FINALISTS, Plan, opened, winner
from async_dqn.tune.trial import Worth

SOON = Worth(200.0, 1000, 60.0)
HIGH = Worth(None, 1000, 60.0)
OWN = {"trials": "2", "minutes": "1", "jobs": "1"}


def test_a_threshold_is_worth_more_the_sooner_it_is_reached() -> None:
    assert SOON.of([(0.1, 20), (0.5, 210)], 31.0) == -31
    near, far = SOON.of([(0.1, 0), (0.9, 190)], None), SOON.of([(0.1, 0), (0.9, 20)], None)
    assert -60 > near == pytest.approx(-63) and far == pytest.approx(-114)
    # It is the best score that tells how far it came, and worse than the first is nothing.
    assert SOON.of([(0.1, 0), (0.4, 190), (0.9, 5)], None) == near
    assert SOON.of([(0.1, 0)], None) == SOON.of([], None) == -120
    assert SOON.in_words(-31) == "31.0 s to 200" and SOON.in_words(-63) == (
        "200 missed by 5% of the way"
    )


def test_without_a_threshold_the_mean_over_the_trial_counts() -> None:
    assert HIGH.of([(0.2, 10), (0.5, 30), (0.9, 50)], None) == pytest.approx(
        10 * 0.5 + 30 * 0.4 + 50 * 0.1
    )
    early, late = HIGH.of([(0.1, 0), (0.3, 100)], None), HIGH.of([(0.1, 0), (0.8, 100)], None)
    assert early > late and HIGH.in_words(early) == "mean score 70"


def plan(tmp_path, *words: str) -> Plan:
    return _plan(OWN | {"out": str(tmp_path / "out")}, ["--preset", "none", *words])


def point(plan: Plan, **changed) -> space.Point:
    params = {"lr": 1e-3, "epsilon_steps / steps": "0.1", **changed}
    for name, values in {**space.CHOICES, **space.BY_REPLAY["none"]}.items():
        params.setdefault(name, values[0])
        params.setdefault(f"{name} (none replay)", values[0])
    for name, values in space.BY_REPLAY["prioritized"].items():
        params.setdefault(f"{name} (prioritized replay)", values[0])
    return space.drawn(FixedTrial(params), plan.given, plan.worth.steps, plan.vectors)


@pytest.mark.parametrize("replay", ["none", "prioritized"])
@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1", "Taxi-v4"])
def test_every_point_can_be_run(env, replay, tmp_path) -> None:
    made = plan(tmp_path, "--env", env, "--steps", "1000")
    for algorithm in space.CHOICES["algorithm"]:
        drawn = point(made, replay=replay, algorithm=algorithm)
        study.check(made, drawn)
        assert ("hidden" in drawn) == (env != "MinAtar/Breakout-v1")
        assert ("batch_size" in drawn) == (replay == "prioritized")
        assert drawn["epsilon_steps"] == "100" and drawn["lr"] == "0.001"


def test_what_the_user_gives_is_not_searched(tmp_path) -> None:
    made = plan(tmp_path, "--lr", "1e-3", "--gamma", "0.9", "--epochs", "3", "--envs", "7")
    drawn = point(made)
    assert not {"lr", "gamma", "epochs", "envs", "replay", "batch_size"} & drawn.keys()
    given = parse_train([*made.words, *space.as_arguments(drawn)])
    config, _ = resolve(given, None, given.pop("preset"))
    assert (config.optimizer.lr, config.parallel.epochs) == (1e-3, 3)


def test_the_first_point_is_what_holds_without_a_search(tmp_path) -> None:
    made = plan(tmp_path, "--env", "CartPole-v1")
    params = space.nearest(made.config, made.given, made.vectors)
    now = made.config.by_name()
    assert params["replay"] == now["replay"] == "prioritized"
    assert params["algorithm"] == now["algorithm"] and params["lr"] == now["lr"]
    assert params["envs"] == "16" and params["hidden"] == "128,128" and params["layer_norm"] == "on"
    assert params["epochs (prioritized replay)"] == "2"
    space.drawn(FixedTrial(params), made.given, made.worth.steps, made.vectors)


def test_another_plan_is_refused(tmp_path) -> None:
    made = plan(tmp_path, "--env", "CartPole-v1")
    made.out.mkdir()
    opened(made)
    opened(made)
    other = plan(tmp_path, "--env", "CartPole-v1", "--stop-at-return", "475")
    with pytest.raises(
        UserError, match=r"holds a search with worth \[None, .*; choose another --out"
    ):
        opened(other)
    (made.out / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        opened(made)


def test_other_seeds_decide(tmp_path) -> None:
    known = optuna.create_study(direction="maximize")
    assert winner(known) is None
    for value in (-5.0, -3.0, -4.0):
        known.add_trial(optuna.create_trial(value=value))
    assert winner(known).number == 1
    known.set_user_attr(study.CONFIRMED, {"1": [-9.0, -3.0], "2": [-4.0, -5.0]})
    assert winner(known).number == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--trials", "0"], "--trials must be"),
        (["--minutes", "none"], "--minutes must be"),
        (["--trial-minutes", "-1"], "--trial-minutes must be"),
        (["--resume", "auto"], "--resume is not for trials"),
        (["--workers", "auto"], "--workers auto is not for trials"),
        (["--bogus"], "unknown option --bogus"),
        (["--env", "NoSuch-v0"], "no environment 'NoSuch-v0'"),
    ],
)
def test_what_cannot_be_searched_is_refused(words, reason, tmp_path, capsys) -> None:
    assert cli.main(["tune", "--out", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err and not list(tmp_path.iterdir())


def search(out: Path, *words: str) -> subprocess.Popen:
    """Of CartPole, in short runs of one worker."""
    command = [sys.executable, "-m", "async_dqn", "tune", "--out", str(out)]
    command += ["--minutes", "8", "--trial-minutes", "1", "--workers", "1", "--env", "CartPole-v1"]
    command += ["--preset", "none", "--steps", "3000", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_the_best_is_found_and_written_down(tmp_path) -> None:
    out = tmp_path / "out"
    process = search(out, "--trials", "1", "--jobs", "2")
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    known = optuna.load_study(study_name=study.NAME, storage=f"sqlite:///{out}/study.db")
    (best,) = known.get_trials(states=[TrialState.COMPLETE])
    assert len(known.user_attrs[study.CONFIRMED]["0"]) == 2
    page = (out / "report.html").read_text()
    assert "Trial 0 is the best" in page and "best.toml" in page
    config, _ = resolve({}, str(out / "best.toml"))
    assert f"{config.optimizer.lr:.3g}" == space.spelt(best.params["lr"])
    assert config.environment.env == "CartPole-v1" and config.run.seed == 0
    assert said.splitlines()[0].startswith("[1 of 1] mean score ")
    assert f"best         python launch.py --config {out / 'best.toml'}" in said


def processes_of(out: Path) -> list[str]:
    """Command lines that hold the folder."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(out) in line]


def wait_for_runs(out: Path, process: subprocess.Popen, count: int) -> None:
    while len(list(out.glob("runs/*/trial-*/config.json"))) < count:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_that_is_interrupted_twice_loses_nothing(tmp_path) -> None:
    """By Ctrl-C and by kill -9: no process stays, and every point is run in the end."""
    out, words = tmp_path / "out", ("--trials", "3", "--jobs", "2", "--steps", "6000")
    process = search(out, *words)
    wait_for_runs(out, process, 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said
    assert processes_of(out) == []
    process = search(out, *words)
    wait_for_runs(out, process, 2)
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while processes_of(out) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(out) == []
    process = search(out, *words)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    known = optuna.load_study(study_name=study.NAME, storage=f"sqlite:///{out}/study.db")
    complete = known.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    assert len(complete) == 3 and not known.get_trials(states=[TrialState.RUNNING])
    first = known.trials[0].params  # the defaults, interrupted twice
    assert sum(trial.params == first for trial in complete) == 1
    assert 1 <= len(known.user_attrs[study.CONFIRMED]) <= FINALISTS
