"""What does not fit is refused at the start; a checkpoint that cannot be written later on costs no
training, and is told of."""

import errno
import json
import platform
import resource
import runpy
import select
import subprocess
import sys
import time

import pytest

from async_dqn.config.config import UserError
from async_dqn.config.cores import free_memory
from async_dqn.config.presets import resolve
from async_dqn.processes import child_side
from async_dqn.runs import checkpoint, preflight
from async_dqn.training import training
from runs import ROOT, SMALL, Here, Trainer, refused

MANY = ("--oversubscribe", "--envs-per-worker", "1")


def take_away(trainer: Here) -> None:
    """Nothing can be saved any more: a file is where the folder was."""
    folder = trainer.run / "checkpoints"
    folder.rename(trainer.run / "moved")
    folder.touch()


def give_back(trainer: Here) -> None:
    (trainer.run / "checkpoints").unlink()
    (trainer.run / "moved").rename(trainer.run / "checkpoints")


@pytest.mark.parametrize("mode", ["serial", "async"])
def test_a_run_whose_last_checkpoint_is_lost_exits_75_with_the_cause(tmp_path, mode) -> None:
    trainer = Here(tmp_path, *SMALL, "--mode", mode, "--steps", "10000", strike=take_away)
    code, _, err = trainer.finish()
    assert code == 75
    *warnings, error = err.splitlines()
    assert all(line.startswith("warning: checkpoint not saved (") for line in warnings)
    assert error.startswith("error: the last checkpoint was not saved (") and "--resume" in error
    assert trainer.result()["steps"] == 10_000


def test_a_checkpoint_lost_on_the_way_costs_a_warning(tmp_path) -> None:
    def was_missed(trainer: Here) -> bool:
        return any("not saved" in str(event["cause"]) for event in trainer.events())

    def strike(trainer: Here) -> None:
        take_away(trainer)
        trainer.when, trainer.strike = was_missed, give_back

    often = ("--steps", "20000", "--checkpoint-every", "2000")
    trainer = Here(tmp_path, *SMALL, *often, strike=strike)
    code, _, err = trainer.finish()
    assert code == 0 and "warning: checkpoint not saved (" in err
    assert checkpoint.load(checkpoint.resolve(trainer.run)).state["steps"] == 20_000


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch) -> None:
    """Workers have steps for half a second; a disk that takes longer must not stop them."""
    monkeypatch.setattr("async_dqn.runs.reporter.REPORT_SECONDS", 0.2)
    steps, seen = [], []  # of all reports; of those that came during the first save
    save = checkpoint.save

    def slow(*arguments, **options):
        before, deadline = len(steps), time.monotonic() + 5
        while not seen and len(steps) < before + 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(len(steps) - before)
        return save(*arguments, **options)

    def note(report) -> bool:
        if "time/fps" in report:
            steps.append(report["step"])
        return not seen

    monkeypatch.setattr(checkpoint, "save", slow)
    small = {"workers": 1, "eval_every": 10**6, "checkpoint_every": 500, "quiet": True}
    outcome = training.train(*resolve({"runs_dir": str(tmp_path), **small}), callback=note)
    assert seen[0] == 6 and steps == sorted({*steps})
    result = json.loads((outcome.run / "result.json").read_text())
    assert checkpoint.load(checkpoint.resolve(outcome.run)).step == result["steps"] >= steps[-1]


@pytest.mark.parametrize(("failures", "code"), [(1, 0), (9, 75)])
def test_best_parameters_that_could_not_be_saved_are_saved_later(
    tmp_path, monkeypatch, failures, code
) -> None:
    save, refusals = checkpoint.save, []

    def full(folder, step, tensors, state, marks, *arguments, **options):
        if "best" in marks and len(refusals) < failures:
            refusals.append(step)
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(folder, step, tensors, state, marks, *arguments, **options)

    monkeypatch.setattr(checkpoint, "save", full)
    settings = {"mode": "serial", "workers": 1, "steps": 300, "eval_episodes": 2, "quiet": True}
    config, explicit = resolve(settings | {"eval_every": 10**6, "runs_dir": str(tmp_path)})
    if code:
        with pytest.raises(training.NotSaved, match="No space left"):
            training.train(config, explicit)
    else:
        training.train(config, explicit)
    (run,) = tmp_path.glob("*/*")
    best = checkpoint.marked(run / "checkpoints", "best")
    assert (best is None) == bool(code) and refusals
    checkpoint.load(checkpoint.resolve(run))


