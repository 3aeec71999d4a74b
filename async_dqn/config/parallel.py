"""The settings of how many act and learn at once, and how: one of the sections of the schema."""

from dataclasses import dataclass

from async_dqn.config.cores import usable_cores
from async_dqn.config.fields import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    SettingsSection,
    setting,
)

WORKERS_PER_CORE = 8
SIMULATED = Range("within [1, 4096], or none", lambda n: 1 <= n <= 4096)


@dataclass(frozen=True)
class ParallelConfig(SettingsSection):
    """How many act and learn at once, and how."""

    mode: str = setting(
        "async",
        "how the workers run",
        choices={
            "async": "processes updating one network without locks (Hogwild)",
            "sync": "processes updating together, by averages",
            "serial": "in turn in one process, reproducible bit for bit",
        },
    )
    workers: int = setting(
        usable_cores,
        "workers; auto: measured, up to the usable cores",
        unit="processes",
        within=COUNT,
        default_words="the usable cores",
    )
    sync_average: str = setting(
        "gradients",
        "what workers of --mode sync average",
        choices={
            "gradients": "every update, which is then the same for all",
            "params": "parameters and optimizer state, each worker making updates of its own",
        },
    )
    sync_every: int = setting(
        1, "updates between two averages of parameters", unit="updates", within=COUNT
    )
    model_parallel: bool = setting(
        False, "one learner, its network's layers split over two processes of --mode sync"
    )
    hang_timeout: float | None = setting(
        None,
        "a process without a sign of life is replaced",
        unit="seconds",
        within=POSITIVE,
        default_words="60; 8 in --mode sync, where the others wait",
    )
    min_workers: int = setting(
        1, "fewer left, as others failed again and again: stop, resumable", within=COUNT
    )
    oversubscribe: bool = setting(False, f"allow more than {WORKERS_PER_CORE} workers per core")
    envs: int = setting(16, "environments in all, which the workers share", within=COUNT)
    envs_per_worker: int = setting(
        8, "environments of each worker", within=COUNT, default_words="its share of --envs"
    )
    rollout_length: int = setting(
        5, "steps of every environment between two updates", unit="steps", within=COUNT
    )
    epochs: int = setting(
        1,
        "passes over each rollout; with replay so many updates, each on a new batch",
        within=COUNT,
    )
    minibatches: int = setting(
        1, "updates of each pass, every one on an equal part of the environments", within=COUNT
    )
    simulate_workers: int | None = setting(
        None,
        "workers simulated on a virtual clock, in place of --workers (with --mode serial)",
        within=SIMULATED,
    )
    simulate_times: str | None = setting(
        None,
        "simulation.json of an earlier run, whose times to take",
        default_words="measured at the start",
    )
    simulate_startup: float = setting(
        0.0,
        "from the start of simulated workers' run to their first step",
        unit="simulated seconds",
        within=NOT_NEGATIVE,
    )

    @property
    def actors(self) -> int:
        """How many workers take steps; the last stage of a model-parallel network takes none."""
        return 1 if self.model_parallel else self.workers

    @property
    def patience_s(self) -> float:
        """`hang_timeout`, or what holds without."""
        return self.hang_timeout or (8.0 if self.mode == "sync" else 60.0)
