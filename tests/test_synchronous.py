"""Synchronous mode: what a round does to the vectors; real runs, reproducible and survivable."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scripted_envs import ChainEnv

from async_dqn.config.config import Config
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import SHARED_OUT, STEPS, UPDATES, WORKERS_STOP
from async_dqn.parameters.optimizers import SharedAdam
from async_dqn.parameters.sync_store import DONE, GIVEN, PRESENT, SynchronousStore, round_sections
from async_dqn.parameters.upkeep import Upkeep
from async_dqn.runs import checkpoint
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import RunSpec
from runs import SMALL, Here, send

SIZE, LR = 48, 0.5


class Descent:
    """theta -= lr * gradient; the state counts how often it was used."""

    rows, shared = 1, True

    def step(self, theta, gradient, state, lr, updates):
        theta.add_(gradient, alpha=-lr)
        state[0].add_(1.0)


class Group:
    """The stores of all workers on one block; each method acts for all of them at once."""

    def __init__(self, workers: int, optimizer=Descent, sync: int | None = None, every=None):
        rows = optimizer.rows
        parts = 1 if every is None else 1 + rows
        table = layout.sections(workers, SIZE, rows)
        self.block = SharedBlock((*table, *round_sections(workers, SIZE, parts)))
        self.block["multipliers"][:] = 1.0
        self.block["control"][SHARED_OUT] = 1
        self.block["theta"][:] = torch.linspace(-1, 1, SIZE).numpy()
        self.arguments = optimizer, sync, every
        self.stores = [self.store(slot) for slot in range(workers)]
        self.threads = ThreadPoolExecutor(workers)

    def store(self, slot: int) -> SynchronousStore:
        optimizer, sync, every = self.arguments
        return SynchronousStore(self.block, optimizer(), slot, every, Upkeep(target_every=sync))

    def push(self, *gradients: torch.Tensor | None, lr: float = LR) -> None:
        given = zip(self.stores, gradients, strict=True)
        jobs = [self.threads.submit(store.push, gradient, lr) for store, gradient in given]
        for job in jobs:
            job.result(timeout=20)

    @property
    def theta(self) -> torch.Tensor:
        return self.stores[0].theta


def gradients(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, SIZE, generator=generator))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_round_applies_the_mean_gradient_once(workers: int) -> None:
    group = Group(workers)
    expected = group.theta.clone()
    for k in range(4):
        given = gradients(workers, k)
        group.push(*given)
        total = given[0].clone()
        for gradient in given[1:]:
            total += gradient
        expected -= LR * (total / workers)
        assert torch.equal(group.theta, expected)  # the order of the sum is fixed
    assert group.stores[0].updates == 4
    assert (group.stores[0].state[0] == 4).all()  # every slice once a round


def test_adam_counts_rounds_not_workers() -> None:
    group, alone = Group(3, SharedAdam), Group(1, SharedAdam)
    for k in range(5):
        (gradient,) = gradients(1, k)
        group.push(gradient, gradient, gradient, lr=1e-2)
        alone.push(gradient, lr=1e-2)
    torch.testing.assert_close(group.theta, alone.theta, rtol=1e-6, atol=1e-7)


def test_who_has_nothing_to_give_is_left_out_of_the_mean() -> None:
    group = Group(3)
    before = group.theta.clone()
    first, _, third = gradients(3)
    group.push(first, None, third)
    assert torch.equal(group.theta, before - LR * ((first + third) / 2))
    before = group.theta.clone()
    group.push(None, None, None)
    assert torch.equal(group.theta, before) and group.stores[0].updates == 1


def test_an_idle_worker_still_updates_its_slice() -> None:
    group = Group(2)
    before = group.theta.clone()
    (gradient,) = gradients(1)
    jobs = [
        group.threads.submit(group.stores[0].push, gradient, LR),
        group.threads.submit(group.stores[1].idle, LR),
    ]
    for job in jobs:
        job.result(timeout=20)
    assert torch.equal(group.theta, before - LR * gradient)


def test_parameters_and_state_are_averaged_every_k_updates() -> None:
    group = Group(2, every=3)
    start = group.theta.clone()
    own = [start.clone(), start.clone()]
    for k in range(6):
        given = gradients(2, k)
        group.push(*given)
        own = [theta - LR * gradient for theta, gradient in zip(own, given)]
        if k % 3 == 2:
            own = [(own[0] + own[1]) / 2] * 2
            torch.testing.assert_close(group.theta, own[0], rtol=1e-6, atol=1e-6)
        for store, theta in zip(group.stores, own):
            network = FlatNetwork(torch.nn.Linear(SIZE - 1, 1))
            store.pull(network)
            torch.testing.assert_close(network.vector, theta, rtol=1e-6, atol=1e-6)
    assert (group.stores[0].state[0] == 6).all()


def test_steps_stand_still_between_rounds_and_the_target_is_out_before_the_next_begins() -> None:
    group = Group(2, sync=10)
    network = FlatNetwork(torch.nn.Linear(SIZE - 1, 1), gradient=False)
    seen = []
    for k in range(5):
        for slot in range(2):
            group.block["slots"][slot, STEPS] += 2
        assert [store.steps for store in group.stores] == [4 * k, 4 * k]
        group.push(*gradients(2, k))
        pulled = [store.target.pull(network.vector) for store in group.stores]
        if all(pulled):
            assert torch.equal(network.vector, group.theta)
            seen.append(group.stores[0].target.step)
    assert seen == [12, 20]


def test_a_worker_that_died_in_a_round_is_succeeded_in_that_round() -> None:
    group = Group(2)
    before = group.theta.clone()
    first, second = gradients(2)
    dead = group.stores[1]
    dead._part[0].copy_(second)  # it gave its part, and died before it had worked on its slice
    dead._own[PRESENT], dead._own[GIVEN] = 1, 1
    job = group.threads.submit(group.stores[0].push, first, LR)
    group.stores[1] = group.store(1)
    later = group.threads.submit(group.stores[1].push, first, LR)
    job.result(timeout=20)
    assert dead._own[DONE] >= 1
    torch.testing.assert_close(group.theta, before - LR * ((first + second) / 2))
    group.stores[0].push(first, LR)
    later.result(timeout=20)
    torch.testing.assert_close(group.theta, before - LR * ((first + second) / 2 + first))


def test_all_leave_after_the_same_round() -> None:
    group = Group(3)
    group.push(*gradients(3))
    assert not any(store.leaving for store in group.stores)
    group.block["control"][WORKERS_STOP] = 1
    assert not any(store.leaving for store in group.stores)  # one more round, together
    group.push(*gradients(3))
    assert all(store.leaving for store in group.stores)


def test_who_waits_for_the_dead_leaves_when_told_to_stop() -> None:
    group = Group(2)
    before = group.theta.clone()
    group.block["control"][WORKERS_STOP] = 1
    group.stores[0].push(gradients(1)[0], LR)
    assert group.stores[0].leaving and torch.equal(group.theta, before)


# The same updates in every mode


def trained(mode: str, workers: int, keep_target: bool, **settings) -> torch.Tensor:
    """theta after 50 updates of a learner, whose target is synchronised at once."""
    config = Config.from_flat(
        {
            "mode": mode,
            "workers": workers,
            "envs_per_worker": 3,
            "rollout_length": 4,
            "hidden": (16,),
            "target_sync_steps": 60,
            "seed": 3,
            **settings,
        }
    )
    spec = EnvSpec(ChainEnv, {}, (), 50)
    info = make.probe(spec)
    run_spec = RunSpec(config, spec, info, architecture.choose(config, info))
    torch.manual_seed(0)
    network = FlatNetwork(run_spec.network())
    block = SharedBlock(run_spec.sections(len(network.vector)))
    block["multipliers"][:] = 1.0
    store = run_spec.store(block, 0)
    store.theta.copy_(network.vector)
    store.begin(0)
    learner = Learner(run_spec, run_spec.store(block, 0), 0)
    learner.reset(0, 0)
    for _ in range(50):
        learner.update(10**6)
        if keep_target and store.total(STEPS) // 60 > store.target.step // 60:
            store.sync_target(store.total(STEPS))
    assert store.updates == 50 and store.target.sequence == 50 * 12 // 60 + 1
    return store.theta.clone()


@pytest.mark.parametrize("algorithm", ["n-step-q", "one-step-sarsa", "q-lambda"])
def test_one_worker_makes_the_same_updates_in_every_mode(algorithm: str) -> None:
    alone = trained("serial", 1, True, algorithm=algorithm)
    assert torch.equal(alone, trained("async", 1, True, algorithm=algorithm))
    assert torch.equal(alone, trained("sync", 1, False, algorithm=algorithm))


# Real runs


SYNC = (*SMALL, "--mode", "sync", "--eval-episodes", "5", "--quiet")
SYNC += ("--rollout-length", "5", "--epochs", "1")
SCALED = ("--normalize-observations", "--scale-rewards")


def final_model(trainer: Here) -> dict:
    code, _, err = trainer.finish()
    assert code == 0, err
    return checkpoint.load(checkpoint.resolve(trainer.run, fall_back=False)).tensors["model"]


LOCAL_SGD = ("--sync-average", "params", "--sync-every", "4")


@pytest.mark.parametrize("average", [SCALED, pytest.param(LOCAL_SGD, marks=pytest.mark.slow)])
def test_a_run_is_reproducible_and_meets_its_budget(tmp_path, average) -> None:
    trainers = [Here(tmp_path / name, *SYNC, *average, "--steps", "2001") for name in "ab"]
    models = [final_model(trainer) for trainer in trainers]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        assert (tensor == models[1][name]).all(), name
    result = trainers[0].result()
    assert result["steps"] == 2001
    assert 2001 / 40 <= result["updates"] <= 2001 / 40 * 1.2  # CartPole's resets take a step each


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(tmp_path, blow) -> None:
    short = ("--steps", "6000", "--hang-timeout", "1")
    trainer = Here(tmp_path, *SYNC, *short, strike=send(blow, "worker", 1))
    code, _, err = trainer.finish()
    assert code == 0, err
    assert (trainer.result()["steps"], trainer.result()["restarts"]) == (6000, 1)
    (death,) = (event for event in trainer.events() if event["event"] == "death")
    assert ("no sign of life" in death["cause"]) == (blow is signal.SIGSTOP)


def test_a_sync_run_resumes(tmp_path) -> None:
    trainer = Here(tmp_path, *SYNC, "--steps", "1000")
    assert trainer.finish()[0] == 0
    again = Here(tmp_path, "--resume", str(trainer.run), "--steps", "2000", "--quiet")
    code, _, err = again.finish()
    assert code == 0, err
    assert again.result()["steps"] == 2000 and again.result()["updates"] > 2000 / 40 / 2


def test_the_updates_of_all_workers_are_one() -> None:
    group = Group(2)
    group.push(*gradients(2))
    assert group.block["slots"][:2, UPDATES].tolist() == [1, 0]
