"""Which settings do not go together, and why: one table, checked when settings are read."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from async_dqn.config.extension import ALGORITHMS, OPEN, Traits, takers, traits_of
from async_dqn.config.fields import UserError, either, is_foreign

Config = Any  # `config.Config`, which is built on this module


class Rule(NamedTuple):
    """What is refused, and the line that says why."""

    refused: Callable[[Config], bool]
    reason: str


def _traits(config: Config) -> Traits:
    return traits_of(config.algorithm.algorithm)


def _takes(variant: str) -> Callable[[Config], bool]:
    return lambda config: variant in _traits(config).variants


def _on_policy(config: Config) -> bool:
    return _traits(config).on_policy


def _foreign(config: Config) -> bool:
    """Whether the loss or the layers are the user's own."""
    return is_foreign(config.algorithm.algorithm) or is_foreign(config.network.network)


RULES = (
    Rule(
        lambda c: c.algorithm.double and c.optimizer.target_sync_steps is None,
        "--double needs a target network; drop --target-sync-steps none",
    ),
    Rule(
        lambda c: c.algorithm.double and (not _takes("double")(c) or c.algorithm.munchausen),
        "--double corrects the maximum over actions, which one-step-sarsa, a3c and --munchausen "
        "do not take; drop --double",
    ),
    Rule(
        lambda c: c.algorithm.munchausen and not _takes("munchausen")(c),
        "--munchausen replaces the maximum of Q-learning; choose one-step-q, n-step-q or q-lambda",
    ),
    Rule(
        lambda c: c.algorithm.munchausen and c.network.distributional != "none",
        "--munchausen is defined here on mean values; drop it or --distributional",
    ),
    Rule(
        lambda c: c.algorithm.munchausen and c.algorithm.value_rescaling,
        "--munchausen adds log-probabilities in units of the reward, --value-rescaling changes "
        "the units; drop one",
    ),
    Rule(
        lambda c: (
            _traits(c).head == "actor-critic"
            and (c.network.dueling or c.network.distributional != "none")
        ),
        "a3c learns a policy and a state value, not Q-values; drop --dueling and --distributional",
    ),
    Rule(
        lambda c: c.algorithm.value_rescaling and not _takes("value_rescaling")(c),
        "a3c needs advantages in units of the reward; drop --value-rescaling",
    ),
    Rule(
        lambda c: (
            c.network.distributional != "none"
            and c.algorithm.algorithm == "q-lambda"
            and 0 < c.algorithm.lam < 1
        ),
        "--distributional projects one return, q-lambda with 0 < --lam < 1 mixes many; "
        "choose --lam 1 or n-step-q",
    ),
    Rule(
        lambda c: c.network.distributional != "none" and not _takes("distributional")(c),
        "--distributional needs one action at the end of a return, one-step-sarsa takes an "
        "expectation at truncations; drop one",
    ),
    Rule(
        lambda c: c.network.v_min >= c.network.v_max,
        "--v-min must lie below --v-max",
    ),
    Rule(
        lambda c: c.replay.replay != "none" and _on_policy(c),
        "one-step-sarsa, a3c and others that are on-policy learn of the policy that acts now, "
        "replay holds actions of older ones; drop --replay or choose one-step-q",
    ),
    Rule(
        lambda c: c.replay.replay != "none" and c.network.recurrent,
        "--recurrent learns from states carried along, which in replay are those of older "
        "parameters; drop --replay",
    ),
    Rule(
        lambda c: c.parallel.epochs * c.parallel.minibatches > 1 and _on_policy(c),
        "one-step-sarsa, a3c and others that are on-policy learn of the policy that acted, which "
        "the first update changes; drop --epochs and --minibatches",
    ),
    Rule(
        lambda c: c.parallel.minibatches > c.parallel.envs_per_worker,
        "--minibatches divides the environments of a worker; choose at most --envs-per-worker",
    ),
    Rule(
        lambda c: c.replay.replay != "none" and c.parallel.minibatches > 1,
        "--replay draws batches of --batch-size, --minibatches divides a rollout; use --epochs",
    ),
    Rule(
        lambda c: c.network.noisy and c.parallel.minibatches > 1,
        "--noisy has one draw per environment, in the order of the environments; "
        "drop --minibatches",
    ),
    Rule(
        lambda c: c.exploration.exploration == "noisy" and not c.network.noisy,
        "--exploration noisy explores by the noise of the network; add --noisy",
    ),
    Rule(
        lambda c: c.parallel.simulate_workers is not None and c.parallel.mode != "serial",
        "--simulate-workers takes turns in one process on a virtual clock; add --mode serial",
    ),
    Rule(
        lambda c: (
            c.parallel.simulate_workers is None
            and (c.parallel.simulate_times is not None or c.parallel.simulate_startup)
        ),
        "--simulate-times and --simulate-startup are those of simulated workers; add "
        "--simulate-workers or drop them",
    ),
    Rule(
        lambda c: (
            c.parallel.model_parallel and (c.parallel.mode != "sync" or c.parallel.workers != 2)
        ),
        "--model-parallel is two stages that update together; add --mode sync --workers 2",
    ),
    Rule(
        lambda c: c.parallel.model_parallel and c.parallel.sync_average != "gradients",
        "--model-parallel has one set of parameters; drop --sync-average",
    ),
    Rule(
        lambda c: (
            c.parallel.model_parallel
            and (_traits(c).head != "q" or c.network.distributional != "none" or _foreign(c))
        ),
        "--model-parallel has the squared error of a value in its last stage; choose another "
        "algorithm than a3c or your own, drop --distributional",
    ),
    Rule(
        lambda c: c.parallel.model_parallel and (c.network.recurrent or c.network.noisy),
        "--model-parallel passes parts of a batch from layer to layer, without state and noise; "
        "drop --recurrent and --noisy",
    ),
    Rule(
        lambda c: (
            c.parallel.model_parallel
            and (c.replay.replay != "none" or c.parallel.epochs * c.parallel.minibatches > 1)
        ),
        "--model-parallel makes one update of each rollout; choose --replay none --epochs 1 "
        "--minibatches 1",
    ),
    Rule(
        lambda c: c.parallel.model_parallel and c.network.network == "linear",
        "--model-parallel needs a layer for each of two processes; drop --network linear",
    ),
    Rule(
        lambda c: c.parallel.min_workers > c.parallel.workers,
        "--min-workers are of those that --workers counts; choose at most as many",
    ),
    Rule(
        lambda c: c.parallel.model_parallel and c.run.device != "cpu",
        "--model-parallel splits the network between processes on the CPU; drop --device",
    ),
    Rule(
        lambda c: c.optimizer.target != "copy" and c.optimizer.target_sync_steps is None,
        "--target needs an interval at which it changes; add --target-sync-steps N",
    ),
    Rule(
        lambda c: c.optimizer.target == "average" and c.network.distributional != "none",
        "--target average averages Q-values, not distributions; drop one",
    ),
    Rule(
        lambda c: c.optimizer.target != "copy" and c.parallel.model_parallel,
        "--model-parallel has a target network of one piece; drop --target",
    ),
    Rule(
        lambda c: (
            not (c.environment.clip_rewards and c.environment.life_loss_ends)
            and "ALE/" not in c.environment.env
        ),
        "--clip-rewards and --life-loss-ends are about ALE/ environments; drop them",
    ),
    Rule(
        lambda c: (
            c.algorithm.value_rescaling
            and c.environment.clip_rewards
            and c.environment.env.startswith("ALE/")
        ),
        "--value-rescaling is for large returns, and Atari's rewards are clipped to 1; add "
        "--clip-rewards off or drop it",
    ),
    Rule(
        lambda c: c.exploration.persistence is not None and _on_policy(c),
        "--persistence acts otherwise than the policy that one-step-sarsa and a3c learn; drop it",
    ),
    Rule(
        lambda c: c.network.normalize_observations and c.network.input_scaling,
        "--normalize-observations and --input-scaling both scale vectors; choose one",
    ),
    Rule(
        lambda c: c.network.normalize_observations and c.parallel.model_parallel,
        "--model-parallel keeps no running moments; drop --normalize-observations",
    ),
)

