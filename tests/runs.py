"""Starting real runs from the tests: the command line in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from async_dqn.cli import main

ROOT = Path(__file__).resolve().parent.parent
# As refusals list them.
DEVICES = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
# Small and quick to start; the learning itself is not what these runs are about.
SMALL = ("--workers", "2", "--envs-per-worker", "4", "--eval-every", "20000")


class Trainer:
    """`launch.py` with `arguments`, writing below `folder`."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

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

    def has_learned(self) -> bool:
        """Whether a report says so."""
        rows = [row for path in self.folder.glob("*/*/metrics.csv") for row in path.open()]
        return len(rows) > 1 and int(rows[-1].split(",")[0] or 0) > 0

    def wait_until_learning(self) -> None:
        """Wait until the first evaluation was written: workers and evaluator are all at work."""
        self.wait_for(lambda: any(e["event"] == "evaluation" for e in self.events()))

    def finish(self, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for the end; exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def result(self) -> dict[str, Any]:
        """result.json."""
        return json.loads((self.run / "result.json").read_text())


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
