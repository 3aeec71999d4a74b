"""`Config`: all settings of one run, checked one by one and together.

Settings live in frozen sections (`Config.optimizer.lr`), see `sections`; `check` turns any outside
value into the setting's type or raises one clear line.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from async_dqn.combinations import check_combination
from async_dqn.cores import usable_cores
from async_dqn.sections import (
    SECTIONS,
    SETTINGS,
    WORKERS_PER_CORE,
    AlgorithmConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ExplorationConfig,
    NetworkConfig,
    OptimizerConfig,
    ParallelConfig,
    ReplayConfig,
    RunConfig,
)
from async_dqn.settings import UserError, check, check_run_name

__all__ = [
    "SECTIONS",
    "SETTINGS",
    "WORKERS_PER_CORE",
    "AlgorithmConfig",
    "Config",
    "NetworkConfig",
    "UserError",
    "check_run_name",
    "usable_cores",
]


@dataclass(frozen=True)
class Config:
    """All settings of one run; construction checks every field and what fits together.

    Raises UserError, which names the setting by its command-line option.
    """

    environment: EnvironmentConfig = dataclasses.field(default_factory=EnvironmentConfig)
    algorithm: AlgorithmConfig = dataclasses.field(default_factory=AlgorithmConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    exploration: ExplorationConfig = dataclasses.field(default_factory=ExplorationConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_combination(self)
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
