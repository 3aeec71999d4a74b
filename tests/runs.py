"""Real runs of the command line: in a process of its own, or in this one, which is much cheaper."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from async_dqn.cli import main
from async_dqn.parameters.layout import HEARTBEAT_NS, STEPS
from async_dqn.runs.run import Run

ROOT = Path(__file__).resolve().parent.parent
# As refusals list them.
DEVICES = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
# Small and quick to start; the learning itself is not what these runs are about.
SMALL = ("--workers", "2", "--envs-per-worker", "4", "--eval-every", "20000")


# Who waits for something in them leaves the cores to others.
UNHURRIED = ("--import", "scripted_ids", "--env", "Scripted/Slow-v0", "--env-arg", "step=0.001")


def flags(folder: Path, arguments: Sequence[str]) -> list[str]:
    """What the command line is given: the defaults are fixed ones, which are quick, unless said."""
    said = {"--defaults", "--resume"} & set(arguments)
    return ["--runs-dir", str(folder), *([] if said else ["--defaults", "fixed"]), *arguments]


class Started:
    """A run of `launch.py` below `folder`, as its files tell."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def run(self) -> Path:
        """The one run folder of this trainer."""
        (config,) = self.folder.glob("*/*/config.json")
        return config.parent

    def events(self) -> list[dict[str, Any]]:
        """What events.jsonl holds so far."""
        files = list(self.folder.glob("*/*/events.jsonl"))
        lines = files[0].read_text().splitlines() if files else []
        return [json.loads(line) for line in lines]

    def pids(self, role: str) -> list[int]:
        """Process ids of all incarnations of a role."""
        started = [e for e in self.events() if e["event"] in ("start", "restart")]
        return [e["pid"] for e in started if e["role"] == role]

    def has_learned(self) -> bool:
        """Whether a report says so."""
        rows = [row for path in self.folder.glob("*/*/metrics.csv") for row in path.open()]
        return len(rows) > 1 and int(rows[-1].split(",")[0] or 0) > 0

    def result(self) -> dict[str, Any]:
        """result.json."""
        return json.loads((self.run / "result.json").read_text())


class Trainer(Started):
    """In a process of its own, where that is the subject: two interpreters import torch for it."""

    def __init__(self, folder: Path, *arguments: str):
        super().__init__(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *flags(folder, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until `condition()` is true and return its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        raise AssertionError("the condition did not come true")

    def wait_until_learning(self) -> None:
        """Wait until the first evaluation was written: workers and evaluator are all at work."""
        self.wait_for(lambda: any(e["event"] == "evaluation" for e in self.events()))

    def finish(self, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for the end; exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


class Here(Started):
    """In this process, from `finish` on; only the children are processes of their own.

    `strike(self)` is called once, between two looks of the trainer, when `when(self)` is true.
    """

    live: Run  # while it goes on

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        strike: Callable[["Here"], Any] | None = None,
        when: Callable[["Here"], Any] | None = None,
    ):
        super().__init__(folder)
        self.arguments, self.strike, self.when = arguments, strike, when or Here.is_at_work

    def is_at_work(self) -> bool:
        """Whether all workers have stepped, something was learned, and the evaluator lives."""
        store, parallel = self.live.store, self.live.run_spec.config.parallel
        evaluator = store.slots[parallel.workers]
        stepped = store.slots[: parallel.actors, STEPS].all()
        return stepped and store.updates and (parallel.mode == "serial" or evaluator[HEARTBEAT_NS])

    def finish(self) -> tuple[int, str, str]:
        """Run to the end; exit code, stdout, stderr."""
        out, err, turn = io.StringIO(), io.StringIO(), Run.turn

        def watched(run: Run) -> None:
            turn(run)
            self.live = run
            if self.strike and self.when(self):
                strike, self.strike = self.strike, None
                strike(self)

        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "turn", watched)
            code = main(flags(self.folder, self.arguments))
        assert self.strike is None, "it never came to that"
        return code, out.getvalue(), err.getvalue()


def send(number: signal.Signals, role: str, index: int = 0) -> Callable[[Started], None]:
    """A `strike`: a signal to a child, the newest with the index -1."""
    return lambda started: os.kill(started.pids(role)[index], number)


def state(pid: int) -> str:
    """As a letter, such as T of a stopped process; "" of none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return state(pid) not in ("", "Z")


def wait_gone(pids: list[int], seconds: float) -> list[int]:
    """Those of `pids` still alive after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [pid for pid in pids if is_alive(pid)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys: Any, folder: Path, *arguments: str) -> str:
    """The one line that the command line says when it exits 2 and leaves `folder` as it was."""
    before, _ = contents(folder), capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert contents(folder) == before
    return error


def listening(pid: int) -> list[str]:
    """Local addresses, in hex as the kernel has them, that a process listens on."""
    sockets = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
