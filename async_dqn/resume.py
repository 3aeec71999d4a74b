"""Resuming: the checkpoint to go on from, and its run's settings merged with those given now."""

import dataclasses
from pathlib import Path
from typing import Any

from async_dqn import checkpoint
from async_dqn.config import SECTIONS, Config, UserError

# Settings that fix what the checkpoint's tensors mean.
FIXED = (
    "environment.env",
    "environment.env_arg",
    "environment.action_bins",
    "optimizer.optimizer",
)
FIXED_SECTIONS = ("network",)
# Settings of one session, never taken from the run that is resumed.
PER_SESSION = (
    "run.resume",
    "run.runs_dir",
    "run.run_name",
    "run.quiet",
    "environment.import_modules",
)


def resumed(
    config: Config, explicit: frozenset[str]
) -> tuple[Config, checkpoint.Checkpoint | None, list[str]]:
    """Merge the resumed run's settings with the explicit ones; say what changed."""
    path: str | Path | None = config.run.resume
    automatic = path == "auto"
    if automatic:
        path = checkpoint.newest_run(config.run.runs_dir, config.environment.env)
        if path is None:
            return config, None, ["no run to resume; starting a new one"]
    found = checkpoint.load(checkpoint.resolve(path, fall_back=automatic))
    stored = Config.from_dict(found.state["config"])
    merged, notes = {}, []
    for section in SECTIONS:
        old, new = getattr(stored, section), getattr(config, section)
        values = {}
        for field in dataclasses.fields(old):
            name, mine = f"{section}.{field.name}", getattr(new, field.name)
            keep = name not in explicit and name not in PER_SESSION
            values[field.name] = getattr(old, field.name) if keep else mine
            if not keep and name not in PER_SESSION and mine != getattr(old, field.name):
                notes.append(_change(name, getattr(old, field.name), mine))
        merged[section] = dataclasses.replace(old, **values)
    config = Config(**merged)
    if found.step >= config.run.steps:
        notes.append(f"the budget of {config.run.steps} steps is already met; add --steps")
    return config, found, notes


def _change(name: str, old: Any, new: Any) -> str:
    """One line for a setting that differs from the resumed run's; refuse what cannot differ."""
    section, setting = name.split(".")
    if name in FIXED or section in FIXED_SECTIONS:
        option = "--" + setting.replace("_", "-")
        raise UserError(
            f"checkpoint does not match: {setting} {old} vs {new}; start a new run or drop {option}"
        )
    return f"{setting} changed from {old} to {new}"
