"""Run folders: names stay inside, one trainer per run, a refusal writes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from async_dqn.config.config import UserError
from async_dqn.runs.folder import LOG_BYTES, RunFolder, cap_logs, check_new_run, env_folder

HOLDER = """
import sys, time
from async_dqn.runs.folder import RunFolder
run = RunFolder.create(sys.argv[1], "CartPole-v1", "x", "n-step-q", 0)
print("held", flush=True)
time.sleep(60)
"""
LEADING_OUT = ["..", ".", "../x", "../../etc/x", "a/b", "/abs", "a\\b", "~", "~root", "%2e%2e"]
UNCLEAN = ["", "-x", "_x", ".hidden", "a\0b", "a\nb", "x\n", "é", "x y", "a" * 101, "a" * 300]
RESERVED = ["CON", "con", "NUL", "nul.txt", "COM1", "aux.log", "LPT9"]


def create(runs_dir: Path, name: str | None = "x", seed: int = 0) -> RunFolder:
    return RunFolder.create(runs_dir, "CartPole-v1", name, "n-step-q", seed)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(call, folder: Path) -> str:
    """The message of the refusal, after checking that it wrote nothing."""
    before = tree(folder)
    with pytest.raises(UserError) as caught:
        call()
    assert tree(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_folder_follows_the_umask_and_is_named_after_the_environment(tmp_path, umask, mask):
    umask(mask)
    with RunFolder.create(tmp_path / "runs", "ALE/Pong-v5", "x", "n-step-q", 0) as run:
        assert run.path == tmp_path / "runs/ALE-Pong-v5/x"
        for folder in (run.path, run.checkpoints, run.logs, run.path.parent):
            assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
        assert (run.path / ".lock").stat().st_mode & 0o777 == 0o600


def test_default_names_count_up_and_skip_what_is_taken(tmp_path):
    first, second = create(tmp_path, None, seed=3), create(tmp_path, None, seed=3)
    assert [first.name, second.name] == ["n-step-q-s3-1", "n-step-q-s3-2"]
    (first.path / "config.json").write_text("{}")
    first.close(), second.close()
    # The second left nothing but its lock and empty folders: its name is free again.
    with create(tmp_path, None, seed=3) as third:
        assert third.name == "n-step-q-s3-2"


@pytest.mark.parametrize("name", LEADING_OUT + UNCLEAN + RESERVED)
def test_bad_names_are_refused_unwritten(tmp_path, name):
    assert "run name" in refused(lambda: create(tmp_path, name), tmp_path)


@pytest.mark.parametrize("env", ["..", "../../x", "/etc", "a:b", "<lambda>", "", "\0", "x" * 300])
def test_any_environment_name_stays_inside(env):
    name = env_folder(env)
    assert "/" not in name and not name.startswith(".") and 0 < len(name) <= 100


def test_existing_run_is_kept_and_its_steps_named(tmp_path):
    with create(tmp_path) as run:
        (run.path / "config.json").write_text("{}")
    message = refused(lambda: create(tmp_path), tmp_path)
    assert "already holds a run (no checkpoint)" in message
    (run.checkpoints / "step-000001200000").mkdir()
    message = refused(lambda: create(tmp_path), tmp_path)
    path = tmp_path / "CartPole-v1/x"
    assert message.startswith(f"{path} already holds a run (1.2 M steps); use --resume {path} or")
    (run.path / "result.json").write_text('{"steps": 3000000}')
    assert "(3 M steps)" in refused(lambda: create(tmp_path), tmp_path)


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for place, reason in (("file", "Not a directory"), ("no/parent", "No such file"), ("a\0b", "")):
        for call in (create, lambda p: check_new_run(p, "CartPole-v1", None)):
            if "\0" in place and call is not create:
                continue
            message = refused(lambda p=tmp_path / place, call=call: call(p), tmp_path)
            assert message.startswith(f"cannot write to {tmp_path / place}: {reason}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/CartPole-v1").write_text("a file in place of the environment's folder")
    assert "Not a directory" in refused(lambda: create(tmp_path / "runs"), tmp_path)


def test_a_failure_half_way_leaves_no_empty_folders(tmp_path, monkeypatch):
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name == "x":
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    message = refused(lambda: create(tmp_path / "runs"), tmp_path)
    assert "No space left on device" in message


@pytest.mark.parametrize("linked", ["CartPole-v1", "CartPole-v1/x"])
def test_symbolic_links_are_not_written_through(tmp_path, linked):
    elsewhere, runs = tmp_path / "elsewhere", tmp_path / "runs"
    elsewhere.mkdir()
    (runs / linked).parent.mkdir(parents=True)
    (runs / linked).symlink_to(elsewhere)
    message = refused(lambda: create(runs), tmp_path)
    assert message == f"{runs / linked} is a symbolic link; refusing to write through it"


def test_resume_refuses_links_and_missing_folders(tmp_path):
    for folder in (tmp_path, tmp_path / "y"):  # an ordinary folder, and none
        assert "is not a run folder" in refused(lambda f=folder: RunFolder.open(f), tmp_path)
    create(tmp_path).close()
    (tmp_path / "link").symlink_to(tmp_path / "CartPole-v1/x")
    assert "symbolic link" in refused(lambda: RunFolder.open(tmp_path / "link"), tmp_path)
    logs = tmp_path / "CartPole-v1/x/logs"
    logs.rmdir()
    logs.symlink_to(tmp_path)
    assert "symbolic link" in refused(lambda: RunFolder.open(logs.parent), tmp_path)


def test_one_trainer_per_run_and_none_after_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        path = tmp_path / "CartPole-v1/x"
        (path / "config.json").write_text("{}")
        for call in (lambda: create(tmp_path), lambda: RunFolder.open(path)):
            message = refused(call, tmp_path)
            assert message.startswith(f"{path} is in use by process {holder.pid};")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with RunFolder.open(path) as run:
            assert (path / ".lock").read_text().strip() == str(os.getpid())
            assert "in use by process" in refused(lambda: RunFolder.open(path), tmp_path)
        run.close()  # a second time: nothing happens
        RunFolder.open(path).close()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_relative_folders_survive_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create(Path("runs")) as run:
        assert run.path.is_absolute()
        assert str(run) == "runs/CartPole-v1/x"


def test_a_log_that_grows_without_end_is_emptied_and_its_writer_goes_on(tmp_path):
    flooded, small = tmp_path / "worker-0.log", tmp_path / "worker-1.log"
    small.write_text("kept")
    with flooded.open("ab", buffering=0) as writer:
        writer.write(bytes(LOG_BYTES + 1))
        cap_logs(tmp_path)
        writer.write(b"and on")
    assert flooded.read_bytes() == b"and on" and small.read_text() == "kept"
