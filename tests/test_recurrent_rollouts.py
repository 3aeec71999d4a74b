"""Recurrent networks in the collector: the state along the episodes, against steps by hand."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scripted_envs import NotFiniteEnv
from test_collector import MODES, PAIR, SETTINGS, make_batch

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import behaviour_next_q, forward_next, forward_rollout
from async_dqn.envs.make import EnvSpec, make_vector
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork, State
from async_dqn.workers.collector import Collector

LENGTH = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def network(seed: int = 0, noisy: bool = False) -> QNetwork:
    torch.manual_seed(seed)
    recurrent = {"recurrent": True, "noisy": noisy}
    net = QNetwork(Architecture("mlp", (3,), 0.1, 2, (8,), True, False, **recurrent))
    with torch.no_grad():  # away from the small beginning, so that Q-values tell states apart
        for parameter in net.head.parameters():
            parameter.mul_(100.0)
    return net


def make_collector(batch, net: QNetwork) -> Collector:
    collector = Collector(batch, QLearning(0.0), net, LENGTH, SETTINGS, 2)
    epsilon = np.full(batch.num_envs, 0.5, np.float32)
    collector.reset(range(batch.num_envs), epsilon, np.random.default_rng(0))
    return collector


def collect(collector: Collector, budget: int = 10**9) -> Rollout:
    """The arrays are overwritten by the next rollout."""
    epsilon = np.full(collector.envs.num_envs, 0.5, np.float32)
    return collector.collect(epsilon, budget, lambda count: None)


@torch.no_grad()
def step(net: QNetwork, obs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """Q-values [B, A] and state after one observation of every environment, one by one."""
    rows = [
        net(torch.from_numpy(obs[b][None].copy()), tuple(part[b][None] for part in state))
        for b in range(len(obs))
    ]
    q_values = np.concatenate([output.q_values.numpy() for output, _ in rows])
    return q_values, tuple(torch.cat([after[k] for _, after in rows]) for k in (0, 1))


def zeroed(state: State, rows: np.ndarray) -> State:
    parts = tuple(part.clone() for part in state)
    for part in parts:
        part[torch.from_numpy(rows)] = 0.0
    return parts


def walk(net: QNetwork, rollout: Rollout) -> Iterator[tuple[np.ndarray, State]]:
    """Q-values and state after every row, from the stored state, reset where episodes start."""
    state = rollout.state
    for obs, starts in zip(rollout.obs, rollout.starts):
        q_values, state = step(net, obs, zeroed(state, starts))
        yield q_values, state


def assert_same_state(one: State, other: State) -> None:
    for part, expected in zip(one, other, strict=True):
        torch.testing.assert_close(part, expected, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_state_and_starts_follow_the_episodes_across_rollouts(mode: str) -> None:
    net = network()
    collector = make_collector(make_batch(mode), net)
    state, pending = net.initial_state(2), None
    for k in range(8):
        rollout = collect(collector, budget=3 if k == 4 else 10**9)  # one is cut short
        np.testing.assert_array_equal(rollout.starts, rollout.obs[:, :, 2] == 0)
        if pending is not None:  # the pending row is looked at once: go back before it
            state = pending
        for t, (obs, starts) in enumerate(zip(rollout.obs, rollout.starts)):
            pending = zeroed(state, starts)
            if t == 0:
                assert_same_state(rollout.state, pending)
            q_values, state = step(net, obs, pending)
            np.testing.assert_allclose(rollout.q_values[t], q_values, **CLOSE)
    assert all(part.abs().min() > 0 for part in state)
    assert rollout.starts.any(0).all(), "no episode started: the comparison is empty"


@pytest.mark.parametrize("mode", MODES)
def test_the_present_unrolled_is_what_was_seen_while_acting(mode: str) -> None:
    net = network()
    collector = make_collector(make_batch(mode), net)
    for _ in range(5):
        rollout = collect(collector)
        again = forward_rollout(net, rollout).q_values.detach().numpy()
        np.testing.assert_allclose(again.reshape(LENGTH, 2, 2), rollout.q_values[:-1], **CLOSE)
        if rollout.state[0].any():
            rollout.state = net.initial_state(2)
            other = forward_rollout(net, rollout).q_values.detach().numpy()
            assert np.abs(other - again).max() > 1e-2, "the state does not matter"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("own", [True, False])
def test_successors_are_one_step_on_from_the_state_at_the_row(mode: str, own: bool) -> None:
    """At both kinds of end: environment 0 terminates, environment 1 is truncated."""
    net, rng = network(), np.random.default_rng(0)
    other = net if own else network(1)  # a target network goes on from the acting one's state
    collector = make_collector(make_batch(mode), net)
    ends = np.zeros(2, int)
    for _ in range(5):
        rollout = collect(collector)
        true = rollout.next_obs()
        expected = np.zeros((LENGTH, 2, 2), np.float32)
        for t, (_, state) in zip(range(LENGTH), walk(other, rollout)):
            expected[t], _ = step(other, true[t], state)
        rows = rng.permutation(np.flatnonzero(rollout.weights))  # dummies have no successor
        ends += (rollout.ends & (rollout.weights > 0)).sum(0)
        found = forward_next(other, rollout, rows).q_values.numpy()
        np.testing.assert_allclose(found, expected.reshape(-1, 2)[rows], **CLOSE)
        if own:
            acting = behaviour_next_q(net, rollout).reshape(-1, 2)
            rows = rows[rollout.discounts.reshape(-1)[rows] > 0]
            np.testing.assert_allclose(acting[rows], expected.reshape(-1, 2)[rows], **CLOSE)
    assert ends.min() >= 4


@pytest.mark.parametrize("mode", MODES)
def test_new_parameters_go_on_from_the_state_that_the_old_ones_left(mode: str) -> None:
    net = network()
    collector = make_collector(make_batch(mode), net)
    for _ in range(3):
        rollout = collect(collector)
        *_, (_, before), (_, after) = walk(net, rollout)
        before, seen = zeroed(before, rollout.starts[-1]), rollout.q_values[-1].copy()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    rollout = collect(collector)
    assert_same_state(rollout.state, before)
    np.testing.assert_array_equal(rollout.q_values[0], seen)  # the pending action was theirs
    q_values, _ = step(net, rollout.obs[1], zeroed(after, rollout.starts[1]))
    np.testing.assert_allclose(rollout.q_values[1], q_values, **CLOSE)


def test_a_reset_forgets_the_state() -> None:
    collector = make_collector(make_batch("loop"), network())
    assert not any(part.any() for part in collect(collector).state)
    assert any(part.any() for part in collect(collector).state)
    collector.reset([3, 4], np.zeros(2, np.float32), np.random.default_rng(0))
    rollout = collect(collector)
    assert rollout.starts[0].all() and not any(part.any() for part in rollout.state)


@pytest.mark.parametrize("mode", ["loop", "NextStep", "SameStep", "Dense"])
def test_an_environment_built_anew_starts_from_no_state(mode: str) -> None:
    NotFiniteEnv.built.clear()
    env = NotFiniteEnv if mode == "loop" else f"Scripted/Numbered{mode}-v0"
    kwargs = {"faults": {1: ("nan-reward", 7), 0: ("inf-observation", 13)}, "lengths": (9,)}
    batch = make_vector(EnvSpec(env, kwargs, ("scripted_ids",), 100), 2, training=True)
    net = network()
    collector = make_collector(batch, net)
    broken = 0
    for _ in range(6):
        before = batch.rebuilds
        rollout = collect(collector)
        np.testing.assert_array_equal(rollout.starts, rollout.obs[:, :, 2] == 0)
        np.testing.assert_allclose(
            rollout.q_values[:-1].reshape(-1, 2),
            forward_rollout(net, rollout).q_values.detach(),
            **CLOSE,
        )
        for t, (q_values, state) in enumerate(walk(net, rollout)):
            np.testing.assert_allclose(rollout.q_values[t], q_values, **CLOSE)
            if t == LENGTH or batch.rebuilds == before:
                continue
            # The step before the fault is worth its successor, the last good observation.
            lost = rollout.ends[t] & (rollout.weights[t] > 0) & (rollout.discounts[t] > 0)
            found = forward_next(net, rollout, t * 2 + np.flatnonzero(lost)).q_values
            expected, _ = step(net, rollout.obs[t + 1], state)
            np.testing.assert_allclose(found, expected[lost], **CLOSE)
            broken += lost.sum()
    assert batch.rebuilds >= 1 and broken >= 1


@pytest.mark.parametrize("mode", MODES)
def test_noise_belongs_to_an_environment_along_the_rollout(mode: str) -> None:
    net = network(noisy=True)
    net.reset_noise(2, torch.Generator().manual_seed(1))
    collector = make_collector(make_batch(mode), net)
    for _ in range(3):
        rollout = collect(collector)
        again = forward_rollout(net, rollout).q_values.detach().numpy()
        np.testing.assert_allclose(again.reshape(LENGTH, 2, 2), rollout.q_values[:-1], **CLOSE)
        rows = np.arange(LENGTH * 2)
        every = forward_next(net, rollout, rows).q_values.numpy()
        inside = ~rollout.ends.reshape(-1) & (rollout.weights.reshape(-1) > 0)
        after = rollout.q_values[1:].reshape(-1, 2)
        np.testing.assert_allclose(every[inside], after[inside], **CLOSE)


@pytest.mark.parametrize("recurrent", [True, False])
def test_the_successor_of_any_row_has_the_noise_of_its_environment(recurrent: bool) -> None:
    net = network(noisy=True)
    if not recurrent:
        torch.manual_seed(0)
        net = QNetwork(Architecture("mlp", (3,), 0.1, 2, (8,), True, False, noisy=True))
    net.reset_noise(2, torch.Generator().manual_seed(1))
    rollout = collect(make_collector(make_batch("loop", PAIR[::-1]), net))
    assert rollout.final_rows.tolist() == [3, 4, 7]  # environment 1 is the first to end
    for t, b in itertools.product(range(LENGTH), range(2)):
        alone = forward_next(net, rollout, np.array([t * 2 + b])).q_values[0]
        pair = np.stack([rollout.next_obs()[t, b]] * 2)
        state = None
        if recurrent:
            after = next(itertools.islice(walk_together(net, rollout), t, None))
            state = tuple(part[[b, b]] for part in after)
        with torch.no_grad():
            expected = net(torch.from_numpy(pair), state)[0].q_values[b]
        torch.testing.assert_close(alone, expected, **CLOSE)


@torch.no_grad()
def walk_together(net: QNetwork, rollout: Rollout) -> Iterator[State]:
    """States after every row, all environments at once, so that each has its own noise."""
    state = rollout.state
    for obs, starts in zip(rollout.obs, rollout.starts):
        _, state = net(torch.from_numpy(obs), zeroed(state, starts))
        yield state
