"""What the program must know of an algorithm, and how a setting names the user's own code.

An algorithm, a network, an exploration or a target of the user's is `module:name`, or an object
given in Python. Rules and presets read an algorithm's `Traits`, never its name.
"""

import dataclasses
import functools
import importlib
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from async_dqn.config.fields import Setting, UserError, check, describe_error, is_foreign

# Settings whose value may be the user's own code, and whose arguments `<setting>_arg` holds.
OPEN = ("algorithm", "network", "exploration", "target")

Q_VARIANTS = frozenset(
    {"double", "munchausen", "value_rescaling", "distributional", "dueling", "boltzmann"}
    | {"branching"}
)


@dataclass(frozen=True)
class Traits:
    """What an algorithm is, beside how it acts and learns.

    `head` is "q" or "actor-critic". `on_policy`: it learns of the policy that acted, from each
    rollout once. `explores_itself`: its `act` asks for no epsilon. `one_step`: replay need keep
    no more than single steps. `variants` are the settings it takes beside those of all. Presets
    treat it as the algorithm `like`.
    """

    head: str = "q"
    on_policy: bool = False
    explores_itself: bool = False
    one_step: bool = False
    variants: frozenset[str] = frozenset()
    like: str = ""


ALGORITHMS: dict[str, Traits] = {
    "one-step-q": Traits(one_step=True, variants=Q_VARIANTS),
    "one-step-sarsa": Traits(
        on_policy=True, variants=frozenset({"value_rescaling", "dueling", "boltzmann"})
    ),
    "n-step-q": Traits(variants=Q_VARIANTS),
    "q-lambda": Traits(variants=Q_VARIANTS | {"lam", "trace"}),
    "a3c": Traits(
        head="actor-critic",
        on_policy=True,
        explores_itself=True,
        variants=frozenset({"entropy_weight"}),
    ),
}
# Of an algorithm whose code is not here, as in the settings of somebody else's run.
UNKNOWN = Traits(variants=Q_VARIANTS | {"lam", "trace", "entropy_weight"})


def plain_name(name: str) -> str:
    """For folders and reports: of the user's own code that of the class alone."""
    return re.split(r"[:.]", name)[-1]


def traits_of(algorithm: str) -> Traits:
    """Its traits; of a foreign one that nobody has brought those that refuse nothing."""
    return ALGORITHMS.get(algorithm, UNKNOWN)


def takers(variant: str) -> tuple[str, ...]:
    """Names of the algorithms that take a variant."""
    return tuple(name for name, traits in ALGORITHMS.items() if variant in traits.variants)


def described(value: Any) -> tuple[str, dict[str, Any]]:
    """How settings name an object, a class or a function: `module:name`, and its arguments.

    The arguments are the keywords of a partial, or the fields that a dataclass declares itself.
    """
    if isinstance(value, functools.partial):
        return described(value.func)[0], dict(value.keywords)
    kind = value if hasattr(value, "__qualname__") else type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    own = vars(kind).get("__annotations__", {}) if value is not kind else {}
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) and own else ()
    return name, {field.name: getattr(value, field.name) for field in fields if field.name in own}


def bring(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by name, with the user's objects replaced by their names; and the objects."""
    named, objects = dict(values), {}
    for setting in OPEN:
        value = values.get(setting)
        if value is not None and not isinstance(value, str):
            objects[setting] = value
            named[setting], arguments = described(value)
            if arguments:
                named[f"{setting}_arg"] = arguments
    if "algorithm" in objects:
        declare(named["algorithm"], objects["algorithm"])
    return named, objects


def find(
    settings: Mapping[str, Any], objects: Mapping[str, Any], modules: Collection[str]
) -> dict[str, Any]:
    """The user's own code that `settings` (by name) ask for, ready to use, by setting.

    From `objects`, where they are in Python already, else imported. Raises UserError where it is
    missing, or its module is not among those that the user named.
    """
    found = {}
    for setting in OPEN:
        name = settings.get(setting)
        if name is not None and is_foreign(name):
            given = objects[setting] if setting in objects else imported(setting, name, modules)
            found[setting] = _made(setting, name, given, settings.get(f"{setting}_arg", {}))
    if "algorithm" in found:
        declare(settings["algorithm"], found["algorithm"])
    return found


def declare(name: str, algorithm: Any) -> None:
    """Let rules and presets know the traits of an algorithm of the user's."""
    traits = getattr(algorithm, "traits", None)
    if not isinstance(traits, Traits):
        raise UserError(f"algorithm {name} declares no traits; add `traits = Traits(...)` to it")
    ALGORITHMS[name] = traits


def imported(setting: str, name: str, modules: Collection[str]) -> Any:
    """What `module:name` means; raises UserError unless the user named its module."""
    module, _, path = name.partition(":")
    if module not in modules:
        way = f"give {setting}=... in Python" if "<" in path or module == "__main__" else ""
        way = way or f"add --import {module} if you trust it"
        raise UserError(f"{setting} {name} is not part of this program; {way}")
    try:
        holder = importlib.import_module(module)
    except Exception as error:
        cause = describe_error(error)
        raise UserError(f"cannot import {module}: {cause}; check --import") from error
    try:
        return operator.attrgetter(path)(holder)
    except AttributeError:
        raise UserError(f"{setting} {name}: {module} has no {path}; check the name") from None


def _made(setting: str, name: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    """An object of a class; of a network, which each process builds, only what builds it."""
    is_class = isinstance(value, type)
    if not is_class and not callable(value) and setting == "network":
        raise UserError(f"network {name} must be callable with the shape of an observation")
    if dataclasses.is_dataclass(value) and is_class:
        arguments = _checked(setting, value, arguments)
    if setting == "network":
        return functools.partial(value, **arguments) if arguments else value
    try:
        return value(**arguments) if is_class else value
    except Exception as error:
        raise UserError(f"cannot make {setting} {name}: {describe_error(error)}") from error


def _checked(setting: str, kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose fields were made by `setting` are checked as the program's own are."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    documented = {name for name, field in fields.items() if "help" in field.metadata}
    return {
        name: check(Setting.of("", fields[name]), value, f"--{setting}-arg {name}")
        if name in documented
        else value
        for name, value in arguments.items()
    }
