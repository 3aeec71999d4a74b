"""The figures of a report, drawn with matplotlib from run results.

They are read by strangers: units on every axis, one colour, line style and marker per method
(told apart by colour-blind readers and in print), and the protocol in small type.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from async_dqn.report.bootstrap import bootstrap_interval, iqm
from async_dqn.report.grouping import Comparison
from async_dqn.report.results import FAILED, Cost, RunResult, median, quantity
from async_dqn.runs.folder import rounded

# Okabe and Ito's palette, without the yellow; lengths that share no factor, so that pairs last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (7, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
CLOCK_LABELS = {
    "step": "global steps",
    "wall_s": "wall-clock seconds, start-up included",
    "cpu_s": "CPU seconds of all processes",
}
STYLE = {"text.parse_math": False, "font.size": 9, "axes.grid": True, "grid.alpha": 0.25}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
MOST_POINTS = 400
RESAMPLES = 1_000
LEGEND_COLUMNS = 6
LEGEND_CHARACTERS, SAMPLE_CHARACTERS = 190, 8  # of a row; what an entry takes beside its label
LOG_FROM = 8  # ratio of the longest to the shortest from which an axis is logarithmic
FIELD = 0.84  # share of an axis for values; the rest is for runs that missed
EDGE = 0.935  # where on the axis those are drawn


def curves(comparison: Comparison, protocol: str) -> Figure:
    """Evaluation score against steps, wall-clock seconds and CPU seconds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, clock in zip(panels, CLOCK_LABELS):
            _curve_panel(axes, comparison, clock)
        panels[0].set_ylabel("evaluation score (mean return, greedy policy)")
        figure.suptitle(
            f"{comparison.env}: thick = interquartile mean over seeds, "
            "shaded = its 95 % bootstrap interval, thin = each seed"
        )
        handles = [_legend_entry(k, *item) for k, item in enumerate(comparison.methods.items())]
        if comparison.threshold is not None:
            words = f"threshold {quantity(comparison.threshold)}"
            handles.append(Line2D([], [], color="0.3", linestyle="--", linewidth=1, label=words))
        return _with_notes(figure, protocol, handles)


class Shown(Figure):
    """A figure that notebooks show, whatever backend they have."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def learning_curve(run: RunResult, training: Sequence[tuple[float, float]]) -> Figure:
    """One run: evaluation scores, and beside them `training`: (step, mean return)."""
    with matplotlib.rc_context(STYLE):
        figure = Shown(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps, returns = np.array(training).reshape(-1, 2).T
        axes.plot(steps, returns, color=COLOURS[1], linewidth=1, label="training, exploring")
        scores = {"where": "post", "marker": MARKERS[0], "markersize": 4, "color": COLOURS[0]}
        axes.step(run.curve["step"], run.curve["mean"], label="evaluation, greedy", **scores)
        if run.threshold is not None:
            axes.axhline(run.threshold, color="0.3", linestyle="--", linewidth=1, zorder=0)
        axes.set_xlabel(CLOCK_LABELS["step"])
        axes.set_ylabel("mean return")
        axes.set_title(f"{run.env}, seed {run.seed}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rounded(x)))
        axes.legend(frameon=False)
        return figure


class Panel(NamedTuple):
    """What one panel of dots shows: a measure of each run and its summary over a method's runs."""

    label: str
    measure: Callable[[RunResult], Cost]
    summary: Callable[[Sequence[Cost]], Cost] = median
    summary_name: str = "median"
    from_zero: bool = True  # an amount: its axis begins at 0, or is logarithmic


def thresholds(comparison: Comparison, protocol: str) -> Figure:
    """Steps, wall-clock and CPU seconds until the threshold: every seed and the median."""
    goal = comparison.threshold
    panels = [
        Panel(label, lambda run, clock=clock: run.cost(clock, goal))
        for clock, label in CLOCK_LABELS.items()
    ]
    title = f"{comparison.env}: until the score reached {quantity(goal)} (less is better)"
    return _dots(comparison, panels, title, protocol)


