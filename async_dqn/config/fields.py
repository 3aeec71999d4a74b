"""What a setting is: a documented dataclass field, and the check of values given for it.

The machinery under `config`, which holds the settings themselves.
"""

import dataclasses
import math
import numbers
import os
import re
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FOREIGN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*")  # module:name of the user's own code
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What other libraries (Stable-Baselines3, its zoo, CleanRL) call settings of ours.
ELSEWHERE = {
    "learning_rate": "lr",
    "total_timesteps": "steps",
    "n_timesteps": "steps",
    "n_envs": "envs",
    "num_envs": "envs",
    "buffer_size": "replay_capacity",
    "learning_starts": "replay_start",
    "target_update_interval": "target_sync_steps",
    "target_network_frequency": "target_sync_steps",
    "gradient_steps": "epochs",
    "exploration_initial_eps": "epsilon_start",
    "exploration_final_eps": "epsilon_final",
    "exploration_fraction": "epsilon_steps",
    "eval_freq": "eval_every",
    "n_eval_episodes": "eval_episodes",
    "env_id": "env",
    "env_kwargs": "env_arg",
    "algo": "algorithm",
    "policy": "network",
    "verbose": "quiet",
    "tensorboard_log": "runs_dir",
    "log_dir": "runs_dir",
    "save_freq": "checkpoint_every",
    "num_workers": "workers",
}
NOT_THE_USERS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).resolve().parents[1],
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)
RESERVED_ON_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


class UserError(Exception):
    """A mistake the user can mend, as one line "what is wrong; what to do"."""

    exit_code = 2


class Range(NamedTuple):
    """The allowed values of a number: in words for messages, and as a predicate."""

    words: str
    holds: Callable[[Any], bool]


