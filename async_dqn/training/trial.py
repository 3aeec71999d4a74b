"""A first rollout and update with the user's own code, before a run folder is there."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from async_dqn.config.fields import UserError, describe_error
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import RunSpec

WANTED = {
    "algorithm": "act(output, epsilon, generator) and loss(online, target, rollout)",
    "network": "a module of float32 operations on observations [N, ...], N from 1",
    "exploration": "a call with (step, count) that gives epsilons",
    "target": "`networks`, and following(kept, theta, intervals) of [networks, P]",
}


def try_out(run_spec: RunSpec) -> None:
    """Act, learn and publish once in this process. Raises UserError, which names what failed."""
    store, _ = run_spec.alone()
    with _blaming(run_spec, "target"):
        store.sync_target(1)
    with contextlib.closing(Learner(run_spec, store, 0)) as learner:
        with _blaming(run_spec, "exploration"):
            learner.epsilon(0)
        with _blaming(run_spec, "algorithm", "network"):
            learner.reset(0)
            _learn(learner)


def _learn(learner: Learner) -> None:
    rollout = learner.collector.collect(learner.epsilon(0), 10**6, lambda count: None)
    actions, count = rollout.actions, learner.run_spec.info.num_actions
    if ((actions < 0) | (actions >= count)).any():
        raise ValueError(f"act gave actions beyond 0 .. {count - 1}")
    if learner.shard is not None:  # what is drawn from replay was not seen while acting
        rollout = replace(rollout, greedy=None, q_values=None, epsilon=None, state=None)
    target = learner.target.net if learner.target is not None else None
    learned = learner.algorithm.loss(learner.network.net, target, rollout)
    learned.backward()
    errors = np.asarray(learned.errors)
    if errors.shape != (rollout.rewards.size,) or not (errors >= 0).all():
        raise ValueError(f"loss gave errors of shape {errors.shape}, not [T * B] from 0")
    if not np.isfinite(learned.loss):
        raise ValueError(f"loss gave {learned.loss}")


@contextlib.contextmanager
def _blaming(run_spec: RunSpec, *settings: str) -> Iterator[None]:
    """Say of what fails here that it is the first of these settings that is the user's own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        own = [setting for setting in settings if setting in run_spec.own]
        if not own:
            raise
        name = f"{own[0]} {run_spec.config.by_name()[own[0]]}"
        failed = f"{name} failed ({describe_error(error)})"
        raise UserError(f"{failed}; it needs {WANTED[own[0]]}") from error
