"""The speed of simulated workers against real ones, as a Markdown table.

    python -m benchmarks.simulation                       # CartPole-v1, 1 and 2 workers, 5 pairs
    python -m benchmarks.simulation MinAtar/Breakout-v1   # other environments: printed, not written

A pair is a simulated run, which measures its times anew, and a real `--mode async` run, in turns
one or the other first; evaluation and checkpoints off. Nothing else may run meanwhile.
"""

import json
import os
import tempfile

from async_dqn.processes.spawn import THREAD_VARIABLES

os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # before torch is imported

from async_dqn.bench.command import spread
from async_dqn.bench.throughput import NEVER, trainer_speed
from async_dqn.config.presets import resolve
from async_dqn.training import training
from benchmarks.scores import rows_of

ENV = "CartPole-v1"
WORKERS, PAIRS = (1, 2), 5
REAL_SECONDS, UPDATES = 6.0, 1000  # simulated updates of each worker


def simulated(env: str, workers: int) -> float:
    """Global steps per simulated second of `workers` simulated workers with the id's preset."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "env": env,
            "mode": "serial",
            "simulate_workers": workers,
            "eval_every": NEVER,
            "checkpoint_every": NEVER,
            "runs_dir": folder,
            "quiet": True,
            # Only the last parameters are evaluated, after the clock has stopped.
            "eval_episodes": 1,
        }
        config, _ = resolve(settings)
        parallel = config.parallel
        rollout = parallel.envs_per_worker * parallel.rollout_length
        steps = UPDATES * workers * rollout
        outcome = training.train(*resolve(settings | {"steps": steps}))
        result = json.loads((outcome.run / "result.json").read_text())
    return result["steps"] / result["wall_s"]


def row(env: str, workers: int) -> str:
    """All pairs at one number of workers, as a row of the table."""
    pairs = []
    for pair in range(PAIRS):
        order = (simulated, real) if pair % 2 == 0 else (real, simulated)
        speeds = {measure: measure(env, workers) for measure in order}
        pairs.append((speeds[simulated], speeds[real]))
        print(f"{workers} workers: {pairs[-1][0]:,.0f} against {pairs[-1][1]:,.0f}", flush=True)
    ratios = [one / other for one, other in pairs]
    cells = [*(spread(speeds, ",.0f") for speeds in zip(*pairs)), spread(ratios, ".2f")]
    return f"| {env} | {workers} | {' | '.join(cells)} |"


def real(env: str, workers: int) -> float:
    """Global steps per second of an asynchronous run."""
    return trainer_speed({"env": env, "workers": workers}, REAL_SECONDS).wall


def main() -> None:
    """Measure the environments named on the command line; without any, write the table."""
    head = (
        "# Simulated against real workers",
        "",
        f"`python -m benchmarks.simulation`: {PAIRS} alternating pairs at each number of workers. "
        "Simulated: steps per second of the virtual clock, times measured anew in every pair; "
        f"real: `--mode async` over {REAL_SECONDS:g} s after a warm-up. Median (least to most).",
        "| environment | workers | simulated steps/s | real steps/s | simulated / real |",
    )
    rows_of([ENV], lambda env: "\n".join(row(env, n) for n in WORKERS), "simulation.md", head)


if __name__ == "__main__":
    main()
