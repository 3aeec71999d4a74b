"""`bench throughput`: how much of what the environments can do alone is left with a trainer."""

import csv
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from async_dqn.bench.command import (
    Sources,
    Speed,
    TimedOptions,
    in_turns,
    present,
    ratios,
    save,
    spread,
)
from async_dqn.bench.env import environment_speed, steppers
from async_dqn.config.presets import resolve
from async_dqn.training import training

WARM_UP_SECONDS = 2.0
NEVER = 10**12  # steps
HEADER = (
    *("environment", "workers", "environments alone, steps/s", "trainer, steps/s"),
    *("trainer / environments, pair by pair", "the same per CPU second"),
)


class TrainerOptions(TimedOptions):
    """Those of a benchmark whose runs go on until they have been measured."""

    own = TimedOptions.own | {"steps", "eval_every", "checkpoint_every", "stop_at_return"}


class Throughput:
    """A callback that ends a run when `seconds` have passed after a warm-up."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._first: float | None = None
        self.reports: list[tuple[float, int]] = []  # since the warm-up: seconds, global step

    def __call__(self, report: Mapping[str, float]) -> bool:
        if "time/fps" in report:  # else an evaluation, of an earlier step
            now = time.monotonic()
            self._first = self._first or now
            if now - self._first >= WARM_UP_SECONDS:
                self.reports.append((now, int(report["step"])))
        return not self.reports or self.reports[-1][0] - self.reports[0][0] < self.seconds


def trainer_speed(
    settings: Mapping[str, Any],
    seconds: float,
    sources: Sources = (None, None),
    trainer: Callable[..., Any] | None = None,
    evaluation: bool = False,
) -> Speed:
    """The speed, in global steps, of a run with these settings, without checkpoints, for `seconds`.

    `sources` are the configuration file and the preset, if any; `trainer` as in `training.train`.
    Unless `evaluation`, the evaluator has nothing to do.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "steps": NEVER,
            **({} if evaluation else {"eval_every": NEVER}),
            "checkpoint_every": NEVER,
            "stop_at_return": None,
            "resume": None,
            "run_name": None,
            "runs_dir": folder,
            "quiet": True,
        }
        config, explicit = resolve({**settings, **own}, *sources)
        measured = Throughput(seconds)
        outcome = training.train(config, explicit, None, measured, False, trainer)
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
        with (outcome.run / "metrics.csv").open(newline="") as file:
            cpu_s = {int(row["step"]): float(row["cpu_s"]) for row in csv.DictReader(file)}
    (begun, first), *_, (ended, last) = measured.reports
    return Speed((last - first) / (ended - begun), (last - first) / (cpu_s[last] - cpu_s[first]))


def run(argv: Sequence[str]) -> int:
    """Compare a trainer without evaluation with its environments alone, on the same cores."""
    options = TrainerOptions.parse("throughput", run.__doc__, argv)
    given, sources = options.given()
    rows, results = [], []
    for env in options.env:
        config = options.config(env)
        measures = {
            "environments": partial(environment_speed, config, options.seconds),
            "trainer": partial(trainer_speed, {**given, "env": env}, options.seconds, sources),
        }
        speeds = in_turns(options.pairs, measures)
        clock, cpu = (
            {name: [getattr(speed, kind) for speed in each] for name, each in speeds.items()}
            for kind in Speed._fields
        )
        shares = [ratios(kind["trainer"], kind["environments"]) for kind in (clock, cpu)]
        cells = [spread(each, ",.0f") for each in clock.values()]
        cells += [spread(each, ".2f") for each in shares]
        rows.append((env, str(steppers(config)), *cells))
        results.append({"env": env, "workers": steppers(config), **clock, "per_cpu_second": cpu})
    present(
        "Environments alone and a trainer without evaluation on the same cores, in turn: "
        f"{options.pairs} pairs of {options.seconds:g} s; median (min to max)",
        HEADER,
        rows,
    )
    save(options.json, "throughput", results)
    return 0
