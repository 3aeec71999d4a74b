"""`bench peers`: other methods against ours, by the seconds they take to a score, seed by seed.

The runs are those of `compare` with a fixed set of methods, and lie in its folder: the same command
goes on where it stopped, and `report` reads them too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from async_dqn.bench.command import METAVARS, check_path, present, save, spread
from async_dqn.compare.command import compare, parser_of
from async_dqn.compare.methods import PEERS
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.options import parse_value
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec, registered_spec
from async_dqn.report.command import cost_spread
from async_dqn.report.grouping import collect
from async_dqn.report.results import RunResult, quantity
from async_dqn.runs.folder import env_folder

BASELINES = ("dqn", "pqn")  # besides synchronous workers
CAPTION = (
    "{env}: pairs of the same seed, one run after another, against {ours}; median (min to max); > "
    "rests on a run that stopped without the score and counts with its stopping time (< where that "
    "was ours); peers are scored with their clocks stopped, which favours them"
)
HEADER = (
    *("method", "solved", "steps/s, median (min to max)", "seconds to {goal}, median (min to max)"),
    *("training seconds / ours, pair by pair", "whole process / ours, pair by pair"),
)


class Ratio(NamedTuple):
    """Seconds of another method over ours, to the score.

    `bound`: 1 where it is a lower bound, as the other stopped without the score; -1 where it is an
    upper bound, as ours did. Upper bounds come first in order, lower bounds last.
    """

    bound: int
    value: float

    def __str__(self) -> str:
        return f"{('', '> ', '< ')[self.bound]}{self.value:.2f}"


def run(argv: Sequence[str]) -> int:
    """Compare Stable-Baselines3's DQN and our synchronous baselines with ours, run after run and
    seed by seed, by steps per second and by the seconds to a score: of training (from the first
    update on) and of the whole process (from its start, imports included). The score is that of
    --stop-at-return, else the one at which the environment counts as solved. Peers are scored with
    their clocks stopped, which favours them."""
    given = _parse(argv)
    env, goal = given["env"], given["stop_at_return"]
    algorithm = resolve({"env": env})[0].algorithm.algorithm
    ours = f"async-{algorithm}"
    methods = ",".join((ours, f"sync-{algorithm}", *BASELINES, *PEERS))
    json, words = given.pop("json", None), given.pop("set", [])
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    code = compare([f"--methods={methods}", *(f"--set={word}" for word in words), *options])
    if code not in (0, 1):  # a signal
        return code
    (comparison,), _, _ = collect([Path(given["out"])])
    header = [title.format(goal=quantity(goal)) for title in HEADER]
    rows = [row_of(label, comparison.methods, ours, goal) for label in comparison.methods]
    present(CAPTION.format(env=env, ours=ours), header, rows)
    save(json, "peers", [_figures(run, goal) for run in comparison.runs])
    return code


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """The options of `compare` but for its methods, with environment, score and folder."""
    parser = parser_of("async-dqn bench peers", run.__doc__)
    parser.add_argument("--json", metavar=METAVARS["json"], help="also write every run's figures")
    given = {"env": SETTINGS["env"].default, **parser.parse(argv)}
    check_path(given.get("json"))
    words = [word.partition("=") for word in given.get("set", [])]
    make.check_env_id(given["env"], [module for option, _, module in words if option == "import"])
    spec = EnvSpec(given["env"])
    if goal := given.get("stop_at_return"):
        goal = parse_value(SETTINGS["stop_at_return"], goal)
    else:  # the return at which the environment's authors call it solved
        goal = registered_spec(spec).reward_threshold
    if goal is None:
        raise UserError("time to a score needs the score; give --stop-at-return")
    return {"out": f"runs/peers-{env_folder(spec.name)}", **given, "stop_at_return": goal}


def row_of(
    label: str, methods: Mapping[str, Sequence[RunResult]], ours: str, goal: float
) -> list[str]:
    """The cells of one method, against the runs of `ours` with the same seeds."""
    runs = methods[label]
    costs = [run.cost("wall_s", goal) for run in runs]
    speeds = [run.steps_per_second for run in runs if run.steps_per_second is not None]
    pairs = [(run, own) for run in runs for own in methods[ours] if run.seed == own.seed]
    return [
        label,
        f"{sum(not cost.missed for cost in costs)} of {len(costs)}",
        spread(speeds, ",.0f") if speeds else "-",
        cost_spread(costs),
        _spread([_ratio(*pair, goal, training=True) for pair in pairs]),
        _spread([_ratio(*pair, goal, training=False) for pair in pairs]),
    ]


def _ratio(run: RunResult, own: RunResult, goal: float, training: bool) -> Ratio | None:
    """None where nothing is known, as both stopped without the score, or one failed."""
    other, ours = run.cost("wall_s", goal), own.cost("wall_s", goal)
    starts = [each.totals.get("startup_s") if training else 0.0 for each in (run, own)]
    if (other.missed and ours.missed) or None in starts:
        return None
    value = (other.value - starts[0]) / (ours.value - starts[1])
    return Ratio(other.missed - ours.missed, value) if 0 < value < math.inf else None


def _spread(ratios: Sequence[Ratio | None]) -> str:
    """Median (smallest to largest); of an even number the lower one of the two in the middle."""
    known = sorted(ratio for ratio in ratios if ratio is not None)
    if not known:
        return "-"
    note = "" if len(known) == len(ratios) else f", {len(known)} of {len(ratios)} pairs"
    return f"{statistics.median_low(known)} ({known[0]} to {known[-1]}{note})"


def _figures(run: RunResult, goal: float) -> dict[str, Any]:
    cost = run.cost("wall_s", goal)
    return {
        "method": run.label,
        "seed": run.seed,
        "status": run.status,
        "solved": not cost.missed,
        "steps_per_second": run.steps_per_second,
        "seconds": cost.value if math.isfinite(cost.value) else None,
        "startup_s": run.totals.get("startup_s"),
    }
