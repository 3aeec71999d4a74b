"""Sarsa, Munchausen, distributional Q-learning and A3C against slow loops and hand-made cases."""

import itertools

import numpy as np
import pytest
import torch
from test_algorithms import (
    ACTIONS,
    GAMMA,
    WIDTH,
    Tabular,
    q_of,
    random_rollout,
    replaced,
    small_network,
    two_state_rollout,
)
from test_returns import forward_view
from torch import nn

from async_dqn.algorithms.a3c import VALUE_WEIGHT, ActorCritic
from async_dqn.algorithms.distributional import Categorical, Quantile, project
from async_dqn.algorithms.exploration import BOLTZMANN, EPSILON_GREEDY
from async_dqn.algorithms.munchausen import ALPHA, LOWEST, TAU, Munchausen
from async_dqn.algorithms.one_step_sarsa import Sarsa
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.returns import rescale, unscale
from async_dqn.algorithms.rollout import Rollout
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork, QOutput

HAS_TARGET = pytest.mark.parametrize("has_target", [False, True])


def true_successors(rollout: Rollout):
    """(t, b, observation [1, WIDTH]) of every step."""
    length, count = rollout.rewards.shape
    finals = dict(zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True))
    for t, b in itertools.product(range(length), range(count)):
        yield t, b, finals.get(t * count + b, rollout.obs[t + 1, b])[None]


def networks(has_target: bool):
    return small_network(0), small_network(1) if has_target else None


# Sarsa


@HAS_TARGET
@pytest.mark.parametrize("policy", [EPSILON_GREEDY, BOLTZMANN])
def test_sarsa_values_the_action_taken_next_and_expects_at_truncations(has_target, policy):
    online, target = networks(has_target)
    for seed in range(10):
        rollout = random_rollout(online, seed, 1 + seed % 7, 1 + seed % 4)
        values = np.zeros_like(rollout.rewards)
        for t, b, successor in true_successors(rollout):
            q_values = q_of(target or online, successor)[0]
            values[t, b] = q_values[rollout.actions[t + 1, b]]
            if rollout.ends[t, b]:
                acting = q_of(online, successor)
                chances = policy.probabilities(acting, rollout.epsilon[b : b + 1])[0]
                values[t, b] = (chances * q_values).sum()
        expected = rollout.rewards + rollout.discounts * values
        targets = Sarsa(0.0, policy=policy).targets(online, target, rollout)
        np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)


def test_sarsas_gradient_by_hand_on_two_states() -> None:
    net = Tabular([[2.0, 4.0], [6.0, 8.0]])
    learned = Sarsa(0.0).loss(net, None, two_state_rollout(net))
    learned.backward()
    # Next actions are 0 and 1: targets 1 + 0.5 * Q(1, 0) = 3 and 3 + 0.5 * Q(0, 1) = 6.
    expected = torch.tensor([[0.0, (4 - 6) / 2], [(6 - 3) / 2, 0.0]])
    torch.testing.assert_close(net.weight.grad, expected)
    assert learned.errors.tolist() == [3.0, 2.0]


# Value rescaling


@HAS_TARGET
@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_rescaled_targets_are_h_of_the_return_of_unscaled_values(has_target, lam) -> None:
    online, target = networks(has_target)
    for seed in range(8):
        rollout = random_rollout(online, seed, 5, 3)
        rollout.rewards *= 30
        values = np.zeros_like(rollout.rewards)
        for t, b, successor in true_successors(rollout):
            values[t, b] = unscale(q_of(target or online, successor)[0]).max()
        lams = np.full_like(values, lam)
        plain = forward_view(rollout.rewards, rollout.discounts, rollout.ends, values, lams)
        targets = QLearning(lam, rescaled=True).targets(online, target, rollout)
        np.testing.assert_allclose(targets, rescale(plain), rtol=1e-3, atol=1e-4)


# Munchausen


