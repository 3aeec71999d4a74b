"""Time to a reference score by number of workers: Table 2 of Mnih et al. 2016.

Every number of workers learns on several seeds, one run after another, with what follows from it
(`scaling`). Real processes, or workers simulated on a virtual clock.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from async_dqn.compare.methods import Contender
from async_dqn.compare.runner import Job, make_all
from async_dqn.config.config import Config, UserError
from async_dqn.report.bootstrap import ratio_interval
from async_dqn.report.markup import Table, Text, to_markdown
from async_dqn.report.results import Cost, RunResult, median, read_run, run_name
from async_dqn.runs.folder import env_folder

# Speed-up over one thread to a reference score, mean of seven games, by number of threads.
PAPER = {
    "one-step-q": {1: 1.0, 2: 3.0, 4: 6.3, 8: 13.3, 16: 24.1},
    "one-step-sarsa": {1: 1.0, 2: 2.8, 4: 5.9, 8: 13.1, 16: 22.1},
    "n-step-q": {1: 1.0, 2: 2.7, 4: 5.9, 8: 10.7, 16: 17.2},
    "a3c": {1: 1.0, 2: 2.1, 4: 3.7, 8: 6.9, 16: 12.5},
}
TITLES = (
    "workers",
    "learning rate",
    "solved",
    "seconds to score, median (min to max)",
    "speed-up (90 % interval)",
    "steps to score, median (min to max)",
    "the paper's speed-up",
)


def time_to_score(
    out: Path,
    config: Config,
    options: Sequence[str],
    workers: Sequence[int],
    seeds: Sequence[int],
    simulated: bool,
) -> str:
    """Make the runs below `out` (those that are there are kept); a Markdown table.

    `config` is that of one worker, `options` those it was resolved from. Raises UserError without a
    threshold.
    """
    threshold = config.evaluation.stop_at_return
    if threshold is None:
        raise UserError("time to a score needs the score; give --stop-at-return")
    jobs = {
        count: [_job(out, config, options, count, seed, simulated) for seed in seeds]
        for count in workers
    }
    (out / "logs").mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    # Seed by seed: a machine that slows down slows all alike.
    code = make_all([job for group in zip(*jobs.values()) for job in group], failures, lambda: None)
    if code:
        raise SystemExit(code)
    if failures:
        name, cause = next(iter(failures.items()))
        raise UserError(f"{name} failed: {cause}; see {out / 'logs'}")
    runs = {count: [read_run(job.folder) for job in group] for count, group in jobs.items()}
    return _table(config, runs, threshold, simulated)


def _job(out, config: Config, options, count: int, seed: int, simulated: bool) -> Job:
    label = f"{count}-workers"
    how = ["--mode=serial", f"--simulate-workers={count}"] if simulated else [f"--workers={count}"]
    arguments = ("train", *options, *how, "--oversubscribe")
    name = run_name(label, seed)
    folder = out / "runs" / env_folder(config.environment.env) / name
    return Job(Contender(label, "async_dqn", arguments), seed, folder, out / "logs" / f"{name}.log")


def _table(
    config: Config,
    runs: Mapping[int, Sequence[RunResult]],
    threshold: float,
    simulated: bool,
) -> str:
    paper = PAPER.get(config.algorithm.algorithm, {})
    first = _costs(next(iter(runs.values())), "wall_s", threshold)
    clock = "simulated seconds" if simulated else "seconds, start-up included"
    caption = (
        f"{config.environment.env}, {config.algorithm.algorithm}: time to {threshold:g} over "
        f"{config.evaluation.eval_episodes} episodes; {len(first)} seeds, {clock}; a miss (>) "
        "counts with the time at which it stopped"
    )
    rows = []
    for count, group in runs.items():
        seconds, steps = (_costs(group, clock, threshold) for clock in ("wall_s", "step"))
        cells = (
            f"{count}",
            f"{group[0].settings['optimizer.lr']:.3g}",
            f"{sum(not cost.missed for cost in seconds)} of {len(seconds)}",
            _spread(seconds),
            _speed_up(first, seconds),
            _spread(steps),
            f"{paper[count]:g}" if count in paper else "-",
        )
        rows.append(cells)
    return to_markdown([Text(caption), Table(TITLES, rows)])


def _costs(runs: Sequence[RunResult], clock: str, threshold: float) -> list[Cost]:
    return [run.cost(clock, threshold) for run in runs]


def _speed_up(first: Sequence[Cost], own: Sequence[Cost]) -> str:
    """How many times as fast as the first ones; a bound where a median rests on a run that missed,
    and "-" where both do."""
    ratio = _value(first) / _value(own)
    missed = median(first).missed, median(own).missed
    bound = {(False, False): "", (False, True): "< ", (True, False): "> "}.get(missed)
    if bound is None:
        return "-"
    if len(own) == 1 or any(cost.missed for cost in (*first, *own)):
        return f"{bound}{ratio:.2f}"  # one run has no interval, and a miss no known time
    low, high = ratio_interval([c.value for c in first], [c.value for c in own])
    return f"{bound}{ratio:.2f} ({low:.2f} to {high:.2f})"


def _value(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.value for cost in costs)


def _spread(costs: Sequence[Cost]) -> str:
    ordered = sorted(costs, key=lambda cost: (cost.missed, cost.value))
    return f"{median(costs)} ({ordered[0]} to {ordered[-1]})"