COUNT = Range("a whole number from 1", lambda n: n >= 1)
FROM_TWO = Range("a whole number from 2", lambda n: n >= 2)
BINS = Range("a whole number from 2, or a list of such", lambda n: n >= 2)
COUNT_OR_NONE = Range("from 1, or none", lambda n: n >= 1)
SEED = Range("within [0, 2^63)", lambda n: 0 <= n < 2**63)
CODES = Range(
    "auto, none, or a whole number within [2, 256]",
    lambda text: text in ("auto", "none") or (text.isdecimal() and 2 <= int(text) <= 256),
)
WIDTHS = Range("a list of whole numbers within [1, 65536]", lambda n: 1 <= n <= 65536)
BELOW_ONE = Range("within [0, 1)", lambda x: 0 <= x < 1)
ON_OFF = {"on": "", "off": ""}  # choices of a switch
UNIT_INTERVAL = Range("within [0, 1]", lambda x: 0 <= x <= 1)
UNIT_INTERVAL_OR_NONE = Range("within [0, 1], or none", lambda x: 0 <= x <= 1)
POSITIVE = Range("a finite number above 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range("a finite number from 0", lambda x: 0 <= x < math.inf)
FINITE = Range("a finite number", math.isfinite)
FINITE_OR_NONE = Range("a finite number, or none", math.isfinite)


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: Mapping[str, str] | None = None,
    within: Range | None = None,
    default_words: str = "",
    is_open: bool = False,
) -> Any:
    """A dataclass field that carries its documentation; a callable default is a factory.

    One that `is_open` takes, beside its choices, the name of the user's own code.
    """
    about = {
        "is_open": is_open,
        "help": help,
        "unit": unit,
        "choices": choices or {},
        "within": within,
        "words": default_words,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Setting:
    """One setting as seen from outside: where it belongs and which values it takes."""

    section: str
    name: str
    kind: type  # int, float, bool, str, tuple (of `item`) or dict
    item: type | None
    or_one: bool  # an item alone stands for the tuple
    optional: bool
    help: str
    unit: str
    choices: Mapping[str, str]
    within: Range | None
    is_open: bool
    default: str  # in words

    @classmethod
    def of(cls, section: str, field: dataclasses.Field) -> "Setting":
        """Read from a field made by `setting`."""
        union = isinstance(field.type, types.UnionType)
        kind, *others = typing.get_args(field.type) if union else (field.type,)
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
        about = dict(field.metadata)
        default = about.pop("words") or _default_words(field.default)
        kind, optional = typing.get_origin(kind) or kind, types.NoneType in others
        or_one = item in others
        return cls(section, field.name, kind, item, or_one, optional, default=default, **about)

    @property
    def option(self) -> str:
        """Its command-line option."""
        return "--import" if self.name == "import_modules" else "--" + self.name.replace("_", "-")

    @property
    def dotted(self) -> str:
        """Its key in TOML and in flat tables."""
        return f"{self.section}.{self.name}"


class SettingsSection:
    """Base of the sections: construction checks every field and normalises its type."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = check(Setting.of("", field), getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def _default_words(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in (None, dataclasses.MISSING) else str(default)


def check(about: Setting, value: Any, label: str = "") -> Any:
    """Return `value` in the setting's own type.

    Raises UserError, which calls the setting `label` (default: its command-line option).
    """
    label = label or about.option
    word = isinstance(value, str) and value == "none" and about.kind in (int, float)
    if about.optional and (value is None or word):
        return None
    return _CHECKS[about.kind](about, value, label)


def is_foreign(name: str) -> bool:
    """Whether a value names the user's own code."""
    return FOREIGN.fullmatch(name) is not None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` for what other libraries call `word`, or the known name nearest to it;
    else nothing."""
    import difflib  # only errors need it

    known = list(known)
    ours = ELSEWHERE.get(word.lstrip("-").replace("-", "_"), "")
    spelled = f"--{ours.replace('_', '-')}" if word.startswith("--") else ours
    if ours and spelled in known:
        return f"; did you mean {spelled}?"
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_run_name(name: str) -> None:
    """Raise UserError unless `name` is a plain folder name on every platform."""
    if not RUN_NAME.fullmatch(name):
        raise UserError(
            f"run name {show(name)} may hold only letters, digits, . _ - (1 to 100), "
            "the first a letter or digit"
        )
    if RESERVED_ON_WINDOWS.fullmatch(name):
        raise UserError(f"run name {show(name)} is reserved on Windows; choose another")


def refuse(label: str, phrase: str, value: Any) -> UserError:
    """The error `<label> must be <phrase> (got <value>)`."""
    return UserError(f"{label} must be {phrase} (got {show(value)})")


def show(value: Any) -> str:
    """A value for a message: on one line, at most 80 characters."""
    if isinstance(value, float):
        return f"{value:.12g}"
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "..." + text[-1]


def one_line(text: str) -> str:
    """Control characters and stray bytes from user input as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe_error(error: BaseException) -> str:
    """Kind and message of an exception on one line, `my_env.py:12: ValueError: no such seed`.

    The place is the innermost in code of the user's, if there is any.
    """
    places = traceback.extract_tb(error.__traceback__)
    own = [p for p in places if not p.filename.startswith((*NOT_THE_USERS, "<frozen "))]
    where = f"{_short(own[-1].filename)}:{own[-1].lineno}: " if own else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _short(path: str) -> str:
    """Relative, where that is shorter."""
    return min(path, path if path.startswith("<") else os.path.relpath(path), key=len)


def either(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _check_whole(about: Setting, value: Any, label: str) -> int:
    assert about.within
    words = about.within.words
    whole = words if words.startswith("a whole") else f"a whole number {words}"
    if isinstance(value, float) and value.is_integer():  # 1e6
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise refuse(label, whole, value)
    number = int(value)
    if not about.within.holds(number):
        # Counts are quoted as typed, in the same form as a word that is no number.
        raise refuse(label, words, str(number) if words == whole else number)
    if number >= 2**63:
        raise refuse(label, "below 2^63", number)
    return number


def _check_number(about: Setting, value: Any, label: str) -> float:
    assert about.within
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(label, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not about.within.holds(number):
        raise refuse(label, about.within.words, number)
    return number


def _check_switch(about: Setting, value: Any, label: str) -> bool:
    if about.choices and isinstance(value, str) and value in about.choices:
        return value == "on"
    if not isinstance(value, bool):
        raise refuse(label, "on or off" if about.choices else "true or false", value)
    return value


def _check_text(about: Setting, value: Any, label: str) -> str:
    if about.within is not None:  # words, or a number
        text = str(value) if type(value) is int else value
        if not isinstance(text, str) or not about.within.holds(text):
            raise refuse(label, about.within.words, value)
        return text
    if not isinstance(value, str):
        raise refuse(label, "text", value)
    if about.is_open and is_foreign(value):
        return value
    if about.choices and value not in about.choices:
        where = "" if label.startswith("--") else f"{label}: "
        noun = about.name.replace("_", " ")
        hint = did_you_mean(value.lower(), about.choices)
        choose = f"{hint} Choose" if hint else "; choose"
        names = either(about.choices)
        raise UserError(f"{where}unknown {noun} {show(value)}{choose} {names}")
    if not value or "\0" in value:
        raise refuse(label, "text, not empty and without null characters", value)
    return value


def _check_list(about: Setting, value: Any, label: str) -> tuple | int:
    if about.item is str:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise refuse(label, "a list of module names", value)
        return tuple(value)
    assert about.within
    if about.or_one and (not isinstance(value, list | tuple) or len(value) == 1):
        return _check_whole(about, value[0] if isinstance(value, list | tuple) else value, label)
    whole = isinstance(value, list | tuple) and all(type(width) is int for width in value)
    if not whole or not value or not all(map(about.within.holds, value)):
        raise refuse(label, about.within.words, value)
    return tuple(value)


def _check_table(about: Setting, value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refuse(label, "a table of KEY = VALUE", value)
    return {key: _plain(item, f"{label} {key}") for key, item in value.items()}


def _plain(value: Any, label: str) -> Any:
    """A value that JSON can hold, as JSON would give it back."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{label}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{label}[{place}]") for place, item in enumerate(value)]
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, bool | int | float | str) or not finite:
        words = "text, true, false, a finite number, or a list or table of these"
        raise refuse(label, words, value)
    return value


_CHECKS: dict[type, Callable[[Setting, Any, str], Any]] = {
    int: _check_whole,
    float: _check_number,
    bool: _check_switch,
    str: _check_text,
    tuple: _check_list,
    dict: _check_table,
}
