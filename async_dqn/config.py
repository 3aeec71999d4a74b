"""Every setting of a run: the one source of the command line, TOML keys and config.json.

Settings live in frozen sections (`Config.optimizer.lr`); each field carries its help, unit,
choices and range. `SETTINGS` describes them by name (names are unique over all sections), and
`check` turns any outside value into the setting's type or raises one clear line.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from async_dqn.cores import usable_cores
from async_dqn.settings import (
    COUNT,
    COUNT_OR_NONE,
    FINITE_OR_NONE,
    POSITIVE,
    SEED,
    UNIT_INTERVAL,
    WIDTHS,
    Setting,
    UserError,
    check,
    check_run_name,
    setting,
    show,
)

__all__ = ["SECTIONS", "SETTINGS", "Config", "UserError", "check_run_name", "usable_cores"]

WORKERS_PER_CORE = 8


class Section:
    """Base of the sections: construction checks every field and normalises its type."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = check(SETTINGS[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True)
class EnvironmentConfig(Section):
    """What the agent acts in."""

    env: str = setting("CartPole-v1", "gymnasium id; ALE/... and MinAtar/... need their extra")
    env_arg: dict[str, Any] = setting(  # noqa: RUF009 (a field, made by dataclasses.field)
        dict, "keyword argument for the environment; may be repeated", default_words="none"
    )
    import_modules: tuple[str, ...] = setting(
        (),
        "module that registers environments, loaded only when named here; may be repeated",
        default_words="none",
    )
    max_episode_steps: int | None = setting(
        None,
        "longest episode",
        unit="steps",
        within=COUNT_OR_NONE,
        default_words="the id's own limit, else 27000 for Atari, 10000",
    )


@dataclass(frozen=True)
class AlgorithmConfig(Section):
    """What it learns from a rollout."""

    algorithm: str = setting(
        "n-step-q",
        "learning rule",
        choices={
            "one-step-q": "one-step Q-learning",
            "n-step-q": "Q-learning on the return of the rest of the rollout",
            "q-lambda": "Q(lambda): returns of all lengths, mixed by --lam",
        },
    )
    lam: float = setting(
        0.65, "mix of the returns, 0 = one-step, 1 = n-step; q-lambda only", within=UNIT_INTERVAL
    )
    trace: str = setting(
        "peng",
        "returns through exploratory actions; q-lambda only",
        choices={"peng": "kept", "watkins": "cut"},
    )
    double: bool = setting(False, "Double Q-learning: online net chooses, target net values")
    gamma: float = setting(0.99, "discount per step", within=UNIT_INTERVAL)
    reward_scale: float = setting(1.0, "factor on the rewards learned from", within=POSITIVE)


@dataclass(frozen=True)
class NetworkConfig(Section):
    """How Q-values are computed."""

    network: str = setting(
        "auto",
        "torso of the Q-network",
        choices={
            "auto": "by observation shape",
            "mlp": "dense layers of the widths --hidden",
            "small-conv": "one small convolution for grids such as MinAtar",
            "nips": "two convolutions (Mnih et al. 2013)",
            "nature": "three convolutions (Mnih et al. 2015)",
            "conv": "convolutions for images of any size",
        },
    )
    hidden: tuple[int, ...] = setting(
        (128, 128), "widths of the layers of an mlp", unit="units", within=WIDTHS
    )
    layer_norm: bool | None = setting(
        None, "layer normalisation", default_words="by network", choices={"on": "", "off": ""}
    )
    precision: str = setting(
        "float32",
        "of the convolutions; everything else is float32",
        choices={"float32": "", "bfloat16": "where the CPU has instructions for it"},
    )
    dueling: bool = setting(False, "separate streams for state value and advantages")


@dataclass(frozen=True)
class ParallelConfig(Section):
    """How many act and learn at once, and how."""

    mode: str = setting(
        "async",
        "how the workers run",
        choices={
            "async": "processes updating one network without locks (Hogwild)",
            "serial": "in turn in one process, reproducible bit for bit",
        },
    )
    workers: int = setting(
        usable_cores, "workers", unit="processes", within=COUNT, default_words="the usable cores"
    )
    oversubscribe: bool = setting(False, f"allow more than {WORKERS_PER_CORE} workers per core")
    envs_per_worker: int = setting(8, "environments of each worker", within=COUNT)
    rollout_length: int = setting(
        5, "steps of every environment between two updates", unit="steps", within=COUNT
    )


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """How gradients change the parameters."""

    optimizer: str = setting(
        "shared-adam",
        "update rule; its statistics are shared by all workers",
        choices={"shared-adam": "Adam", "shared-rmsprop": "RMSProp, as in the A3C paper"},
    )
    lr: float = setting(1e-3, "learning rate", within=POSITIVE)
    lr_schedule: str = setting(
        "linear",
        "course of the learning rate",
        choices={"constant": "stays", "linear": "falls to 0 over --steps"},
    )
    max_grad_norm: float = setting(10.0, "gradients are clipped to this norm", within=POSITIVE)
    target_sync_steps: int | None = setting(
        2_000,
        "interval between copies to the target network; none: no target network",
        unit="global steps",
        within=COUNT_OR_NONE,
    )


