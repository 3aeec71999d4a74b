"""Q-learning on rollouts against slow loops and gradients worked out by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from test_returns import forward_view
from torch import nn

from async_dqn.algorithms.a3c import ActorCritic
from async_dqn.algorithms.distributional import Categorical, Quantile
from async_dqn.algorithms.exploration import BOLTZMANN
from async_dqn.algorithms.munchausen import Munchausen
from async_dqn.algorithms.one_step_sarsa import Sarsa
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.registry import BUILDERS, build_algorithm
from async_dqn.algorithms.rollout import Rollout
from async_dqn.config.config import Config
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork, QOutput

GAMMA = 0.9
WIDTH, ACTIONS = 4, 3
VARIANTS = list(itertools.product([0.0, 0.65, 1.0], [False, True], [False, True], [False, True]))


def small_network(seed: int) -> QNetwork:
    torch.manual_seed(seed)
    net = QNetwork(Architecture("mlp", (WIDTH,), 1.0, ACTIONS, (16,), True, False))
    nn.init.normal_(net.head.q.weight)  # the small initial head would hide differences
    return net


def q_of(net: nn.Module, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(np.ascontiguousarray(obs)))[0].q_values.numpy()


def random_rollout(online: nn.Module, seed: int, length: int = 6, count: int = 3) -> Rollout:
    """SAME_STEP: rows that ended hold a reset observation, the true last one is in final_obs."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(length + 1, count, WIDTH)).astype(np.float32)
    q_values = q_of(online, obs.reshape(-1, WIDTH)).reshape(length + 1, count, ACTIONS)
    actions = rng.integers(ACTIONS, size=(length + 1, count))
    terminated = rng.random((length, count)) < 0.15
    ends = terminated | (rng.random((length, count)) < 0.15)
    rows = np.flatnonzero(ends)
    return Rollout(
        obs=obs,
        actions=actions,
        greedy=actions == q_values.argmax(2),
        q_values=q_values,
        rewards=rng.normal(size=(length, count)).astype(np.float32),
        discounts=(GAMMA * ~terminated).astype(np.float32),
        ends=ends,
        weights=np.ones((length, count), np.float32),
        final_rows=rows,
        final_obs=rng.normal(size=(len(rows), WIDTH)).astype(np.float32),
        starts=np.concatenate([np.zeros((1, count), bool), ends]),
        epsilon=rng.random(count).astype(np.float32),
    )


def slow_targets(algorithm: QLearning, online, target, rollout: Rollout) -> np.ndarray:
    """Targets from the definitions: one transition at a time, forward view."""
    length, count = rollout.rewards.shape
    finals = dict(zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True))
    values, lam = np.zeros((2, length, count))
    for t, b in itertools.product(range(length), range(count)):
        successor = finals.get(t * count + b, rollout.obs[t + 1, b])[None]
        acting = q_of(online, successor)[0]
        evaluating = acting if target is None else q_of(target, successor)[0]
        best = acting.argmax() if algorithm.double else evaluating.argmax()
        values[t, b] = evaluating[best]
        exploratory = rollout.actions[t + 1, b] != rollout.q_values[t + 1, b].argmax()
        lam[t, b] = 0.0 if algorithm.watkins and exploratory else algorithm.lam
    return forward_view(rollout.rewards, rollout.discounts, rollout.ends, values, lam)


def gradient_of(algorithm: QLearning, online, target, rollout: Rollout) -> torch.Tensor:
    online.zero_grad()
    algorithm.loss(online, target, rollout).backward()
    return torch.cat([parameter.grad.flatten().clone() for parameter in online.parameters()])


def replaced(rollout: Rollout, **changes) -> Rollout:
    """A deep copy with `changes`, so that no array is shared."""
    copies = {field.name: getattr(rollout, field.name) for field in dataclasses.fields(rollout)}
    copies = {k: v.copy() for k, v in copies.items() if v is not None} | changes
    return Rollout(**copies)


# Targets


