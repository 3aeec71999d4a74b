"""Resuming: the checkpoint to go on from, and its run's settings merged with those given now."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.config.presets import PER_SESSION
from async_dqn.runs import checkpoint
from async_dqn.runs.checkpoint_format import COUNTERS

# Settings that, as all of the network's, fix what the checkpoint's tensors mean.
FIXED = (
    *("env", "env_arg", "wrap", "action_bins", "image_size", "image_codes", "action_masks"),
    "optimizer",
)
# What held for environments before there were such settings.
UNKNOWN_THEN = {
    "image_size": None,
    "image_codes": "none",
    "action_masks": "none",
    "defaults": "fixed",
}


def resumed(
    config: Config, explicit: frozenset[str]
) -> tuple[Config, checkpoint.Checkpoint | None, list[str]]:
    """Merge the resumed run's settings with the explicit ones; say what changed."""
    path: str | Path | None = config.run.resume
    automatic = path == "auto"
    if automatic:
        run, algorithm = config.run, config.algorithm.algorithm
        path = checkpoint.newest_run(
            run.runs_dir, config.environment.env, run.run_name, algorithm, run.seed
        )
        if path is None:
            return config, None, ["no run to resume; starting a new one"]
    found = checkpoint.load(checkpoint.resolve(path, fall_back=automatic))
    stored = stored_config(found)
    _check_state(found)
    old, new = stored.by_name(), config.by_name()
    given = [name for name in new if SETTINGS[name].dotted in explicit]
    changed = [name for name in given if name not in PER_SESSION and new[name] != old[name]]
    notes = [_change(name, old[name], new[name]) for name in changed]
    config = stored.with_settings({name: new[name] for name in (*changed, *PER_SESSION)})
    if (config.at_once, config.parallel.envs) != (stored.at_once, stored.parallel.envs):
        config = config.shared_out_anew(given)
    if found.step >= config.run.steps:
        notes.append(f"the budget of {config.run.steps} steps is already met; add --steps")
    return config, found, notes


def _change(name: str, old: Any, new: Any) -> str:
    """One line for a setting that differs from the resumed run's; refuse what cannot differ."""
    about = SETTINGS[name]
    if name in FIXED or about.section == "network":
        raise UserError(
            f"checkpoint does not match: {name} {old} vs {new}; start a new run or drop "
            f"{about.option}"
        )
    before, now = (f"{x:.6g}" if isinstance(x, float) else x for x in (old, new))
    return f"{name} changed from {before} to {now}"


def stored_config(found: checkpoint.Checkpoint) -> Config:
    """The settings of the run that made a checkpoint; raises UserError."""
    sections = found.state.get("config")
    if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
        raise _no_run(found, "config")
    environment = UNKNOWN_THEN | sections.get("environment", {})
    return Config.from_dict(sections | {"environment": environment})


def played_parameters(found: checkpoint.Checkpoint) -> dict[str, NDArray]:
    """What an agent plays by: the parameters, or their average where that was scored."""
    by_average = stored_config(found).optimizer.score_by_average
    return found.tensors.get("average" if by_average else "model", found.tensors["model"])


def _check_state(found: checkpoint.Checkpoint) -> None:
    """Whether all is there that a run goes on from; counters that are there are sound."""
    state = found.state
    mark, factor = state.get("threshold_at", ()), state.get("lr_multiplier", 1.0)
    sound = {name: name in state for name in COUNTERS} | {
        "wall_s": _is_number(state.get("wall_s")),
        "best_mean": state.get("best_mean", ()) is None or _is_number(state.get("best_mean")),
        "threshold_at": mark is None
        or (isinstance(mark, list) and len(mark) == 2 and all(map(_is_number, mark))),
        "lr_multiplier": _is_number(factor) and 0 < factor <= 1,
        "env_info": isinstance(state.get("env_info", {}), dict),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise _no_run(found, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no_run(found: checkpoint.Checkpoint, name: str) -> UserError:
    return UserError(
        f"{found.path.name} is no checkpoint of a run (its state has no sound {name}); "
        "choose another"
    )
