"""Which settings do not go together, and why: one table, checked when settings are read."""

from collections.abc import Callable
from typing import Any, NamedTuple

from async_dqn.config.extension import Traits, traits_of
from async_dqn.config.fields import UserError, is_foreign

Config = Any  # `config.Config`, which is built on this module


# Of --log-info: a report of a worker must fit into one write to its pipe.
MOST_KEYS, LONGEST_KEY = 8, 40


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


def _by_average(config: Config) -> bool:
    uses = config.optimizer
    return uses.score_by_average or uses.act_by_average or uses.target_by_average


def _resets(config: Config) -> bool:
    """Whether parts of the network are treated otherwise than others."""
    settings = config.optimizer
    parted = settings.target_layers == "last" or settings.freeze != "none"
    return parted or settings.reset_every is not None


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
            and (0 < c.algorithm.lam < 1 or c.algorithm.lam_start is not None)
        ),
        "--distributional projects one return, q-lambda with 0 < --lam < 1 or --lam-start mixes "
        "many; choose --lam 1 or n-step-q",
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
    Rule(
        lambda c: (
            (c.algorithm.horizon_steps is None)
            != (c.algorithm.lam_start is None and c.algorithm.gamma_start is None)
        ),
        "a horizon that changes has a beginning and a time: --lam-start or --gamma-start, and "
        "--horizon-steps; add what is missing or drop them",
    ),
    Rule(
        lambda c: (
            c.algorithm.gamma_start is not None and c.algorithm.gamma_start > c.algorithm.gamma
        ),
        "--gamma-start is above --gamma, and gamma is annealed upwards; lower it or drop it",
    ),
    Rule(
        lambda c: c.algorithm.lam_start is not None and c.algorithm.lam_start < c.algorithm.lam,
        "--lam-start is below --lam, and lambda is annealed downwards; raise it or drop it",
    ),
    Rule(
        lambda c: c.replay.samples_per_step is not None and c.replay.replay == "none",
        "--samples-per-step counts draws from replay; add --replay uniform or drop it",
    ),
    Rule(
        lambda c: c.replay.random_shift > 0 and c.replay.replay == "none",
        "--random-shift moves images drawn from replay; add --replay uniform or drop it",
    ),
    Rule(
        lambda c: (c.optimizer.average_steps is None) == _by_average(c),
        "an average of the parameters has a time and a use: --average-steps, and "
        "--score-by-average, --act-by-average or --target-by-average; add what is missing or drop "
        "them",
    ),
    Rule(
        lambda c: c.optimizer.target_by_average and c.optimizer.target_sync_steps is None,
        "--target-by-average needs a target network; drop --target-sync-steps none",
    ),
    Rule(
        lambda c: c.optimizer.act_by_average and (_on_policy(c) or c.network.recurrent),
        "--act-by-average acts by other parameters than those that learn, which one-step-sarsa, "
        "a3c and --recurrent cannot; drop it",
    ),
    Rule(
        lambda c: (
            c.optimizer.target_layers == "last"
            and (c.optimizer.target_sync_steps is None or c.optimizer.target == "average")
        ),
        "--target-layers last needs a target network, and one alone; drop --target-sync-steps "
        "none or --target average",
    ),
    Rule(
        lambda c: c.optimizer.freeze != "none" and c.run.init_from is None and c.run.resume is None,
        "--freeze keeps parameters of another run; add --init-from RUN or drop it",
    ),
    Rule(
        lambda c: (
            c.optimizer.freeze != "none"
            and (c.optimizer.weight_decay > 0 or c.optimizer.reset_every is not None)
        ),
        "--freeze keeps what --weight-decay and --reset-every would change; drop one",
    ),
    Rule(
        lambda c: c.parallel.model_parallel and (c.optimizer.act_by_average or _resets(c)),
        "--model-parallel has a learner in two parts; drop --act-by-average, --target-layers "
        "last, --freeze and --reset-every",
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


def check_combination(config: Config) -> None:
    """Raise UserError, with the reason, for settings that make no sense together."""
    _check_variants(config)
    for rule in RULES:
        if rule.refused(config):
            raise UserError(rule.reason)
    keys = config.environment.log_info
    if len(keys) > MOST_KEYS or max(map(len, keys), default=0) > LONGEST_KEY:
        raise UserError(
            f"--log-info takes {MOST_KEYS} keys of {LONGEST_KEY} characters at most; drop some"
        )
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
