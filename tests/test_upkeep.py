"""What is done to the shared parameters beside gradient steps: average, resets, weight decay."""

import json
import math

import numpy as np
import pytest
import torch
from scripted_envs import ChainEnv
from test_learner import Bench
from test_serial import assert_same_tensors, last, train

from async_dqn import AsyncDQN
from async_dqn.config.config import Config
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.evaluation.evaluator import Evaluator
from async_dqn.networks import architecture
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork, size_before_head
from async_dqn.parameters.optimizers import SharedAdam
from async_dqn.parameters.store import ParameterStore
from async_dqn.parameters.upkeep import Upkeep
from async_dqn.runs import checkpoint
from async_dqn.training import training
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import RunSpec

SIZE = 16
AVERAGE = {"average_steps": 400}
RESETS = {"reset_every": 1_000, "reset_share": 0.25}


def store_of(upkeep: Upkeep, moments: int = 0) -> ParameterStore:
    averaged = upkeep.average_steps is not None
    table = layout.sections(1, SIZE, 2, moments=(moments, 0), averaged=averaged)
    block = SharedBlock(table)
    block["multipliers"][:] = 1.0
    return ParameterStore(block, SharedAdam(), 0, upkeep)


def spec_of(**settings) -> RunSpec:
    config = Config.from_flat({"workers": 1, "envs_per_worker": 2, "hidden": (16,), **settings})
    spec = EnvSpec(ChainEnv)
    info = make.probe(spec)
    return RunSpec(config, spec, info, architecture.choose(config, info))


# Weight decay


def test_decay_and_epsilon_are_those_of_adamw() -> None:
    """Against torch's, whose count of updates and whose theta are its own."""
    run_spec = spec_of(weight_decay=0.1, adam_eps=1e-3)
    optimizer, store = run_spec.optimizer(), store_of(run_spec.upkeep)
    store.optimizer = optimizer
    theta = torch.nn.Parameter(torch.linspace(-1, 1, SIZE))
    store.theta.copy_(theta.detach())
    reference = torch.optim.AdamW([theta], lr=0.01, eps=1e-3, weight_decay=0.1)
    for k in range(5):
        theta.grad = torch.sin(torch.arange(SIZE) + k)
        store.push(theta.grad.clone(), 0.01)
        reference.step()
    torch.testing.assert_close(store.theta, theta.detach())


def test_running_moments_do_not_decay() -> None:
    store = store_of(Upkeep(weight_decay=0.5), moments=3)
    store.theta.fill_(1.0)
    store.push(torch.zeros(SIZE), 0.1)
    assert store.theta[:6].eq(1.0).all() and torch.allclose(store.theta[6:], torch.tensor(0.95))


@pytest.mark.parametrize("average", ["gradients", "params"])
def test_decay_acts_in_synchronous_rounds_too(tmp_path, average) -> None:
    """Where a worker updates a slice of the parameters, or parameters of its own."""
    settings = {"mode": "sync", "workers": 2, "steps": 600, "sync_average": average}
    settings |= {"optimizer": "momentum", "lr_schedule": "constant", "lr": 1e-3}
    sizes = []
    for decay in (0.0, 1.0):
        tensors = last(train(tmp_path, **settings, weight_decay=decay)).tensors["model"]
        sizes.append(sum(float(np.abs(t).sum()) for t in tensors.values()))
    updates = 600 / (2 * 3 * 5)
    assert sizes[1] / sizes[0] == pytest.approx((1 - 1e-3) ** updates, rel=0.01)


# The average


def test_the_average_moves_by_its_time_constant_however_often_it_is_updated() -> None:
    often, rarely = (store_of(Upkeep(average_steps=400)) for _ in range(2))
    for store in (often, rarely):
        store.begin(0)
        store.theta.fill_(1.0)
    for step in (20, 40, 60, 100):
        often.slot[layout.STEPS] = step
        assert often.due and not often.keep_up() and not often.due
    rarely.slot[layout.STEPS] = 100
    rarely.keep_up()
    expected = torch.full((SIZE,), 1 - math.exp(-100 / 400))
    for store in (often, rarely):
        torch.testing.assert_close(store.average.newest, expected)
        assert store.average.step == 100


def test_the_target_network_is_made_of_the_average_where_that_is_asked_for() -> None:
    for averages_target in (False, True):
        upkeep = Upkeep(target_every=50, average_steps=40, averages_target=averages_target)
        store = store_of(upkeep)
        store.begin(0)
        store.theta.fill_(1.0)
        store.slot[layout.STEPS] = 50
        assert store.keep_up()
        expected = store.average.newest if averages_target else store.theta
        assert torch.equal(store.target.newest, expected) and (expected > 0).all()


