"""Which environment is meant, whether it exists here, and how one copy of it is made.

`check_env_id` answers within the import of gymnasium: nothing is built, and of the environment
packages only ale-py, which is quick, and those of `FAMILIES` where one is asked for, are imported.
"""

import copy
import difflib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec as RegisteredSpec
from gymnasium.envs.registration import get_env_id, parse_env_id

from async_dqn.config.config import UserError
from async_dqn.config.environment import EnvironmentConfig
from async_dqn.config.fields import describe_error
from async_dqn.envs.spaces import Part
from async_dqn.envs.wrap import wrapped

DEFAULT_MAX_EPISODE_STEPS = 10_000
OLD_ATARI = re.compile(r"([A-Z]\w+?)(NoFrameskip|Deterministic)?-v\d+$")  # of gym


class Requirement(NamedTuple):
    """A package that some environments need: import name, package name, what pip is told."""

    module: str
    package: str
    install: str


ATARI = Requirement("ale_py", "ale-py", '-e ".[atari]"')
MINATAR = Requirement("minatar", "MinAtar", '-e ".[minatar]"')
MINIGRID = Requirement("minigrid", "MiniGrid", '-e ".[minigrid]"')
VIZDOOM = Requirement("vizdoom", "VizDoom", '-e ".[vizdoom]"')
# Without a namespace: how their ids begin, and the module that registers them.
FAMILIES = (
    (("MiniGrid-", "BabyAI-"), MINIGRID, "minigrid"),
    (("Vizdoom",), VIZDOOM, "vizdoom.gymnasium_wrapper"),
)
REQUIREMENTS = {  # by namespace, or by the module of gymnasium that holds the environment
    "ALE": ATARI,
    "MinAtar": MINATAR,
    "gymnasium.envs.box2d": Requirement("Box2D", "Box2D", '-e ".[box2d]"'),
    "gymnasium.envs.mujoco": Requirement("mujoco", "MuJoCo", '-e ".[mujoco]"'),
    "gymnasium.envs.phys2d": Requirement("jax", "JAX", '"gymnasium[jax]"'),
    "gymnasium.envs.tabular": Requirement("jax", "JAX", '"gymnasium[jax]"'),
}


@dataclass(frozen=True)
class EnvSpec:
    """What to build, the same in every process; picklable when `env` is.

    `env` is a registered id or a class or factory that takes `kwargs`; `import_modules` are
    imported first, in every process; `max_episode_steps` None means the environment's own limit,
    else 27,000 for Atari and 10,000 for the rest; `action_bins` are the values that each dimension
    of continuous actions is cut into; `backend` is what workers step, in the wrappers `wrap`, for
    which `eval_wrap` stands in evaluations. Images are shrunk to `image_size`; their bytes are as
    many codes as `image_codes` says. `clip_rewards` and
    `life_loss_ends` say how Atari is learned; scores are those of whole games either way.
    `log_info` are keys of numbers in infos that are logged.
    `masks` says where legal actions are told: "info", "observation" or "method" (`envs.masks`),
    "none", or "auto", to be found out.
    """

    env: str | Callable[..., gymnasium.Env]
    kwargs: dict[str, Any] = field(default_factory=dict)
    import_modules: tuple[str, ...] = ()
    max_episode_steps: int | None = None
    action_bins: int | tuple[int, ...] = 5
    backend: str = "gymnasium"
    wrap: tuple[str, ...] = ()
    eval_wrap: tuple[str, ...] = ()
    image_size: int | None = 96
    image_codes: str = "auto"
    clip_rewards: bool = True
    life_loss_ends: bool = True
    masks: str = "auto"
    log_info: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, settings: EnvironmentConfig, factory: Callable[..., gymnasium.Env] | None = None
    ) -> "EnvSpec":
        """What a run with these settings plays; `factory` in place of the id they name."""
        return cls(
            settings.env if factory is None else factory,
            settings.env_arg,
            settings.import_modules,
            settings.max_episode_steps,
            settings.action_bins,
            settings.env_backend,
            settings.wrap,
            settings.eval_wrap,
            settings.image_size,
            settings.image_codes,
            settings.clip_rewards,
            settings.life_loss_ends,
            settings.action_masks,
            settings.log_info,
        )

    @property
    def in_evaluation(self) -> "EnvSpec":
        """What is played there, whose wrappers may be others."""
        if not self.eval_wrap:
            return self
        others = () if self.eval_wrap == ("none",) else self.eval_wrap
        return replace(self, wrap=others, eval_wrap=())

    @property
    def id(self) -> str | None:
        """The registered id without a `module:` prefix; None for a class or factory."""
        return self.env.rpartition(":")[2] if isinstance(self.env, str) else None

    @property
    def name(self) -> str:
        """A name for folders and reports: the id, or the name of the class or factory."""
        if self.id is not None:
            return self.id
        factory = getattr(self.env, "func", self.env)  # functools.partial
        name = getattr(factory, "__name__", type(factory).__name__)
        return re.sub(r"[^A-Za-z0-9._-]+", "", name) or "env"

    @property
    def is_atari(self) -> bool:
        """Whether the id is one of ale-py's `ALE/...` ids, which get the Atari preprocessing."""
        return self.id is not None and self.id.startswith("ALE/")


