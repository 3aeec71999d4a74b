"""The command line of `train`, generated from the fields of `Config`.

Every value reaches `settings.check` as what its text says, so that a mistake on the command
line, in a file and in Python reads alike.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.fields import Setting, check, did_you_mean, one_line, refuse
from async_dqn.config.scaling import AUTO, FOLLOWING, REFERENCE
from async_dqn.config.schema import SECTIONS

WHOLE = re.compile(r"[+-]?\d+(_\d+)*", re.ASCII)
SHORTHAND = re.compile(r"(\d+(?:\.\d+)?)(k|m|b)", re.ASCII | re.IGNORECASE)
POWER = re.compile(r"\d+(?:\.\d+)?e\+?\d+", re.ASCII | re.IGNORECASE)
MAGNITUDES = {"k": "e3", "m": "e6", "b": "e9"}
METAVARS = {int: "N", float: "X", str: "NAME", tuple: "N,N", dict: "KEY=VALUE"}
METAVARS_BY_NAME = {
    "workers": "N|auto",
    "env": "ID",
    "import_modules": "MODULE",
    "runs_dir": "DIR",
    "action_bins": "N|N,N",
    "resume": "RUN|auto",
    "image_codes": "auto|none|N",
}


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Its exit code with `argv` (None: `sys.argv[1:]`); a mistake is told in one line."""
    try:
        return command(sys.argv[1:] if argv is None else list(argv))
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


