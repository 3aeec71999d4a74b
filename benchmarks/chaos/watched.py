"""A run watched from outside: its shared block is mapped read-only, its processes are counted."""

import atexit
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from async_dqn.config.cores import MOST_EVALUATING
from async_dqn.parameters.block import ALIGNMENT, Section
from async_dqn.parameters.layout import STEPS, sections
from async_dqn.parameters.optimizers import SharedAdam

# Scripted environments, and what starts real runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from runs import ROOT, Trainer, is_alive, wait_gone

__all__ = ["ENDLESS", "ROOT", "Pauses", "Watched", "is_alive", "wait_gone"]
SAMPLE_S = 0.002
ENDLESS = "1_000_000_000"  # steps


def _room(section: Section) -> int:
    return -(-section.bytes // ALIGNMENT) * ALIGNMENT


class Watched(Trainer):
    """`launch.py`, writing below `folder` or to a temporary place that goes with this object.

    `slots` and `steps` are there from `attach` on.
    """

    def __init__(self, *arguments: str, workers: int = 3, folder: Path | None = None):
        if folder is None:
            self._home = tempfile.TemporaryDirectory(prefix="chaos-")
            folder = Path(self._home.name)
        self.workers = workers
        super().__init__(folder, "--workers", str(workers), "--oversubscribe", *arguments)
        atexit.register(self.process.kill)  # when a bench itself fails

    def attach(self) -> None:
        """Map the block of the running trainer; waits until it is there."""
        descriptor = self.wait_for(self._descriptor)
        with open(descriptor, "rb") as file:
            block = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._block = block
        self.slots = self.array("slots")

    def array(self, name: str, size: int = 16) -> np.ndarray:
        """A section of the block; what lies behind theta needs its `size` in parameters, padded."""
        # How many players there may be is told by the size of the whole.
        tables = [self._table(size, players) for players in range(MOST_EVALUATING)]
        fitting = [t for t in tables if ALIGNMENT + sum(map(_room, t)) == len(self._block)]
        place = ALIGNMENT  # behind the header
        for section in (fitting or tables)[0]:
            if section.name == name:
                return np.ndarray(section.shape, section.dtype, self._block, place)
            place += _room(section)
        raise KeyError(name)

    def _table(self, size: int, players: int) -> tuple[Section, ...]:
        return sections(self.workers, size, SharedAdam.rows, players=players)

    def _descriptor(self) -> str | None:
        folder = f"/proc/{self.process.pid}/fd"
        for name in os.listdir(folder):
            try:
                if "memfd:async_dqn" in os.readlink(f"{folder}/{name}"):
                    return f"{folder}/{name}"
            except OSError:
                continue
        return None

    @property
    def steps(self) -> np.ndarray:
        """Steps [W] of each worker's slot."""
        return self.slots[: self.workers, STEPS].copy()

    def descriptors(self) -> int:
        """Open descriptors of the trainer."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self) -> list[int]:
        """Pids of all children ever started."""
        return self.pids("worker") + self.pids("evaluator") + self.pids("player")

    def newest(self, role: str, index: int | None = None) -> int:
        """The pid of the newest process of a role."""
        started = [e for e in self.events() if e["event"] in ("start", "restart")]
        return [e["pid"] for e in started if e["role"] == role and index in (None, e["index"])][-1]

    def kill(self, role: str, index: int | None = None, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process of a role, once there is one."""
        self.wait_for(lambda: is_alive(self.newest(role, index)))
        os.kill(self.newest(role, index), number)

    def deaths(self) -> list[dict]:
        """The events of all deaths so far."""
        return [event for event in self.events() if event["event"] == "death"]

    def stop(self) -> tuple[int, str]:
        """SIGTERM, then as `end`."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Exit code and stderr."""
        code, _, err = self.finish(seconds)
        return code, err


class Pauses(threading.Thread):
    """The longest time in which the sum of all steps stood still, in seconds."""

    def __init__(self, run: Watched):
        super().__init__(daemon=True)
        self.run_, self.longest, self.over = run, 0.0, False
        self.start()

    def run(self) -> None:
        last, since = -1, time.monotonic()
        while not self.over:
            now, total = time.monotonic(), int(self.run_.steps.sum())
            if total != last:
                last, since = total, now
            self.longest = max(self.longest, now - since)
            time.sleep(SAMPLE_S)