@dataclass(frozen=True)
class EnvInfo:
    """What the learner needs to know of an environment; JSON-able with `dataclasses.asdict`.

    `observation_shape` is (n,) for kind "vector", (C, H, W) for kind "image", and (n,) for kind
    "parts": the `parts` in a row. Networks multiply raw observations by `scale`; `low` and `high`
    are the bounds of a vector where all are finite;
    actions are 0..num_actions-1; `frames_per_step` is 4 for Atari;
    `batched` says that many copies step together for little more than one costs; `actions` says
    what the numbers mean where the action space is not Discrete (`actions.action_mapping`);
    `peak` is the largest number seen in bytes that are codes, not colours, and `codes` how many
    of them networks tell apart. `observation` says in words what was made of the space;
    `masks` is where legal actions are told (as in EnvSpec), in the last part of the row;
    `counted` says that observations are numbered states. In random play, where there was a look
    at it, a step of one environment took about `step_s` seconds, and rewards were rare.
    """

    kind: str
    observation_shape: tuple[int, ...]
    dtype: str
    scale: float
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    num_actions: int
    frames_per_step: int
    max_episode_steps: int
    batched: bool = False
    actions: dict[str, Any] | None = None
    peak: int | None = None
    codes: int | None = None
    parts: tuple[Part, ...] = ()
    observation: str = ""
    masks: str | None = None
    counted: bool = False
    step_s: float = 0.0
    rewards_rare: bool = False


def check_env_id(
    env: str | Callable[..., gymnasium.Env], import_modules: Sequence[str] = ()
) -> None:
    """Check that the id is registered and its package installed; nothing is built.

    Raises UserError for an unknown id or version, a `module:` prefix that was not allowed with
    --import, a module that cannot be imported, and a missing package.
    """
    if not isinstance(env, str):
        return
    module, _, env_id = env.rpartition(":")
    if module and module not in import_modules:
        raise UserError(f"'{module}:' would import a module; add --import {module} if you trust it")
    for name in import_modules:
        _import_for_registration(name)
    namespace = env_id.rpartition("/")[0]
    _require(env_id, namespace)
    _register_family(env_id)
    known = _known_ids(namespace)
    own = namespace == "ALE" or not _is_of(env_id, ATARI.module)
    if env_id not in known or not own:
        raise UserError(_describe_unknown(env_id, known))
    if env_id in gymnasium.registry:
        _require(env_id, _entry_module(gymnasium.registry[env_id].entry_point))


def preload_modules(spec: EnvSpec) -> list[str]:
    """Modules worth importing in the fork server, so that workers start without the wait.

    Only modules of known packages: code of the user's is imported in the workers alone.
    """
    env_id = spec.id
    if env_id is None:
        return []
    if spec.backend == "envpool":
        return ["envpool"]
    if spec.is_atari:
        return ["ale_py", "ale_py.vector_env"]
    if env_id.startswith("MinAtar/"):
        return ["minatar.gym"]
    registered = gymnasium.registry.get(env_id)
    if registered is None:
        return []
    entry_points = (registered.entry_point, registered.vector_entry_point)
    modules = {_entry_module(entry_point) for entry_point in entry_points}
    known = ("gymnasium.", *(f"{family.module}." for _, family, _ in FAMILIES))
    return sorted(module for module in modules if module.startswith(known))


def registered_spec(spec: EnvSpec) -> RegisteredSpec:
    """Register what `spec` needs in this process and return gymnasium's entry for its id."""
    check_env_id(spec.env, spec.import_modules)
    assert spec.id is not None
    if spec.id not in gymnasium.registry:  # a process of its own registers for itself
        importlib.import_module("minatar.gym").register_envs()
    return gymnasium.registry[spec.id]


