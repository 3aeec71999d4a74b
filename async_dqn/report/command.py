"""`report`: finished runs as figures and tables in one HTML page, in Markdown and as PNGs."""

import importlib.util
import io
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from async_dqn.config.config import UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.fields import refuse
from async_dqn.config.options import Parser
from async_dqn.report import markup
from async_dqn.report.bootstrap import bootstrap_interval, iqm
from async_dqn.report.grouping import Comparison, Plans, collect
from async_dqn.report.markup import Block, code, heading, paragraph, picture, table
from async_dqn.report.results import CLOCKS, FAILED, Cost, RunResult, median, quantity, spread
from async_dqn.runs.durable import replace_file
from async_dqn.runs.folder import env_folder
from async_dqn.runs.progress import print_warning

WORKERS = "parallel.workers"
FEW_SEEDS = 5
CLOCK_HEADERS = ("steps", "seconds", "CPU seconds")
READING = (
    "Steps are counted over all workers. Seconds count from the start of the process, imports "
    "included; CPU seconds are those of all its processes. To reach a threshold: median (lowest to "
    "highest) over seeds; > marks what rests on a run that missed it and counts with the moment "
    "it stopped; a run that failed counts as never. Final score: interquartile mean of the last "
    "evaluations, from five seeds on with its 95 % bootstrap interval (Agarwal et al. 2021); a "
    "run that ended at the threshold keeps the score it ended with. Steps/s: from the first update "
    "to the end, median."
)


def report(argv: Sequence[str]) -> int:
    """Compare existing runs: figures and tables of the run folders at and below each RUN."""
    parser = Parser(prog="async-dqn report", description=report.__doc__)
    parser.add_argument("run", metavar="RUN", nargs="+", help="run folder, or a folder above some")
    parser.add_argument("--out", metavar="DIR", help="(default: the RUN if one, else runs/report)")
    parser.add_argument(
        "--threshold", metavar="R", help="score to reach (default: --stop-at-return of the runs)"
    )
    given = parser.parse(argv)
    check_plotting()
    threshold = _score(given["threshold"]) if "threshold" in given else None
    roots = [Path(run) for run in given["run"]]
    out = Path(given.get("out") or (roots[0] if len(roots) == 1 else "runs/report"))
    print(f"report       {write(out, roots, threshold)}")
    return 0


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise refuse("--threshold", "a finite number", text)
    return value


def check_plotting() -> None:
    """Raise UserError where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib; pip install -c constraints.txt -e '.[plot]'")


def machine() -> str:
    """The CPU and how many of its cores this process may use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1] for line in lines if "model name" in line), model)
    cores = usable_cores()
    return f"{model.strip()}, {cores} core{'s' * (cores > 1)}"


def write(out: Path, roots: Sequence[Path], threshold: float | None = None) -> Path:
    """Report on all runs below `roots`: report.html, whose path is returned, report.md and figures.

    Raises UserError where there is nothing to report, or `out` cannot be written to.
    """
    comparisons, plans, warnings = collect(roots, threshold)
    for warning in warnings:
        print_warning(warning)
    title = f"Comparison on {', '.join(c.env for c in comparisons)}"
    blocks = [heading(title, 1)]
    for comparison in comparisons:
        prefix = f"{env_folder(comparison.env)}-" if len(comparisons) > 1 else ""
        if len(comparisons) > 1:
            blocks.append(heading(comparison.env))
        blocks += _section(comparison, _protocol(comparison, plans), prefix)
    blocks += _origin(comparisons, plans)
    page, text = markup.to_html(title, blocks), markup.to_markdown(blocks)
    files = {"report.html": page.encode(), "report.md": text.encode()}
    files |= {block.name: block.png for block in blocks if block.name}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            replace_file(out / name, data)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return out / "report.html"