@pytest.mark.parametrize(("mode", "refused"), [("sync", True), ("serial", False)])
def test_synchronous_workers_are_refused_where_writes_may_change_places(
    tmp_path, monkeypatch, mode, refused
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    settings = {"mode": mode, "workers": 1, "steps": 100, "eval_episodes": 1, "quiet": True}
    config, explicit = resolve(settings | {"runs_dir": str(tmp_path)})
    if not refused:
        assert training.train(config, explicit).exit_code == 0
        return
    with pytest.raises(UserError, match=r"needs an x86 processor \(this is aarch64\)"):
        training.train(config, explicit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "works"), [("async", False), ("sync", False), ("serial", True)])
def test_workers_are_refused_where_pipes_are_short(tmp_path, monkeypatch, mode, works) -> None:
    """As on macOS, whose PIPE_BUF is 512; serial mode needs none."""
    monkeypatch.setattr(select, "PIPE_BUF", 512)
    there = runpy.run_path(child_side.__file__)["RECORD_BYTES"]
    monkeypatch.setattr(child_side, "RECORD_BYTES", there)
    options = ("--steps", "300", "--workers", "1", "--eval-episodes", "2", "--quiet")
    code, _, err = Here(tmp_path, "--mode", mode, *options).finish()
    if works:
        assert (code, err) == (0, "")
        return
    assert code == 2 and err.count("\n") == 1
    assert "in one piece (here 512); use --mode serial" in err
    assert not list(tmp_path.iterdir())


def test_memory_that_is_not_there_is_refused_with_nothing_written(tmp_path) -> None:
    huge = ("--replay", "uniform", "--replay-capacity", "10_000_000_000_000")
    code, _, err = Here(tmp_path, *SMALL, *huge).finish()
    assert code == 2 and err.startswith("error: cannot reserve ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_more_workers_than_memory_are_refused_with_nothing_written(tmp_path, capsys) -> None:
    free = free_memory()
    workers = str(free // 10**7)  # each needs more than 10 MB
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most[1], most[1]))
    try:
        error = refused(
            capsys, tmp_path, "--runs-dir", f"{tmp_path}/runs", "--workers", workers, *MANY
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert error.startswith("error: cannot reserve ") and "; lower --workers or " in error


def test_more_processes_than_allowed_are_refused_with_nothing_written(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(preflight, "free_tasks", lambda: 40)
    error = refused(capsys, tmp_path, "--runs-dir", f"{tmp_path}/runs", "--workers", "20", *MANY)
    assert error.startswith("error: cannot start 20 workers: too many processes (free 40, need 46)")


@pytest.mark.parametrize("limit", [pytest.param(60, marks=pytest.mark.slow), 16])
def test_too_few_descriptors_are_refused_with_nothing_written(tmp_path, limit) -> None:
    trainer = Trainer(tmp_path, *SMALL, "--workers", "8", "--oversubscribe")
    resource.prlimit(trainer.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    code, _, err = trainer.finish()
    assert (
        code == 2
        and f"too many open files (limit {limit}, need 66)" in err
        and err.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_three_checkpoints_is_refused(tmp_path) -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount")
    words = ["launch.py", "--runs-dir", f"{tmp_path}/runs", *SMALL, "--hidden", "300,300"]
    command = f'{mount} && "$@"; code=$?; ls {tmp_path}; exit $code'
    run = ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, *words]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert " has 1 MB free, needs 4 MB; " in done.stderr and done.stderr.count("\n") == 1


def test_an_environment_that_is_never_made_is_refused_with_nothing_written(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(training, "PROBE_S", 0.5)
    settings = {"env": "Scripted/Slow-v0", "import_modules": ("scripted_ids",)}
    settings["env_arg"] = {"build": 3600.0}
    config, explicit = resolve({**settings, "mode": "serial", "runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="took more than 0.5 s"):
        training.train(config, explicit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_worker_that_sees_other_spaces_ends_the_run_with_nothing_written(tmp_path, mode) -> None:
    environment = ("--import", "scripted_ids", "--env", "Scripted/Changing-v0")
    trainer = Here(tmp_path / "runs", *SMALL, *environment, "--mode", mode, "--quiet")
    code, _, err = trainer.finish()
    assert code == 2 and err.count("\n") == 1
    assert "sees 2 actions and observations of (7,); the trainer saw 2 actions" in err
    assert not list(tmp_path.iterdir())


def test_too_small_an_address_space_is_one_line(tmp_path) -> None:
    limit = 600 * 10**6
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(tmp_path / "runs")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr == (
        "error: a process may use 600 MB of addresses here, torch alone needs 700 MB; "
        "raise ulimit -v\n"
    )
    assert not (tmp_path / "runs").exists()