@HAS_TARGET
@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_munchausen_targets_equal_the_definition(has_target, lam) -> None:
    online, target = networks(has_target)
    for seed in range(10):
        rollout = random_rollout(online, seed, 1 + seed % 6, 3)
        rollout = replaced(rollout, q_values=q_of(online, rollout.obs))
        rewards, values = rollout.rewards.astype(np.float64), np.zeros(rollout.rewards.shape)
        for t, b, successor in true_successors(rollout):
            now = q_of(target or online, rollout.obs[t, b][None])[0].astype(np.float64) / TAU
            log_pi = now - now.max() - np.log(np.exp(now - now.max()).sum())
            rewards[t, b] += ALPHA * np.clip(TAU * log_pi[rollout.actions[t, b]], LOWEST, 0)
            then = q_of(target or online, successor)[0].astype(np.float64)
            soft = np.exp((then - then.max()) / TAU)
            pi = soft / soft.sum()
            values[t, b] = (pi * (then - TAU * np.log(pi + 1e-300))).sum()
        lams = np.full(rewards.shape, lam)
        expected = forward_view(rewards, rollout.discounts, rollout.ends, values, lams)
        targets = Munchausen(lam).targets(online, target, rollout)
        np.testing.assert_allclose(targets, expected, rtol=1e-3, atol=1e-4)


# Distributions


def test_projection_by_hand() -> None:
    """Values 0, 1, 2; mass between two values is shared, mass beyond goes to the ends."""
    returns = torch.tensor([[0.25, 1.0, 1.5], [-7.0, 0.0, 9.0], [2.0, 2.0, 2.0]])
    probabilities = torch.tensor([[0.4, 0.2, 0.4], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    expected = torch.tensor([[0.3, 0.5, 0.2], [0.3, 0.0, 0.7], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(project(returns, probabilities, 0.0, 2.0), expected)


@pytest.mark.parametrize("v_max", [45.0, 1.1, 7.7, 1e6])
def test_rounding_leaves_no_negative_share(v_max: float) -> None:
    """(45 - 0) * (50 / 45) is 50.0000038 in float32."""
    projected = project(torch.full((1, 51), v_max), torch.full((1, 51), 1 / 51), 0.0, v_max)
    assert (projected >= 0).all() and torch.xlogy(projected, projected).isfinite().all()


def test_projection_keeps_mass_and_within_the_range_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    returns = 8 * torch.rand(200, 21, generator=generator) - 4
    probabilities = torch.rand(200, 21, generator=generator)
    probabilities /= probabilities.sum(1, keepdim=True)
    projected = project(returns, probabilities, -4.0, 4.0)
    torch.testing.assert_close(projected.sum(1), torch.ones(200))
    mean = (projected * torch.linspace(-4, 4, 21)).sum(1)
    torch.testing.assert_close(mean, (probabilities * returns).sum(1), atol=1e-4, rtol=1e-4)


def test_quantile_loss_by_hand() -> None:
    """Quantiles 0.25 and 0.75 at 0 and 1, one return 2 (twice): errors 2 and 1, both above."""
    chosen, returns = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]])
    loss = Quantile(0.0).divergence(chosen, returns, chosen)
    assert loss.tolist() == [0.25 * 1.5 + 0.75 * 0.5]
    below = Quantile(0.0).divergence(chosen, torch.tensor([[-1.0, 0.5]]), chosen)
    # errors of 0: -1 and 0.5; of 1: -2 and -0.5; weight |tau - 1 if below|
    by_hand = (0.75 * 0.5 + 0.25 * 0.125) / 2 + (0.25 * 1.5 + 0.25 * 0.125) / 2
    assert below.item() == pytest.approx(by_hand)


def test_quantiles_settle_where_they_belong() -> None:
    """Gradient descent on returns 0..9 finds their quantiles, in the middle of each fifth."""
    predicted = torch.full((1, 5), 3.0, requires_grad=True)
    returns = torch.arange(10.0)[None] * 10  # far apart against kappa = 1
    for _ in range(4000):
        loss = Quantile(0.0).divergence(predicted, returns, predicted).sum()
        (gradient,) = torch.autograd.grad(loss, predicted)
        predicted = (predicted - gradient).detach().requires_grad_()
    expected = torch.tensor([[5.0, 25.0, 45.0, 65.0, 85.0]])
    assert (predicted - expected).abs().max() < 5.5


def test_cross_entropy_is_0_for_a_perfect_fit_and_pulls_towards_the_target() -> None:
    algorithm = Categorical(0.0, v_min=0.0, v_max=2.0)
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    values = torch.tensor([[0.0, 1.0, 2.0]])
    assert algorithm.divergence(logits, values, logits).item() == pytest.approx(0, abs=1e-6)
    chosen = torch.zeros(1, 3, requires_grad=True)
    loss = algorithm.divergence(chosen.log_softmax(1), values, logits)
    loss.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full((1, 3), 1 / 3) - logits.exp())