def _protocol(comparison: Comparison, plans: Plans) -> str:
    """How the scores came about, for the small print of a figure."""
    machines = sorted({plan["machine"] for plan in plans.values()})
    episodes = {run.settings.get("evaluation.eval_episodes") for run in comparison.runs} - {None}
    seeds = sorted({run.seed for run in comparison.runs})
    parts = [
        "; ".join(machines) or f"report made on {machine()}",
        f"workers: {_workers(comparison)}",
        f"seeds {', '.join(map(str, seeds))}",
        "scores: the same evaluator for all, greedy, true returns of whole episodes, "
        f"up to 10 screen, {', '.join(f'{n:,.0f}' for n in sorted(episodes)) or '?'} confirm",
    ]
    if machines:
        parts.append("runs were made one after another, methods in turn")
    if any(run.peer for run in comparison.runs):
        parts.append("evaluating a peer is not counted on its clock, which favours it")
    return "; ".join(parts)


def _workers(comparison: Comparison) -> str:
    """One number, or one for each method."""
    counts = {
        label: ", ".join(sorted({str(n) for run in runs if (n := run.settings.get(WORKERS))}))
        for label, runs in comparison.methods.items()
    }
    known = {label: count for label, count in counts.items() if count}
    if len(set(known.values())) < 2:
        return next(iter(known.values()), "unknown")
    return ", ".join(f"{label} {count}" for label, count in known.items())


def _section(comparison: Comparison, protocol: str, prefix: str) -> list[Block]:
    """Figures and tables of one environment."""
    from async_dqn.report import figures  # matplotlib takes its time to import

    def drawn(name: str, draw: Callable[..., Any], alt: str) -> Block:
        png = io.BytesIO()
        draw(comparison, protocol).savefig(png, format="png")
        return picture(f"{prefix}{name}.png", png.getvalue(), f"{comparison.env}: {alt}")

    goal = comparison.threshold
    blocks = [paragraph(verdict(comparison)), paragraph(f"Protocol: {protocol}.")]
    if any(len(run.curve["mean"]) for run in comparison.runs):
        words = "evaluation score against steps, wall-clock seconds and CPU seconds, by method"
        blocks.append(drawn("scores", figures.curves, words))
    blocks.append(_summary(comparison))
    if goal is not None:
        words = f"steps and seconds until the score reached {quantity(goal)}, by method and seed"
        blocks.append(drawn("threshold", figures.thresholds, words))
    words = "steps per second and final score, by method and seed"
    blocks.append(drawn("speed", figures.speeds_and_scores, words))
    blocks += [heading("Every seed", 3), _every_seed(comparison)]
    blocks += [
        paragraph(f"Failed: {run.label}, seed {run.seed}: {run.cause or 'see its log'}")
        for run in comparison.runs
        if run.status == FAILED
    ]
    return blocks


def verdict(comparison: Comparison) -> str:
    """What a reader wants to know first: who was best, by how much, and how sure that is."""
    goal = comparison.threshold
    of_goal = {m: _of_goal(runs, goal) for m, runs in comparison.methods.items()}
    order = sorted(of_goal, key=lambda method: of_goal[method].order)
    first, *others = (f"{method} {of_goal[method].words}" for method in order)
    sentence = f"Best: {first}"
    if others:
        sentence += f"; then {others[0]}"
    sentence += "."
    if min(len(runs) for runs in comparison.methods.values()) < FEW_SEEDS:
        sentence += f" With fewer than {FEW_SEEDS} seeds a difference may be chance."
    return sentence


class Standing(NamedTuple):
    """The place of a method among others: the lower `order` is the better, and why, in words."""

    order: tuple[float, float]
    words: str


def _of_goal(runs: Sequence[RunResult], goal: float | None) -> Standing:
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    if goal is None:
        scores = [run.final for run in runs if run.final is not None]
        score = iqm(scores) if scores else -math.inf
        return Standing((0, -score), f"ends with {quantity(score)} ({seeds})")
    costs = [run.cost("wall_s", goal) for run in runs]
    solved, middle = sum(not cost.missed for cost in costs), median(costs)
    words = f"reaches {quantity(goal)} on {solved} of {seeds}, in {middle} s (median)"
    return Standing((-solved / len(runs), middle.value), words)


