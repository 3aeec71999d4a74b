"""Settings files (TOML, or a run's config.json), presets, and how sources of settings are merged.

Later sources win: field defaults, preset, its tables for single choices, --config file, command
line. A table `[per-algorithm.a3c.optimizer]` of a preset holds where a3c is chosen, one
`[per-recurrent.true.parallel]` where --recurrent is. A preset is found by name or by environment
id: one that names the id, else one with a pattern for its family (`ALE/*`), else none. A preset for
no environment in particular is laid over that of the environment, and may have tables for some
(`[per-env.CartPole-v1.optimizer]`, `[per-env."MinAtar/*".optimizer]`).
"""

import dataclasses
import fnmatch
import functools
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from async_dqn.config import extension
from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.fields import check, did_you_mean, either, one_line, show
from async_dqn.config.idle import check_acts
from async_dqn.config.parallel import WORKERS_PER_CORE
from async_dqn.config.scaling import AUTO, FOLLOWING, REFERENCE
from async_dqn.config.schema import SECTIONS

PRESET_FILES = Path(__file__).parent / "preset_files"
# What choices cannot do without, whatever a preset says for others; `combinations` has the reasons.
NEEDS = {
    "distributional": {"[!n]*": {"lam": 1.0}},
    "noisy": {"true": {"minibatches": 1}},
    "replay": {"[!n]*": {"minibatches": 1}},
    "on_policy": {"true": {"epochs": 1, "minibatches": 1}},
    "model_parallel": {"true": {"epochs": 1, "minibatches": 1}},
}
NONE = "none"  # in place of the preset of an environment
FIXED = {"defaults": "fixed"}
MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_DOTS = 1_000  # in a line; tomllib takes quadratic time and more over long dotted keys
OTHER_FORMATS = (".yaml", ".yml")
# Settings of one session, never taken from another run.
PER_SESSION = ("resume", "runs_dir", "run_name", "quiet", "import_modules")


@dataclass(frozen=True)
class Preset:
    """Tuned settings for some environments, by setting name."""

    name: str
    env: tuple[str, ...]  # ids or patterns
    settings: dict[str, Any]
    tables: dict[str, dict[str, dict[str, Any]]]  # by setting and value, such as algorithm, a3c

    def for_choices(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings where those in `chosen` are given."""
        values = {**self.settings, **chosen}
        if "algorithm" in values:
            traits = extension.traits_of(values["algorithm"])
            values["algorithm"] = traits.like or values["algorithm"]
            values["on_policy"] = traits.on_policy
        fitting = (
            table
            for name, tables in (*self.tables.items(), *NEEDS.items())
            for pattern, table in tables.items()
            if name in values and fnmatch.fnmatchcase(_key(values[name]), pattern)
        )
        return merge(self.settings, *fitting)


def _key(value: Any) -> str:
    """A value as the name of a table."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def resolve(
    flat: Mapping[str, Any],
    config_file: str | None = None,
    preset: str | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Config, frozenset[str]]:
    """Merge all sources of settings.

    `flat` holds setting names and values from the command line or the API, `objects` the user's
    own code that some of them name (`extension.bring`); `config_file` may also be a run folder, or
    the config.json in one. Returns the configuration and the dotted names of the settings that
    `flat` or the file gave. Raises UserError for anything unknown, malformed or contradictory in
    any source.
    """
    given = {name: _check_given(name, value) for name, value in flat.items()}
    stored, whole = _read_file(config_file, given) if config_file else ({}, {})
    chosen = merge(stored, given)
    chosen = {name: value for name, value in chosen.items() if not _is_auto(name, value)}
    extension.find(chosen, objects, chosen.get("import_modules", ()))
    tuned = _tuned(chosen, load(preset) if preset else None) | whole
    reference = tuned.get("workers", REFERENCE)
    config = Config.shared_out(merge(tuned, chosen), chosen.keys(), reference)
    _check_combination(config, given, chosen)
    return config, frozenset(SETTINGS[name].dotted for name in chosen)


