"""The settings of the method: what is learned, by which network, from what, and how.

The other sections, and the table of all settings, are in `sections`.
"""

from dataclasses import dataclass

from async_dqn.settings import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    FINITE,
    FROM_TWO,
    NOT_NEGATIVE,
    POSITIVE,
    UNIT_INTERVAL,
    WIDTHS,
    Range,
    Section,
    setting,
)


@dataclass(frozen=True)
class AlgorithmConfig(Section):
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
    munchausen: bool = setting(False, "soft values, and a share of log pi added to the reward")
    value_rescaling: bool = setting(False, "learn h(Q), h a signed square root, for large returns")
    entropy_weight: float = setting(
        0.01, "weight of the policy's entropy; a3c only", within=NOT_NEGATIVE
    )
    gamma: float = setting(0.99, "discount per step", within=UNIT_INTERVAL)
    reward_clip: float | None = setting(
        None, "rewards learned from are cut to [-X, X], then scaled", within=POSITIVE
    )
    reward_scale: float = setting(1.0, "factor on the rewards learned from", within=POSITIVE)


@dataclass(frozen=True)
class NetworkConfig(Section):
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


@dataclass(frozen=True)
class ReplayConfig(Section):
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
    priority_exponent: float = setting(
        0.6, "0 draws uniformly, 1 in proportion to the error", within=UNIT_INTERVAL
    )
    priority_beta: float = setting(
        0.4, "importance weights at the start; they rise to 1 over --steps", within=UNIT_INTERVAL
    )


@dataclass(frozen=True)
class OptimizerConfig(Section):
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


@dataclass(frozen=True)
class ExplorationConfig(Section):
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
    )
    epsilon_start: float = setting(1.0, "epsilon of the first step", within=UNIT_INTERVAL)
    epsilon_final: float = setting(
        0.05, "epsilon after annealing; the ladder has its own", within=UNIT_INTERVAL
    )
    epsilon_steps: int = setting(20_000, "annealing time", unit="global steps", within=COUNT)
    temperature_start: float = setting(1.0, "first temperature, in units of Q", within=POSITIVE)
    temperature_final: float = setting(
        0.01, "temperature after annealing, in units of Q", within=POSITIVE
    )
