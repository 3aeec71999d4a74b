"""`compare`: real runs one after another, kept, failed or interrupted; and mistakes."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from async_dqn import cli
from async_dqn.compare import methods
from async_dqn.config import presets
from async_dqn.config.config import SETTINGS
from async_dqn.config.options import parse_train
from runs import ROOT, is_alive

GOOD = "serial-one-step-q"
BAD = "serial-n-step-q:--replay uniform --replay-capacity 20"  # the trainer refuses it
DIES = "serial-one-step-q:--envs-per-worker 1 --rollout-length 1"  # updates enough to diverge
SLOW = ("--env", "Scripted/Slow-v0", "--set", "import=scripted_ids", "--set", "env-arg=step=0.001")
SLOW += ("--set", "defaults=fixed")
HUGE = ("--env", "Scripted/HugeReward-v0", "--set", "import=scripted_ids")
HUGE += ("--set", "defaults=fixed")


def command(out: Path, *arguments: str) -> list[str]:
    small = ("--workers", "1", "--steps", "600", "--eval-every", "300", "--eval-episodes", "5")
    words = [sys.executable, str(ROOT / "launch.py"), "compare", *small, *arguments]
    return [*words, "--out", str(out)]


def start(out: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(out, *arguments), text=True, env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, list[str], str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, out.splitlines(), err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which two methods have run on two seeds, one of them in vain; how it ended."""
    out = tmp_path_factory.mktemp("compare") / "out"
    methods = f"{GOOD},{BAD}"
    return out, methods, finish(start(out, "--methods", methods, "--seeds", "2"))


def test_methods_take_turns_and_a_failing_one_does_not_stop_the_others(finished):
    out, _, (code, lines, err) = finished
    assert (code, err) == (1, "")
    runs = [line for line in lines if line.startswith("[")]
    assert [line.partition(": ")[0] for line in runs] == [
        f"[{k} of 4] {method}, seed {seed}"
        for k, (seed, method) in enumerate([(s, m) for s in (0, 1) for m in (GOOD, BAD)], 1)
    ]
    assert "budget reached" in runs[0] and "600 steps" in runs[0] and "left" in runs[0]
    assert "failed: --replay-capacity 20 is too small" in runs[1] and "left" not in runs[3]
    assert {path.name for path in (out / "runs/CartPole-v1").iterdir()} == {
        f"{GOOD}-s0",
        f"{GOOD}-s1",
    }


def test_every_run_has_the_same_budget_and_its_own_seed(finished):
    out, _, _ = finished
    for seed in (0, 1):
        config = json.loads((out / f"runs/CartPole-v1/{GOOD}-s{seed}/config.json").read_text())
        settings = config["settings"]
        assert (settings["run"]["seed"], settings["run"]["steps"]) == (seed, 600)
        assert (settings["parallel"]["mode"], settings["parallel"]["workers"]) == ("serial", 1)
        assert settings["evaluation"]["eval_episodes"] == 5


def test_the_report_shows_results_failures_and_commands(finished):
    out, _, _ = finished
    text = (out / "report.md").read_text()
    assert f"| {GOOD} | 2 |" in text
    assert f"| {BAD} | 0 (seed 0, 1 failed) |" in text
    assert f"Failed: {BAD}, seed 1: --replay-capacity 20 is too small" in text
    assert "python launch.py compare" in text and "runs were made one after another" in text
    log = out / "logs/serial-n-step-q-replay-uniform-replay-capacity-20-s0.log"
    assert "--replay-capacity 20 is too small" in log.read_text()
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"scores.png", "speed.png"} and (out / "report.html").is_file()


def test_an_interrupted_call_is_taken_up_where_it_stopped(tmp_path):
    out = tmp_path / "out"
    done, run = (out / f"runs/Scripted-Slow-v0/{GOOD}-s{seed}" for seed in (0, 1))
    arguments = ("--methods", f"{GOOD},{BAD}", "--seeds", "2", "--steps", "2000", *SLOW)
    process = start(out, *arguments)
    deadline = time.monotonic() + 60
    while not (run / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    kept = (done / "result.json").read_bytes()
    pid = int((run / ".lock").read_text())
    process.send_signal(signal.SIGINT)
    code, lines, err = finish(process)
    assert (code, err) == (130, "")
    assert not is_alive(pid), "the run outlived the comparison"
    assert lines[-1].endswith(f"goes on with {GOOD}-s1") and not (out / "report.html").exists()
    (run / "leftover").touch()
    code, lines, _ = finish(start(out, *arguments))
    assert code == 1  # the failing method was tried again
    assert [("kept" in line) for line in lines if line.startswith("[")] == [True, *[False] * 3]
    assert (done / "result.json").read_bytes() == kept
    assert json.loads((run / "result.json").read_text())["status"] == "budget reached"
    assert not (run / "leftover").exists(), "the interrupted run was not made anew"
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--methods", GOOD, "--seeds", "2"], f"method {BAD}, now without"),
        (["--seeds", "1"], "2 seeds, now 1"),
        (["--seeds", "2", "--steps", "700"], "steps 600, now 700"),
        (["--seeds", "2", "--stop-at-return", "9"], "stop_at_return None, now 9.0"),
        (["--seeds", "2", "--set", "lr=0.5"], "set [], now ['--lr=0.5']"),
    ],
)
def test_another_plan_in_the_same_folder_is_refused(finished, arguments, difference, capsys):
    out, methods, _ = finished
    before = (out / "compare.json").read_bytes()
    assert cli.main(command(out, "--methods", methods, *arguments)[2:]) == 2
    error = capsys.readouterr().err
    assert difference in error and "use another --out" in error and error.count("\n") == 1
    assert (out / "compare.json").read_bytes() == before