def speeds_and_scores(comparison: Comparison, protocol: str) -> Figure:
    """Throughput and final score: every seed and the median, or the interquartile mean."""
    panels = [
        Panel("global steps per second, first update to end", lambda r: _known(r.steps_per_second)),
        Panel(
            *("score of the last evaluation", lambda run: _known(run.final)),
            *(_mean_of_middle, "interquartile mean", False),
        ),
    ]
    title = f"{comparison.env}: throughput and final score (more is better)"
    return _dots(comparison, panels, title, protocol)


def _mean_of_middle(costs: Sequence[Cost]) -> Cost:
    known = [cost.value for cost in costs if not cost.missed]
    return _known(float(iqm(known)) if known else None)


def _known(value: float | None) -> Cost:
    return Cost(math.inf, True) if value is None else Cost(value, False)


def _look(index: int) -> tuple[str, Any, str]:
    """Colour, line style and marker of a method."""
    return tuple(looks[index % len(looks)] for looks in (COLOURS, LINES, MARKERS))


def _curve_panel(axes: Axes, comparison: Comparison, clock: str) -> None:
    ends = []
    for index, runs in enumerate(comparison.methods.values()):
        colour, line, marker = _look(index)
        runs = [run for run in runs if len(run.curve["mean"])]
        if not runs:
            continue
        for run in runs:
            x, y = run.curve[clock], run.curve["mean"]
            axes.step(x, y, where="post", alpha=0.3, linewidth=0.7, color=colour)
            axes.plot(x[-1:], y[-1:], marker, alpha=0.7, markersize=4, color=colour)
        x, middle, low, high = aggregate(runs, clock)
        axes.fill_between(x, low, high, step="post", alpha=0.13, linewidth=0, color=colour)
        axes.step(x, middle, where="post", linestyle=line, linewidth=2.2, color=colour)
        ends.append(x[-1])
    if comparison.threshold is not None:
        axes.axhline(comparison.threshold, color="0.3", linestyle="--", linewidth=1, zorder=0)
    logarithmic = len(ends) > 1 and min(ends) > 0 and max(ends) / min(ends) > LOG_FROM
    _scale(axes, logarithmic)
    axes.set_xlabel(CLOCK_LABELS[clock] + (" (log scale)" if logarithmic else ""))
    if not logarithmic:
        axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))


