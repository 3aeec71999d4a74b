"""Run folders sorted into comparisons: by environment, and there by method.

A method is named as `compare` named it, else by the settings of its runs; runs whose settings
differ in more than the seed are never one method.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from async_dqn.config.config import Config, UserError
from async_dqn.report.results import (
    COLUMNS,
    FAILED,
    RunResult,
    find_runs,
    number,
    quantity,
    read_plan,
    read_run,
    run_name,
)
from async_dqn.runs.folder import env_folder

Plans = dict[Path, dict[str, Any]]  # what `compare` wrote, by its folder
# Sections of settings in which runs of a method may differ; `whole` has shown in others.
NO_METHOD = {"run", "evaluation", "whole"}


@dataclass(frozen=True)
class Comparison:
    """All runs on one environment, by method, in the order of the plan or of the alphabet.

    `env` says by which rules its scores come about, if these differ (`RunResult.task`).
    """

    env: str
    methods: Mapping[str, Sequence[RunResult]]
    threshold: float | None

    @property
    def runs(self) -> list[RunResult]:
        """The runs of all methods."""
        return [run for runs in self.methods.values() for run in runs]


def collect(
    roots: Sequence[Path], threshold: float | None = None
) -> tuple[list[Comparison], Plans, list[str]]:
    """Everything to report: by environment, with the plans of `compare`, and what was skipped.

    Raises UserError when a root is not there, a plan is damaged, or no run can be read.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give run folders or folders above them")
    runs: dict[Path, RunResult] = {}
    warnings = []
    tops = [Path(os.path.abspath(root)) for root in roots]
    for folder in (folder for root in tops for folder in find_runs(root)):
        try:
            runs[folder] = read_run(folder)
        except UserError as error:
            warnings.append(f"{error}; left out")
    origins = dict.fromkeys([*tops, *(folder.parent.parent.parent for folder in runs)])
    plans = {folder: plan for folder in origins if (plan := read_plan(folder)) is not None}
    for folder, plan in plans.items():
        _apply_plan(folder, plan, runs, add=folder in tops)
    if not runs:
        where = ", ".join(map(str, roots))
        raise UserError(warnings[0] if warnings else f"no run folder at or below {where}")
    return _by_environment(list(runs.values()), plans, threshold, warnings), plans, warnings


def _apply_plan(folder: Path, plan: dict, runs: dict[Path, RunResult], add: bool) -> None:
    """Names and failures as `compare` knows them; with `add`, also runs that left no folder."""
    env, threshold = str(plan["plan"].get("env")), number(plan["plan"].get("stop_at_return"))
    played = next((run.settings for path, run in runs.items() if folder in path.parents), {})
    rules = {name: value for name, value in played.items() if name.startswith("environment.")}
    for label in plan["methods"]:
        for seed in plan["seeds"]:
            name = run_name(label, seed)
            path = folder / "runs" / env_folder(env) / name
            cause = plan["failures"].get(name)
            if path in runs:
                run = dataclasses.replace(runs[path], label=label)
            elif cause is None or not add:
                continue
            else:
                curve = dict.fromkeys(COLUMNS, np.zeros(0))
                settings = rules | {"evaluation.stop_at_return": threshold}
                run = RunResult(env, label, seed, FAILED, curve, settings)
            if cause is not None:
                run = dataclasses.replace(run, status=FAILED, cause=str(cause))
            runs[path] = run


def _by_environment(
    runs: list[RunResult], plans: Plans, threshold: float | None, warnings: list[str]
) -> list[Comparison]:
    planned = [label for plan in plans.values() for label in plan["methods"]]
    comparisons = []
    for env in sorted({run.task for run in runs}):
        here = sorted((run for run in runs if run.task == env), key=attrgetter("seed"))
        methods: dict[str, list[RunResult]] = {label: [] for label in planned}
        for label in sorted({run.label for run in here}):
            for run in _split_by_settings([run for run in here if run.label == label]):
                methods.setdefault(run.label, []).append(run)
        goals = {run.threshold for run in here} - {None}
        if threshold is None and len(goals) > 1:
            listed = ", ".join(map(quantity, sorted(goals)))  # type: ignore[type-var]
            warnings.append(f"{env}: thresholds differ ({listed}); none shown, give --threshold")
        goal = goals.pop() if threshold is None and len(goals) == 1 else threshold
        kept = {label: group for label, group in methods.items() if group}
        comparisons.append(Comparison(env, kept, goal))
    return comparisons


def _split_by_settings(runs: list[RunResult]) -> list[RunResult]:
    """Runs of one label; the settings in which they differ join it."""
    stored = [run.settings for run in runs if "run.seed" in run.settings]
    names = sorted({name for settings in stored for name in settings})
    names = [name for name in names if name.partition(".")[0] not in NO_METHOD]
    # What an older version did not know yet, it had at the default.
    stored = [Config().flat() | own for own in stored]
    differing = [name for name in names if len({json.dumps(own.get(name)) for own in stored}) > 1]

    def label(run: RunResult) -> str:
        words = (f"{name.partition('.')[2]} {run.settings.get(name)}" for name in differing)
        return ", ".join([run.label, *words])

    return [
        dataclasses.replace(run, label=label(run)) if "run.seed" in run.settings else run
        for run in runs
    ]
