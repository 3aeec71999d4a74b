"""Long runs made short: a SIGKILL every 10 s, an exception every 1000 steps (A15)."""

import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.chaos.data import tally, written
from benchmarks.chaos.processes import finite
from benchmarks.chaos.promise import Promise
from benchmarks.chaos.watched import ENDLESS, Watched

WARM_UP = 0.2  # of the time


def resources(pid: int) -> tuple[float, int, int, int]:
    """Resident MB, descriptors, threads and mappings of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return (
        int(fields["VmRSS"].split()[0]) / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(fields["Threads"]),
        len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
    )


def soak(minutes: float) -> list[Promise]:
    """Train for so long; then how the trainer's resources have changed since the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--env-arg", "fault='raise'", "--env-arg", "share=0.001")
        scores = ("--eval-every", "100_000", "--eval-episodes", "100")
        run = Watched(*tally(folder, *options, *scores), "--steps", ENDLESS, workers=2)
        run.attach()
        run.wait_for(lambda: (run.steps > 1000).all())
        begun, kills, samples = time.monotonic(), 0, []
        while (passed := time.monotonic() - begun) < 60 * minutes:
            time.sleep(10)
            run.kill("worker", random.randrange(2))
            kills += 1
            samples.append((passed / (60 * minutes), *resources(run.process.pid)))
        run.wait_for(lambda: len(run.pids("worker")) == 2 + kills)
        code, _ = run.stop()
        booked, faulty = written(folder, "steps"), written(folder, "faults")
    rows = np.array([sample for sample in samples if sample[0] > WARM_UP])
    slope, start = np.polyfit(rows[:, 0], rows[:, 1], 1)
    growth = 100 * slope * (1 - WARM_UP) / (start + slope * WARM_UP)
    counts = [int(column.max() - column.min()) for column in rows[:, 2:].T]
    result, ahead = run.result(), booked - run.result()["steps"]
    name = f"A15 {minutes:g} minutes, {kills} SIGKILLs, {faulty:,} exceptions: "
    return [
        Promise(
            name + "the trainer's memory, descriptors, threads, mappings",
            f"{growth:+.1f} %; vary by {counts}",
            "below 2 %; by 0 or 1",
            growth < 2 and max(counts[:2]) <= 1,
        ),
        Promise(
            name + "restarts, end",
            f"{result['restarts']}; exit {code}, parameters {'finite' if finite(run) else 'BAD'}",
            f"{kills}; exit 143, finite",
            result["restarts"] == kills and code == 143 and finite(run),
        ),
        Promise(
            name + "steps",
            f"{result['steps']:,}; {ahead} more in the environments' books",
            f"0 to {8 * (kills + 2)}: those of killed vector steps",
            0 <= ahead <= 8 * (kills + 2),
        ),
        Promise(
            name + "best score over 100 episodes of CartPole",
            f"{result['best_mean']:.1f}",
            "475",
            result["best_mean"] >= 475,
        ),
    ]