# What does not go with one group of outputs for each action component, whether asked for or not.
NOT_BRANCHING = (
    Rule(
        lambda c: not _takes("branching")(c),
        "actions of so many components have one head each (--branching), which one-step-q, "
        "n-step-q and q-lambda can learn, or your own QLearning that declares branching; "
        "choose one",
    ),
    Rule(
        lambda c: c.algorithm.munchausen,
        "--munchausen needs the probability of an action, not one for each of its components "
        "(--branching); drop it",
    ),
    Rule(
        lambda c: c.network.distributional != "none",
        "--distributional needs the distribution of an action, which those of its components "
        "(--branching) do not give; drop it",
    ),
    Rule(
        lambda c: c.algorithm.value_rescaling,
        "--value-rescaling learns h(Q), which is no mean over the components of an action "
        "(--branching); use --scale-rewards",
    ),
    Rule(
        lambda c: c.exploration.exploration == "boltzmann",
        "--exploration boltzmann draws from the values of actions, not of their components "
        "(--branching); choose epsilon",
    ),
    Rule(
        lambda c: c.parallel.model_parallel,
        "--model-parallel has one output for each action in its last stage, not for each of its "
        "components (--branching); drop it",
    ),
)

# Settings that do nothing unless another has a certain value; the user's own code is none of them.
ACTS_ONLY_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sync_average": ("mode", ("sync",)),
    "sync_every": ("sync_average", ("params",)),
    "beta1": ("optimizer", ("shared-adam",)),
    "staleness_scaling": ("mode", ("async", "serial")),
    "max_staleness": ("mode", ("async", "serial")),
    "hang_timeout": ("mode", ("async", "sync")),
    "min_workers": ("mode", ("async",)),
    "lam": ("algorithm", takers("lam")),
    "trace": ("algorithm", takers("trace")),
    "entropy_weight": ("algorithm", takers("entropy_weight")),
    "exploration": (
        "algorithm",
        tuple(name for name, traits in ALGORITHMS.items() if not traits.explores_itself),
    ),
    "epsilon_start": ("exploration", ("ladder", "apex", "epsilon", "noisy")),
    "epsilon_final": ("exploration", ("epsilon",)),
    "temperature_start": ("exploration", ("boltzmann",)),
    "temperature_final": ("exploration", ("boltzmann",)),
    "target_tau": ("target", ("polyak",)),
    "target_networks": ("target", ("average",)),
    "atoms": ("distributional", ("categorical", "quantile")),
    "v_min": ("distributional", ("categorical",)),
    "v_max": ("distributional", ("categorical",)),
    "replay_capacity": ("replay", ("uniform", "prioritized")),
    "replay_start": ("replay", ("uniform", "prioritized")),
    "batch_size": ("replay", ("uniform", "prioritized")),
    "priority_exponent": ("replay", ("prioritized",)),
    "priority_beta": ("replay", ("prioritized",)),
}
OF_OUR_NETWORKS = ("hidden", "layer_norm", "precision")


