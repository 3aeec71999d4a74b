"""Settings that would do nothing beside the others: refused where the user typed them."""

from collections.abc import Collection, Mapping
from typing import Any

from async_dqn.config.extension import ALGORITHMS, OPEN, takers, traits_of
from async_dqn.config.fields import UserError, either, is_foreign

# Settings that do nothing unless another has a certain value; the user's own code is none of them.
ACTS_ONLY_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sync_average": ("mode", ("sync",)),
    "sync_every": ("sync_average", ("params",)),
    "beta1": ("optimizer", ("shared-adam",)),
    "adam_eps": ("optimizer", ("shared-adam",)),
    "staleness_scaling": ("mode", ("async", "serial")),
    "max_staleness": ("mode", ("async", "serial")),
    "hang_timeout": ("mode", ("async", "sync")),
    "min_workers": ("mode", ("async",)),
    "lam": ("algorithm", takers("lam")),
    "lam_start": ("algorithm", takers("lam")),
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
# Settings that do nothing where another is none.
ACTS_ONLY_BESIDE = {"reset_share": "reset_every"}
OF_ATARI = ("clip_rewards", "life_loss_ends")
OF_OUR_NETWORKS = ("hidden", "layer_norm", "precision")


def check_acts(given: Mapping[str, Any], values: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse settings the user typed that would do nothing; `values` has all, by name.

    Only settings in `known` decide: a resumed run brings others of its own.
    """
    for name in given:
        option = "--" + name.replace("_", "-")
        opened = name.removesuffix("_arg")
        if name != opened and opened in OPEN and opened in known and not is_foreign(values[opened]):
            raise UserError(f"{option} is for your own --{opened} module:name; drop {option}")
        if name in OF_ATARI and "ALE/" not in values["env"]:
            raise UserError(f"{option} is about ALE/ environments; drop it")
        if name in OF_OUR_NETWORKS and "network" in known and is_foreign(values["network"]):
            raise UserError(f"{option} is of our networks, not of your own; drop {option}")
        beside = ACTS_ONLY_BESIDE.get(name)
        if beside in known and values[beside] is None:
            raise UserError(
                f"{option} acts only beside --{beside.replace('_', '-')}; drop {option}"
            )
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
