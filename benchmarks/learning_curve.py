"""Draw evaluation scores of several runs against steps and seconds.

    python -m benchmarks.learning_curve FIGURE.png RUN_FOLDER [RUN_FOLDER ...]

One thin line per run, the median over runs thick. Needs the extra `plot`.
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by colour-blind readers too


def scores(run: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The x values (a column of evaluations.csv) and the mean scores of one run."""
    with (run / "evaluations.csv").open() as file:
        rows = [(float(row[column]), float(row["mean"])) for row in csv.DictReader(file)]
    x, y = np.array(rows).T
    return x, y


def draw(axes: plt.Axes, runs: list[Path], column: str, label: str) -> None:
    """One panel: every run, and the median of the runs, each held at its last score."""
    curves = [scores(run, column) for run in runs]
    for x, y in curves:
        axes.plot(x, y, color=BLUE, alpha=0.35, linewidth=1)
        axes.plot(x[-1:], y[-1:], "o", color=BLUE, alpha=0.6, markersize=4)
    grid = np.linspace(min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves), 200)
    held = [np.interp(grid, x, y) for x, y in curves]
    axes.plot(grid, np.median(held, axis=0), color=ORANGE, linewidth=2.5, label="median")
    axes.plot([], [], color=BLUE, alpha=0.5, linewidth=1, label=f"each of {len(runs)} seeds")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, not 20000
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def main() -> None:
    """Draw the runs named on the command line."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    figure_path, *runs = map(Path, sys.argv[1:])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, dpi=110)
    draw(left, runs, "step", "global steps")
    draw(right, runs, "wall_s", "seconds since the start of the process")
    left.set_ylabel("evaluation score (mean return, greedy)")
    right.legend(loc="lower right", frameon=False)
    figure.suptitle(f"{runs[0].parent.name}: evaluations during training")
    figure.tight_layout()
    figure.savefig(figure_path)


if __name__ == "__main__":
    main()