def make_single(spec: EnvSpec) -> tuple[gymnasium.Env, int]:
    """One environment and its episode limit in steps, which the caller enforces.

    gymnasium's wrappers for checking, order and time limit are left out: they cost microseconds
    per step. Raises UserError when the environment cannot be made.
    """
    with creation_errors(spec):
        if spec.id is None:
            env = spec.env(**spec.kwargs)  # type: ignore[operator]
        else:
            registered = copy.copy(registered_spec(spec))
            registered.order_enforce = False
            env = gymnasium.make(
                registered, max_episode_steps=-1, disable_env_checker=True, **spec.kwargs
            )
    if not isinstance(env, gymnasium.Env):
        raise UserError(
            f"{spec.name} made a {type(env).__name__}, not a gymnasium.Env; port it to Gymnasium"
        )
    env = wrapped(env, spec.wrap, spec.import_modules)
    own = registered if spec.id is not None else env.spec
    return env, episode_limit(spec, own.max_episode_steps if own is not None else None)


def episode_limit(spec: EnvSpec, own: int | None) -> int:
    """Steps after which an episode is cut: as asked, else the environment's own, else 10,000."""
    return spec.max_episode_steps or own or DEFAULT_MAX_EPISODE_STEPS


@contextmanager
def creation_errors(spec: EnvSpec) -> Iterator[None]:
    """Turn whatever the making of an environment raises into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{spec.name} needs a package: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise UserError(f"cannot create env: {describe_error(error)}") from error


def _import_for_registration(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise UserError(f"cannot import {name}: {describe_error(error)}; check --import") from error


def _entry_module(entry_point: str | Callable[..., Any] | None) -> str:
    return entry_point.partition(":")[0] if isinstance(entry_point, str) else ""


def _require(env_id: str, origin: str) -> None:
    for prefix, requirement in REQUIREMENTS.items():
        concerned = origin == prefix or origin.startswith(prefix + ".")
        if concerned and importlib.util.find_spec(requirement.module) is None:
            raise _missing(env_id, requirement)


def _register_family(env_id: str) -> None:
    """Import the package whose ids begin like this one, if nobody has registered it."""
    for beginnings, requirement, module in FAMILIES:
        if env_id.startswith(beginnings) and env_id not in gymnasium.registry:
            if importlib.util.find_spec(requirement.module) is None:
                raise _missing(env_id, requirement)
            _import_for_registration(module)


def _missing(env_id: str, requirement: Requirement) -> UserError:
    return UserError(f"{env_id} needs {requirement.package}; pip install {requirement.install}")


def _known_ids(namespace: str) -> set[str]:
    if namespace == "ALE":
        gymnasium.register_envs(importlib.import_module(ATARI.module))
    if namespace == "MinAtar":
        return set(gymnasium.registry) | _minatar_ids()
    return set(gymnasium.registry)


def _is_of(env_id: str, module: str) -> bool:
    """Whether that package registered the id."""
    registered = gymnasium.registry.get(env_id)
    return registered is not None and _entry_module(registered.entry_point).startswith(module)


def _of_old_atari(env_id: str) -> str | None:
    """Today's id of an Atari game that has one of gym's (BreakoutNoFrameskip-v4).

    ale-py still registers those, as environments without DQN's preprocessing.
    """
    match = OLD_ATARI.match(env_id)
    if match is None or importlib.util.find_spec(ATARI.module) is None:
        return None
    game = f"ALE/{match[1]}-v5"
    return game if game in _known_ids("ALE") else None


def _minatar_ids() -> set[str]:
    """The ids MinAtar would register, read from its folder: importing it takes over a second."""
    package = importlib.util.find_spec(MINATAR.module)
    assert package is not None and package.submodule_search_locations
    games = Path(package.submodule_search_locations[0], "environments").glob("[a-z]*.py")
    names = [game.stem.title().replace("_", "") for game in games]
    return {f"MinAtar/{name}-v{version}" for name in names for version in (0, 1)}


def _parts(env_id: str) -> tuple[str, int | None]:
    """The id without its version, and the version."""
    try:
        namespace, name, version = parse_env_id(env_id)
    except gymnasium.error.Error:
        return env_id, None
    return get_env_id(namespace, name, None), version


def _describe_unknown(env_id: str, known: set[str]) -> str:
    if game := _of_old_atari(env_id):
        return f"no environment '{env_id}'; did you mean {game}?"
    base, asked = _parts(env_id)
    versions: dict[str, list[int]] = {}
    for other in known:
        name, version = _parts(other)
        versions.setdefault(name, []).extend([] if version is None else [version])
    if versions.get(base):
        offered = ", ".join(f"v{version}" for version in sorted(versions[base]))
        return f"{base} has versions {offered} (asked {'none' if asked is None else f'v{asked}'})"
    lower = {name.lower(): name for name in versions}
    close = [lower[match] for match in difflib.get_close_matches(base.lower(), lower, n=3)]
    if close:
        newest = [get_env_id(None, name, max(versions[name], default=None)) for name in close]
        return f"no environment '{env_id}'; close: {', '.join(newest)}"
    return f"no environment '{env_id}'; Atari ids look like ALE/Pong-v5, --import loads others"
