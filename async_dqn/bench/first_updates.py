"""A run that ends when every worker has made an update; what starting them took."""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from async_dqn.parameters.layout import STEPS, UPDATES
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes.spawn import Child
from async_dqn.runs.run import Run
from async_dqn.training.supervisor import Supervisor
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import ProcessArgs, RunSpec
from async_dqn.workers.worker import run_worker


class FirstLearner(Learner):
    """Tells the CPU seconds of its process up to its first update."""

    def __init__(self, run_spec: RunSpec, store: ParameterStore, index: int):
        super().__init__(run_spec, store, index)
        self.start_cpu_s: float | None = None

    def update(self, budget: int) -> None:
        super().update(budget)
        if self.start_cpu_s is None and self.slot[UPDATES]:
            self.start_cpu_s = time.process_time()

    def record(self) -> dict[str, Any]:
        return super().record() | {"start_cpu_s": self.start_cpu_s}


def run_first_worker(start: ProcessArgs) -> None:
    """Entry point of such a worker."""
    run_worker(start, FirstLearner)


class FirstUpdates(Supervisor):
    """Grants a worker rollouts until its first update, one by one, and prints the `figures`."""

    worker_entry = staticmethod(run_first_worker)

    def __init__(self, run: Run):
        super().__init__(run)
        self.figures: dict[str, Any] = {}
        self._start_cpu_s: dict[int, float] = {}

    def run(self) -> int:
        code = super().run()
        self.figures["worker_cpu_s"] = statistics.median(self._start_cpu_s.values())
        print(json.dumps(self.figures), flush=True)
        return code

    def _hand_out(self) -> None:
        slots = self.store.slots[: len(self.workers)]
        waiting = slots[:, UPDATES] == 0
        self.block["lease_limits"][waiting] = slots[waiting, STEPS] + self.rollout_steps

    def _turn(self) -> None:
        super()._turn()
        if self.run_.startup_s is None or self.run_.reporter.stop_wanted:
            return
        self.figures.setdefault("first_update", self.run_.startup_s)
        if self.store.slots[: len(self.workers), UPDATES].all():
            self.figures["last_update"] = self.run_.recorder.session_s
            self.figures["cpu_s"] = session_cpu_s()
            own = [private_bytes(worker.process.pid) for worker in self.workers if worker.alive]
            self.figures["private_bytes"] = statistics.median(own)
            self.run_.reporter.stop_wanted = True

    def _handle(self, child: Child, record: dict[str, Any]) -> None:
        seconds = record.pop("start_cpu_s", None)
        if seconds is not None:
            self._start_cpu_s[child.index] = seconds
        super()._handle(child, record)


def session_cpu_s() -> float:
    """CPU seconds of all processes in this one's session that live; Linux only."""
    ticks, session = 0, os.getsid(0)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> int:
    """What a process holds that no other shares with it; Linux only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = dict(line.split(":") for line in lines)
    return 1024 * sum(int(sizes[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
