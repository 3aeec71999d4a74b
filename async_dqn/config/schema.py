"""The settings of a run by section, each with its help, unit, choices and range.

The one source of the command line, TOML keys and config.json. `SETTINGS` describes them by name;
names are unique over all sections.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from async_dqn.config.environment import EnvironmentConfig
from async_dqn.config.fields import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    FINITE,
    FINITE_OR_NONE,
    FROM_TWO,
    NOT_NEGATIVE,
    ON_OFF,
    POSITIVE,
    SEED,
    UNIT_INTERVAL,
    UNIT_INTERVAL_OR_NONE,
    WIDTHS,
    Range,
    Setting,
    SettingsSection,
    setting,
)
from async_dqn.config.parallel import ParallelConfig


def _own_argument(what: str) -> Any:
    return setting(dict, f"argument of {what} of your own; may be repeated")


@dataclass(frozen=True)
class AlgorithmConfig(SettingsSection):
    """What it learns from a rollout."""

    algorithm: str = setting(
        "n-step-q",
        "learning rule",
        choices={
            "one-step-q": "one-step Q-learning",
            "one-step-sarsa": "one-step Sarsa, on the policy that explores",
            "n-step-q": "Q-learning on the return of the rest of the rollout",
            "q-lambda": "Q(lambda): returns of all lengths, mixed by --lam",
            "a3c": "advantage actor-critic: a policy and a state value",
        },
        is_open=True,
    )
    algorithm_arg: dict[str, Any] = _own_argument("an algorithm")  # noqa: RUF009
    lam: float = setting(
        0.65, "mix of the returns, 0 = one-step, 1 = n-step; q-lambda only", within=UNIT_INTERVAL
    )
    trace: str = setting(
        "peng",
        "returns through exploratory actions; q-lambda only",
        choices={"peng": "kept", "watkins": "cut"},
    )
    double: bool = setting(False, "Double Q-learning: online net chooses, target net values")
    munchausen: bool = setting(False, "soft values, and a share of log pi added to the reward")
    value_rescaling: bool = setting(False, "learn h(Q), h a signed square root, for large returns")
    entropy_weight: float = setting(
        0.01, "weight of the policy's entropy; a3c only", within=NOT_NEGATIVE
    )
    gamma: float = setting(0.99, "discount per step", within=UNIT_INTERVAL)
    horizon_steps: int | None = setting(
        None,
        "time in which --lam-start and --gamma-start become --lam and --gamma; none: at once",
        unit="global steps",
        within=COUNT_OR_NONE,
    )
    lam_start: float | None = setting(
        None,
        "--lam of the first step; q-lambda only",
        within=UNIT_INTERVAL_OR_NONE,
        default_words="--lam",
    )
    gamma_start: float | None = setting(
        None,
        "--gamma of the first step",
        within=UNIT_INTERVAL_OR_NONE,
        default_words="--gamma",
    )
    reward_clip: float | None = setting(
        None, "rewards learned from are cut to [-X, X], then scaled", within=POSITIVE
    )
    reward_scale: float = setting(1.0, "factor on the rewards learned from", within=POSITIVE)
    scale_rewards: bool = setting(
        False, "divide rewards by the running deviation of their discounted sum"
    )


@dataclass(frozen=True)
class NetworkConfig(SettingsSection):
    """How Q-values are computed."""

    network: str = setting(
        "auto",
        "torso of the Q-network",
        choices={
            "auto": "by observation shape",
            "linear": "no hidden layer; a table where observations are Discrete",
            "mlp": "dense layers of the widths --hidden",
            "small-conv": "one small convolution for grids such as MinAtar",
            "nips": "two convolutions (Mnih et al. 2013)",
            "nature": "three convolutions (Mnih et al. 2015)",
            "impala": "residual convolutions (Espeholt et al. 2018)",
            "conv": "convolutions for images of any size",
        },
        is_open=True,
    )
    network_arg: dict[str, Any] = _own_argument("a network")  # noqa: RUF009
    hidden: tuple[int, ...] = setting(
        (128, 128), "widths of the layers of an mlp", unit="units", within=WIDTHS
    )
    layer_norm: bool | None = setting(
        None, "layer normalisation", default_words="by network", choices=ON_OFF
    )
    precision: str = setting(
        "float32",
        "of the convolutions; everything else is float32",
        choices={"float32": "", "bfloat16": "where the CPU has instructions for it"},
    )
    dueling: bool = setting(False, "separate streams for state value and advantages")
    branching: str = setting(
        "auto",
        "one head for each component of actions, not an output for each combination",
        choices={"auto": "where there are more than 4096", "on": "", "off": ""},
    )
    distributional: str = setting(
        "none",
        "what is learned of the return",
        choices={
            "none": "its mean",
            "categorical": "probabilities of fixed values (C51)",
            "quantile": "quantiles (QR-DQN)",
        },
    )
    atoms: int = setting(51, "values or quantiles of a distribution", within=FROM_TWO)
    v_min: float = setting(-10.0, "lowest return of the categorical values", within=FINITE)
    v_max: float = setting(10.0, "highest return of the categorical values", within=FINITE)
    noisy: bool = setting(False, "noise learned in the dense layers (NoisyNet)")
    recurrent: bool = setting(False, "an LSTM after the torso, for hidden state")
    input_scaling: bool = setting(False, "map vectors with finite bounds to [-1, 1]")
    normalize_observations: bool = setting(
        False, "subtract the running mean of each number and divide by its deviation"
    )


@dataclass(frozen=True)
class ReplayConfig(SettingsSection):
    """Experience learned from more than once."""

    replay: str = setting(
        "none",
        "what an update learns from",
        choices={
            "none": "the newest rollout",
            "uniform": "a random batch of what the worker has seen",
            "prioritized": "a batch drawn by size of the error",
        },
    )
    replay_capacity: int = setting(
        100_000, "steps kept, over all workers", unit="global steps", within=COUNT
    )
    replay_start: int = setting(
        1_000, "steps collected before learning begins", unit="global steps", within=COUNT
    )
    batch_size: int = setting(128, "segments in a batch from replay", within=COUNT)
    samples_per_step: float | None = setting(
        None,
        "how often a step is drawn from replay on average; decides the number of updates",
        within=POSITIVE,
        default_words="by --epochs",
    )
    random_shift: int = setting(
        0,
        "images drawn are moved by up to so many, their edge repeated (DrQ)",
        unit="pixels",
        within=Range("a whole number from 0", lambda n: n >= 0),
    )
    priority_exponent: float = setting(
        0.6, "0 draws uniformly, 1 in proportion to the error", within=UNIT_INTERVAL
    )
    priority_beta: float = setting(
        0.4, "importance weights at the start; they rise to 1 over --steps", within=UNIT_INTERVAL
    )


@dataclass(frozen=True)
class OptimizerConfig(SettingsSection):
    """How gradients change the parameters."""

    optimizer: str = setting(
        "shared-adam",
        "update rule, and whether workers share its statistics",
        choices={
            "shared-adam": "Adam, shared",
            "shared-rmsprop": "RMSProp, shared, as in the A3C paper",
            "rmsprop": "RMSProp, each worker its own",
            "momentum": "SGD with momentum, each worker its own",
        },
    )
    lr: float = setting(1e-3, "learning rate", within=POSITIVE)
    beta1: float = setting(
        0.9, "share of the former mean in Adam's mean gradient", within=BELOW_ONE
    )
    adam_eps: float = setting(1e-5, "Adam's epsilon", within=POSITIVE)
    weight_decay: float = setting(
        0.0,
        "share that an update takes off the parameters, times the learning rate (AdamW)",
        within=NOT_NEGATIVE,
    )
    lr_schedule: str = setting(
        "linear",
        "course of the learning rate",
        choices={"constant": "stays", "linear": "falls to 0 over --steps"},
    )
    max_grad_norm: float = setting(10.0, "gradients are clipped to this norm", within=POSITIVE)
    staleness_scaling: bool = setting(
        False, "divide the learning rate by the updates others made since the pull, if above 1"
    )
    max_staleness: int | None = setting(
        None,
        "drop gradients older than this",
        unit="updates by others",
        within=Range("from 0, or none", lambda n: n >= 0),
    )
    target_sync_steps: int | None = setting(
        2_000,
        "interval between copies to the target network; none: no target network",
        unit="global steps",
        within=COUNT_OR_NONE,
    )
    target: str = setting(
        "copy",
        "the target network after each interval",
        choices={
            "copy": "the parameters of that moment",
            "polyak": "moved towards them by --target-tau",
            "average": "the mean Q-values of the last --target-networks copies",
        },
        is_open=True,
    )
    target_arg: dict[str, Any] = _own_argument("a target")  # noqa: RUF009
    target_tau: float = setting(
        0.005, "share of the parameters in a polyak target", within=UNIT_INTERVAL
    )
    target_networks: int = setting(
        5, "copies that an average target keeps", unit="networks", within=FROM_TWO
    )
    target_layers: str = setting(
        "all",
        "what of the network the target network has of its own",
        choices={"all": "", "last": "its head; everything before it is the learner's newest"},
    )
    average_steps: int | None = setting(
        None,
        "time constant of a running average of the parameters; none: no average",
        unit="global steps",
        within=COUNT_OR_NONE,
    )
    score_by_average: bool = setting(
        False, "evaluate that average, and save it as the best and as what is played"
    )
    act_by_average: bool = setting(False, "workers act by that average")
    target_by_average: bool = setting(False, "the target network is made of that average")
    freeze: str = setting(
        "none",
        "parameters that stay as they were at the beginning",
        choices={"none": "", "torso": "all but those of the head"},
    )
    reset_every: int | None = setting(
        None,
        "interval between resets: the head begins anew, what is before it is drawn towards new "
        "random parameters (shrink and perturb); none: no resets",
        unit="global steps",
        within=COUNT_OR_NONE,
    )
    reset_share: float = setting(
        0.5, "how far it is drawn, 1: begins anew too", within=UNIT_INTERVAL
    )


@dataclass(frozen=True)
class ExplorationConfig(SettingsSection):
    """How often a random action is chosen."""

    exploration: str = setting(
        "epsilon",
        "who explores how",
        choices={
            "ladder": "final epsilons 0.1, 0.01 and 0.5, weights 0.4, 0.3, 0.3",
            "apex": "final epsilons 0.4^(1 + 7 i / (n - 1)) over all environments",
            "epsilon": "one epsilon for all",
            "boltzmann": "actions drawn from softmax(Q / temperature)",
            "noisy": "the noise of --noisy; epsilon falls to 0",
        },
        is_open=True,
    )
    exploration_arg: dict[str, Any] = _own_argument("an exploration")  # noqa: RUF009
    epsilon_start: float = setting(1.0, "epsilon of the first step", within=UNIT_INTERVAL)
    epsilon_final: float = setting(
        0.05, "epsilon after annealing; the ladder has its own", within=UNIT_INTERVAL
    )
    epsilon_steps: int = setting(20_000, "annealing time", unit="global steps", within=COUNT)
    persistence: float | None = setting(
        None,
        "random actions are repeated n times with a probability in proportion to n^-X (2 explores "
        "far, 4 hardly); none: not repeated",
        within=Range("above 1, or none", lambda x: x > 1),
    )
    temperature_start: float = setting(1.0, "first temperature, in units of Q", within=POSITIVE)
    temperature_final: float = setting(
        0.01, "temperature after annealing, in units of Q", within=POSITIVE
    )


@dataclass(frozen=True)
class EvaluationConfig(SettingsSection):
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
    patience: int | None = setting(
        None,
        "end the run after so many evaluations in a row without a better confirmed score",
        unit="evaluations",
        within=COUNT_OR_NONE,
    )
    video_every: int | None = setting(
        None,
        "interval between films of the newest checkpoint at play, for RUN/videos and TensorBoard; "
        "a process of its own makes them",
        unit="global steps",
        within=COUNT_OR_NONE,
    )


@dataclass(frozen=True)
class RunConfig(SettingsSection):
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
        None,
        "run folder or checkpoint to go on from; auto: the run of --run-name, or the newest of "
        "this environment, algorithm and seed; a new one where there is none",
    )
    init_from: str | None = setting(
        None,
        "run folder (its best checkpoint) or checkpoint whose parameters a new run begins with, as "
        "far as they fit",
    )
    checkpoint_every: int = setting(
        100_000, "interval between checkpoints", unit="global steps", within=COUNT
    )
    keep_checkpoints: int = setting(3, "newest checkpoints kept, besides the best", within=COUNT)
    device: str = setting(
        "cpu", "where workers learn: cpu, cuda or cuda:N; evaluations stay on the CPU"
    )
    track: str = setting(
        "none",
        "services that the run is reported to while it trains; their own environment variables say "
        "where they are",
        choices={
            "none": "",
            "wandb": "Weights & Biases",
            "mlflow": "MLflow",
            "wandb,mlflow": "both",
        },
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