@pytest.mark.parametrize(("lam", "double", "watkins", "has_target"), VARIANTS)
def test_targets_equal_the_slow_double_loop(lam, double, watkins, has_target) -> None:
    algorithm = QLearning(lam, double, watkins)
    online, target = small_network(0), small_network(1) if has_target else None
    for seed in range(15):
        rollout = random_rollout(online, seed, 1 + seed % 7, 1 + seed % 4)
        np.testing.assert_allclose(
            algorithm.targets(online, target, rollout),
            slow_targets(algorithm, online, target, rollout),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("has_target", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_a_part_of_the_environments_has_the_targets_it_has_in_the_whole(lam, has_target) -> None:
    online, target = small_network(0), small_network(1) if has_target else None
    rollout, algorithm = random_rollout(online, seed=3, length=6, count=5), QLearning(lam)
    whole = algorithm.targets(online, target, rollout)
    for index in ([3, 0], [4], [2, 1, 0, 4, 3]):
        part = algorithm.targets(online, target, rollout.columns(np.array(index)))
        np.testing.assert_allclose(part, whole[:, index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_target", [False, True])
def test_termination_does_not_bootstrap_not_even_from_garbage(has_target: bool) -> None:
    online, target = small_network(0), small_network(1) if has_target else None
    rollout = random_rollout(online, 5, 6, 4)
    terminated = (rollout.discounts == 0).reshape(-1)
    assert terminated.any()
    algorithm = QLearning(lam=0.65)
    before = algorithm.targets(online, target, rollout)
    rewards = rollout.rewards.reshape(-1)
    np.testing.assert_array_equal(before.reshape(-1)[terminated], rewards[terminated])
    rollout.final_obs[terminated[rollout.final_rows]] = np.nan
    np.testing.assert_array_equal(algorithm.targets(online, target, rollout), before)


@pytest.mark.parametrize("has_target", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_truncation_bootstraps_from_the_final_observation_not_from_the_reset(
    lam: float, has_target: bool
) -> None:
    online, target = small_network(0), small_network(1) if has_target else None
    valuing = target or online
    rollout = random_rollout(online, 0, 5, 1)
    final = np.full((1, WIDTH), 0.3, np.float32)
    rollout = replaced(
        rollout,
        ends=np.array([[0], [0], [1], [0], [0]], bool),
        discounts=np.full((5, 1), GAMMA, np.float32),
        final_rows=np.array([2]),
        final_obs=final,
    )
    algorithm = QLearning(lam)
    targets = algorithm.targets(online, target, rollout)
    expected = rollout.rewards[2, 0] + GAMMA * q_of(valuing, final).max()
    np.testing.assert_allclose(targets[2, 0], expected, rtol=1e-5)
    reset = replaced(rollout)
    reset.obs[3] += 1.0
    reset.q_values[3] = q_of(online, reset.obs[3])
    np.testing.assert_array_equal(algorithm.targets(online, target, reset)[:3], targets[:3])
    moved = algorithm.targets(online, target, replaced(rollout, final_obs=final + 1))
    assert moved[2, 0] != targets[2, 0]


def test_watkins_cuts_the_step_before_the_exploratory_action() -> None:
    """One step early or late fails: action 2 explores, so step 1 alone bootstraps at once."""
    online = small_network(0)
    rollout = random_rollout(online, 0, 4, 1)
    rollout = replaced(
        rollout,
        greedy=np.array([[0], [1], [0], [1], [1]], bool),
        ends=np.zeros((4, 1), bool),
        discounts=np.full((4, 1), GAMMA, np.float32),
        final_rows=np.zeros(0, np.int64),
        final_obs=np.zeros((0, WIDTH), np.float32),
    )
    rewards, best = rollout.rewards[:, 0], rollout.q_values[:, 0].max(1)
    third = rewards[3] + GAMMA * best[4]
    second = rewards[2] + GAMMA * third
    first = rewards[1] + GAMMA * best[2]
    zeroth = rewards[0] + GAMMA * first
    targets = QLearning(1.0, watkins=True).targets(online, None, rollout)
    np.testing.assert_allclose(targets[:, 0], [zeroth, first, second, third], rtol=1e-5)


def test_targets_carry_no_gradient_and_take_the_target_networks_values() -> None:
    online, target = small_network(0), small_network(1)
    rollout = random_rollout(online, 1)
    QLearning(0.65).loss(online, target, rollout).backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert any(parameter.grad.any() for parameter in online.parameters())


# LossOutput and gradient


class Tabular(nn.Module):
    """Q(s, a) = weight[a, s] on one-hot states: a linear network without bias."""

    noisy = False

    def __init__(self, table: list[list[float]]):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(table))

    def forward(self, obs: torch.Tensor, state=None) -> tuple[QOutput, None]:
        return QOutput(obs @ self.weight.T), state


def two_state_rollout(net: Tabular) -> Rollout:
    """From state 0: action 1, reward 1, to state 1; action 0, reward 3, to state 0 (open)."""
    obs = np.eye(2, dtype=np.float32)[[0, 1, 0]][:, None]
    return Rollout(
        obs=obs,
        actions=np.array([[1], [0], [1]]),
        greedy=np.array([[True], [False], [True]]),
        q_values=q_of(net, obs[:, 0])[:, None],
        rewards=np.array([[1.0], [3.0]], np.float32),
        discounts=np.full((2, 1), 0.5, np.float32),
        ends=np.zeros((2, 1), bool),
        weights=np.ones((2, 1), np.float32),
        final_rows=np.zeros(0, np.int64),
        final_obs=np.zeros((0, 2), np.float32),
        epsilon=np.zeros(1, np.float32),
    )


@pytest.mark.parametrize(
    ("settings", "first_target"),
    [
        # Q(0, .) = (2, 6), Q(1, .) = (4, 8); the last target is 3 + 0.5 * 6 = 6 throughout.
        ({"algorithm": "one-step-q"}, 5.0),  # 1 + 0.5 * 8
        ({"algorithm": "n-step-q"}, 4.0),  # 1 + 0.5 * 6
        ({"algorithm": "q-lambda", "lam": 0.5}, 4.5),  # 1 + 0.5 * (0.5 * 8 + 0.5 * 6)
        # action 1 explores: cut
        ({"algorithm": "q-lambda", "lam": 0.5, "trace": "watkins"}, 5.0),
    ],
)
def test_each_algorithms_gradient_by_hand_on_two_states(settings, first_target) -> None:
    net = Tabular([[2.0, 4.0], [6.0, 8.0]])
    algorithm = build_algorithm(Config.from_flat(settings))
    learned = algorithm.loss(net, None, two_state_rollout(net))
    learned.backward()
    # Steps taken: Q(0, 1) = 6 towards the first target, Q(1, 0) = 4 towards 6; mean over 2 steps.
    expected = torch.tensor([[0.0, (4 - 6) / 2], [(6 - first_target) / 2, 0.0]])
    torch.testing.assert_close(net.weight.grad, expected)
    assert learned.loss == ((6 - first_target) ** 2 + 4) / 4
    assert learned.q_mean == (6 + 4) / 2
    assert learned.errors.tolist() == [6 - first_target, 2.0]


def test_double_takes_the_acting_networks_choice_at_the_target_networks_value() -> None:
    net, target = Tabular([[2.0, 4.0], [6.0, 8.0]]), Tabular([[10.0, 20.0], [1.0, 2.0]])
    rollout = two_state_rollout(net)  # acting prefers action 1, the target network action 0
    plain, double = (QLearning(0.0, double=d).targets(net, target, rollout) for d in (False, True))
    assert plain[:, 0].tolist() == [1 + 0.5 * 20, 3 + 0.5 * 10]
    assert double[:, 0].tolist() == [1 + 0.5 * 2, 3 + 0.5 * 1]


@pytest.mark.parametrize(("length", "count"), [(1, 1), (5, 1), (1, 8), (5, 8), (20, 3)])
def test_segment_gradient_is_the_mean_of_its_single_step_gradients(length, count) -> None:
    online, target = small_network(0), small_network(1)
    rollout = random_rollout(online, 3, length, count)
    for algorithm in (QLearning(0.0), QLearning(0.65), QLearning(1.0)):
        whole = gradient_of(algorithm, online, target, rollout)
        singles = []
        for row in range(length * count):
            weights = np.zeros(length * count, np.float32)
            weights[row] = 1.0
            alone = replaced(rollout, weights=weights.reshape(length, count))
            singles.append(gradient_of(algorithm, online, target, alone))
        torch.testing.assert_close(whole, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-5)


def test_one_step_gradient_of_a_segment_is_the_mean_over_one_step_rollouts() -> None:
    online, algorithm = small_network(0), QLearning(0.0)
    rollout = random_rollout(online, 4, 5, 3)
    finals = dict(zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True))
    singles = []
    for t, b in itertools.product(range(5), range(3)):
        window, column = slice(t, t + 1), slice(b, b + 1)
        final = finals.get(t * 3 + b)
        none = np.zeros((0, WIDTH), np.float32)
        step = Rollout(
            *(getattr(rollout, name)[t : t + 2, column] for name in ("obs", "actions")),
            *(getattr(rollout, name)[t : t + 2, column] for name in ("greedy", "q_values")),
            *(getattr(rollout, name)[window, column] for name in ("rewards", "discounts")),
            *(getattr(rollout, name)[window, column] for name in ("ends", "weights")),
            final_rows=np.zeros(int(final is not None), np.int64),
            final_obs=none if final is None else final[None],
        )
        singles.append(gradient_of(algorithm, online, None, step))
    whole = gradient_of(algorithm, online, None, rollout)
    torch.testing.assert_close(whole, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-5)


def test_rows_of_weight_0_do_not_move_the_gradient() -> None:
    """A rollout whose last row has weight 0 teaches the same as the rollout without that row."""
    online, target = small_network(0), small_network(1)
    rollout = random_rollout(online, 6, 5, 4)
    weights = np.ones((5, 4), np.float32)
    weights[:, 2] = 0.0  # environments do not mix: drop one of them
    weighted = replaced(rollout, weights=weights)
    changed = replaced(weighted)
    changed.rewards[:, 2] = 1e4
    changed.actions[:, 2] = (changed.actions[:, 2] + 1) % ACTIONS
    for lam in (0.0, 0.65, 1.0):
        algorithm = QLearning(lam)
        expected = gradient_of(algorithm, online, target, weighted)
        assert torch.equal(gradient_of(algorithm, online, target, changed), expected)
        others = [gradient_of(algorithm, online, target, only(rollout, b)) for b in (0, 1, 3)]
        torch.testing.assert_close(expected, torch.stack(others).mean(0), rtol=1e-4, atol=1e-5)


def only(rollout: Rollout, column: int) -> Rollout:
    weights = np.zeros_like(rollout.weights)
    weights[:, column] = 1.0
    return replaced(rollout, weights=weights)


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("terminated", [False, True])
def test_a_next_step_dummy_has_no_influence_on_the_gradient(lam: float, terminated: bool) -> None:
    """The end is step 1, the dummy step 2: its reward, action and weight teach nothing."""
    online, target = small_network(0), small_network(1)
    rollout = random_rollout(online, 2, 5, 1)
    ends = np.array([[0], [1], [0], [0], [0]], bool)
    rollout = replaced(
        rollout,
        ends=ends,
        discounts=(GAMMA * ~(ends & terminated)).astype(np.float32),
        weights=np.array([[1], [1], [0], [1], [1]], np.float32),
        final_rows=np.zeros(0, np.int64),  # the successor of step 1 is obs[2] itself
        final_obs=np.zeros((0, WIDTH), np.float32),
    )
    algorithm = QLearning(lam)
    expected = gradient_of(algorithm, online, target, rollout)
    dummy = replaced(rollout)
    dummy.rewards[2], dummy.actions[2] = 1e4, (dummy.actions[2] + 1) % ACTIONS
    assert torch.equal(gradient_of(algorithm, online, target, dummy), expected)
    targets = algorithm.targets(online, target, rollout)
    bootstrap = 0.0 if terminated else GAMMA * q_of(target, rollout.obs[2]).max()
    np.testing.assert_allclose(targets[1, 0], rollout.rewards[1, 0] + bootstrap, rtol=1e-5)
    real = replaced(rollout)
    real.rewards[3] += 1.0
    assert not torch.equal(gradient_of(algorithm, online, target, real), expected)


# Acting and the registry


def test_act_is_greedy_in_the_networks_q_values_at_epsilon_0() -> None:
    output = QOutput(torch.tensor([[0.0, 1.0], [3.0, 2.0]]))
    actions, greedy = QLearning(0.0).act(output, np.zeros(2, np.float32), np.random.default_rng(0))
    assert actions.tolist() == [1, 0] and greedy.all()


def test_registry_builds_what_the_settings_say() -> None:
    def built(**settings):
        return build_algorithm(Config.from_flat(settings))

    assert {name: built(algorithm=name) for name in BUILDERS} == {
        "one-step-q": QLearning(lam=0.0),
        "one-step-sarsa": Sarsa(lam=0.0),
        "n-step-q": QLearning(lam=1.0),
        "q-lambda": QLearning(lam=0.65),
        "a3c": ActorCritic(entropy_weight=0.01),
    }
    watkins = built(algorithm="q-lambda", lam=0.3, trace="watkins", double=True)
    assert watkins == QLearning(lam=0.3, double=True, watkins=True)
    # The trace is a matter of q-lambda, whatever a configuration file says besides.
    assert not built(algorithm="n-step-q", trace="watkins").watkins
    assert built(munchausen=True) == Munchausen(lam=1.0)
    assert built(distributional="quantile", double=True) == Quantile(lam=1.0, double=True)
    categorical = built(distributional="categorical", v_min=0.0, v_max=5.0, value_rescaling=True)
    assert categorical == Categorical(lam=1.0, rescaled=True, v_min=0.0, v_max=5.0)
    assert built(exploration="boltzmann").policy is BOLTZMANN


def test_next_obs_is_the_true_successor_everywhere() -> None:
    rollout = random_rollout(small_network(0), 8, 6, 3)
    successors, before = rollout.next_obs(), rollout.obs.copy()
    assert rollout.final_rows.size
    for t, b in itertools.product(range(6), range(3)):
        (where,) = np.nonzero(rollout.final_rows == t * 3 + b)
        expected = rollout.final_obs[where[0]] if where.size else rollout.obs[t + 1, b]
        np.testing.assert_array_equal(successors[t, b], expected)
    np.testing.assert_array_equal(rollout.obs, before)
