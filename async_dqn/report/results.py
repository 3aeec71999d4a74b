"""Reading finished runs: what the run folders of one or several methods say, as plain numbers.

A run folder may come from anywhere, cut short by a kill or edited by hand, so that everything
read is checked; what is wrong is told in one line that names the folder.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from async_dqn.config.config import UserError
from async_dqn.config.environment import protocol

PLAN = "compare.json"
CLOCKS = ("step", "wall_s", "cpu_s")
COLUMNS = (*CLOCKS, "episodes", "mean")
FAILED, UNFINISHED = "failed", "unfinished"
MAX_BYTES = 50_000_000
LARGEST = 1e18  # of any number that is believed
# What a label says when it is not the default; further settings only where runs differ in them.
VARIANTS = ("double", "dueling", "munchausen", "noisy", "recurrent", "distributional", "replay")


class Cost(NamedTuple):
    """What a run spent on one clock until the threshold; or, if `missed`, until it stopped."""

    value: float
    missed: bool

    def __str__(self) -> str:
        return f"{'> ' if self.missed and math.isfinite(self.value) else ''}{quantity(self.value)}"


def quantity(value: float | None) -> str:
    """A number for people: 12,345 or 499.3 or 41.2 or 0.352; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"


OF_PROTOCOL = ("env_arg", "life_loss_ends")


@dataclass(frozen=True)
class RunResult:
    """One run. `curve` has an array [evaluations] for each of COLUMNS, in the order of steps;
    `totals` what the whole run took: steps, wall_s, cpu_s, startup_s (None: unknown)."""

    env: str
    label: str
    seed: int
    status: str
    curve: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted name
    totals: Mapping[str, float | None] = field(default_factory=dict)
    reached: Mapping[str, float] | None = None  # its own threshold, by CLOCKS
    final: float | None = None  # last score
    versions: Mapping[str, Any] = field(default_factory=dict)
    git_revision: str | None = None
    peer: str | None = None  # the other library's program that made it
    cause: str = ""

    @property
    def task(self) -> str:
        """The environment, and by which rules its scores come about where these differ."""
        words = {name: self.settings.get(f"environment.{name}") for name in OF_PROTOCOL}
        env_arg = words["env_arg"] if isinstance(words["env_arg"], dict) else {}
        rules = protocol(self.env, env_arg, words["life_loss_ends"] is not False)
        return f"{self.env}, {rules}" if rules else self.env

    @property
    def threshold(self) -> float | None:
        """The score at which this run was to end."""
        return self.settings.get("evaluation.stop_at_return")

    @property
    def steps_per_second(self) -> float | None:
        """Global steps per second from the first update to the end."""
        steps, wall_s, startup_s = map(self.totals.get, ("steps", "wall_s", "startup_s"))
        seconds = (wall_s or 0) - (startup_s or 0)
        return steps / seconds if steps and seconds > 0 else None

    def cost(self, clock: str, threshold: float) -> Cost:
        """What it took to reach `threshold` in an evaluation that counts (not a screening)."""
        arrival = self.reached if threshold == self.threshold else self._first_at(threshold)
        if arrival is not None:
            return Cost(arrival[clock], missed=False)
        total = self.totals.get("steps" if clock == "step" else clock)
        if self.status == FAILED or total is None:
            total = math.inf  # that it failed early must not look like speed
        return Cost(total, missed=True)

    def _first_at(self, threshold: float) -> dict[str, float] | None:
        wanted = self.settings.get("evaluation.eval_episodes") or 0
        good = (self.curve["mean"] >= threshold) & (self.curve["episodes"] >= wanted)
        if not good.any():
            return None
        return {clock: float(self.curve[clock][np.argmax(good)]) for clock in CLOCKS}


def _in_order(costs: Iterable[Cost]) -> list[Cost]:
    return sorted(costs, key=lambda cost: (cost.missed, cost.value))


def median(costs: Iterable[Cost]) -> Cost:
    """The median cost, misses behind all others; missed where it rests on one."""
    ordered = _in_order(costs)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    missed = any(cost.missed for cost in middle)
    return Cost(sum(cost.value for cost in middle) / len(middle), missed)


def spread(costs: Sequence[Cost]) -> str:
    """Median (min to max), each marked ">" where it rests on a run that missed."""
    ordered = _in_order(costs)
    return f"{median(costs)} ({ordered[0]} to {ordered[-1]})"


def run_name(label: str, seed: int) -> str:
    """The folder of a method's run."""
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")
    return f"{safe}-s{seed}"


