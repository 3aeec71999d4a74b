"""`bench throughput`: how much of what the environments can do alone is left with a trainer."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from async_dqn import training
from async_dqn.bench.command import (
    Sources,
    TimedOptions,
    in_turns,
    present,
    ratios,
    save,
    spread,
)
from async_dqn.bench.env import environment_speed, steppers
from async_dqn.presets import resolve

WARM_UP_SECONDS = 2.0
NEVER = 10**12  # steps
HEADER = (
    *("environment", "workers", "environments alone, steps/s", "trainer, steps/s"),
    "trainer / environments, pair by pair",
)


class TrainerOptions(TimedOptions):
    """Those of a benchmark whose runs go on until they have been measured."""

    own = TimedOptions.own | {"steps", "eval_every", "checkpoint_every", "stop_at_return"}


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
    sources: Sources = (None, None),
    trainer: Callable[..., Any] | None = None,
) -> float:
    """Global steps per second of a run with these settings, evaluation and checkpoints off.

    `sources` are the configuration file and the preset, if any; `trainer` as in `training.train`.
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
        outcome = training.train(config, explicit, None, measured, False, trainer)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return measured.steps_per_second


def run(argv: Sequence[str]) -> int:
    """Compare a trainer without evaluation with its environments alone, on the same cores."""
    options = TrainerOptions.parse("throughput", run.__doc__, argv)
    given, sources = options.given()
    rows, results = [], []
    for env in options.env:
        config = options.config(env)
        speeds = in_turns(
            options.pairs,
            {
                "environments": partial(environment_speed, config, options.seconds),
                "trainer": partial(throughput, {**given, "env": env}, options.seconds, sources),
            },
        )
        alone, trained = speeds["environments"], speeds["trainer"]
        workers, shares = steppers(config), ratios(trained, alone)
        cells = spread(alone, ",.0f"), spread(trained, ",.0f"), spread(shares, ".2f")
        rows.append((env, str(workers), *cells))
        results.append({"env": env, "workers": workers, **speeds})
    caption = "Environments alone and a trainer without evaluation on the same cores, in turn"
    present(
        f"{caption}: {options.pairs} pairs of {options.seconds:g} s; median (min to max)",
        HEADER,
        rows,
    )
    save(options.json, "throughput", results)
    return 0