TRAIN = (
    "Train a Q-network with asynchronous workers. Without options: CartPole-v1 on all usable "
    "cores. Others: evaluate, export, distill, watch, track, tune, doctor, list, bench, compare, "
    "report, completion."
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised as UserError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        match = re.match(r"argument (\S+): (expected|ignored)", message)
        if not match:
            raise UserError(message)
        option, problem = match.groups()
        hint = "needs a value; write {0}=VALUE if that starts with -"
        words = hint.format(option) if problem == "expected" else "takes no value"
        raise UserError(f"{option} {words}")

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Only the options given, still as text; raises UserError for unknown ones."""
        given, rest = self.parse_known_args(list(argv))
        unknown = [word for word in rest if word.startswith("-")]
        if unknown:
            option = unknown[0].split("=")[0]
            hint = did_you_mean(option, self._option_string_actions)
            raise UserError(f"unknown option {option}{hint}")
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; see --help")
        return vars(given)


def train_parser(command: str = "[train]", about: str | None = TRAIN) -> Parser:
    """Options of `train`, which others take too, one group per section of the configuration."""
    parser = Parser(
        prog="async-dqn train",
        usage=f"async-dqn {command} [options]",
        description=about,
        epilog="The defaults shown hold where no preset does; see `list presets`.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    sources = parser.add_argument_group("Sources", "defaults < preset < config file < options")
    sources.add_argument(
        "--preset", metavar="NAME", help="tuned settings (default: those for the environment)"
    )
    sources.add_argument(
        "--config", metavar="FILE.toml|RUN", help="file of settings by section, or a run to repeat"
    )
    printed = "write the resulting settings to stdout, as such a file, and exit"
    sources.add_argument("--print-config", action="store_true", help=printed)
    groups = {name: parser.add_argument_group(name.capitalize()) for name in SECTIONS}
    for about in SETTINGS.values():
        groups[about.section].add_argument(about.option, dest=about.name, **argument(about))
    return parser


def agent_parser(prog: str, about: str | None) -> Parser:
    """Which agent to load, for commands that play one."""
    parser = Parser(prog=prog, description=about)
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint folder")
    which = "of a run folder (default: best)"
    parser.add_argument("--load", metavar="{best,latest}", default="best", help=which)
    modules = {"metavar": "MODULE", "action": "append", "default": []}
    parser.add_argument("--import", **modules, help="module that registers the environment")
    return parser


def argument(about: Setting) -> dict[str, Any]:
    """Keywords of `add_argument`; values stay text, `parse_value` reads them later."""
    unit = f" [{about.unit}]" if about.unit else ""
    meanings = [f"{name}: {words}" for name, words in about.choices.items() if words]
    text = "; ".join([about.help + unit, *meanings]) + f" (default: {_default(about)})"
    keywords: dict[str, Any] = {"help": text.replace("%", "%%")}
    if about.kind is bool and not about.choices:
        return keywords | {"action": argparse.BooleanOptionalAction}
    if about.kind is dict or about.item is str:
        keywords["action"] = "append"
    return keywords | {"metavar": _metavar(about)}


def _default(about: Setting) -> str:
    """In words; where it follows from the number of workers, for which it is."""
    if about.name not in FOLLOWING or not about.default[0].isdigit():
        return about.default
    return f"auto: {about.default} with {REFERENCE} workers"


def _metavar(about: Setting) -> str:
    if about.choices:
        return "{" + ",".join([*about.choices, *about.is_open * ("MODULE:NAME",)]) + "}"
    metavar = METAVARS_BY_NAME.get(about.name, METAVARS[about.kind])
    metavar += "|none" if about.optional and about.kind in (int, float) else ""
    return f"{metavar}|auto" if about.name in FOLLOWING else metavar


def parse_train(argv: Sequence[str], *command: str | None) -> dict[str, Any]:
    """Settings by name as given in `argv`, checked; also `config`, `preset`, `version` and
    `print_config` when given. `workers`, and what follows from them, may be AUTO. Raises UserError;
    `--help` raises SystemExit."""
    texts = train_parser(*command).parse(argv)
    auto = {n: AUTO for n in ("workers", *FOLLOWING) if texts.get(n) == AUTO}
    return auto | {
        name: parse_value(SETTINGS[name], text) if name in SETTINGS else text
        for name, text in texts.items()
        if name not in auto
    }


def parse_value(about: Setting, text: Any, option: str = "") -> Any:
    """The checked value of an option's text (a list of texts for repeatable options)."""
    if about.kind is dict:
        return check(about, dict(key_value(about.option, pair) for pair in text))
    if about.item is int:
        return check(about, [_number(width) for width in text.split(",")])
    if about.kind is float:
        return check(about, _decimal(text), option)
    if about.kind is not int:
        return check(about, text, option)
    try:
        return check(about, _number(text), option)
    except UserError as error:
        raise UserError(f"{error}{_spelled_out(text)}") from None


def _number(text: str) -> int | str:
    """The whole number written in `text`, also 1e6; else the text itself, for `check` to refuse."""
    if WHOLE.fullmatch(text) and len(text) < 1000:
        return int(text)
    number = float(text) if POWER.fullmatch(text) else math.nan
    return int(number) if number.is_integer() else text


def _decimal(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _spelled_out(text: str) -> str:
    """For 10M: `; write 10000000 or 10_000_000`."""
    match = SHORTHAND.fullmatch(text)
    number = float(match[1] + MAGNITUDES[match[2].lower()]) if match else 0.0
    if not 1 <= number < 2**63 or not number.is_integer():
        return ""
    plain, grouped = f"{int(number)}", f"{int(number):_}"
    return f"; write {plain}" + (f" or {grouped}" if grouped != plain else "")


def key_value(option: str, pair: str) -> tuple[str, Any]:
    """Key and value of an option's `key=value`, a value of TOML or JSON, else text."""
    key, equals, text = pair.partition("=")
    if not equals or not key.isidentifier():
        raise refuse(option, "KEY=VALUE", pair)
    return key, _toml_or_json(text)


def _toml_or_json(text: str) -> Any:
    """A value of TOML or JSON (true, 4, 0.25, "x", [1, 2], {a = 1}), or else the text as it is."""
    plain = bool | int | float | str | list | dict
    try:
        values: Mapping[str, Any] = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        plain, values = list | dict, {}
        with contextlib.suppress(ValueError, RecursionError):
            values = {"value": json.loads(text)}
    value = values.get("value")
    return value if len(values) == 1 and isinstance(value, plain) else text