def _summary(comparison: Comparison) -> Block:
    """One row per method."""
    goal, reaching = comparison.threshold, _reaching(comparison)
    header = ["method", "solved" if reaching else "seeds", *reaching, "final score", "steps/s"]
    rows = []
    for label, runs in comparison.methods.items():
        clocks = CLOCKS if goal is not None else ()
        costs = [cost_spread([run.cost(clock, goal) for run in runs]) for clock in clocks]
        speeds = [run.steps_per_second for run in runs if run.steps_per_second is not None]
        speed = quantity(statistics.median(speeds) if speeds else None)
        rows.append([label, _solved(runs, goal), *costs, _final(runs), speed])
    return table(header, rows)


def _reaching(comparison: Comparison) -> list[str]:
    """Titles of what it took to get to the threshold, by clock."""
    goal = comparison.threshold
    return [f"{name} to {quantity(goal)}" for name in CLOCK_HEADERS] if goal is not None else []


def _solved(runs: Sequence[RunResult], goal: float | None) -> str:
    """Such as "4 of 5 (seed 3 failed)"; without a goal, how many ended well."""
    failed = [str(run.seed) for run in runs if run.status == FAILED]
    note = f" (seed {', '.join(failed)} failed)" if failed else ""
    if goal is None:
        return f"{len(runs) - len(failed)}{note}"
    return f"{sum(not run.cost('step', goal).missed for run in runs)} of {len(runs)}{note}"


def cost_spread(costs: Sequence[Cost]) -> str:
    """Their `spread`, or the only one; "-" where all runs failed."""
    if not any(math.isfinite(cost.value) for cost in costs):
        return "-"
    return spread(costs) if len(costs) > 1 else str(costs[0])


def _final(runs: Sequence[RunResult]) -> str:
    """Interquartile mean of the last scores, with its 95 % interval where seeds are not few."""
    scores = [run.final for run in runs if run.final is not None]
    if len(scores) < FEW_SEEDS:
        return quantity(iqm(scores)) if scores else "-"
    low, high = bootstrap_interval([scores])
    return f"{quantity(iqm(scores))} [{quantity(low)}, {quantity(high)}]"


def _every_seed(comparison: Comparison) -> Block:
    goal = comparison.threshold
    rows = []
    for run in comparison.runs:
        costs = [str(run.cost(clock, goal)) for clock in CLOCKS if goal is not None]
        totals = [quantity(run.totals.get(name)) for name in ("steps", "wall_s", "cpu_s")]
        speed, final = quantity(run.steps_per_second), quantity(run.final)
        rows.append([run.label, str(run.seed), run.status, *costs, final, *totals, speed])
    titles = ["method", "seed", "ended", *_reaching(comparison), "final score"]
    return table([*titles, *CLOCK_HEADERS, "steps/s"], rows)


def _origin(comparisons: Sequence[Comparison], plans: Plans) -> list[Block]:
    """How to read the numbers, the commands, and what everything ran on."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    commands = []
    for plan in plans.values():
        commands += [str(plan.get("command", "")), ""]
        commands += [f"{label}:  {command}" for label, command in plan["methods"].items()]
    blocks = [heading("How to read this"), paragraph(READING), heading("How it was made")]
    if commands:
        blocks.append(code("\n".join(map(str, commands))))
    versions = {", ".join(f"{k} {v}" for k, v in run.versions.items() if v) for run in runs}
    versions = sorted(versions - {""})
    revisions = sorted({run.git_revision for run in runs if run.git_revision})
    machines = sorted({plan["machine"] for plan in plans.values()})
    facts = (
        f"Machine: {'; '.join(machines) or 'not recorded with these runs'}.",
        f"Versions: {'; '.join(versions) or 'unknown'}.",
        f"Git revision: {', '.join(revisions) or 'unknown'}.",
        f"Report of {date.today()}.",
    )
    return [*blocks, *map(paragraph, facts)]