def test_never_two_at_a_time_in_a_folder(finished, capsys):
    out, methods, _ = finished
    with (out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(command(out, "--methods", methods, "--seeds", "2")[2:]) == 2
    assert "in use by another compare" in capsys.readouterr().err


def test_a_run_that_breaks_is_shown_as_failed_and_kept(tmp_path):
    out = tmp_path / "out"
    process = start(out, *HUGE, "--methods", DIES, "--seeds", "1")
    code, lines, _ = finish(process)
    assert code == 1 and "training diverged at step" in lines[1]
    text = (out / "report.md").read_text()
    assert "0 (seed 0 failed)" in text and "training diverged at step" in text


def test_nothing_but_runs_is_removed(finished, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    mine = out / f"runs/CartPole-v1/{GOOD}-s1"
    shutil.rmtree(mine)
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert cli.main(command(out, "--methods", f"{GOOD},{BAD}", "--seeds", "2")[2:]) == 2
    assert "is in the way and no run folder" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "years of work"


MISTAKES = [
    ("unknown method 'asinc-n-step-q'; did you mean async-n-step-q? Choose", "asinc-n-step-q"),
    ("unknown method ''; choose <mode>-<algorithm> of modes async,", f"{GOOD},"),
    ("unknown method 'cartpole'", "cartpole"),  # a preset for an environment is no method
    (f"method '{GOOD}' is named twice; drop one", GOOD, f"{GOOD}"),
    ("method async-a3c:--replay uniform: one-step-sarsa, a3c and", "async-a3c:--replay uniform"),
    ("method async-a3c:--lam 0.5: --lam", "async-a3c:--lam 0.5"),
    ("method async-a3c:--seed 3: --seed is not a method's own", "async-a3c:--seed 3"),
    ("method 'async-a3c:--lr \"1': No closing quotation", 'async-a3c:--lr "1'),
    ("sb3-dqn has its own settings, but for --steps; drop '--lr 1'", "sb3-dqn:--lr 1"),
]


@pytest.mark.parametrize(("message", "methods"), [(m, ",".join(rest)) for m, *rest in MISTAKES])
def test_unknown_and_impossible_methods(message, methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", f"--methods={methods}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--seeds must be a whole number from 1 (got '0')", ["--seeds", "0"]),
        ("--steps must be a whole number from 1 (got '1.5')", ["--steps", "1.5"]),
        ("--stop-at-return must be a finite number, or none (got nan)", ["--stop-at-return=nan"]),
        ("no environment 'Nope-v1'", ["--env", "Nope-v1"]),
        ("unknown option --method; did you mean --methods?", ["--method", "x"]),
        ("--set: unknown option --lrr", ["--set", "lrr=1"]),
        ("--set: --steps is not a method's own", ["--set", "steps=1"]),
    ],
)
def test_mistakes_are_one_line_and_exit_2(message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--methods", GOOD, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_named_method_is_a_command_the_trainer_takes():
    shared = {"env": "CartPole-v1", "steps": 1000, "stop_at_return": 0.0}
    ours = [name for name in methods.names() if name not in methods.PEERS]
    modes, algorithms = SETTINGS["mode"].choices, SETTINGS["algorithm"].choices
    assert set(ours) >= {f"{mode}-{name}" for mode in modes for name in algorithms}
    assert "rainbow-async" in ours and "cartpole" not in ours
    found = methods.contenders(ours, shared, 2, [])
    assert [contender.label for contender in found] == ours
    assert all("--stop-at-return=0.0" in contender.arguments for contender in found)


def test_a_preset_that_fixes_its_workers_keeps_them(tmp_path, monkeypatch):
    for file in presets.PRESET_FILES.glob("*.toml"):
        shutil.copy(file, tmp_path)
    text = '[algorithm]\nalgorithm = "one-step-q"\n[parallel]\nmode = "serial"\nworkers = 1\n'
    (tmp_path / "alone.toml").write_text(text)
    monkeypatch.setattr(presets, "PRESET_FILES", tmp_path)
    shared, common = {"env": "CartPole-v1"}, ["--env=CartPole-v1"]
    alone, rainbow = methods.contenders(["alone", "rainbow-async"], shared, 3, [])
    assert alone.arguments == ("train", "--preset=alone", *common)
    assert rainbow.arguments == ("train", "--preset=rainbow-async", *common, "--workers=3")


def test_peers_take_what_is_said_of_the_environment_and_no_more():
    pytest.importorskip("stable_baselines3")
    shared, extra = {"env": "CartPole-v1", "steps": 9}, ["--max-episode-steps=50", "--lr=0.1"]
    peer, ours = methods.contenders(["sb3-dqn", "async-n-step-q"], shared, 2, extra)
    common = ("--env=CartPole-v1", "--steps=9", "--workers=2")
    assert peer.arguments == ("sb3-dqn", *common, "--max-episode-steps=50")
    assert set(extra) < set(ours.arguments)


def test_a_method_may_have_a_budget_of_its_own():
    pytest.importorskip("stable_baselines3")
    labels = ["sb3-dqn:--steps 5_000", "dqn:--steps 7_000", "pqn"]
    for found, steps in zip(methods.contenders(labels, {"steps": 9}, 1, []), (5000, 7000, 9)):
        words = [word for word in found.arguments if word != "sb3-dqn"]
        given = parse_train(words[1:] if words[0] == "train" else words)
        assert given["steps"] == steps


def test_no_torch_beside_the_runs():
    # Memory and start-up time of the process that only waits.
    program = "import sys; import async_dqn.compare.command; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
