"""What a search has found, as a page."""

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from async_dqn.config.config import SETTINGS
from async_dqn.report.command import machine
from async_dqn.report.markup import Block, code, heading, paragraph, table, to_html
from async_dqn.runs.durable import replace_file
from async_dqn.tune.study import CONFIRMED, Plan, finished, point_of, ranked, winner

SHOWN = 15  # trials
FEW = 10  # trials from which importances say something


def write(plan: Plan, study: optuna.Study) -> Path:
    """Write report.html; its path."""
    path = plan.out / "report.html"
    title = f"Settings for {plan.env}"
    replace_file(path, to_html(title, list(_blocks(plan, study, title))).encode())
    return path


def _blocks(plan: Plan, study: optuna.Study, title: str) -> Iterator[Block]:
    best, order = winner(study), ranked(study)
    assert best is not None
    yield heading(title, 1)
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    counts = f"{states['complete']} trials to their end, {states['pruned']} stopped early"
    failed = states["fail"]
    yield paragraph(
        f"Trial {best.number} is the best ({_confirmed(plan, study, best)}), of {counts}"
        f"{f', {failed} failed, refused or interrupted' if failed else ''}; on {machine()}."
    )
    yield code(f"python launch.py --config {plan.out / 'best.toml'}")
    yield heading("Trials")
    points = [point_of(plan, trial) for trial in order[:SHOWN]]
    names = list(dict.fromkeys(name for point in points for name in point))
    rows = [
        [str(trial.number), plan.worth.in_words(trial.value), _confirmed(plan, study, trial, "-")]
        + [point.get(name, "-") for name in names]
        for trial, point in zip(order, points)
    ]
    options = [SETTINGS[name].option for name in names]
    yield table(["trial", "found", "on other seeds", *options], rows)
    if weights := _importances(study):
        yield heading("What mattered")
        yield table(["setting", "share"], [[name, f"{x:.0%}"] for name, x in weights.items()])
    yield heading("How to read this")
    yield paragraph(
        "A trial is one run on one seed, so that the best of many is partly luck: what counts is "
        "the column of other seeds. Shares are of the variation between the best trials and the "
        "others (PED-ANOVA, Watanabe et al. 2023), over settings that every trial had."
    )


def _confirmed(plan: Plan, study: optuna.Study, trial: FrozenTrial, none: str = "once") -> str:
    values = study.user_attrs.get(CONFIRMED, {}).get(str(trial.number), [])
    if not values:
        return none
    seeds = f"{len(values)} other seed{'s' * (len(values) > 1)}"
    return f"{plan.worth.in_words(statistics.mean(values))}, {seeds}"


def _importances(study: optuna.Study) -> dict[str, float]:
    if len(finished(study)) < FEW:
        return {}
    try:
        return optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError):  # all trials alike
        return {}
