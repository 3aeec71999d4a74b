"""`Config`: all settings of one run, checked one by one and together.

Settings live in frozen sections (`Config.optimizer.lr`), see `sections`; `check` turns any outside
value into the setting's type or raises one clear line.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from async_dqn.config.environment import EnvironmentConfig
from async_dqn.config.fields import UserError, check, check_run_name
from async_dqn.config.rules import check_combination
from async_dqn.config.scaling import FOLLOWING, REFERENCE, at_once, for_workers
from async_dqn.config.schema import (
    SETTINGS,
    AlgorithmConfig,
    EvaluationConfig,
    ExplorationConfig,
    NetworkConfig,
    OptimizerConfig,
    ParallelConfig,
    ReplayConfig,
    RunConfig,
)


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
    # Settings that were left to follow from the number of workers, as they are for the whole.
    whole: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_combination(self)
        if self.run.run_name is not None:
            check_run_name(self.run.run_name)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build from setting names (`{"lr": 1e-3}`); the rest takes the defaults."""
        return cls().with_settings(values)

    @classmethod
    def shared_out(
        cls, values: Mapping[str, Any], fixed: Collection[str], reference: int = REFERENCE
    ) -> Self:
        """Build from settings that are right for `reference` workers what is for the workers given.

        Settings in `fixed` stay as they are.
        """
        settings = {**cls().by_name(), **values}
        whole = {name: settings[name] for name in FOLLOWING if name not in fixed}
        config = cls.from_flat({**values, **for_workers(settings, whole.keys(), reference)})
        return dataclasses.replace(config, whole={**whole, "workers": reference})

    def shared_out_anew(
        self, fixed: Collection[str], changed: Mapping[str, Any] = MappingProxyType({})
    ) -> Self:
        """The same for the workers it has now; what was fixed before stays so.

        `changed` are settings that take the place of its own, for the whole.
        """
        whole = {name: value for name, value in self.whole.items() if name not in fixed}
        reference = whole.pop("workers", REFERENCE)
        given = set(FOLLOWING) - whole.keys()
        return self.shared_out({**self.by_name(), **whole, **changed}, given, reference)

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

    def by_name(self) -> dict[str, Any]:
        """Every value by the setting's name, such as "lr"."""
        return {dotted.rpartition(".")[2]: value for dotted, value in self.flat().items()}

    @property
    def at_once(self) -> int:
        """How many workers learn at the same time."""
        return at_once(self.by_name())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-able values by section, and `whole`; `from_dict` is the inverse."""
        return dataclasses.asdict(self, dict_factory=_lists_for_tuples)

    @classmethod
    def from_dict(cls, sections: Mapping[str, Mapping[str, Any]]) -> Self:
        """Inverse of `to_dict`; missing keys take their defaults, unknown ones are refused."""
        values: dict[str, Any] = {"defaults": "fixed"}  # as they were
        whole: dict[str, Any] = {}
        for section, fields in sections.items():
            for name, value in fields.items():
                about, label = SETTINGS.get(name), f"{section}.{name}"
                known = about and (section == "whole" or about.dotted == label)
                if not known:
                    raise UserError(f"stored settings: unknown key '{label}'")
                of = whole if section == "whole" else values
                of[name] = check(about, value, f"stored settings: {label}")
        return dataclasses.replace(cls.from_flat(values), whole=whole)


def _lists_for_tuples(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}