def distributional_network(seed: int, head: str) -> QNetwork:
    torch.manual_seed(seed)
    architecture = Architecture(
        "mlp",
        (WIDTH,),
        1.0,
        ACTIONS,
        (16,),
        True,
        False,
        head=head,
        atoms=11,
        v_min=-3.0,
        v_max=3.0,
    )
    net = QNetwork(architecture)
    for name, parameter in net.named_parameters():
        if name.startswith("head"):
            nn.init.normal_(parameter)
    return net


@HAS_TARGET
@pytest.mark.parametrize("head", ["categorical", "quantile"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("lam", "watkins"), [(0.0, False), (1.0, False), (1.0, True)])
def test_target_distributions_equal_the_slow_loop(has_target, head, double, lam, watkins) -> None:
    online = distributional_network(0, head)
    target = distributional_network(1, head) if has_target else None
    kind, extra = (Categorical, (-3.0, 3.0)) if head == "categorical" else (Quantile, ())
    algorithm = kind(lam, double, watkins, False, EPSILON_GREEDY, *extra)
    support = np.linspace(-3, 3, 11)
    for seed in range(6):
        rollout = random_rollout(online, seed, 1 + seed, 3)
        with torch.no_grad():
            returns, atoms = algorithm.target_distributions(online, target, rollout)
        steps = {(t, b): successor for t, b, successor in true_successors(rollout)}
        for t, b in steps:
            end, reward, discount = t, 0.0, 1.0
            while True:
                reward += discount * rollout.rewards[end, b]
                discount *= rollout.discounts[end, b]
                stops = rollout.ends[end, b] or end == len(rollout.rewards) - 1 or lam == 0
                if stops or (watkins and not rollout.greedy[end + 1, b]):
                    break
                end += 1
            with torch.no_grad():
                valued = (target or online)(torch.from_numpy(steps[end, b]))[0]
                chooser = online(torch.from_numpy(steps[end, b]))[0] if double else valued
            row = valued.distribution[0, chooser.q_values[0].argmax()].numpy()
            values = support if head == "categorical" else row
            where = t * rollout.rewards.shape[1] + b
            expected = reward + discount * values
            np.testing.assert_allclose(returns[where], expected, rtol=1e-4, atol=1e-4)
            if head == "categorical" and discount > 0:
                np.testing.assert_allclose(atoms[where], row, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["categorical", "quantile"])
def test_a_distribution_learns_a_two_valued_return(head) -> None:
    """Terminal rewards of -1 and 2, each half of the time: mean 0.5, and both values are seen."""
    net = distributional_network(0, head)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    rng = np.random.default_rng(0)
    algorithm = Categorical(0.0, v_min=-3.0, v_max=3.0) if head == "categorical" else Quantile(0.0)
    for _ in range(400):
        rollout = random_rollout(net, 0, 1, 16)
        rollout = replaced(
            rollout,
            obs=np.ones_like(rollout.obs),
            actions=np.zeros_like(rollout.actions),
            rewards=rng.choice([-1.0, 2.0], size=(1, 16)).astype(np.float32),
            discounts=np.zeros_like(rollout.discounts),
            ends=np.ones_like(rollout.ends),
        )
        optimizer.zero_grad()
        algorithm.loss(net, None, rollout).backward()
        optimizer.step()
    with torch.no_grad():
        output = net(torch.ones(1, WIDTH))[0]
    assert output.q_values[0, 0].item() == pytest.approx(0.5, abs=0.3)
    atoms = output.distribution[0, 0]
    if head == "categorical":
        near = atoms.exp()
        support = torch.linspace(-3, 3, 11)
        for value in (-1.0, 2.0):
            assert near[(support - value).abs() < 0.61].sum() > 0.35
    else:
        # The Huber loss draws the quantiles together a little.
        assert (atoms < 0).sum() >= 4 and (atoms > 1).sum() >= 4


# A3C


class Policy(nn.Module):
    """Tabular policy and value: logits[a, s], values[s]; q = V + log pi + entropy."""

    noisy = False

    def __init__(self, logits, values):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, obs, state=None):
        log_pi = (obs @ self.logits.T).log_softmax(1)
        entropy = -(log_pi.exp() * log_pi).sum(1, keepdim=True)
        return QOutput((obs @ self.values)[:, None] + log_pi + entropy), state


