"""A run that ends when every worker has made an update; what starting them took."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

from async_dqn.parameters.layout import CPU_NS, STEPS, UPDATES
from async_dqn.runs.run import Run
from async_dqn.training.supervisor import Supervisor


class FirstUpdates(Supervisor):
    """Grants a worker rollouts until its first update, one by one, and prints what it took."""

    def __init__(self, run: Run):
        super().__init__(run)
        self._figures: dict[str, Any] = {}
        self._worker_cpu_s: dict[int, float] = {}

    def run(self) -> int:
        code = super().run()
        print(json.dumps(self._figures), flush=True)
        return code

    def _hand_out(self) -> None:
        slots = self.store.slots[: len(self.workers)]
        waiting = slots[:, UPDATES] == 0
        self.block["lease_limits"][waiting] = slots[waiting, STEPS] + self.rollout_steps

    def _turn(self) -> None:
        super()._turn()
        if self.run_.startup_s is None or self._figures:
            return
        for worker, slot in enumerate(self.store.slots[: len(self.workers)]):
            if slot[UPDATES] and slot[CPU_NS]:
                self._worker_cpu_s.setdefault(worker, slot[CPU_NS] / 1e9)
        if len(self._worker_cpu_s) == len(self.workers):
            own = [private_bytes(worker.process.pid) for worker in self.workers if worker.alive]
            self._figures = {
                "first_update": self.run_.startup_s,
                "last_update": self.run_.recorder.session_s,
                "cpu_s": session_cpu_s(),
                "worker_cpu_s": statistics.median(self._worker_cpu_s.values()),
                "private_bytes": statistics.median(own),
            }
            self.run_.reporter.stop_wanted = True


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