def check_combination(config: Config) -> None:
    """Raise UserError, with the reason, for settings that make no sense together."""
    _check_variants(config)
    for rule in RULES:
        if rule.refused(config):
            raise UserError(rule.reason)
    exploration = config.exploration
    start, final = exploration.epsilon_start, exploration.epsilon_final
    if exploration.exploration == "epsilon" and final > start:
        hint = f"is above the starting value {start:g}; lower it or raise --epsilon-start"
        raise UserError(f"--epsilon-final {final:g} {hint}")


def check_branching(config: Config) -> None:
    """The same for a network with one group of outputs for each action component."""
    for rule in NOT_BRANCHING:
        if rule.refused(config):
            raise UserError(rule.reason)


def _check_variants(config: Config) -> None:
    """An algorithm of the user's is built without those that its traits do not declare."""
    name, asked = config.algorithm.algorithm, config.by_name()
    if not is_foreign(name):
        return
    asked |= {asked["exploration"]: True}  # boltzmann
    for variant in ("double", "munchausen", "value_rescaling", "distributional", "boltzmann"):
        if asked.get(variant, False) not in (False, "none") and not _takes(variant)(config):
            raise UserError(
                f"algorithm {name} does not declare {variant} among the variants of its traits; "
                f"drop {'--exploration ' * (variant == 'boltzmann') or '--'}"
                f"{variant.replace('_', '-')}"
            )


def check_acts(given: Mapping[str, Any], values: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse settings the user typed that would do nothing; `values` has all, by name.

    Only settings in `known` decide: a resumed run brings others of its own.
    """
    for name in given:
        option = "--" + name.replace("_", "-")
        opened = name.removesuffix("_arg")
        if name != opened and opened in OPEN and opened in known and not is_foreign(values[opened]):
            raise UserError(f"{option} is for your own --{opened} module:name; drop {option}")
        if name in OF_OUR_NETWORKS and "network" in known and is_foreign(values["network"]):
            raise UserError(f"{option} is of our networks, not of your own; drop {option}")
        if name not in ACTS_ONLY_WITH:
            continue
        other, allowed = ACTS_ONLY_WITH[name]
        acts = values[other] in allowed
        if name == "exploration":
            acts = not traits_of(values["algorithm"]).explores_itself
        if other in known and not acts:
            raise UserError(
                f"{option} {given[name]} acts only with --{other} {either(allowed)} "
                f"(this run: {values[other]}); drop {option} or choose {either(allowed)}"
            )
