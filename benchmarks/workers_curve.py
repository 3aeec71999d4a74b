"""Draw score against seconds by number of workers, from runs that `bench scaling` kept.

    python -m benchmarks.workers_curve FIGURE.png FOLDER [FOLDER ...]   # one panel each

Thick: interquartile mean over seeds, shaded its 95 % interval, with a dot where the last run of
them ended. A run keeps the score it ended with. Needs the extra `plot`.
"""

import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from async_dqn.report.figures import COLOURS, LINES, MARKERS, STYLE, aggregate
from async_dqn.report.results import RunResult, find_runs, read_run

WORST = 5  # percent of the scores that may be below the panel


def by_workers(folder: Path) -> dict[int, list[RunResult]]:
    """The finished runs below `folder` by how many workers they had."""
    groups = defaultdict(list)
    for run in map(read_run, find_runs(folder)):
        if len(run.curve["mean"]):
            groups[run.settings["parallel.workers"]].append(run)
    return dict(sorted(groups.items()))


def draw(axes: Axes, folder: Path) -> None:
    """One environment: a line for each number of workers."""
    groups = by_workers(folder)
    runs = [run for group in groups.values() for run in group]
    for index, (workers, group) in enumerate(groups.items()):
        style = {"color": COLOURS[index % len(COLOURS)]}
        x, middle, low, high = aggregate(group, "wall_s")
        axes.fill_between(x, low, high, step="post", alpha=0.12, linewidth=0, **style)
        label = f"{workers} worker{'s' * (workers > 1)}, {len(group)} seeds"
        line = {"linestyle": LINES[index % len(LINES)], "linewidth": 2, "label": label}
        axes.step(x, middle, where="post", **line, **style)
        axes.plot(x[-1:], middle[-1:], MARKERS[index % len(MARKERS)], markersize=6, **style)
    threshold = runs[0].threshold
    if threshold is not None:
        axes.axhline(threshold, color="0.3", linestyle="--", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=min(np.min(run.curve["wall_s"]) for run in runs))
    scores = np.concatenate([run.curve["mean"] for run in runs])
    axes.set_ylim(bottom=np.percentile(scores, WORST))  # the first ones may be far below
    simulated = runs[0].settings.get("parallel.simulate_workers") is not None
    axes.set_xlabel("simulated seconds, start-up not counted" if simulated else "seconds")
    axes.set_title(runs[0].env)
    axes.legend(loc="upper left", frameon=False)


def main() -> None:
    """Draw the folders named on the command line."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    figure_path, *folders = map(Path, sys.argv[1:])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(folders), 4), layout="constrained")
        panels = figure.subplots(1, len(folders), squeeze=False)[0]
        for axes, folder in zip(panels, folders):
            draw(axes, folder)
        panels[0].set_ylabel("evaluation score (mean return, greedy)")
        figure.savefig(figure_path)


if __name__ == "__main__":
    main()
