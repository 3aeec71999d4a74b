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
from typing import Any

from async_dqn import envs, training
from async_dqn.config import UserError, usable_cores
from async_dqn.options import Parser, parse_train
from async_dqn.presets import resolve
from async_dqn.run_folder import env_folder
from async_dqn.settings import either
from async_dqn.speedup import RULES, time_to_score

WARM_UP_SECONDS = 2.0
NEVER = 10**12  # steps
DEFAULT_ENVS = ("CartPole-v1", "ALE/Pong-v5")
LR_RULES = tuple(RULES)
DEFAULTS = {
    "env": DEFAULT_ENVS,
    "workers": "1,2",
    "pairs": "5",
    "seconds": "8",
    "seeds": "0",
    "lr_rule": "constant",
    "simulated": False,
    "out": None,
    "json": None,
    "set": (),
}
PROBE_SECONDS = 3.0
KNEE = 0.95


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


def throughput(
    settings: Mapping[str, Any],
    seconds: float,
    sources: tuple[str | None, str | None] = (None, None),
) -> float:
    """Global steps per second of an asynchronous run with these settings, evaluation off.

    `sources` are the configuration file and the preset, if any.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "steps": NEVER,
            "eval_every": NEVER,
            "checkpoint_every": NEVER,
            "stop_at_return": None,
            "resume": None,
            "run_name": None,
            "runs_dir": folder,
            "quiet": True,
        }
        config, explicit = resolve({**settings, **own}, *sources)
        measured = Throughput(seconds)
        outcome = training.train(config, explicit, callback=measured, in_own_process=False)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return measured.steps_per_second


def best_workers(
    settings: Mapping[str, Any], sources: tuple[str | None, str | None] = (None, None)
) -> int:
    """Measure 1, 2, 4 ... workers, up to the usable cores, and print the table.

    The fewest that come within KNEE of the best speed.
    """
    most = usable_cores()
    counts = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    print(f"measuring {', '.join(map(str, counts))} workers, {PROBE_SECONDS:g} s each", flush=True)
    speeds = {n: throughput({**settings, "workers": n}, PROBE_SECONDS, sources) for n in counts}
    chosen = next(n for n in counts if speeds[n] >= KNEE * max(speeds.values()))
    for count, speed in speeds.items():
        mark = "  <- chosen" if count == chosen else ""
        print(
            f"{count:>4} workers {speed:>9,.0f} steps/s  {speed / speeds[1]:5.2f}x{mark}",
            flush=True,
        )
    return chosen


def scaling(argv: Sequence[str]) -> int:
    """Compare several numbers of workers: throughput in alternating repetitions; with --seeds also
    the time to a score."""
    given = _parse(argv)
    results = {}
    for env in given["env"]:
        runs: dict[int, list[float]] = {count: [] for count in given["workers"]}
        for pair in range(given["pairs"]):
            order = list(runs) if pair % 2 == 0 else list(reversed(runs))
            for count in order:
                settings = {**given["settings"], "env": env, "workers": count}
                runs[count].append(throughput(settings, given["seconds"]))
        if runs[given["workers"][0]]:
            print(_table(env, runs, given["seconds"]), flush=True)
        results[env] = {str(count): speeds for count, speeds in runs.items()}
        if given["seeds"]:
            print(_scores(env, given), flush=True)
    if given["json"]:
        Path(given["json"]).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _scores(env: str, given: Mapping[str, Any]) -> str:
    """The table of times to a score; its runs are kept below --out."""
    one = {"mode": "serial", "simulate_workers": 1} if given["simulated"] else {}
    config, _ = resolve({**given["settings"], **one, "env": env})
    options = [f"--env={env}", *given["options"]]
    kind = "simulated" if given["simulated"] else "measured"
    out = Path(given["out"] or f"runs/speedup-{env_folder(env)}-{kind}")
    how = given["workers"], given["seeds"], given["lr_rule"], given["simulated"]
    return time_to_score(out, config, options, *how)


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
        lines.append(f"| {count} | {spread(speeds, ',.0f')} | {spread(ratios, '.2f')} |")
    return "\n".join([*lines, ""])


def spread(values: Sequence[float], form: str) -> str:
    """Median (smallest to largest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    parser = Parser(prog="async-dqn bench scaling", description=scaling.__doc__)
    parser.add_argument(
        "--env",
        metavar="ID",
        action="append",
        help=f"environment, may be repeated (default: {' and '.join(DEFAULT_ENVS)})",
    )
    parser.add_argument("--workers", metavar="N,N,...", help="(default: 1,2)")
    parser.add_argument("--pairs", metavar="N", help="repetitions; 0: no throughput (default: 5)")
    parser.add_argument("--seconds", metavar="S", help="each repetition (default: 8)")
    parser.add_argument("--seeds", metavar="K", help="of the time to a score (default: 0, none)")
    parser.add_argument(
        "--lr-rule",
        metavar="{" + ",".join(LR_RULES) + "}",
        help="learning rate of N workers: that of one, times 1, sqrt N or N (default: constant)",
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="time to score of simulated workers, on a virtual clock",
    )
    parser.add_argument("--out", metavar="DIR", help="of the runs to a score, which are kept there")
    parser.add_argument("--json", metavar="FILE", help="also write every throughput there")
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        help="an option of every run, such as stop-at-return=475; may be repeated",
    )
    given = {**DEFAULTS, **parser.parse(argv)}
    given["options"] = [f"--{word}" for word in given["set"]]
    given["settings"] = parse_train(given["options"])
    try:
        given["workers"] = [int(word) for word in given["workers"].split(",")]
        given |= {name: int(given[name]) for name in ("pairs", "seeds")}
        given["seconds"] = float(given["seconds"])
    except ValueError as error:
        raise UserError(f"{error}; --workers, --pairs, --seconds, --seeds take numbers") from error
    if min(given["workers"]) < 1 or not 0 < given["seconds"] < 3600:
        raise UserError("--workers and --seconds must be above 0")
    if min(given["pairs"], given["seeds"]) < 0 or not given["pairs"] + given["seeds"]:
        raise UserError("nothing to measure; give --pairs or --seeds above 0")
    if given["lr_rule"] not in LR_RULES:
        raise UserError(f"unknown --lr-rule {given['lr_rule']!r}; choose {either(LR_RULES)}")
    for env in given["env"]:
        envs.check_env_id(env)
    return given
