"""What `compare` can put side by side: names of methods, and the command that runs each.

A method is `<mode>-<algorithm>` (the user's own as module:name), or a preset for no environment in
particular, or a peer from another library. Further options may follow a colon, as in
"async-q-lambda:--lam 0.8"; a peer takes only a budget of its own there, as in
"sb3-dqn:--steps 100_000".
"""

import contextlib
import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from async_dqn.config import presets
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.fields import did_you_mean, either, is_foreign, show
from async_dqn.config.options import parse_train
from async_dqn.report.results import run_name

# Peers, with the package each needs.
PEERS = {"sb3-dqn": "stable_baselines3"}
# Settings that are the same for all methods, or that `compare` gives to each run.
SHARED = ("steps", "stop_at_return", "eval_every", "eval_episodes")
COMMON = {"env", *SHARED, "seed", "runs_dir", "run_name", "resume", "version"}


@dataclass(frozen=True)
class Contender:
    """A method by its label, and what follows `python -m` to run it (without seed and folder)."""

    label: str
    module: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def contenders(
    labels: Sequence[str], shared: Mapping[str, Any], workers: int, extra: Sequence[str]
) -> list[Contender]:
    """The methods of these labels, all with the settings `shared` (by name; None: not given).

    `extra` are options ("--double") for all; peers take those on the environment. Raises
    UserError for whatever can be known to be wrong before the first run.
    """
    _check_labels(labels)
    environment = [word for word in extra if _is_of_environment(word)]
    common = [
        f"{SETTINGS[name].option}={value}" for name, value in shared.items() if value is not None
    ]
    found = []
    for label in labels:
        name, options = _parts(label)
        with _said_of(f"method {show(label)}"):
            own = shlex.split(options)
        settings = _settings(own, f"method {label}", COMMON - {"steps"})
        if name in PEERS:
            _check_peer(label, settings)
            arguments = (name, *common, f"--workers={workers}", *environment, *own)
            found.append(Contender(label, "async_dqn.peers", arguments))
            continue
        count = [] if _fixes_workers(name, shared.get("env")) else [f"--workers={workers}"]
        arguments = ("train", *_choice(name), *common, *count, *extra, *own)
        with _said_of(f"method {label}"):  # as the trainer would refuse it
            given = parse_train(arguments[1:])
            presets.resolve(given, given.pop("config", None), given.pop("preset", None))
        found.append(Contender(label, "async_dqn", arguments))
    return found


def names() -> list[str]:
    """Every method's name."""
    modes, algorithms = SETTINGS["mode"].choices, SETTINGS["algorithm"].choices
    pairs = [f"{mode}-{algorithm}" for mode in modes for algorithm in algorithms]
    return [*pairs, *_overlays(), *PEERS]


def _check_labels(labels: Sequence[str]) -> None:
    folders: set[str] = set()
    for label in labels:
        name = _parts(label)[0]
        mode, _, algorithm = name.partition("-")
        is_own = mode in SETTINGS["mode"].choices and is_foreign(algorithm)
        if name not in names() and not is_own:
            hint = did_you_mean(name, names())
            modes, algorithms = SETTINGS["mode"].choices, SETTINGS["algorithm"].choices
            raise UserError(
                f"unknown method {show(name)}{hint or '; choose'}{' Choose' if hint else ''} "
                f"<mode>-<algorithm> of modes {either(modes)} and algorithms "
                f"{either(algorithms)}, or {either([*_overlays(), *PEERS])}"
            )
        folder = run_name(label, 0)
        if folder in folders:
            raise UserError(f"method {show(label)} is named twice; drop one")
        if len(folder) > 80:
            raise UserError(f"method {show(label)}: too many options for a name; make a preset")
        folders.add(folder)


def _parts(label: str) -> tuple[str, str]:
    """The method's name, in which there may be a colon, and the options after one."""
    name, *options = re.split(r":(?=\s*-|$)", label, maxsplit=1)
    return name, "".join(options)


def _overlays() -> list[str]:
    """Presets for no environment in particular."""
    return [name for name in presets.names() if not presets.load(name).env]


def _choice(name: str) -> list[str]:
    if name in _overlays():
        return [f"--preset={name}"]
    mode, _, algorithm = name.partition("-")
    return [f"--mode={mode}", f"--algorithm={algorithm}"]


def _fixes_workers(name: str, env: str | None) -> bool:
    """Whether a preset says itself how many processes it is for."""
    return name in _overlays() and "workers" in presets.load(name).for_choices({"env": env})


def _settings(words: Sequence[str], where: str, refused: Set[str] = COMMON) -> dict[str, Any]:
    """The settings in `words`; refuses those that are the same for all methods."""
    with _said_of(where):
        given = parse_train(words)
    for name in given.keys() & refused:
        option = SETTINGS[name].option if name in SETTINGS else f"--{name}"
        raise UserError(f"{where}: {option} is not a method's own; give it to compare, or drop it")
    return given


@contextlib.contextmanager
def _said_of(where: str) -> Iterator[None]:
    try:
        yield
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _is_of_environment(word: str) -> bool:
    """Whether an option, which is checked here, says what is played: that holds for peers too."""
    return any(
        name in SETTINGS and SETTINGS[name].section == "environment"
        for name in _settings([word], "--set")
    )


def _check_peer(label: str, settings: Mapping[str, Any]) -> None:
    name, options = _parts(label)
    if settings.keys() - {"steps"}:
        raise UserError(f"{name} has its own settings, but for --steps; drop {show(options)}")
    if importlib.util.find_spec(PEERS[name]) is None:
        raise UserError(f"{name} needs a package; pip install -c constraints.txt -e '.[peers]'")
