"""Runs reported to services: all of it, once, and without harm to the training."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_serial import train

from async_dqn import cli
from async_dqn.config.config import UserError
from async_dqn.runs import companions
from async_dqn.runs.folder import hold
from async_dqn.runs.growing import GrowingTable
from async_dqn.track import follow
from async_dqn.track.follow import Follower

METRICS = "step,wall_s,cpu_s,rollout/ep_rew_mean,time/fps,eval/mean_reward\n"
SCORES = "step,wall_s,cpu_s,episodes,mean,std,min,max\n"


class Notes:
    """A service that keeps what it is told."""

    def __init__(self, folder, known, settings):
        self.id, self.known, self.settings = known or "id-1", known, settings
        self.logged, self.flushed, self.ended = [], 0, None

    def log(self, step, wall_s, values):
        self.logged.append((step, wall_s, values))

    def flush(self):
        self.flushed += 1

    def end(self, result, failed, files):
        self.ended = result, failed, [path.name for path in files]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A run that is under way: one report, one score."""
    monkeypatch.setitem(follow.SERVICES, "notes", Notes)
    monkeypatch.setattr(follow, "LOOK_S", 0.01)
    (tmp_path / "config.json").write_text('{"settings": {"run": {"seed": 3}}}')
    started(tmp_path, 0)
    (tmp_path / "metrics.csv").write_text(METRICS + "100,1.5,1,,50,\n")
    (tmp_path / "evaluations.csv").write_text(SCORES + "90,1.4,1,10,20.5,1,19,22\n")
    return tmp_path


def started(folder: Path, step: int) -> None:
    event = {"time": time.time(), "event": "start", "role": "supervisor", "step": step}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_what_a_run_says_is_sent_once_and_by_its_step(folder) -> None:
    follower = Follower(folder, "notes")
    notes = follower.service
    assert notes.settings == {"run.seed": 3}
    follower._send()
    assert notes.logged == [
        (100, 1.5, {"cpu_s": 1, "time/fps": 50}),
        (90, 1.4, {"eval/mean_reward": 20.5, "eval/std_reward": 1, "eval/episodes": 10}),
    ]
    add(folder / "metrics.csv", "200,2.5,2,7,50,20.5\n300,3.5,2,8")  # the last one is being written
    follower._send()
    follower._send()
    assert notes.logged[2:] == [(200, 2.5, {"cpu_s": 2, "rollout/ep_rew_mean": 7, "time/fps": 50})]
    add(folder / "metrics.csv", ",60,\n")
    follower._send()
    assert notes.logged[3][0] == 300 and len(notes.logged) == 4 and notes.flushed == 4


def test_another_process_goes_on_where_one_ended(folder) -> None:
    Follower(folder, "notes")._send()
    add(folder / "metrics.csv", "200,2.5,2,7,50,\n")
    follower = Follower(folder, "notes")
    follower._send()
    assert follower.service.known == "id-1"
    assert [step for step, *_ in follower.service.logged] == [200]


def test_what_a_resumed_run_does_again_is_sent_again(folder) -> None:
    add(folder / "metrics.csv", "200,2.5,2,7,50,\n")
    Follower(folder, "notes")._send()
    started(folder, 100)  # from the checkpoint of that step: rows beyond are gone
    (folder / "metrics.csv").write_text(METRICS + "100,1.5,1,,50,\n180,2.5,2,7,50,\n")
    follower = Follower(folder, "notes")
    follower._send()
    assert [step for step, *_ in follower.service.logged] == [180]


def test_it_follows_until_the_run_has_its_result(folder) -> None:
    with hold(folder / ".lock"):  # the trainer is at work
        follower = Follower(folder, "notes")
        (folder / "result.json").write_text('{"status": "budget reached", "steps": 100}')
        follower.follow()
    result, failed, files = follower.service.ended
    assert result["steps"] == 100 and not failed
    assert files == ["config.json", "result.json", "metrics.csv", "evaluations.csv"]


