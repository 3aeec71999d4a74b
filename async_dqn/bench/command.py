"""What the benchmarks share: options that read like those of training, tables, and JSON."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from async_dqn.config.config import Config, UserError
from async_dqn.config.fields import COUNT, POSITIVE, Range, Setting, SettingsSection, setting
from async_dqn.config.options import Parser, argument, parse_train, parse_value
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.report.command import machine
from async_dqn.report.markup import paragraph, table, to_markdown
from async_dqn.runs.durable import replace_json
from async_dqn.runs.versions import versions

METAVARS = {"set": "OPTION=VALUE", "json": "FILE", "out": "DIR", "workers": "N,N"}
COUNTS = Range("a list of whole numbers from 1", lambda n: n >= 1)
Sources = tuple[str | None, str | None]  # configuration file and preset, if any


@dataclass(frozen=True)
class Options(SettingsSection):
    """The options of a benchmark of some environments; each has its preset's settings.

    `own` are the settings that the benchmark gives to its runs itself.
    """

    own: ClassVar[frozenset[str]] = frozenset(
        {"env", "runs_dir", "run_name", "resume", "quiet", "version"}
    )
    env: tuple[str, ...] = setting(("CartPole-v1",), "environment; may be repeated")
    pairs: int = setting(5, "repetitions, what is compared taking turns", within=COUNT)
    set: tuple[str, ...] = setting(
        (), "an option of every run, such as rollout-length=20; may be repeated"
    )
    json: str | None = setting(None, "also write every figure there")

    @classmethod
    def parse(cls, name: str, about: str | None, argv: Sequence[str]) -> Self:
        """The options of `bench NAME` in `argv`; `about` is for its --help. Raises UserError."""
        parser = Parser(prog=f"async-dqn bench {name}", description=about)
        known = {field.name: Setting.of("bench", field) for field in dataclasses.fields(cls)}
        for name, option in known.items():
            keywords = argument(option)
            if "metavar" in keywords:
                keywords["metavar"] = METAVARS.get(name, keywords["metavar"])
            parser.add_argument(option.option, dest=name, **keywords)
        texts = parser.parse(argv)
        given = cls(**{name: parse_value(known[name], text) for name, text in texts.items()})
        given.check()
        return given

    def check(self) -> None:
        """Raise UserError for what cannot be measured, or not be written."""
        check_path(self.json)
        settings, _ = self.given()
        for env in self.env:
            make.check_env_id(env, settings.get("import_modules", ()))
            self.config(env)  # what contradicts itself

    @property
    def words(self) -> list[str]:
        """--set as it would be typed for a run."""
        return [f"--{word}" for word in self.set]

    def given(self) -> tuple[dict[str, Any], Sources]:
        """Settings by name from --set, and their sources. Raises UserError."""
        try:
            given = parse_train(self.words)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
        for name in sorted(given.keys() & self.own):
            option = "--" + name.replace("_", "-")
            raise UserError(f"--set: {option} is given by the benchmark; drop it")
        return given, (given.pop("config", None), given.pop("preset", None))

    def config(self, env: str, **settings: Any) -> Config:
        """The configuration of a run in `env`, with further `settings` by name."""
        given, sources = self.given()
        return resolve({**given, **settings, "env": env}, *sources)[0]


@dataclass(frozen=True)
class TimedOptions(Options):
    """With how long a repetition lasts."""

    seconds: float = setting(3.0, "length of a repetition", unit="seconds", within=POSITIVE)


Name = TypeVar("Name")
Figure = TypeVar("Figure")


def in_turns(count: int, measures: Mapping[Name, Callable[[], Figure]]) -> dict[Name, list[Figure]]:
    """What each of `measures` gives, `count` times: all of them forwards, then backwards, ..."""
    figures: dict[Name, list[Figure]] = {name: [] for name in measures}
    for pair in range(count):
        for name in measures if pair % 2 == 0 else reversed(measures):
            figures[name].append(measures[name]())
    return figures


class Speed(NamedTuple):
    """Steps per second, and per second of CPU time of all processes together.

    On a machine that is busy with other things only the latter says what a core can do.
    """

    wall: float
    cpu: float


def spread(values: Sequence[float], form: str) -> str:
    """Median (smallest to largest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The quotients, pair by pair."""
    return [one / other for one, other in zip(above, below, strict=True)]


def present(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table below what it shows and on which machine."""
    text = paragraph(f"{caption}; {machine()}")
    print(to_markdown([text, table(header, rows)]), flush=True)


def check_path(path: str | None) -> None:
    """Raise UserError where figures will not be written, before they are measured."""
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise UserError(f"cannot write {path}; choose a --json in a folder that is there")


def save(path: str | None, bench: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write every figure as JSON, if there is a path. Raises UserError when that fails."""
    if path is None:
        return
    origin = {"bench": bench, "machine": machine(), "versions": versions()}
    try:
        replace_json(Path(path), {**origin, "results": list(results)})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --json") from None
