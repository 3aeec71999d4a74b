"""What a run must bear from around it: unruly environments, readers that leave, clocks set back."""

import contextlib
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from async_dqn import AsyncDQN
from async_dqn.config.presets import resolve
from async_dqn.runs import checkpoint
from async_dqn.training import training
from runs import ROOT, SMALL, Here, is_alive

UNRULY = ("--import", "scripted_ids", "--env", "Scripted/Unruly-v0", "--eval-episodes", "2")


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_an_unruly_environment_leaves_no_trace_outside_its_process(tmp_path, mode) -> None:
    """It prints, changes the folder, takes the signals and starts programs that stay."""
    command = [sys.executable, ROOT / "launch.py", "--runs-dir", "runs", *UNRULY, *SMALL]
    trainer = subprocess.Popen(
        [
            *command,
            "--mode",
            mode,
            "--steps",
            "100_000_000",
            "--checkpoint-every",
            "1000",
            "--quiet",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "UNRULY": str(tmp_path / "pids")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    trainer.send_signal(signal.SIGTERM)
    out, err = trainer.communicate(timeout=30)
    own, *others = (line.split() for line in (tmp_path / "pids").read_text().splitlines())
    assert trainer.returncode == 143
    assert out.count("noise") == err.count("noise") == 1  # of the one that was tried before
    (run,) = tmp_path.glob("runs/*/*")
    assert "noise" in (run / "logs" / "worker-0.log").read_text()
    assert json.loads((run / "result.json").read_text())["status"] == "stopped"
    checkpoint.load(checkpoint.resolve(run))
    assert int(own[0]) == trainer.pid and len(others) >= 8
    os.kill(int(own[1]), signal.SIGKILL)  # a program of the trainer's own process is not its child
    assert not [pid for _, pid in others if is_alive(int(pid))]


def traced(folder: Path, mode: str, *arguments: str, **strike) -> Here:
    """A short run of an environment that leaves traces in `folder`."""
    folder.mkdir()
    env = ("--import", "scripted_ids", "--env", "Scripted/Traced-v0", "--env-arg")
    looks = ("--eval-every", "500", "--eval-episodes", "20", "--quiet", "--steps", "3000")
    given = ("--mode", mode, *env, f"folder={folder}", *SMALL, *looks, *arguments)
    return Here(folder.with_name(f"{folder.name}-runs"), *given, **strike)


@pytest.mark.parametrize("mode", ["async", "sync", "serial"])
def test_every_environment_is_closed_at_the_end(tmp_path, mode) -> None:
    code, _, err = traced(tmp_path / "traces", mode).finish()
    assert (code, err) == (0, "")
    traces = [path.name for path in (tmp_path / "traces").iterdir()]
    assert len(traces) >= (1 if mode == "serial" else 4)
    assert not [name for name in traces if name.startswith("open-")]


def test_every_environment_is_closed_after_a_signal(tmp_path) -> None:
    folder = tmp_path / "traces"
    run = traced(
        *(folder, "async", "--steps", "100_000_000"),
        strike=lambda _: os.kill(os.getpid(), signal.SIGTERM),
        when=lambda _: len(list(folder.glob("open-*"))) >= 9,  # two workers of four, the evaluator
    )
    assert run.finish()[0] == 143
    assert not list(folder.glob("open-*"))


def test_no_two_environments_draw_the_same_global_random_numbers(tmp_path) -> None:
    """What a process inherits from the fork server is the same for all of them."""
    assert traced(tmp_path / "traces", "async").finish()[0] == 0
    files = list((tmp_path / "traces").glob("drawn-*"))
    drawn = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(files) >= 4 and len(drawn) >= 10
    for numbers in zip(*drawn):
        assert len(set(numbers)) == len(numbers)


def test_serial_runs_of_such_environments_are_repeatable(tmp_path) -> None:
    drawn = []
    for name in ("one", "two"):
        assert traced(tmp_path / name, "serial").finish()[0] == 0
        (path,) = (tmp_path / name).glob("drawn-*")
        drawn.append(path.read_text().splitlines()[1:])  # the first one is the probe's
    assert drawn[0] == drawn[1] and len(drawn[0]) > 5


def test_the_callers_generators_and_threads_stay_as_they_are(tmp_path) -> None:
    settings = {"mode": "serial", "workers": 1, "hidden": (8,), "runs_dir": str(tmp_path / "runs")}
    torch.set_num_threads(2)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(()).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    agent = AsyncDQN("CartPole-v1", **settings).learn(500)
    agent.evaluate(3)
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected
    assert torch.get_num_threads() == 2


def test_a_signal_reaches_a_run_whose_environments_took_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UNRULY", str(tmp_path / "pids"))
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    settings = {"env": "Scripted/Unruly-v0", "import_modules": ("scripted_ids",), "quiet": True}
    settings |= {"mode": "serial", "workers": 1, "steps": 20_000, "eval_every": 500}
    settings |= {"envs_per_worker": 2, "eval_episodes": 2, "checkpoint_every": 1000}
    reported: list[float] = []

    def report(tags) -> None:
        reported.append(tags["step"])
        if len(reported) == 2:  # evaluations made environments meanwhile
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()

    try:
        outcome = training.train(*resolve({**settings, "runs_dir": "runs"}), callback=report)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for line in (tmp_path / "pids").read_text().splitlines():
            with contextlib.suppress(ProcessLookupError):  # that of the look ended with it
                os.kill(int(line.split()[1]), signal.SIGKILL)
    assert outcome.exit_code == 143
    assert (tmp_path / "runs/Scripted-Unruly-v0" / outcome.run.name / "result.json").exists()


@pytest.mark.parametrize("redirection", ["| true", "> /dev/full", ">&- 2>&-"])
def test_whoever_listens_may_leave(tmp_path, redirection) -> None:
    words = [sys.executable, "launch.py", "--runs-dir", tmp_path, "--mode", "serial"]
    words += ["--workers", "1", "--steps", "500", "--eval-episodes", "2"]
    command = f'set -o pipefail; "$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = tmp_path.glob("*/*/result.json")
    assert json.loads(result.read_text())["steps"] == 500


def test_a_wall_clock_that_is_set_back_does_no_harm(tmp_path, monkeypatch) -> None:
    now = itertools.count(2e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(now))
    settings = {"mode": "serial", "workers": 1, "steps": 4000, "quiet": True, "hidden": (8,)}
    settings |= {"envs_per_worker": 8, "eval_every": 2000, "eval_episodes": 2}
    outcome = training.train(
        *resolve({**settings, "runs_dir": str(tmp_path)}), in_own_process=False
    )
    assert outcome.exit_code == 0
    rows = list(csv.DictReader((outcome.run / "evaluations.csv").open()))
    seconds = [float(row["wall_s"]) for row in rows]
    assert len(rows) >= 2 and seconds == sorted(seconds)
    result = json.loads((outcome.run / "result.json").read_text())
    assert result["steps"] == 4000 and 0 <= result["startup_s"] < result["wall_s"] < 120


def test_only_stamps_of_files_come_from_the_wall_clock() -> None:
    using = {
        path.stem for path in (ROOT / "async_dqn").rglob("*.py") if "time.time(" in path.read_text()
    }
    assert using == {"writers", "follow", "services"}  # and of what is sent to a service
