"""The actor-learner on real environments and a real block: what it pushes and what it must not."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scripted_envs import ChainEnv, FaultyEnv, NumberedEnv

from async_dqn.config.config import Config
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import (
    ENV_ERRORS,
    EPISODES,
    HEARTBEAT_NS,
    LEARNING,
    PHASE,
    SKIPPED,
    STEPS,
    UPDATES,
    padded_size,
)
from async_dqn.parameters.optimizers import Optimizer, SharedAdam
from async_dqn.parameters.store import ParameterStore
from async_dqn.workers.learner import Learner
from async_dqn.workers.records import Statistics
from async_dqn.workers.run_spec import RunSpec

SETTINGS = {"workers": 2, "envs_per_worker": 2, "rollout_length": 4, "hidden": (16,)}


class Descent:
    """Plain gradient descent: theta moves by -lr * gradient, so that a test can read it."""

    rows, shared = 0, True

    def step(self, theta, gradient, state, lr, updates):
        theta.add_(gradient, alpha=-lr)


class Bench:
    """One learner and its store."""

    def __init__(
        self,
        env: str | Callable[..., gymnasium.Env] = ChainEnv,
        kwargs: dict[str, Any] | None = None,
        optimizer: Optimizer | None = None,
        imports: tuple[str, ...] = (),
        **settings: Any,
    ):
        torch.manual_seed(0)
        self.config = Config.from_flat(SETTINGS | settings)
        spec = EnvSpec(env, kwargs or {}, imports, 50)
        info = make.probe(EnvSpec(ChainEnv) if env is FaultyEnv else spec)
        structure = architecture.choose(self.config, info)
        self.run_spec = RunSpec(self.config, spec, info, structure)
        self.optimizer = optimizer or Descent()
        net = self.run_spec.network()
        workers = self.config.parallel.workers
        table = layout.sections(workers, padded_size(net), self.optimizer.rows)
        self.block = SharedBlock(table)
        self.block["multipliers"][:] = 1.0
        self.store = ParameterStore(self.block, self.optimizer, 0)
        self.store.theta.copy_(FlatNetwork(net).vector)
        self.store.begin(0)
        self.learner = Learner(self.run_spec, self.store, 0)
        self.learner.reset(0, 0)

    def slot(self, word: int) -> int:
        return int(self.store.slot[word])

    def update(self, budget: int = 10**6) -> torch.Tensor:
        """One update; returns how theta moved."""
        before = self.store.theta.clone()
        self.learner.update(budget)
        return self.store.theta - before


@pytest.mark.parametrize("sync", [None, 100])
@pytest.mark.parametrize("algorithm", ["one-step-q", "n-step-q", "q-lambda"])
def test_an_update_moves_theta_by_the_gradient_of_the_loss_on_its_rollout(algorithm, sync) -> None:
    bench = Bench(algorithm=algorithm, target_sync_steps=sync, lr=0.5, lr_schedule="constant")
    rollouts = []
    collect = bench.learner.collector.collect

    def collect_and_keep(*arguments):
        rollouts.append(collect(*arguments))
        return rollouts[-1]

    bench.learner.collector.collect = collect_and_keep
    for _ in range(3):
        net, target = (bench.run_spec.network() for _ in range(2))
        for module, vector in ((net, bench.store.theta), (target, bench.block["target"][1])):
            torch.nn.utils.vector_to_parameters(
                torch.as_tensor(vector).clone(), module.parameters()
            )
        moved = bench.update()
        bench.learner.algorithm.loss(net, target if sync else None, rollouts[-1]).backward()
        gradient = [parameter.grad for parameter in net.parameters()]
        expected = -0.5 * torch.cat([part.flatten() for part in gradient])
        torch.testing.assert_close(moved[: len(expected)], expected, rtol=1e-3, atol=1e-6)
        assert moved.any()


def test_an_update_counts_steps_updates_and_episodes_in_its_own_slot() -> None:
    kwargs = {"lengths": (2,), "ends": ("truncated",)}
    bench = Bench(NumberedEnv, kwargs)
    for k in range(1, 4):
        bench.update()
        assert (bench.slot(STEPS), bench.slot(UPDATES), bench.slot(EPISODES)) == (8 * k, k, 4 * k)
    assert bench.slot(PHASE) == LEARNING and bench.slot(HEARTBEAT_NS) > 0
    assert not bench.block["slots"][1:].any()
    assert (bench.store.steps, bench.store.updates) == (24, 3)
    record = bench.learner.record()
    assert record["updates"] == 3 and record["episodes"] == [(2.0, 2)] * 12
    assert record["staleness"] == 0 and record["grad_norm"] > 0
    bench.learner.clear()
    assert bench.learner.record() == {**vars(Statistics()), "episodes": [], "fault": "", "info": {}}


def test_the_budget_is_met_to_the_step() -> None:
    bench = Bench()
    bench.update(budget=3)
    assert bench.slot(STEPS) == 3 and bench.slot(UPDATES) == 1
    bench.update(budget=8)
    assert bench.slot(STEPS) == 11


@pytest.mark.parametrize("optimizer", [Descent(), SharedAdam()])
def test_a_non_finite_gradient_changes_nothing_but_the_count_of_skipped_updates(optimizer) -> None:
    rewards = (*(1.0,) * 5, 3e38, *(1.0,) * 20)
    bench = Bench(NumberedEnv, {"lengths": (26,), "rewards": rewards}, optimizer)
    assert bench.update().any()  # steps 1 to 4 are sound
    before = [vector.clone() for vector in bench.store.state]
    assert not bench.update().any()  # the square of step 6 is beyond float32
    assert all(map(torch.equal, bench.store.state, before))
    assert (bench.slot(SKIPPED), bench.slot(UPDATES), bench.slot(STEPS)) == (1, 1, 16)
    assert bench.update().any() and bench.update().isfinite().all()  # and it goes on
    assert (bench.slot(SKIPPED), bench.slot(UPDATES)) == (1, 3)
    assert bench.learner.record()["updates"] == 3


def test_what_an_environment_gives_that_is_not_finite_never_reaches_a_gradient() -> None:
    bench = Bench(FaultyEnv, {"fault": "nan", "at_step": 6})
    for _ in range(4):
        assert bench.update().isfinite().all()
    assert bench.slot(SKIPPED) == 0 and bench.slot(UPDATES) == 4
    broken = bench.slot(ENV_ERRORS)
    assert broken >= 2  # both environments, each built anew
    assert bench.slot(STEPS) == 4 * 8 - broken  # a broken step counts for nothing


@pytest.mark.parametrize(("rewards", "clipped"), [((1e6,), True), ((1e-3,), False)])
def test_a_push_moves_theta_by_at_most_lr_times_max_grad_norm(rewards, clipped) -> None:
    bench = Bench(
        NumberedEnv,
        {"rewards": rewards, "ends": ("terminated",)},
        lr=0.25,
        lr_schedule="constant",
        max_grad_norm=2.0,
        target_sync_steps=None,
    )
    moved = bench.update().norm().item()
    norm = bench.learner.record()["grad_norm"]  # reported before clipping
    assert (norm > 2.0) == clipped
    assert moved == pytest.approx(0.25 * min(norm, 2.0), rel=1e-3)


def test_a_rollout_of_weight_0_alone_pushes_nothing_and_moves_no_moment() -> None:
    """Episodes of one step in NEXT_STEP mode: every second step is a dummy."""
    bench = Bench(
        "Scripted/NumberedNextStep-v0",
        {"lengths": (1,)},
        SharedAdam(),
        ("scripted_ids",),
        rollout_length=1,
    )
    for k in range(1, 5):
        assert bench.update().any()
        before = [vector.clone() for vector in bench.store.state]
        assert not bench.update().any()
        assert all(map(torch.equal, bench.store.state, before))
        assert (bench.slot(UPDATES), bench.slot(STEPS), bench.slot(SKIPPED)) == (k, 2 * k, 0)


def test_the_learning_rate_falls_to_0_over_the_budget_of_global_steps() -> None:
    bench = Bench(lr=0.5, lr_schedule="linear", steps=1000)
    rates = [bench.run_spec.learning_rate(step) for step in (0, 250, 1000, 2000)]
    assert rates == pytest.approx([0.5, 0.375, 0.0, 0.0])
    bench.block["slots"][1, STEPS] = 1000  # steps of others count
    assert not bench.update().any()
    assert bench.slot(UPDATES) == 1


def test_epsilon_follows_the_global_step() -> None:
    bench = Bench(exploration="epsilon", epsilon_final=0.1, epsilon_steps=100)
    np.testing.assert_allclose(bench.learner.epsilon(0), [1.0, 1.0])
    np.testing.assert_allclose(bench.learner.epsilon(50), [0.55, 0.55])


def test_a_new_target_is_used_from_the_next_rollout_on() -> None:
    bench = Bench()
    bench.update()
    old = bench.learner.target.vector.clone()
    bench.store.theta += 1.0
    bench.store.sync_target(100)
    assert torch.equal(bench.learner.target.vector, old)
    bench.update()
    torch.testing.assert_close(
        bench.learner.target.vector, torch.as_tensor(bench.block["target"][0])
    )
    assert not torch.equal(bench.learner.target.vector, old)


def test_a_worker_that_starts_late_begins_with_the_parameters_and_the_target_of_now() -> None:
    bench = Bench(target_sync_steps=100)
    for _ in range(3):
        bench.update()
    bench.store.sync_target(int(bench.store.steps))
    at_the_target = bench.store.theta.clone()
    bench.update()
    late = Learner(bench.run_spec, ParameterStore(bench.block, bench.optimizer, 1), 1)
    late.reset(1, 0)
    assert torch.equal(late.network.vector, bench.store.theta)
    assert torch.equal(late.target.vector, at_the_target)
    assert not torch.equal(late.network.vector, late.target.vector)


def test_the_same_stream_gives_the_same_rollout_and_another_one_does_not() -> None:
    """Serial mode: everything random follows from the seed and the stream."""

    def actions(*stream: int) -> np.ndarray:
        bench = Bench(NumberedEnv, {"lengths": (9,)}, lr=1e-9)
        bench.learner.reset(*stream)
        for _ in range(5):
            bench.update()
        return np.concatenate([env.taken for env in bench.learner.collector.envs.vector.envs])

    np.testing.assert_array_equal(actions(0, 1), actions(0, 1))
    assert (actions(0, 1) != actions(1, 1)).any() and (actions(0, 1) != actions(0, 2)).any()


def test_seeds_of_workers_incarnations_and_evaluation_are_all_different() -> None:
    run_spec = Bench().run_spec
    keys = [(branch, w, k) for branch in range(3) for w in range(4) for k in range(3)]
    seeds = [seed for key in keys for seed in run_spec.seeds(16, *key)]
    assert len(set(seeds)) == len(seeds)
    assert run_spec.seeds(16, 0, 1, 2) == run_spec.seeds(16, 0, 1, 2)


def test_statistics_are_means_per_update_and_the_largest_staleness() -> None:
    statistics = Statistics()
    assert statistics.means() == {}
    statistics.add(loss=1.0, grad_norm=2.0, q_mean=3.0, staleness=4)
    other = Statistics()
    other.add(loss=3.0, grad_norm=4.0, q_mean=5.0, staleness=2)
    statistics.merge(vars(other))
    assert statistics.means() == {
        "train/loss": 2.0,
        "train/grad_norm": 3.0,
        "train/q_mean": 4.0,
        "async/staleness_mean": 3.0,
        "async/staleness_max": 4,
    }


# Replay, noise, recurrent states


REPLAY = {"replay": "prioritized", "replay_capacity": 400, "replay_start": 24, "batch_size": 6}


def test_nothing_is_learned_from_replay_before_its_start_in_global_steps() -> None:
    bench = Bench(**REPLAY, epochs=3)  # 8 steps an update
    moves = [bool(bench.update().any()) for _ in range(5)]
    assert moves == [False, False, False, True, True]
    assert bench.slot(UPDATES) == 2 * 3 and bench.learner.record()["updates"] == 6


def test_a_worker_whose_shard_is_empty_learns_when_it_has_its_share() -> None:
    """A restarted worker, or a resumed run: others, or an earlier session, took the steps."""
    bench = Bench(**REPLAY, workers=2)
    bench.block["slots"][1, STEPS] = 1000
    moves = [bool(bench.update().any()) for _ in range(4)]  # 8 steps each, of 24 / 2
    assert moves == [False, True, True, True]
    small = Bench(**REPLAY | {"replay_capacity": 60, "replay_start": 60}, workers=2)
    small.block["slots"][1, STEPS] = 1000
    moves = [bool(small.update().any()) for _ in range(5)]
    assert moves[0] is False and moves[-1] is True, "a shard that is full has all it can"


def test_every_pass_teaches_each_environment_once_in_minibatches() -> None:
    bench = Bench(envs_per_worker=5, epochs=2, minibatches=3, algorithm="q-lambda")
    collector, algorithm, batches = bench.learner.collector, bench.learner.algorithm, []

    class Kept:
        act, fix_targets = algorithm.act, algorithm.fix_targets

        def loss(self, online, target, rollout):
            batches.append(rollout)
            return algorithm.loss(online, target, rollout)

    bench.learner.algorithm = Kept()
    assert bench.update().any()
    assert bench.slot(UPDATES) == 2 * 3 == len(batches)
    whole = collector._actions[:4].T.tolist()
    for k in (0, 3):
        assert {len(batch.rewards[0]) for batch in batches[k : k + 3]} == {1, 2}
        taken = [row for batch in batches[k : k + 3] for row in batch.actions[:4].T.tolist()]
        assert sorted(taken) == sorted(whole)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "q-lambda", "trace": "watkins"},
        {"algorithm": "q-lambda", "munchausen": True},
        {"algorithm": "n-step-q", "distributional": "quantile"},
    ],
)
def test_passes_share_targets_only_where_each_would_compute_the_same(settings, end) -> None:
    """After a truncation they do not: its last observation was never acted on."""
    kwargs, moved, shared = {"lengths": (3,), "ends": (end,)}, [], []
    asks_network = "munchausen" in settings or "distributional" in settings
    for shares in (True, False):
        bench = Bench(
            NumberedEnv, kwargs, **settings, epochs=2, minibatches=2, target_sync_steps=None
        )
        algorithm = bench.learner.algorithm

        def fix_targets(rollout, algorithm=algorithm, shares=shares):
            if shares:
                type(algorithm).fix_targets(algorithm, rollout)
                shared.append(rollout.targets is not None)

        vars(algorithm)["fix_targets"] = fix_targets
        moved.append([bench.update() for _ in range(3)])
    assert shared == [not asks_network and end == "terminated"] * 3
    for with_sharing, without in zip(*moved, strict=True):
        assert with_sharing.any() and torch.equal(with_sharing, without)


def test_moments_that_fade_away_become_zero_not_denormal() -> None:
    """A denormal times 0.9 never gets to 0, and makes every update slow."""
    bench = Bench(optimizer=SharedAdam())
    moments = bench.store.states[0]
    moments.fill_(1e-37)
    for _ in range(100):
        bench.store.push(torch.zeros_like(bench.store.theta), 1e-3)
    assert not moments[0].any()


def test_what_was_drawn_gets_the_priority_of_its_error() -> None:
    bench = Bench(**REPLAY, algorithm="one-step-q", epsilon_final=0.5)
    shard, losses = bench.learner.shard, []
    algorithm = bench.learner.algorithm

    class Kept:
        act = algorithm.act

        def loss(self, *arguments):
            losses.append(algorithm.loss(*arguments))
            return losses[-1]

    bench.learner.algorithm = Kept()
    for _ in range(6):
        bench.update()
        if losses:
            errors = losses[-1].errors
            expected = dict(zip(shard._drawn.tolist(), (errors + 1e-6) ** np.float32(0.6)))
            for leaf, priority in expected.items():
                assert shard._tree.masses[leaf] == pytest.approx(priority, rel=1e-5)
    assert len(losses) == 3 and len(losses[0].errors) == 6


def test_after_a_reset_no_segment_of_replay_runs_across() -> None:
    bench = Bench(NumberedEnv, {"lengths": (50,)}, **REPLAY)
    for stream in range(6):
        bench.learner.reset(0, stream)
        bench.update()
        bench.update()
    for _ in range(30):
        obs = bench.learner.shard.sample(np.random.default_rng(0), 1.0).obs
        assert (obs[..., 0] == obs[:1, :, 0]).all()  # the seed tag
        assert (np.diff(obs[..., 2], axis=0) == 1).all()


def test_noise_is_drawn_at_every_pull_and_is_the_same_for_acting_and_learning() -> None:
    bench = Bench(noisy=True, exploration="noisy", target_sync_steps=100)
    learner, seen = bench.learner, []
    loss = learner.algorithm.loss

    class Kept:
        act = learner.algorithm.act

        def loss(self, online, target, rollout):
            layers = (online.torso[0], online.head.q, target.torso[0], target.head.q)
            seen.append([layer.noise_out.clone() for layer in layers])
            with torch.no_grad():
                q_values = online(torch.from_numpy(rollout.obs[1:-1].reshape(-1, 5)))[0].q_values
            np.testing.assert_allclose(
                q_values.numpy().reshape(3, 2, 2), rollout.q_values[1:-1], rtol=1e-4, atol=1e-6
            )
            return loss(online, target, rollout)

    learner.algorithm = Kept()
    for _ in range(4):
        bench.update()
    draws = torch.stack([torch.cat([part.flatten() for part in one]) for one in seen])
    assert all(len(layer) == 2 for layer in seen[0])  # one row per environment
    assert len({tuple(row.tolist()) for row in draws}) == 4
    assert not torch.equal(seen[0][0], seen[0][2]), "the target network has the same noise"
    assert not torch.equal(seen[0][0][0], seen[0][0][1]), "both environments have the same noise"


def test_a3c_explores_by_its_policy_alone() -> None:
    bench = Bench(algorithm="a3c")
    assert not bench.learner.epsilon(0).any() and not bench.learner.epsilon(10**6).any()
    assert bench.update().any()


def test_the_recurrent_state_starts_anew_with_the_episodes_of_a_reset() -> None:
    bench = Bench(NumberedEnv, {"lengths": (50,)}, recurrent=True)
    states = []
    collect = bench.learner.collector.collect

    def collect_and_keep(*arguments):
        rollout = collect(*arguments)
        states.append(rollout.state)
        return rollout

    bench.learner.collector.collect = collect_and_keep
    for stream in range(2):
        bench.learner.reset(0, stream)
        assert bench.update().any() and bench.update().any()
    kept = [any(part.any() for part in state) for state in states]
    assert kept == [False, True, False, True]