def aggregate(
    runs: Sequence[RunResult], clock: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points on the clock, and there the IQM over runs with its 95 % interval (low, high).

    A run's score holds from one evaluation to the next and after its last; the points begin where
    every run has been evaluated.
    """
    x = np.unique(np.concatenate([run.curve[clock] for run in runs]))
    x = x[x >= max(run.curve[clock][0] for run in runs)]
    x = x[np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))]
    rows = [np.searchsorted(run.curve[clock], x, side="right") - 1 for run in runs]
    scores = np.array([run.curve["mean"][row] for run, row in zip(runs, rows)])
    low, high = bootstrap_interval([scores], resamples=RESAMPLES)
    return x, iqm(scores, axis=0), low, high


def _legend_entry(index: int, label: str, runs: Sequence[RunResult]) -> Line2D:
    failed = sum(run.status == FAILED for run in runs)
    words = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].seed}"
    label = f"{label} ({words}{f', {failed} failed' if failed else ''})"
    colour, line, marker = _look(index)
    style = {"linewidth": 2.2, "markersize": 4, "label": label}
    return Line2D([], [], color=colour, linestyle=line, marker=marker, **style)


def _dots(comparison: Comparison, panels: list[Panel], title: str, protocol: str) -> Figure:
    """One row per method, one dot per seed, one panel per measure."""
    methods = comparison.methods
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 2.1 + 0.5 * len(methods)), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels):
            _dot_panel(axes, panel, list(methods.values()))
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.4, -0.7)
            axes.grid(axis="y", visible=False)
        missing = any(panel.measure(run).missed for panel in panels for run in comparison.runs)
        signs = "; at the right edge ▸ = did not get there, x = failed" if missing else ""
        figure.suptitle(f"{title}. Each dot is one seed{signs}")
        return _with_notes(figure, protocol)


def _dot_panel(axes: Axes, panel: Panel, groups: list[Sequence[RunResult]]) -> None:
    rows = [[panel.measure(run) for run in runs] for runs in groups]
    costs = [cost for row in rows for cost in row]
    values = [cost.value for cost in costs if not cost.missed] or [1.0]
    missing = any(cost.missed for cost in costs)
    logarithmic = panel.from_zero and min(values) > 0 and max(values) / min(values) > LOG_FROM
    _scale(axes, logarithmic)
    _limits(axes, values, logarithmic, panel.from_zero, FIELD if missing else 0.94)
    if missing:
        bounds = [cost.value for cost in costs if cost.missed and math.isfinite(cost.value)]
        alike = bounds and max(bounds) <= 1.001 * min(bounds)
        _shade_missing(axes, f"≥ {quantity(bounds[0])}" if alike else "not reached")
    for index, (row, runs) in enumerate(zip(rows, groups)):
        colour, _, marker = _look(index)
        style = {"color": colour, "markersize": 5, "alpha": 0.75}
        for place, (cost, run) in enumerate(zip(row, runs)):
            y = [index + 0.36 * (place / max(1, len(row) - 1) - 0.5)]
            if cost.missed:
                sign = "x" if run.status == FAILED else ">"
                axes.plot([EDGE], y, sign, transform=axes.get_yaxis_transform(), **style)
            else:
                axes.plot([cost.value], y, marker, **style)
        _bar(axes, index, panel.summary(row))
    scale = ", log scale" if logarithmic else ""
    axes.set_xlabel(f"{panel.label}\n(bar and number: {panel.summary_name}{scale})")


def _bar(axes: Axes, index: int, summary: Cost) -> None:
    """The summary of one method: a bar with its number above, at the right edge if missed."""
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform()} if summary.missed else {}
    x = EDGE if summary.missed else summary.value
    words = str(summary) if math.isfinite(summary.value) else ""
    axes.plot([x, x], [index - 0.3, index + 0.3], color="0.15", linewidth=2, **where)
    axes.text(x, index - 0.32, words, ha="center", va="bottom", fontsize=8, **where)


def _shade_missing(axes: Axes, words: str) -> None:
    """The strip at the right edge for runs that never reached the threshold."""
    left = FIELD + 0.03
    strip = Rectangle((left, 0), 1 - left, 1, color="0.92", transform=axes.transAxes, zorder=0)
    axes.add_patch(strip)
    where = {"transform": axes.transAxes, "fontsize": 7, "color": "0.3"}
    axes.text((left + 1) / 2, 1.01, words, ha="center", va="bottom", **where)


def _limits(
    axes: Axes, values: Sequence[float], logarithmic: bool, from_zero: bool, field: float
) -> None:
    """Place the values in the left part `field` of the axis and number no tick beyond them."""
    low, high = min(values), max(values)
    if logarithmic:
        axes.set_xlim(low / 1.4, low / 1.4 * (high / low * 1.4) ** (1 / field))
    elif from_zero:
        axes.set_xlim(0, high / field)
    else:
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_xlim(low - room, low - room + (high - low + 2 * room) / field)
    beyond = math.inf if field > FIELD else high * 1.02 if high > 0 else high
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x) if x <= beyond else ""))


def _scale(axes: Axes, logarithmic: bool) -> None:
    """Short numbers, such as 0.5, 200, 50 k and 1.2 M, on either scale."""
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: int = 0) -> str:
    return rounded(value) if value >= 1000 else f"{value:.6g}"


def _with_notes(figure: Figure, protocol: str, handles: Sequence[Line2D] = ()) -> Figure:
    """Below the panels: in small type how the runs were made, and the legend."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    fitting = max(1, LEGEND_CHARACTERS // (longest + SAMPLE_CHARACTERS))
    rows = math.ceil(len(handles) / min(LEGEND_COLUMNS, fitting)) or 1
    legend = figure.legend(
        handles=handles,
        ncols=math.ceil(len(handles) / rows) or 1,
        loc="outside lower center",
        frameon=False,
        title=textwrap.fill(protocol, 200),
        title_fontproperties={"size": 7},
    )
    legend.get_title().set(color="0.35", multialignment="center")
    return figure
