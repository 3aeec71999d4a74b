"""`bench scaling`: speed and time to a score by number of workers; and `--workers auto`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from async_dqn.bench.command import (
    COUNTS,
    Sources,
    TimedOptions,
    in_turns,
    present,
    ratios,
    save,
    spread,
)
from async_dqn.bench.throughput import trainer_speed
from async_dqn.compare.speedup import time_to_score
from async_dqn.config.config import Config, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.fields import POSITIVE, SEED, Range, setting
from async_dqn.runs.folder import env_folder

PROBE_SECONDS = 3.0
KNEE = 0.95
FROM_ZERO = Range("a whole number from 0", lambda n: n >= 0)


@dataclass(frozen=True)
class Options(TimedOptions):
    """Those of `bench scaling`."""

    own = TimedOptions.own | {"workers"}
    env: tuple[str, ...] = setting(("CartPole-v1", "ALE/Pong-v5"), "environment; may be repeated")
    workers: tuple[int, ...] = setting((1, 2), "numbers of workers", within=COUNTS)
    pairs: int = setting(5, "repetitions of the speed; 0: none", within=FROM_ZERO)
    seconds: float = setting(8.0, "length of a repetition", unit="seconds", within=POSITIVE)
    evaluation: bool = setting(False, "evaluate meanwhile, as training does")
    seeds: int = setting(0, "seeds of the time to a score; 0: none", within=FROM_ZERO)
    first_seed: int = setting(0, "the first of them", within=SEED)
    simulated: bool = setting(False, "time to a score of simulated workers, on a virtual clock")
    out: str | None = setting(None, "folder of the runs to a score, which are kept there")

    def config(self, env: str, **settings: Any) -> Config:
        one = {"mode": "serial", "simulate_workers": 1} if self.simulated else {}
        return super().config(env, **one, **settings)

    def check(self) -> None:
        super().check()
        if not self.pairs + self.seeds:
            raise UserError("nothing to measure; give --pairs or --seeds above 0")


def best_workers(settings: Mapping[str, Any], sources: Sources = (None, None)) -> int:
    """Measure 1, 2, 4 ... workers, up to the usable cores, and print the table.

    The fewest that come within KNEE of the best speed.
    """
    most = usable_cores()
    counts = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    print(f"measuring {', '.join(map(str, counts))} workers, {PROBE_SECONDS:g} s each", flush=True)
    runs = {n: trainer_speed({**settings, "workers": n}, PROBE_SECONDS, sources) for n in counts}
    speeds = {count: speed.wall for count, speed in runs.items()}
    chosen = next(n for n in counts if speeds[n] >= KNEE * max(speeds.values()))
    for count, speed in speeds.items():
        mark = "  <- chosen" if count == chosen else ""
        ratio = f"{speed / speeds[1]:5.2f}x"
        print(f"{count:>4} workers {speed:>9,.0f} steps/s  {ratio}{mark}", flush=True)
    return chosen


def run(argv: Sequence[str]) -> int:
    """Compare several numbers of workers: throughput in alternating repetitions; with --seeds also
    the time to a score."""
    options = Options.parse("scaling", run.__doc__, argv)
    given, sources = options.given()
    results = []
    for env in options.env:
        how = options.seconds, sources, None, options.evaluation
        measures = {
            count: partial(trainer_speed, {**given, "env": env, "workers": count}, *how)
            for count in options.workers
        }
        figures = in_turns(options.pairs, measures)
        speeds = {count: [speed.wall for speed in each] for count, each in figures.items()}
        if options.pairs:
            _present(env, speeds, options)
        results += [{"env": env, "workers": n, "trainer": each} for n, each in speeds.items()]
        if options.seeds:
            print(_scores(env, options), flush=True)
    save(options.json, "scaling", results)
    return 0


def _scores(env: str, options: Options) -> str:
    """The table of times to a score; its runs are kept below --out."""
    kind = "simulated" if options.simulated else "measured"
    out = Path(options.out or f"runs/speedup-{env_folder(env)}-{kind}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    how = options.workers, seeds, options.simulated
    return time_to_score(out, options.config(env), [f"--env={env}", *options.words], *how)


def _present(env: str, speeds: Mapping[int, Sequence[float]], options: Options) -> None:
    first = options.workers[0]
    header = ("workers", "steps/s median (min to max)", f"against {first}: median (min to max)")
    rows = [
        (str(count), spread(own, ",.0f"), spread(ratios(own, speeds[first]), ".2f"))
        for count, own in speeds.items()
    ]
    present(
        f"{env}: steps/s over {options.seconds:g} s, {options.pairs} alternating repetitions, "
        f"evaluation {'on' if options.evaluation else 'off'}",
        header,
        rows,
    )
