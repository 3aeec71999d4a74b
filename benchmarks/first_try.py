"""Environments as people bring them, with nothing but the defaults: ours, and SB3's DQN and PPO.

    python -m benchmarks.first_try                        # all that is not yet in the results
    python -m benchmarks.first_try --methods async_dqn --tasks Taxi-v4 Acrobot-v1
    python -m benchmarks.first_try --table                # only table and figure again

A run ends when it has solved its task (100 episodes reach the score wanted), or after 15 minutes.
Results are kept by line in benchmarks/results/first_try.jsonl, so that an interrupted suite goes on
where it was. Ours is `launch.py --preset none --workers 2` alone on the machine, by the wall clock;
SB3's are `benchmarks.first_try_sb3`, by the clock described there, so that two of them may run at
once (`--methods sb3-dqn`, `--methods sb3-ppo`).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "first_try.jsonl"
TABLE, FIGURE = RESULTS.with_suffix(".md"), RESULTS.with_suffix(".png")
LIMIT_S, LEAVING_S = 900.0, 60.0
SCORED_S = 5400.0  # on the wall clock, evaluations of SB3 included
MISSED_S = 1.25 * LIMIT_S  # where the figure shows such runs
METHODS = {"async_dqn": range(100, 103), "sb3-dqn": range(100, 101), "sb3-ppo": range(100, 101)}


class Task(NamedTuple):
    """What is played and the score wanted; options of `launch.py` that belong to the task."""

    wanted: float
    options: tuple[str, ...] = ()


TASKS = {
    "CartPole-v1": Task(475),
    "Acrobot-v1": Task(-100),
    "MountainCar-v0": Task(-110),
    "LunarLander-v3": Task(200),
    "Pendulum-v1": Task(-200),
    "InvertedPendulum-v5": Task(950),
    "Taxi-v4": Task(7),
    "CliffWalking-v1": Task(-13),
    "FrozenLake-v1": Task(0.70),
    "Blackjack-v1": Task(-0.06, ("--eval-episodes", "10000")),
    "MiniGrid-Empty-8x8-v0": Task(0.9),
    "MiniGrid-DoorKey-5x5-v0": Task(0.9),
    "MiniGrid-Dynamic-Obstacles-6x6-v0": Task(0.85),
    "VizdoomBasic-v1": Task(75),
    "VizdoomDefendCenter-v1": Task(10),
    # What DQN of the package's own SB3 script had after as many steps (seed 100, 100 episodes).
    "highway-fast-v0": Task(21.6, ("--import", "highway_env", "--steps", "20000")),
    "FlappyBird-v0": Task(10, ("--import", "flappy_bird_gymnasium")),
    "MinAtar/Breakout-v1": Task(10),
    "ALE/Pong-v5": Task(-10, ("--eval-episodes", "10")),
    "HalfCheetah-v5": Task(3000),
}


class Result(NamedTuple):
    """One run."""

    method: str
    task: str
    seed: int
    solved: bool
    seconds: float  # start-up included
    steps: int
    best: float | None  # of the evaluations
    note: str = ""


def ours(name: str, seed: int, folder: str) -> Result:
    """A run of `launch.py`; its score is that of result.json."""
    task = TASKS[name]
    command = [sys.executable, "launch.py", "--preset", "none", "--env", name, "--workers", "2"]
    command += ["--seed", str(seed), "--stop-at-return", str(task.wanted), *task.options]
    seconds, error = timed([*command, "--quiet", "--runs-dir", folder])
    found = list(Path(folder).rglob("result.json"))
    result = json.loads(found[0].read_text()) if found else {}
    solved = result.get("status") == "threshold reached"
    steps, best = result.get("steps", 0), result.get("best_mean")
    return Result("async_dqn", name, seed, solved, seconds, steps, best, "" if found else error)


def sb3(method: str, name: str, seed: int, folder: str) -> Result:
    """A run of SB3; it keeps the time itself."""
    task = TASKS[name]
    module = ["-m", "benchmarks.first_try_sb3", method.removeprefix("sb3-"), name, str(seed)]
    report = Path(folder, "result.json")
    limit = ["--limit", str(LIMIT_S)]
    command = [sys.executable, *module, str(task.wanted), str(report), *limit, *task.options]
    _, error = timed(command, SCORED_S)
    result = json.loads(report.read_text()) if report.exists() else {}
    solved, best, seconds = result.get("solved", False), result.get("best"), result.get("seconds")
    return Result(method, name, seed, solved, seconds or 0.0, result.get("steps", 0), best, error)


def timed(command: Sequence[str], limit_s: float = LIMIT_S) -> tuple[float, str]:
    """Seconds that a command took, at most the limit, and the last line of its errors."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, error = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=LEAVING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, error = process.communicate()
    last = error.strip().splitlines()[-1:] if process.returncode else []
    return min(limit_s, time.monotonic() - begun), "".join(last)[:200]


