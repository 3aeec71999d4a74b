"""What is searched: the settings that matter most to Q-learning, and the range of each.

What the user gives is not searched. Values are spelt as on the command line.
"""

from collections.abc import Collection, Iterator
from typing import Any

from optuna.trial import BaseTrial

from async_dqn.config.config import Config
from async_dqn.config.schema import SETTINGS

# By setting; where one of replay is chosen, also those of its table.
RATE = (1e-4, 5e-3)  # logarithmic
CHOICES = {
    "algorithm": ("q-lambda", "n-step-q"),
    "lam": ("0.5", "0.65", "0.8", "0.9", "0.95"),
    "gamma": ("0.95", "0.98", "0.99", "0.995"),
    "envs": ("8", "16", "32", "64", "128"),
    "rollout_length": ("4", "8", "16", "32"),
    "hidden": ("64,64", "128,128", "256,256"),
    "layer_norm": ("on", "off"),
    "max_grad_norm": ("0.5", "1", "10"),
    "epsilon_final": ("0.01", "0.02", "0.05", "0.1"),
    "replay": ("none", "prioritized"),
}
BY_REPLAY = {
    "none": {
        "epochs": ("1", "2", "4"),
        "minibatches": ("1", "2", "4"),
        "target_sync_steps": ("none", "2000"),
    },
    "prioritized": {
        "epochs": ("1", "2", "4"),
        "batch_size": ("16", "32", "64", "128"),
        "target_sync_steps": ("500", "1000", "2000", "5000"),
    },
}
ANNEALED = ("0.02", "0.05", "0.1", "0.2", "0.5")  # share of the budget over which epsilon falls


Point = dict[str, str]  # options by setting, spelt


def drawn(trial: BaseTrial, given: Collection[str], steps: int, vectors: bool) -> Point:
    """A point of the space, but for what is `given`, of runs of so many `steps`.

    `vectors` says that observations have no images, so that `hidden` acts.
    """
    options: Point = {}
    if "lr" not in given:
        options["lr"] = spelt(trial.suggest_float("lr", *RATE, log=True))
    for name, values in _choices(given, vectors):
        options[name] = trial.suggest_categorical(name, values)
    if options.get("algorithm") == "n-step-q":
        options.pop("lam", None)  # drawn all the same: what is not drawn is unknown to the sampler
    replay = options.get("replay")
    for name, values in BY_REPLAY.get(replay, {}).items():
        if name not in given:
            options[name] = trial.suggest_categorical(f"{name} ({replay} replay)", values)
    if "epsilon_steps" not in given:
        share = float(trial.suggest_categorical("epsilon_steps / steps", ANNEALED))
        options["epsilon_steps"] = str(max(1, int(share * steps)))
    return options


def _choices(given: Collection[str], vectors: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    left_out = set(given)
    if {"replay", "epochs", "minibatches", "batch_size", "replay_start"} & left_out:
        left_out.add("replay")
    if "envs_per_worker" in left_out:
        left_out.add("envs")
    if not vectors:
        left_out.add("hidden")
    yield from ((name, values) for name, values in CHOICES.items() if name not in left_out)


def nearest(config: Config, given: Collection[str], vectors: bool) -> dict[str, Any]:
    """The point of the space, as the study knows it, next to the settings of `config`."""
    now, params = config.by_name(), {}
    now["envs"] = config.parallel.actors * now["envs_per_worker"]
    if "lr" not in given:
        params["lr"] = min(max(now["lr"], RATE[0]), RATE[1])
    for name, values in _choices(given, vectors):
        params[name] = _next(values, now[name])
    replay = params.get("replay")
    for name, values in BY_REPLAY.get(replay, {}).items():
        if name not in given:
            params[f"{name} ({replay} replay)"] = _next(values, now[name])
    if "epsilon_steps" not in given:
        params["epsilon_steps / steps"] = _next(ANNEALED, now["epsilon_steps"] / now["steps"])
    return params


def _next(values: tuple[str, ...], value: Any) -> str:
    """The one of `values`, spelt, that is nearest to a value."""
    if isinstance(value, tuple):
        text = ",".join(map(str, value))
    else:
        text = {"None": "none", "True": "on", "False": "off"}.get(str(value), str(value))
    if text in values:
        return text
    numbers = [text for text in values if text.replace(".", "").isdigit()]
    if not numbers or not isinstance(value, int | float):
        return values[0]
    return min(numbers, key=lambda text: abs(float(text) - value))


def spelt(value: float | str) -> str:
    """A parameter of the study for people, and for a command line."""
    return f"{value:.3g}" if isinstance(value, float) else value


def as_arguments(point: Point) -> list[str]:
    """Words of a command line."""
    return [word for name, text in point.items() for word in (SETTINGS[name].option, text)]