def test_a_run_whose_trainer_is_gone_is_lost(folder) -> None:
    follower = Follower(folder, "notes")
    follower.follow()
    assert follower.service.ended[:2] == ({"status": "lost"}, True)


def test_tables_are_read_from_where_they_were_left(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("step,x\n")
    table = GrowingTable(path)
    assert list(table.new()) == []
    add(path, "1,2\n2,\n")
    assert list(table.new()) == [{"step": 1, "x": 2}, {"step": 2}]
    assert list(table.new()) == []


def module(tmp_path, monkeypatch, name: str, code: str) -> None:
    """A package of this name for processes started from here."""
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_service_that_hangs_does_no_harm(tmp_path, monkeypatch, capsys) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    module(tmp_path, monkeypatch, "wandb", code)
    monkeypatch.setattr(companions, "PATIENCE_S", 3.0)
    agent = train(tmp_path / "runs", steps=2_000, track="wandb")
    assert json.loads((agent.run / "result.json").read_text())["status"] == "budget reached"
    said = capsys.readouterr().err
    assert "track-wandb failed (it took more than 3 s)" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_service_that_fails_does_no_harm(tmp_path, monkeypatch, capsys) -> None:
    module(tmp_path, monkeypatch, "wandb", "def init(**settings): raise OSError('no such host')\n")
    agent = train(tmp_path / "runs", steps=2_000, track="wandb")
    assert json.loads((agent.run / "result.json").read_text())["status"] == "budget reached"
    said = capsys.readouterr().err
    assert "track-wandb failed (wandb failed: " in said
    assert f"`async-dqn track {agent.run} --to wandb` tries again" in said


def test_what_cannot_be_tracked_is_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(companions.SERVICES, "wandb", "no_such_package")
    with pytest.raises(UserError, match=r"wandb is not installed; pip install .*\[track\]"):
        train(tmp_path / "runs", steps=2_000, track="wandb")
    assert not (tmp_path / "runs").exists()
    for words, reason in [
        ([str(tmp_path), "--to", "mlflow"], "is not a run folder"),
        ([str(tmp_path), "--to", "nobody"], "--to must be one of wandb, mlflow"),
        ([str(tmp_path)], "required: --to"),
    ]:
        assert cli.main(["track", *words]) == 2
        assert reason in capsys.readouterr().err


def test_wandb_offline(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    agent = train(tmp_path, steps=2_500, track="wandb")
    assert (agent.run / "logs" / "track-wandb.log").read_text().rstrip().endswith("to wandb")
    (kept,) = agent.run.glob("wandb/offline-run-*/run-*.wandb")
    assert b"eval/mean_reward" in kept.read_bytes()


def test_mlflow_in_a_local_store(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    agent = train(tmp_path / "runs", steps=2_500, track="mlflow", seed=7)
    with sqlite3.connect(store) as base:
        (run, name, status), *others = base.execute("select run_uuid, name, status from runs")
        assert (name, status, others) == (f"CartPole-v1/{agent.run.name}", "FINISHED", [])
        assert ("7",) in base.execute("select value from params where key = 'run.seed'").fetchall()
        query = "select step, value from metrics where key = 'eval/mean_reward'"
        scores = base.execute(query).fetchall()
    lines = (agent.run / "evaluations.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    assert sorted(scores) == sorted((int(row[0]), float(row[4])) for row in rows)
    kept = {path.name for path in (tmp_path / "mlruns").rglob(f"{run}/artifacts/*")}
    assert {"config.json", "result.json", "metrics.csv"} < kept
    again = subprocess.run(
        [sys.executable, "-m", "async_dqn", "track", str(agent.run), "--to", "mlflow"], timeout=120
    )
    assert again.returncode == 0
    with sqlite3.connect(store) as base:
        assert len(base.execute(query).fetchall()) == len(scores)