def _tuned(chosen: Mapping[str, Any], named: Preset | None) -> dict[str, Any]:
    """What presets say, where `chosen` gives the environment and perhaps the algorithm.

    Without any, what the environment shows decides, once it is there (`defaults`).
    """
    if named is not None and named.name == NONE:
        return {}
    if named is not None and named.env:
        return named.for_choices(chosen) | FIXED
    env = chosen.get("env", SETTINGS["env"].default)
    over = named.for_choices({"env": env, **chosen}) if named is not None else {}
    base = find(env)
    if base is None and named is None:
        return {}
    return merge(base.for_choices({**over, **chosen}) if base else {}, over) | FIXED


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, later layers first; keywords of the environment join one by one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        env_arg = {**merged.get("env_arg", {}), **layer.get("env_arg", {})}
        merged |= {**layer, "env_arg": env_arg} if env_arg else layer
    return merged


def _check_given(name: str, value: Any) -> Any:
    if name not in SETTINGS:
        raise UserError(f"unknown setting '{name}'{did_you_mean(name, SETTINGS)}")
    return value if _is_auto(name, value) else check(SETTINGS[name], value, name)


def _is_auto(name: str, value: Any) -> bool:
    """Whether a setting is left, in so many words, to follow from the number of workers."""
    return name in FOLLOWING and isinstance(value, str) and value == AUTO


