"""Scores over seeds from the command line a user types, as a Markdown table.

    python -m benchmarks.scores cartpole lunarlander    # one at a time; without a name: the list

Every seed is a run of `launch.py` with a preset and nothing else on the machine; what is written
down is its result.json, failed seeds included. Tables go to benchmarks/results/.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Benchmark(NamedTuple):
    """A command line, its seeds, and which number of result.json decides."""

    options: str
    seeds: range
    goal: str
    succeeded: Any  # a predicate on result.json


# The environment is registered by the tests.
HIDDEN = (
    "--import scripted_ids --env Scripted/CartPoleHidden-v1 --preset cartpole --algorithm a3c "
    "--stop-at-return 475 --steps 1000000 --workers 2"
)
BENCHMARKS = {
    "cartpole": Benchmark(
        "--stop-at-return 475 --eval-episodes 100 --workers 2",
        range(10),
        "threshold reached on 10 of 10 seeds; median 6 s, worst 20 s, start-up included",
        lambda result: result["status"] == "threshold reached",
    ),
    "lunarlander": Benchmark(
        "--env LunarLander-v3 --stop-at-return 200 --workers 2",
        range(10),
        "threshold reached within 180 s on 9 of 10 seeds",
        lambda result: (result["seconds_to_threshold"] or 1e9) <= 180,
    ),
    "acrobot": Benchmark(
        "--env Acrobot-v1 --workers 2",
        range(10),
        "final evaluation over 100 episodes at least -100 within 60 s on 10 of 10 seeds",
        lambda result: result["final_mean"] >= -100 and result["wall_s"] <= 60,
    ),
    "mountaincar-n-step-q": Benchmark(
        "--env MountainCar-v0 --algorithm n-step-q --stop-at-return -110 --workers 2",
        range(5),
        "-110 over 100 episodes within 2,000,000 steps on 3 of 5 seeds (the preset's budget: half)",
        lambda result: result["status"] == "threshold reached",
    ),
    "mountaincar-q-lambda": Benchmark(
        "--env MountainCar-v0 --algorithm q-lambda --stop-at-return -110 --workers 2",
        range(5),
        "-110 over 100 episodes within 2,000,000 steps on 3 of 5 seeds (the preset's budget: half)",
        lambda result: result["status"] == "threshold reached",
    ),
    "hidden-velocity-recurrent": Benchmark(
        f"{HIDDEN} --recurrent",
        range(3),
        "475 over 100 episodes within 1,000,000 steps on 2 of 3 seeds, velocities not observed",
        lambda result: result["status"] == "threshold reached",
    ),
    "hidden-velocity-mlp": Benchmark(
        HIDDEN,
        range(3),
        "for comparison, without the LSTM: stays below 200 on every seed",
        lambda result: max(result["best_mean"], result["final_mean"]) < 200,
    ),
    "minatar": Benchmark(
        "--env MinAtar/Breakout-v1 --steps 2000000 --workers 2",
        range(3),
        "final evaluation over 100 episodes at least 12 on 3 of 3 seeds",
        lambda result: result["final_mean"] >= 12,
    ),
    "pong": Benchmark(
        "--env ALE/Pong-v5 --stop-at-return 18 --workers 2",
        range(3),
        "an evaluation over 10 episodes of at least 18 within 15 minutes on 3 of 3 seeds",
        lambda result: (result["seconds_to_threshold"] or 1e9) <= 900,
    ),
    "atari-breakout": Benchmark(
        "--env ALE/Breakout-v5 --steps 2500000 --workers 2",
        range(3),
        "final evaluation after 10 M frames above 50 on 3 of 3 seeds",
        lambda result: result["final_mean"] > 50,
    ),
}
COLUMNS = {
    "status": "{}",
    "seconds_to_threshold": "{:.1f}",
    "steps_to_threshold": "{:,.0f}",
    "final_mean": "{:.1f}",
    "best_mean": "{:.1f}",
    "steps": "{:,.0f}",
    "wall_s": "{:.1f}",
    "startup_s": "{:.2f}",
    "cpu_s": "{:.1f}",
    "overhead": "{:.1%}",
    "steps/s": "{:,.0f}",
}


def run(options: str, seed: int) -> dict[str, Any]:
    """One run: its result.json, steps/s in training, and the CPU time's share no worker had."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch.py", *options.split(), "--seed", str(seed)]
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        command += ["--quiet", "--runs-dir", folder]
        subprocess.run(command, cwd=ROOT, env=variables, check=False)
        (path,) = Path(folder).glob("*/*/result.json")
        result = json.loads(path.read_text())
        checkpoints = path.parent / "checkpoints"
        latest = checkpoints / (checkpoints / "latest").read_text().strip()
        state = json.loads((latest / "state.json").read_text())
        rows = (path.parent / "metrics.csv").read_text().splitlines()[1:]
    speeds = [float(row.split(",")[6]) for row in rows[1:-1]] or [0.0]
    result["training return"] = float(rows[-1].split(",")[3])
    result["steps/s"] = statistics.median(speeds)
    result["overhead"] = state["overhead_cpu_s"] / result["cpu_s"]
    return result


def table(name: str, benchmark: Benchmark) -> str:
    """Run all seeds and return the table with its command, machine and medians."""
    results = {}
    for seed in benchmark.seeds:
        results[seed] = run(benchmark.options, seed)
        print(name, seed, results[seed], flush=True)
    good = sum(map(benchmark.succeeded, results.values()))
    medians = {
        column: statistics.median(values)
        for column in list(COLUMNS)[1:]
        if (values := [r[column] for r in results.values() if r[column] is not None])
    }
    lines = [
        f"# {name}",
        "",
        f"`python launch.py {benchmark.options} --seed N`; made by "
        f"`python -m benchmarks.scores {name}`.",
        "",
        f"Goal: {benchmark.goal}. **Met by {good} of {len(results)} seeds.**",
        "",
        machine(),
        "",
        f"| seed | {' | '.join(column.replace('_', ' ') for column in COLUMNS)} |",
        f"|---{'|---' * len(COLUMNS)}|",
        *(f"| {seed} | {_cells(result)} |" for seed, result in results.items()),
        f"| median | {_cells({'status': ''} | medians)} |",
        "",
    ]
    return "\n".join(lines)


def _cells(result: dict[str, Any]) -> str:
    values = ((form, result.get(column)) for column, form in COLUMNS.items())
    return " | ".join("-" if value is None else form.format(value) for form, value in values)


def rows_of(
    names: Iterable[str], row: Callable[[str], str], file: str, head: Sequence[str]
) -> None:
    """Make the rows named on the command line and print them; without names all, as a table."""
    rows = []
    for name in sys.argv[1:] or names:
        rows.append(row(name))
        print(rows[-1], flush=True)
    if not sys.argv[1:]:
        *text, titles = head
        rule = "|---" * (titles.count("|") - 1) + "|"
        lines = [*text, "", machine(), "", titles, rule, *rows, ""]
        (RESULTS / file).write_text("\n".join(lines))


def machine() -> str:
    """The machine, the day and the commit, for a table."""
    import torch

    from async_dqn.report.command import machine as cpu

    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return f"{cpu()}, {versions}; {date.today()}, commit {commit}."


def main() -> None:
    """Run the benchmarks named on the command line."""
    unknown = set(sys.argv[1:]) - set(BENCHMARKS)
    if unknown or not sys.argv[1:]:
        sys.exit(f"name one or more of {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        (RESULTS / f"{name}.md").write_text(table(name, BENCHMARKS[name]))


if __name__ == "__main__":
    main()
