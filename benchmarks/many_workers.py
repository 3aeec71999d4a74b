"""What a machine with many cores, and perhaps a GPU, shows in some minutes, as a Markdown table.

    python -m benchmarks.many_workers --minutes 12              # as many workers as usable cores
    python -m benchmarks.many_workers --minutes 5 --workers 16  # more than cores: for a try

The most valuable runs come first; each has a limit of its own, and none begins that would not fit
into what is left of the minutes. What was measured is written after every run, also where a later
one fails. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from async_dqn.config.cores import usable_cores
from benchmarks.scores import RESULTS, ROOT, machine

HEADER = ("what", "command", "result", "seconds to it", "steps to it", "first update", "steps/s")


class Job(NamedTuple):
    """A run of `launch.py` that ends by itself, or is broken off after `limit_s` seconds."""

    what: str
    arguments: str
    limit_s: float


def jobs(workers: int, has_gpu: bool) -> Iterator[Job]:
    """All runs, the most valuable first."""

    def scores(what: str, options: str, limit_s: float, seeds: range, count: int = workers):
        for seed in seeds:
            arguments = f"{options} --workers {count} --seed {seed}"
            yield Job(f"{what}, {count} workers", arguments, limit_s)

    cartpole = "CartPole to 475", "--stop-at-return 475", 30
    lander = "LunarLander to 200", "--env LunarLander-v3 --stop-at-return 200", 90
    pong = "Pong to 18", "--env ALE/Pong-v5 --stop-at-return 18", 240
    minatar = "MinAtar Breakout, 5 M steps", "--env MinAtar/Breakout-v1 --steps 5000000", 180
    yield from scores(*cartpole, range(100, 103))
    yield from scores(*lander, range(100, 103))
    yield from scores(*pong, range(100, 101))
    for device in ("cpu", "cuda") if has_gpu else ():
        for count in (workers // 2, workers):
            yield from speeds(count, device)
    yield from scores(*minatar, range(100, 101))
    yield from (job for count in (1, 2, 4) for job in scores(*cartpole, range(100, 103), count))
    yield from (job for count in (2, 4) for job in scores(*lander, range(100, 102), count))
    yield from scores(*pong, range(101, 103))


def speeds(workers: int, device: str) -> Iterator[Job]:
    """Throughput of Pong as it is, and of the IMPALA network, which is what a GPU is for."""
    common = f"--workers {workers} --pairs 1 --seconds 8 --set device={device}"
    impala = "--set network=impala --set replay=none --set epochs=1 --set envs=256"
    for what, options in (("Pong", "--set replay-start=500"), ("Pong, IMPALA network", impala)):
        arguments = f"bench scaling --env ALE/Pong-v5 {common} {options}"
        yield Job(f"{what}, {workers} workers, {device}", arguments, 60)


def measure(job: Job, folder: Path) -> tuple[str, ...]:
    """Run it; a row of the table."""
    figures = folder / "figures.json"
    is_bench = job.arguments.startswith("bench")
    own = ["--json", str(figures)] if is_bench else ["--quiet", "--runs-dir", str(folder)]
    more = [] if is_bench else ["--oversubscribe"]
    command = [sys.executable, "launch.py", *job.arguments.split(), *own, *more]
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        process.wait(job.limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # saves what there is; a second one ends it at once
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
    seconds = time.monotonic() - begun
    shown = f"`python launch.py {job.arguments}`"
    if figures.exists():
        (result,) = json.loads(figures.read_text())["results"]
        speed = f"{result['trainer'][0]:,.0f}"
        return job.what, shown, "measured", f"{seconds:.0f} in all", "-", "-", speed
    results = [json.loads(path.read_text()) for path in folder.glob("*/*/result.json")]
    if not results or results[0]["status"] == "failed":
        return job.what, shown, f"**FAILED** (exit code {process.returncode})", *["-"] * 4
    return job.what, shown, *_score(results[0], "--stop-at-return" in job.arguments)


def _score(result: dict, has_goal: bool) -> tuple[str, ...]:
    """Score, seconds and steps to it, or to the end where there is no goal; start-up, speed."""
    reached, mean = result["seconds_to_threshold"], result["final_mean"]
    training = result["wall_s"] - (result["startup_s"] or 0.0)
    missed = "> " if has_goal or mean is None else ""
    return (
        "broken off" if mean is None else f"{mean:.1f}",
        f"{reached:.2f}" if reached else f"{missed}{result['wall_s']:.1f}",
        f"{result['steps_to_threshold']:,}" if reached else f"{missed}{result['steps']:,}",
        f"{result['startup_s']:.2f}" if result["startup_s"] else "-",
        f"{result['steps'] / training:,.0f}" if training > 0 else "-",
    )


def main() -> None:
    """Measure for so many minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_workers")
    parser.add_argument("--minutes", type=float, required=True, help="time for all runs together")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="(default: cores)")
    parser.add_argument("--out", type=Path, default=RESULTS / "many_workers.md")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    head = [
        "# Many workers",
        "",
        f"`python -m benchmarks.many_workers --minutes {options.minutes:g}`: the runs that fitted "
        "into that, in their order; seconds are those of the whole process, start-up included, "
        "steps/s those from the first update to the end.",
        "",
        machine(),
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
    ]
    rows: list[str] = []
    for job in jobs(options.workers, _has_gpu()):
        if time.monotonic() + job.limit_s > end:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(f"| {' | '.join(measure(job, Path(folder)))} |")
        print(rows[-1], flush=True)
        options.out.write_text("\n".join([*head, *rows, ""]))


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


if __name__ == "__main__":
    main()
