"""Measurements from the command line: `launch.py bench scaling`.

Figures are medians over alternating repetitions with their spread, because machines are noisy:
the ratio of two runs that followed each other holds when the machine's speed drifts.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from async_dqn import envs, training
from async_dqn.config import UserError, usable_cores
from async_dqn.options import Parser
from async_dqn.presets import resolve

WARM_UP_SECONDS = 2.0
NEVER = 10**12  # steps
DEFAULT_ENVS = ("CartPole-v1", "ALE/Pong-v5")


class Throughput:
    """A callback that measures global steps per second after a warm-up, then ends the run."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._begin: tuple[float, float] | None = None
        self._first: float | None = None
        self.steps_per_second = 0.0

    def __call__(self, report: Mapping[str, float]) -> bool:
        now, step = time.monotonic(), report["step"]
        self._first = self._first or now
        if now - self._first < WARM_UP_SECONDS:
            return True
        if self._begin is None:
            self._begin = now, step
            return True
        elapsed = now - self._begin[0]
        self.steps_per_second = (step - self._begin[1]) / elapsed
        return elapsed < self.seconds


def throughput(env: str, workers: int, seconds: float) -> float:
    """Global steps per second of an asynchronous run with the id's preset, evaluation off."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "env": env,
            "workers": workers,
            "steps": NEVER,
            "eval_every": NEVER,
            "checkpoint_every": NEVER,
            "runs_dir": folder,
            "quiet": True,
        }
        config, explicit = resolve(settings)
        measured = Throughput(seconds)
        outcome = training.train(config, explicit, callback=measured)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return measured.steps_per_second


def scaling(argv: Sequence[str]) -> int:
    """Compare the throughput of several numbers of workers, in alternating repetitions."""
    given = _parse(argv)
    results = {}
    for env in given["env"]:
        runs: dict[int, list[float]] = {count: [] for count in given["workers"]}
        for pair in range(given["pairs"]):
            order = list(runs) if pair % 2 == 0 else list(reversed(runs))
            for count in order:
                runs[count].append(throughput(env, count, given["seconds"]))
        print(_table(env, runs, given["seconds"]), flush=True)
        results[env] = {str(count): speeds for count, speeds in runs.items()}
    if given["json"]:
        Path(given["json"]).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _table(env: str, runs: Mapping[int, Sequence[float]], seconds: float) -> str:
    """A Markdown table of steps/s and of the ratio to the first column, pair by pair."""
    first = next(iter(runs))
    lines = [
        f"{env}: steps/s over {seconds:g} s, {len(runs[first])} alternating repetitions, "
        f"{usable_cores()} cores, evaluation off",
        "",
        f"| workers | steps/s median (min to max) | against {first}: median (min to max) |",
        "|---|---|---|",
    ]
    for count, speeds in runs.items():
        ratios = [speed / base for speed, base in zip(speeds, runs[first], strict=True)]
        lines.append(f"| {count} | {_spread(speeds, ',.0f')} | {_spread(ratios, '.2f')} |")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _parse(argv: Sequence[str]) -> dict:
    parser = Parser(prog="async-dqn bench scaling", description=scaling.__doc__)
    parser.add_argument(
        "--env",
        metavar="ID",
        action="append",
        help=f"environment, may be repeated (default: {' and '.join(DEFAULT_ENVS)})",
    )
    parser.add_argument("--workers", metavar="N,N,...", default="1,2", help="(default: 1,2)")
    parser.add_argument("--pairs", metavar="N", default="5", help="repetitions (default: 5)")
    parser.add_argument("--seconds", metavar="S", default="8", help="each run (default: 8)")
    parser.add_argument("--json", metavar="FILE", help="also write every figure there")
    given = parser.parse(argv)
    given = {"env": list(DEFAULT_ENVS), "json": None} | given
    try:
        given["workers"] = [int(word) for word in given["workers"].split(",")]
        given["pairs"], given["seconds"] = int(given["pairs"]), float(given["seconds"])
    except ValueError as error:
        raise UserError(f"{error}; --workers, --pairs and --seconds take numbers") from error
    if min([*given["workers"], given["pairs"]]) < 1 or not 0 < given["seconds"] < 3600:
        raise UserError("--workers, --pairs and --seconds must be above 0")
    for env in given["env"]:
        envs.check_env_id(env)
    return given