def _check_combination(config: Config, given: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Refuse what only makes sense together; `given` leaves out the file, which may serve
    several algorithms. A resumed run brings its own algorithm, an environment its own defaults."""
    if {"envs", "envs_per_worker"} <= chosen.keys():
        raise UserError("--envs is shared out, --envs-per-worker is a share of it; drop one")
    if "epochs" in given and config.replay.samples_per_step is not None:
        raise UserError("--samples-per-step decides how many updates there are; drop --epochs")
    resume = config.run.resume
    values = config.by_name()
    is_open = resume is not None or config.environment.defaults != "fixed"
    check_acts(given, values, known=chosen.keys() if is_open else values.keys())
    if resume is not None and "init_from" in given:
        raise UserError("--init-from begins a new run, --resume goes on with one; drop one")
    if resume not in (None, "auto") and config.run.run_name is not None:
        raise UserError(
            "--run-name cannot go with --resume, a resumed run keeps its name; drop --run-name"
        )
    # Not part of Config: a run made on a large machine must load on a small one.
    most, workers = WORKERS_PER_CORE * usable_cores(), config.parallel.workers
    if workers > most and not config.parallel.oversubscribe:
        raise UserError(
            f"--workers {workers} is more than {WORKERS_PER_CORE} per core ({most}); "
            "add --oversubscribe to insist"
        )


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in PRESET_FILES.glob("*.toml"))


def load(name: str) -> Preset:
    """The preset of this name, "none" is one that sets nothing; raises UserError when there is
    no such preset."""
    if name == NONE:
        return Preset(NONE, ("*",), {}, {})
    if name not in names():
        raise UserError(f"unknown preset {show(name)}; choose {either([*names(), NONE])}")
    return read_preset(PRESET_FILES / f"{name}.toml")


def read_preset(path: Path) -> Preset:
    """The preset in a file of this package."""
    name, data = path.stem, read_toml(str(path))
    env = tuple(data.pop("env", ()))
    tables = {
        key.removeprefix("per-").replace("-", "_"): {
            value: flatten(table, path.name) for value, table in data.pop(key).items()
        }
        for key in [key for key in data if key.startswith("per-")]
    }
    return Preset(name, env, flatten(data, path.name), tables)


def find(env: str) -> Preset | None:
    """The preset for an environment id: its own, else its family's, else None."""
    presets = [load(name) for name in names()]
    exact = (preset for preset in presets if env in preset.env)
    family = (p for p in presets if any(fnmatch.fnmatchcase(env, id_) for id_ in p.env))
    return next(exact, None) or next(family, None)


def read_config(path: str) -> dict[str, Any]:
    """Checked settings by name from a TOML file; raises UserError."""
    return flatten(read_toml(path), path)


def _read_file(path: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checked settings by name; those of a run that followed from its workers apart, as they were
    for the whole. Says which modules the run imported that are not `given`."""
    if Path(path).is_dir():
        path = str(Path(path, "config.json"))
    if not path.endswith(".json"):
        return read_config(path), {}
    config = _read_run(path)
    modules = set(config.environment.import_modules) - set(given.get("import_modules", ()))
    if modules:
        options = "".join(f" --import {name}" for name in sorted(modules))
        _note(f"modules are not imported from files; if you trust them, add{options}")
    whole = dict(config.whole)
    if "envs_per_worker" not in whole:  # which was given, so that --envs did not act
        whole["envs"] = config.parallel.envs
    apart = {*PER_SESSION, *(whole.keys() - {"workers"})}
    return {name: value for name, value in config.by_name().items() if name not in apart}, whole


def _read_run(path: str) -> Config:
    """The settings in config.json of a run; raises UserError."""
    try:
        run = json.loads(_read_text(path))
        if "peer" in run:
            raise UserError(f"{path} is of another library's program; only `compare` runs these")
        return Config.from_dict({name: dict(table) for name, table in run["settings"].items()})
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{path} is no config.json of a run; give one, a run folder or a TOML file"
        ) from None


@functools.cache  # settings may be read again and again
def _note(text: str) -> None:
    print(f"note: {one_line(text)}", file=sys.stderr)


def flatten(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Checked settings by name from tables by section; `path` names the source in errors."""
    settings = {}
    for section, name, value in _entries(data):
        dotted = f"{section}.{name}" if section else name
        about = SETTINGS.get(name)
        if about is None or about.dotted != dotted:
            hint = f"; did you mean {about.dotted}?" if about else did_you_mean(name, SETTINGS)
            raise UserError(f"{path}: unknown key {show(dotted)}{hint}")
        if name == "import_modules":
            raise UserError(f"{path}: modules are not imported from files; use --import MODULE")
        is_auto = _is_auto(name, value)
        settings[name] = value if is_auto else check(about, value, f"{path}: {dotted}")
    return settings


def _entries(data: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(section, name, value); a key outside any table has no section."""
    for section, table in data.items():
        if isinstance(table, dict) and (table or section in SECTIONS):
            yield from ((section, name, value) for name, value in table.items())
        else:
            yield "", section, table


def read_toml(path: str) -> dict[str, Any]:
    """Parse one TOML file; raises UserError, with line and column where they are known."""
    text = _read_text(path)
    if Path(path).suffix.lower() in OTHER_FORMATS:
        raise UserError(
            f"{path} is not TOML; only TOML configuration files are read (nothing executed)"
        )
    too_deep = UserError(f"{path}: nested deeper than {MAX_DEPTH}")
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise too_deep
    try:
        data = tomllib.loads(text + "\n")
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise _syntax_error(path, text, str(error)) from None
    if _deeper_than(MAX_DEPTH, data):
        raise too_deep
    return data


def to_toml(config: Config) -> str:
    """The settings as a file that gives them again, but for the modules to import."""
    derived = "envs_per_worker" if "envs_per_worker" in config.whole else "envs"
    lines = [f"# add --import {name}" for name in config.environment.import_modules]
    for section in SECTIONS:
        lines.append(f"[{section}]")
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            is_said = value is not None or SETTINGS[name].kind in (int, float)
            if is_said and name not in ("import_modules", derived):
                lines.append(f"{name} = {_toml('none' if value is None else value)}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"cannot read config {path}: larger than 1 MB")
        return data.decode()
    except UnicodeDecodeError as error:
        reason = f"not valid UTF-8 at byte {error.start}"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:  # a null character in the path
        reason = str(error)
    raise UserError(f"cannot read config {path}: {reason}")


def _syntax_error(path: str, text: str, message: str) -> UserError:
    """`c.toml:12:3: expected '=' after a key`, from the parser's own words."""
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    if not match:
        return UserError(f"{path}: {message[:1].lower()}{message[1:]}")
    what, line, column = match.groups()
    if what == "Cannot overwrite a value":
        key = text.splitlines()[int(line) - 1].split("=")[0].strip()
        return UserError(f"{path}:{line}: key {show(key)} given twice")
    what = what.removesuffix(" in a key/value pair")
    return UserError(f"{path}:{line}:{column}: {what[:1].lower()}{what[1:]}")


def _deeper_than(depth: int, data: Any) -> bool:
    """Whether tables and lists nest deeper; level by level, for recursion would overflow."""
    level = [data]
    for _ in range(depth + 1):
        children = [c for node in level for c in (node.values() if type(node) is dict else node)]
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)