def find_runs(root: Path) -> list[Path]:
    """Run folders at or below `root`, sorted; symbolic links are not followed."""
    found = []
    for folder, below, files in os.walk(root):
        if "evaluations.csv" in files or {"config.json", "events.jsonl"} <= set(files):
            found.append(Path(folder))
            below.clear()
    return sorted(found)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError."""
    try:
        value = json.loads(_read_bytes(path))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path.parent}: {path.name} is damaged (no JSON object)")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot read {path.name}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path.parent}: {path.name} is larger than {MAX_BYTES:,} bytes")
    return data


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What `compare` wrote about the runs below `folder`; None where it wrote nothing. Raises
    UserError when it is damaged."""
    if not (folder / PLAN).exists():
        return None
    plan = read_json(folder / PLAN)
    kinds = {"plan": dict, "methods": dict, "seeds": list, "failures": dict, "machine": str}
    for key, kind in kinds.items():
        if not isinstance(plan.get(key), kind):
            raise UserError(f"{folder}: {PLAN} is damaged (no {key})")
    if not all(type(seed) is int for seed in plan["seeds"]):
        raise UserError(f"{folder}: {PLAN} is damaged (seeds)")
    return plan


def read_run(folder: Path) -> RunResult:
    """The run in `folder`; raises UserError, naming the folder, where it cannot be read."""
    config = read_json(folder / "config.json")
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    curve = _read_curve(folder / "evaluations.csv")
    settings = _flat(config.get("settings"))
    env, seed = settings.get("environment.env"), settings.get("run.seed")
    if not isinstance(env, str) or not isinstance(seed, int):
        raise UserError(f"{folder}: config.json is damaged (no environment or no seed)")
    for name in ("evaluation.stop_at_return", "evaluation.eval_episodes"):
        settings[name] = number(settings.get(name))
    last = {clock: float(curve[clock][-1]) for clock in CLOCKS if len(curve["mean"])}
    stored = {key: number(result.get(key)) for key in ("steps", "wall_s", "cpu_s", "startup_s")}
    totals = {"steps": last.get("step")} | last | {k: v for k, v in stored.items() if v is not None}
    final = number(result.get("final_mean"))
    if final is None and len(curve["mean"]):
        final = float(curve["mean"][-1])
    peer, own = _peer(config.get("peer"))
    settings |= own
    versions = config.get("versions")
    return RunResult(
        env=env,
        label=peer or _label(settings),
        seed=seed,
        status=str(result.get("status") or UNFINISHED),
        curve=curve,
        settings=settings,
        totals=totals,
        reached=_reached(result, curve, totals),
        final=final,
        versions=versions if isinstance(versions, dict) else {},
        git_revision=str(config.get("git_revision") or "") or None,
        peer=peer,
    )


def _peer(stored: Any) -> tuple[str | None, dict[str, Any]]:
    """Name and settings of another library's program; None and nothing for ours."""
    if not isinstance(stored, dict) or not stored.get("name"):
        return None, {}
    own = stored.get("settings")
    settings = {f"peer.{key}": value for key, value in own.items()} if isinstance(own, dict) else {}
    if isinstance(threads := stored.get("threads"), int):
        settings["parallel.workers"] = threads  # what it really used
    return str(stored["name"]), settings


def _reached(
    result: Mapping[str, Any], curve: Mapping[str, np.ndarray], totals: Mapping[str, Any]
) -> dict[str, float] | None:
    """Steps and seconds to the run's own threshold; CPU seconds from the evaluation's row."""
    step = number(result.get("steps_to_threshold"))
    wall_s = number(result.get("seconds_to_threshold"))
    if step is None or wall_s is None:
        return None
    rows = np.flatnonzero(curve["step"] == step)
    cpu_s = float(curve["cpu_s"][rows[-1]]) if len(rows) else totals.get("cpu_s")
    return {"step": step, "wall_s": wall_s, "cpu_s": math.nan if cpu_s is None else cpu_s}


def _read_curve(path: Path) -> dict[str, np.ndarray]:
    """COLUMNS of evaluations.csv; a cut-off last line and empty scores are left out."""
    text = _read_bytes(path).decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a kill can cut the last line short
    points, line = [], 1
    try:
        for line, row in enumerate(csv.DictReader(io.StringIO(whole)), 2):
            points.append([float("nan" if row[name] == "" else row[name]) for name in COLUMNS])
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path.parent}: {path.name} is damaged (line {line})") from None
    table = np.array(points, float).reshape(-1, len(COLUMNS))
    table = table[np.isfinite(table).all(axis=1)]
    table = table[np.argsort(table[:, 0], kind="stable")]
    return dict(zip(COLUMNS, table.T))


def _flat(sections: Any) -> dict[str, Any]:
    tables = sections.items() if isinstance(sections, dict) else ()
    return {
        f"{section}.{name}": value
        for section, table in tables
        if isinstance(table, dict)
        for name, value in table.items()
    }


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) < LARGEST else None


def _label(settings: Mapping[str, Any]) -> str:
    """Such as "async-n-step-q, dueling, replay uniform"."""
    names = [settings.get(name, "?") for name in ("parallel.mode", "algorithm.algorithm")]
    words = ["-".join(map(str, names))]
    by_name = {dotted.rpartition(".")[2]: value for dotted, value in settings.items()}
    if by_name.get("target", "copy") != "copy":
        words.append(f"target {by_name['target']}")
    for name in VARIANTS:
        value = by_name.get(name)
        if value not in (None, False, "none"):
            words.append(name if value is True else f"{name} {value}")
    return ", ".join(words)
