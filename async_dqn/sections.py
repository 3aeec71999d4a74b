"""The settings of a run by section, each with its help, unit, choices and range.

The one source of the command line, TOML keys and config.json. `SETTINGS` describes them by name;
names are unique over all sections.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from async_dqn.cores import usable_cores
from async_dqn.method import (
    AlgorithmConfig,
    ExplorationConfig,
    NetworkConfig,
    OptimizerConfig,
    ReplayConfig,
)
from async_dqn.settings import (
    COUNT,
    COUNT_OR_NONE,
    FINITE_OR_NONE,
    FROM_TWO,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Range,
    Section,
    Setting,
    setting,
)

WORKERS_PER_CORE = 8
SIMULATED = Range("within [1, 4096], or none", lambda n: 1 <= n <= 4096)


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
    action_bins: int = setting(
        5, "values per dimension of continuous actions", unit="bins", within=FROM_TWO
    )
    env_backend: str = setting(
        "gymnasium",
        "what the workers step",
        choices={
            "gymnasium": "the environment itself",
            "envpool": "EnvPool's version in C++, where it has one; evaluations keep gymnasium's",
        },
    )


@dataclass(frozen=True)
class ParallelConfig(Section):
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
    device: str = setting(
        "cpu", "where workers learn: cpu, cuda or cuda:N; evaluations stay on the CPU"
    )
    quiet: bool = setting(False, "no progress display")


SECTIONS: dict[str, type] = {
    "environment": EnvironmentConfig,
    "algorithm": AlgorithmConfig,
    "network": NetworkConfig,
    "parallel": ParallelConfig,
    "replay": ReplayConfig,
    "optimizer": OptimizerConfig,
    "exploration": ExplorationConfig,
    "evaluation": EvaluationConfig,
    "run": RunConfig,
}
SETTINGS: dict[str, Setting] = {
    field.name: Setting.of(section, field)
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
}