def test_a3cs_gradient_by_hand_on_two_states() -> None:
    net = Policy([[0.3, -0.2], [1.1, 0.4]], [2.0, 5.0])
    rollout = two_state_rollout(net)
    ActorCritic(entropy_weight=0.1).loss(net, None, rollout).backward()
    pi = torch.softmax(net.logits.detach(), 0)  # [A, S]
    # Returns: second step 3 + 0.5 * V(0) = 4, first 1 + 0.5 * 4 = 3; V(0) = 2, V(1) = 5.
    advantages = {0: 3.0 - 2.0, 1: 4.0 - 5.0}
    expected_values = torch.tensor([-VALUE_WEIGHT * advantages[s] / 2 for s in (0, 1)])
    torch.testing.assert_close(net.values.grad, expected_values)
    expected = torch.zeros(2, 2)
    for state, action in ((0, 1), (1, 0)):
        log_pi = pi[:, state].log()
        entropy = -(pi[:, state] * log_pi).sum()
        for a in range(2):
            policy_term = -(float(a == action) - pi[a, state]) * advantages[state]
            entropy_term = 0.1 * pi[a, state] * (log_pi[a] + entropy)  # -0.1 dH
            expected[a, state] = (policy_term + entropy_term) / 2
    torch.testing.assert_close(net.logits.grad, expected)


def test_a3c_returns_are_n_step_returns_of_the_state_value() -> None:
    torch.manual_seed(0)
    net = QNetwork(
        Architecture("mlp", (WIDTH,), 1.0, ACTIONS, (16,), True, False, head="actor-critic")
    )
    for seed in range(8):
        rollout = random_rollout(net, seed, 1 + seed, 3)
        values = np.zeros_like(rollout.rewards)
        for t, b, successor in true_successors(rollout):
            q_values = torch.from_numpy(q_of(net, successor)[0])
            values[t, b] = (torch.softmax(q_values, 0) * q_values).sum()
        ones = np.ones_like(values)
        expected = forward_view(rollout.rewards, rollout.discounts, rollout.ends, values, ones)
        targets = ActorCritic().targets(net, rollout)
        np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)


def test_a3c_acts_by_sampling_its_policy() -> None:
    q_values = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(40_000, 3)
    epsilon = np.zeros(40_000, np.float32)
    actions, _ = ActorCritic().act(QOutput(q_values), epsilon, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(actions) / 40_000, [0.2, 0.5, 0.3], atol=0.01)


# Replay and recurrent rollouts: the same targets from another kind of rollout


@pytest.mark.parametrize("watkins", [False, True])
@HAS_TARGET
def test_a_rollout_from_replay_has_the_targets_of_one_just_collected(has_target, watkins) -> None:
    online, target = networks(has_target)
    for double in (False, has_target):
        algorithm = QLearning(0.65, double=double, watkins=watkins)
        for seed in range(5):
            fresh = random_rollout(online, seed, 5, 3)
            stored = replaced(fresh, q_values=None, greedy=None)
            expected = algorithm.targets(online, target, fresh)
            actual = algorithm.targets(online, target, stored)
            # The last row's `greedy` is never read; GAMMA keeps the comparison honest.
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=GAMMA * 1e-5)


@pytest.mark.parametrize("head", ["categorical", "quantile"])
@pytest.mark.parametrize("double", [False, True])
def test_watkins_on_replay_does_not_make_a_distribution_double(head, double) -> None:
    """The acting network is asked for the cut there; it must not choose the action as well."""
    online, target = distributional_network(0, head), distributional_network(1, head)
    kind = Categorical if head == "categorical" else Quantile
    algorithm = kind(1.0, double=double, watkins=True)
    for seed in range(4):
        fresh = random_rollout(online, seed, 5, 3)
        stored = replaced(fresh, q_values=None, greedy=None)
        expected = algorithm.loss(online, target, fresh).errors
        actual = algorithm.loss(online, target, stored).errors
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
