"""Time to a reference score by number of workers: Table 2 of Mnih et al. 2016.

Every number of workers learns on several seeds, one run after another, with what follows from it
(`scaling`). Real processes, or workers simulated on a virtual clock.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from async_dqn.compare.methods import Contender
from async_dqn.compare.runner import Job, job_of, make_all
from async_dqn.config.config import Config, UserError
from async_dqn.report.bootstrap import ratio_interval
from async_dqn.report.markup import paragraph, table, to_markdown
from async_dqn.report.results import Cost, RunResult, median, read_run, spread

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
    if config.evaluation.stop_at_return is None:
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
    return _table(config, runs, simulated)


def _job(out, config: Config, options, count: int, seed: int, simulated: bool) -> Job:
    label = f"{count}-workers"
    how = ["--mode=serial", f"--simulate-workers={count}"] if simulated else [f"--workers={count}"]
    arguments = ("train", *options, *how, "--oversubscribe")
    return job_of(out, config.environment.env, Contender(label, "async_dqn", arguments), seed)


def _table(config: Config, runs: Mapping[int, Sequence[RunResult]], simulated: bool) -> str:
    threshold = config.evaluation.stop_at_return
    paper = PAPER.get(config.algorithm.algorithm, {})
    first = [run.cost("wall_s", threshold) for run in next(iter(runs.values()))]
    clock = "simulated seconds" if simulated else "seconds, start-up included"
    caption = (
        f"{config.environment.env}, {config.algorithm.algorithm}: time to {threshold:g} over "
        f"{config.evaluation.eval_episodes} episodes; {len(first)} seeds, {clock}; a miss (>) "
        "counts with the time at which it stopped"
    )
    rows = []
    for count, group in runs.items():
        seconds = [run.cost("wall_s", threshold) for run in group]
        steps = [run.cost("step", threshold) for run in group]
        cells = (
            f"{count}",
            f"{group[0].settings['optimizer.lr']:.3g}",
            f"{sum(not cost.missed for cost in seconds)} of {len(seconds)}",
            spread(seconds),
            _speed_up(first, seconds),
            spread(steps),
            f"{paper[count]:g}" if count in paper else "-",
        )
        rows.append(cells)
    return to_markdown([paragraph(caption), table(TITLES, rows)])


def _speed_up(first: Sequence[Cost], own: Sequence[Cost]) -> str:
    """How many times as fast as the first ones; a bound where a median rests on a run that missed,
    and "-" where both do."""
    before, now = ([cost.value for cost in costs] for costs in (first, own))
    ratio = statistics.median(before) / statistics.median(now)
    missed = median(first).missed, median(own).missed
    bound = {(False, False): "", (False, True): "< ", (True, False): "> "}.get(missed)
    if bound is None:
        return "-"
    if len(own) == 1 or any(cost.missed for cost in (*first, *own)):
        return f"{bound}{ratio:.2f}"  # one run has no interval, and a miss no known time
    low, high = ratio_interval(before, now)
    return f"{bound}{ratio:.2f} ({low:.2f} to {high:.2f})"