def known() -> list[Result]:
    """What was measured so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def write_table(results: Sequence[Result]) -> None:
    """The results as Markdown: seconds to the score by seed, or the best score that was missed."""
    lines = ["# First try: the defaults on environments that nobody tuned for", ""]
    lines += [f"`python -m benchmarks.first_try` on {os.cpu_count()} cores; seconds from the start"]
    lines += ["until 100 episodes reached the score wanted (15 minutes at most); in brackets the"]
    lines += ["best evaluation of a run that missed it.", ""]
    lines += [
        f"| environment | wanted | {' | '.join(METHODS)} |",
        "|---" * (2 + len(METHODS)) + "|",
    ]
    for name, task in TASKS.items():
        cells = []
        for method in METHODS:
            runs = [r for r in results if (r.method, r.task) == (method, name)]
            cells.append(", ".join(map(shown, sorted(runs, key=lambda r: r.seed))) or "not run")
        lines.append(f"| {name} | {task.wanted:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "| method | every seed solved, of those run | one at least | median seconds if solved |",
    ]
    lines += ["|---|---|---|---|"]
    for method in METHODS:
        by_task = [[r for r in results if (r.method, r.task) == (method, name)] for name in TASKS]
        every = sum(bool(runs) and all(r.solved for r in runs) for runs in by_task)
        some = sum(any(r.solved for r in runs) for runs in by_task)
        times = [r.seconds for runs in by_task for r in runs if r.solved]
        middle = f"{median(times):.0f}" if times else "-"
        ran = sum(map(bool, by_task))
        lines.append(f"| {method} | {every} of {ran} | {some} | {middle} |")
    TABLE.write_text("\n".join(lines) + "\n")


def draw(results: Sequence[Result]) -> None:
    """The results as a figure: seconds of every run that solved its task, and who missed it."""
    names = list(reversed(TASKS))
    figure = Figure(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for method, marker, shift in zip(METHODS, "oDs", (0.22, 0.0, -0.22), strict=True):
        runs = [r for r in results if r.method == method]
        if not runs:
            continue
        heights = [names.index(r.task) + shift for r in runs]
        times = [r.seconds if r.solved else MISSED_S for r in runs]
        axes.plot(times, heights, marker, markersize=5, label=method)
        missed = [(t, h) for t, h, r in zip(times, heights, runs, strict=True) if not r.solved]
        if missed:
            axes.plot(*zip(*missed, strict=True), marker, markersize=3, color="white")
    axes.set_xscale("log")
    axes.axvline(LIMIT_S, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel("seconds to the score wanted; hollow, beyond the limit: missed")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(METHODS), frameon=False)
    figure.savefig(FIGURE, dpi=110)


def shown(result: Result) -> str:
    """A cell of the table."""
    if result.solved:
        return f"{result.seconds:.0f} s"
    if result.best is None:
        return f"- ({result.note})" if result.note else "-"
    return f"missed ({result.best:.3g})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, one run at a time, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=METHODS["async_dqn"])
    parser.add_argument("--table", action="store_true", help="only table and figure")
    chosen = parser.parse_args(argv)
    done: dict[tuple[Any, ...], Result] = {(r.method, r.task, r.seed): r for r in known()}
    todo = (
        []
        if chosen.table
        else [
            (m, t, s)
            for m in chosen.methods
            for t in chosen.tasks
            for s in METHODS[m]
            if s in chosen.seeds
        ]
    )
    for method, task, seed in todo:
        if (method, task, seed) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = ours if method == "async_dqn" else lambda *a, m=method: sb3(m, *a)
            result = run(task, seed, folder)
        done[method, task, seed] = result
        with RESULTS.open("a") as file:
            file.write(json.dumps(result._asdict()) + "\n")
        print(*result, flush=True)
    write_table(list(done.values()))
    draw(list(done.values()))


if __name__ == "__main__":
    main()
