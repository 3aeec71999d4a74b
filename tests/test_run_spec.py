"""Seeds and schedules: no two streams alike, and the same at every number of workers."""

import itertools

import numpy as np
import pytest

from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.make import EnvSpec
from async_dqn.networks import architecture
from async_dqn.workers.run_spec import CONFIRMATION, SCREENING, TRAINING, RunSpec


def run_spec(**settings) -> RunSpec:
    config, _ = resolve({"env": "CartPole-v1", **settings})
    spec = EnvSpec("CartPole-v1")
    info = make.probe(spec)
    return RunSpec(config, spec, info, architecture.choose(config, info))


def test_no_two_environments_share_a_seed_and_evaluation_has_its_own():
    keys = [(TRAINING, worker, incarnation) for worker in range(8) for incarnation in range(4)]
    keys += [(SCREENING,), (CONFIRMATION,)]
    seeds = [run_spec(workers=8).seeds(16, *key) for key in keys]
    assert len(set(itertools.chain(*seeds))) == 16 * len(keys)


def test_workers_and_incarnations_explore_differently_and_repeatably():
    keys = [(TRAINING, worker, incarnation) for worker in range(4) for incarnation in range(2)]
    draws = [tuple(run_spec(workers=4).generator(*key).integers(2, size=100)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == tuple(run_spec(workers=4).generator(*keys[0]).integers(2, size=100))
    assert draws[0] != tuple(run_spec(workers=4, seed=1).generator(*keys[0]).integers(2, size=100))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_workers_share_the_ladder_of_all_environments(workers):
    one = run_spec(workers=workers, envs_per_worker=4, exploration="ladder", oversubscribe=True)
    dealt = np.concatenate([one.exploration.of(worker, 4).finals for worker in range(workers)])
    values, counts = np.unique(dealt, return_counts=True)
    expected = {0.1: 0.4, 0.01: 0.3, 0.5: 0.3}
    assert dealt.shape == (4 * workers,)
    for value, count in zip(values, counts):
        assert abs(count - expected[round(float(value), 2)] * 4 * workers) < 1


def test_the_learning_rate_is_linear_in_global_steps_whatever_the_workers():
    for workers in (1, 4):
        one = run_spec(
            workers=workers, lr=1e-3, lr_schedule="linear", steps=1000, oversubscribe=True
        )
        assert [one.learning_rate(step) for step in (0, 250, 1000, 2000)] == [1e-3, 7.5e-4, 0, 0]
    assert run_spec(lr=1e-3, lr_schedule="constant", steps=1000).learning_rate(900) == 1e-3
