"""What follows from the number of workers: the one rule behind presets, defaults and simulations.

Presets and defaults are written for the whole: `envs` environments in all, and learning settings as
they are right with REFERENCE workers. N workers that do not wait for each other are like one with N
times the batch and N times fewer updates one after another. So what they have in flight together
stays what it was: each takes a share of the environments, or of the draws from replay. The rate
falls with the square root of the batch, as that of Adam does on noise (Malladi et al. 2022), and a
little more with the number of stale gradients. And as asynchrony begets momentum (Mitliagkas et al.
2016), Adam's own gives way to it. docs/choosing.md has the figures.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

AUTO = "auto"  # a setting in place of its value: what follows from the number of workers
REFERENCE = 2  # workers, for which defaults and presets hold that do not say otherwise
STALENESS_POWER = 0.2  # of the number of workers, by which the rate falls beside that of the batch
MOST_EVALUATING = 16  # processes
LEAST_ROUNDS = {"epsilon_steps": 100, "target_sync_steps": 2}  # of rollouts of all workers
# The settings that follow from the number of workers, unless they are given.
FOLLOWING = (
    *("envs_per_worker", "minibatches", "batch_size", "epochs"),
    *("lr", "beta1", "epsilon_steps", "target_sync_steps"),
)


def at_once(settings: Mapping[str, Any]) -> int:
    """How many workers learn at the same time; those of serial mode take turns."""
    if settings["simulate_workers"] is not None:
        return settings["simulate_workers"]
    if settings["mode"] == "serial" or settings["model_parallel"]:
        return 1
    return settings["workers"]


def for_workers(
    settings: Mapping[str, Any], free: Collection[str], reference: int
) -> dict[str, Any]:
    """The settings in `free` as they follow from the number of workers.

    `settings` are all by name, for the whole, as they are right with `reference` workers; those
    that are not free stay as they are, and the others follow from them too.
    """
    workers = settings["simulate_workers"] or settings["workers"]
    actors = 1 if settings["model_parallel"] else workers
    crowd = max(1.0, at_once(settings) / reference)
    share = settings["envs"] / reference  # of a worker among so many
    found: dict[str, Any] = {}

    def choose(name: str, value: Any) -> Any:
        if name in free:
            found[name] = value
        return found.get(name, settings[name])

    # With replay environments are not what is in flight; two of them share a pass of acting.
    least = 1 if settings["replay"] == "none" else 2
    envs = choose("envs_per_worker", max(least, round(settings["envs"] / actors)))
    # Batches, in environments or segments of as many steps.
    if settings["replay"] == "none":
        minibatches = settings["minibatches"]
        before = share / minibatches
        parts = minibatches if settings["mode"] == "sync" else math.ceil(envs / before)
        batch = envs / choose("minibatches", max(1, min(parts, envs, minibatches)))
    else:
        before = settings["batch_size"]
        batch = choose("batch_size", max(1, round(before / crowd)))
        choose("epochs", max(1, round(settings["epochs"] * before / batch * envs / share)))
    if settings["mode"] != "sync":
        rate = math.sqrt(batch / before) * crowd**-STALENESS_POWER
        choose("lr", settings["lr"] * min(1.0, rate))
        choose("beta1", momentum(settings["beta1"], reference * (crowd - 1)))
    if actors > settings["envs"]:  # then a round of all takes more steps than it should
        steps = actors * envs * settings["rollout_length"]
        for name, rounds in LEAST_ROUNDS.items():
            if settings[name] is not None:
                choose(name, max(settings[name], rounds * steps))
    return found


def momentum(beta1: float, others: float) -> float:
    """Adam's first moment that is left beside the momentum of so many further workers.

    A mean gradient is beta1 / (1 - beta1) updates old on average; each further worker makes it one
    older. Their sum stays the same, as long as that leaves a momentum.
    """
    age = max(0.0, beta1 / (1 - beta1) - others)
    return age / (1 + age)


def evaluation_processes(workers: int, cores: int) -> int:
    """How many processes evaluate beside `workers`: on the idle cores, and a tenth of those."""
    return min(MOST_EVALUATING, max(1, cores - workers, round(workers / 10)))