@dataclass(frozen=True)
class ExplorationConfig(Section):
    """How often a random action is chosen."""

    exploration: str = setting(
        "epsilon",
        "final epsilons of the environments",
        choices={"ladder": "0.1, 0.01 and 0.5, weights 0.4, 0.3, 0.3", "epsilon": "one for all"},
    )
    epsilon_start: float = setting(1.0, "epsilon of the first step", within=UNIT_INTERVAL)
    epsilon_final: float = setting(
        0.05, "epsilon after annealing; the ladder has its own", within=UNIT_INTERVAL
    )
    epsilon_steps: int = setting(20_000, "annealing time", unit="global steps", within=COUNT)


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """When and how long the greedy policy is scored."""

    eval_every: int = setting(
        20_000, "interval between evaluations", unit="global steps", within=COUNT
    )
    eval_episodes: int = setting(
        100, "episodes that confirm a promising screening", unit="episodes", within=COUNT
    )
    stop_at_return: float | None = setting(
        None, "end the run when a confirmed evaluation reaches this mean", within=FINITE_OR_NONE
    )


@dataclass(frozen=True)
class RunConfig(Section):
    """Budget, seed, and what is kept where."""

    steps: int = setting(
        1_000_000, "budget; the run stops at exactly this", unit="global steps", within=COUNT
    )
    seed: int = setting(0, "seed of every random stream", within=SEED)
    runs_dir: str = setting("runs", "folder of all runs")
    run_name: str | None = setting(
        None,
        "folder of this run, under the environment's",
        default_words="<algorithm>-s<seed>-<next free number>",
    )
    resume: str | None = setting(
        None, "run folder or checkpoint to go on from; auto: newest run of this environment"
    )
    checkpoint_every: int = setting(
        100_000, "interval between checkpoints", unit="global steps", within=COUNT
    )
    keep_checkpoints: int = setting(3, "newest checkpoints kept, besides the best", within=COUNT)
    device: str = setting("cpu", "where networks compute; only cpu so far")
    quiet: bool = setting(False, "no progress display")


@dataclass(frozen=True)
class Config:
    """All settings of one run; construction checks every field and what fits together.

    Raises UserError, which names the setting by its command-line option.
    """

    environment: EnvironmentConfig = dataclasses.field(default_factory=EnvironmentConfig)
    algorithm: AlgorithmConfig = dataclasses.field(default_factory=AlgorithmConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    exploration: ExplorationConfig = dataclasses.field(default_factory=ExplorationConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        start, final = self.exploration.epsilon_start, self.exploration.epsilon_final
        if final > start:
            hint = f"is above the starting value {start:g}; lower it or raise --epsilon-start"
            raise UserError(f"--epsilon-final {final:g} {hint}")
        if self.algorithm.double and self.optimizer.target_sync_steps is None:
            raise UserError("--double needs a target network; drop --target-sync-steps none")
        if self.run.device != "cpu":
            raise UserError(f"device {show(self.run.device)} is not available (found: cpu)")
        if self.run.run_name is not None:
            check_run_name(self.run.run_name)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build from setting names (`{"lr": 1e-3}`); the rest takes the defaults."""
        return cls().with_settings(values)

    def with_settings(self, values: Mapping[str, Any]) -> Self:
        """A copy with the settings named in `values` (`{"lr": 1e-3}`) replaced."""
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            sections.setdefault(SETTINGS[name].section, {})[name] = value
        changed = {
            section: dataclasses.replace(getattr(self, section), **fields)
            for section, fields in sections.items()
        }
        return dataclasses.replace(self, **changed)

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted name, such as "optimizer.lr"."""
        return {
            about.dotted: getattr(getattr(self, about.section), name)
            for name, about in SETTINGS.items()
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-able values by section; `from_dict` is the inverse."""
        return dataclasses.asdict(self, dict_factory=_lists_for_tuples)

    @classmethod
    def from_dict(cls, sections: Mapping[str, Mapping[str, Any]]) -> Self:
        """Inverse of `to_dict`; missing keys take their defaults, unknown ones are refused."""
        values: dict[str, Any] = {}
        for section, fields in sections.items():
            for name, value in fields.items():
                if name not in SETTINGS or SETTINGS[name].section != section:
                    raise UserError(f"stored settings: unknown key '{section}.{name}'")
                values[name] = check(SETTINGS[name], value, f"stored settings: {section}.{name}")
        return cls.from_flat(values)


def _lists_for_tuples(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}


SECTIONS: dict[str, type] = {field.name: field.type for field in dataclasses.fields(Config)}
SETTINGS: dict[str, Setting] = {
    field.name: Setting.of(section, field)
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
}