def test_a_worker_acts_by_the_average_and_learns_the_newest() -> None:
    run_spec = spec_of(**AVERAGE, act_by_average=True, epsilon_start=0.0, epsilon_final=0.0)
    store, network = run_spec.alone()
    learner = Learner(run_spec, store, 0)
    learner.reset(0, 0)
    average = torch.randn(len(network.vector))
    store.average.publish(average, 10)
    learner.update(10**6)
    assert torch.equal(learner.actor.vector, average)
    acting = FlatNetwork(run_spec.network(), gradient=False)
    acting.vector.copy_(average)
    rollout = learner.collector.collect(learner.epsilon(0), 10**6, lambda count: None)
    q_values = acting.net(torch.from_numpy(rollout.obs[-1]))[0].q_values.numpy()
    np.testing.assert_allclose(rollout.q_values[-1], q_values, rtol=1e-5)
    assert not torch.equal(learner.network.vector, average)
    learner.close()


def test_the_average_is_what_is_scored_and_what_an_agent_plays_by(tmp_path) -> None:
    run_spec = spec_of(**AVERAGE, score_by_average=True, eval_episodes=2)
    store, _ = run_spec.alone()
    store.average.publish(torch.full_like(store.theta, 0.5), 7)
    evaluator = Evaluator(run_spec, store, None)
    list(evaluator.evaluate())
    assert evaluator.network.vector.eq(0.5).all()
    evaluator.close()

    outcome = train(tmp_path, steps=2_500, **AVERAGE, score_by_average=True)
    for which in ("latest", "best"):
        path = checkpoint.resolve(outcome.run, best=which == "best")
        found = checkpoint.load(path).tensors["average"]
        played = AsyncDQN.load(outcome.run, which=which).network.net.state_dict()
        for name, tensor in found.items():
            np.testing.assert_array_equal(played[name].numpy(), tensor)
    model = last(outcome).tensors["model"]
    assert not np.array_equal(
        last(outcome).tensors["average"]["head.q.weight"], model["head.q.weight"]
    )


@pytest.mark.parametrize(
    "options",
    [
        {**AVERAGE, "score_by_average": True, "act_by_average": True, "target_by_average": True},
        {**RESETS},
        {"target_layers": "last", "weight_decay": 0.01},
        {"algorithm": "q-lambda", "lam_start": 0.95, "gamma_start": 0.9, "horizon_steps": 2_000},
        {"replay": "uniform", "samples_per_step": 3.3, "replay_start": 100, "batch_size": 8},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, options) -> None:
    whole = train(tmp_path / "whole", steps=3_000, **options)
    broken = train(tmp_path / "broken", steps=3_000, **options)
    middle = sorted((broken.run / "checkpoints").glob("step-*"))[1]
    assert checkpoint.load(middle).step < 3_000
    again = training.train(*resolve({"resume": str(middle), "quiet": True}))
    assert_same_tensors(last(whole), last(again))
    without = last(train(tmp_path / "without", steps=3_000))
    name = "head.q.weight"
    assert not np.array_equal(without.tensors["model"][name], last(whole).tensors["model"][name])


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_upkeep_is_done_with_processes(tmp_path, mode) -> None:
    options = {**AVERAGE, "score_by_average": True, "act_by_average": True, **RESETS}
    outcome = train(tmp_path, mode=mode, steps=6_000, **options)
    result = json.loads((outcome.run / "result.json").read_text())
    average, model = (last(outcome).tensors[stem] for stem in ("average", "model"))
    assert result["status"] == "budget reached" or result["steps"] == 6_000
    assert not np.array_equal(average["head.q.weight"], model["head.q.weight"])


# Resets


def test_a_reset_begins_the_head_anew_and_draws_the_rest_part_of_the_way() -> None:
    run_spec = spec_of(**RESETS, normalize_observations=True)
    store, network = run_spec.alone()
    before = torch.full_like(store.theta, 3.0)
    store.theta.copy_(before)
    store.states.fill_(1.0)
    store.slot[layout.STEPS] = 999
    assert not store.due
    store.slot[layout.STEPS] = 2_100
    assert store.due and store.keep_up() and not store.due
    fresh = run_spec.upkeep.resets.fresh(2)
    first, head = 2 * run_spec.normalized_inputs, size_before_head(network.net)
    assert 0 < first < head < len(fresh)
    assert store.theta[:first].eq(3.0).all()
    torch.testing.assert_close(store.theta[first:head], 0.75 * 3.0 + 0.25 * fresh[first:head])
    size = sum(p.numel() for p in network.net.parameters())
    torch.testing.assert_close(store.theta[head:size], fresh[head:size])
    assert torch.equal(store.target.newest, store.theta)
    assert store.states[0, 0].eq(0).all() and store.states[0, 1].eq(1).all()
    assert not torch.equal(fresh, run_spec.upkeep.resets.fresh(3))
    assert torch.equal(fresh, run_spec.upkeep.resets.fresh(2))


# A target network of the last layer


def test_the_target_network_shares_all_but_the_head() -> None:
    bench = Bench(target_layers="last", target_sync_steps=1_000_000, lr=0.05)
    first = bench.learner.target.vector.clone()
    for _ in range(3):
        bench.update()
    bench.learner._pull()
    network, target = bench.learner.network, bench.learner.target
    head = size_before_head(network.net)
    assert torch.equal(target.vector[:head], network.vector[:head])
    assert torch.equal(target.vector[head:], first[head:])
    assert not torch.equal(target.vector[head:], network.vector[head:])
