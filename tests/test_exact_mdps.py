"""The exact solvers themselves: against enumeration, linear solves and played rollouts."""

import itertools

import numpy as np
import pytest
from exact_mdps import (
    MDP,
    MDPEnv,
    Operator,
    chain,
    cliff,
    distance,
    epsilon_greedy_policy,
    fixed_point,
    grid,
    optimal_q,
    random_mdp,
    regret,
)

from async_dqn.algorithms.returns import lambda_returns

MDPS = {"random": random_mdp(), "chain": chain(), "cliff": cliff(), "grid": grid()}
OPERATORS = {
    "one-step": {},
    "watkins": {"lam": 0.65, "watkins": True},
    "n-step": {"lam": 1.0},
    "peng": {"lam": 0.65},
    "sarsa": {"sarsa": True},
}
each_mdp = pytest.mark.parametrize("mdp", MDPS.values(), ids=MDPS)
each_operator = pytest.mark.parametrize("kind", OPERATORS.values(), ids=OPERATORS)


def q_of_policy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Q [S, A] of a fixed policy [S, A], by a linear solve."""
    states, actions = policy.shape
    onward = policy * ~mdp.terminal[:, None]
    moves = (mdp.transitions[:, :, :, None] * onward).reshape(states * actions, states * actions)
    rewards = (mdp.transitions * mdp.rewards).sum(2).ravel()
    return np.linalg.solve(np.eye(len(moves)) - mdp.gamma * moves, rewards).reshape(policy.shape)


@pytest.mark.parametrize("name", ["random", "chain"])
def test_no_deterministic_policy_beats_q_star_and_one_reaches_it(name):
    mdp = MDPS[name]
    states, actions = mdp.rewards.shape[:2]
    choices = itertools.product(range(actions), repeat=states)
    best = np.max([q_of_policy(mdp, np.eye(actions)[list(choice)]) for choice in choices], axis=0)
    np.testing.assert_allclose(optimal_q(mdp)[mdp.states], best[mdp.states], atol=1e-8)


@each_mdp
@pytest.mark.parametrize("epsilon", [0.02, 0.5])
def test_one_step_and_watkins_have_q_star_as_their_fixed_point_at_any_epsilon(mdp, epsilon):
    for kind in ("one-step", "watkins"):
        q = fixed_point(mdp, Operator(epsilon, 5, **OPERATORS[kind]))
        np.testing.assert_allclose(q[mdp.states], optimal_q(mdp)[mdp.states], atol=1e-8)


@each_mdp
def test_sarsa_has_the_value_of_its_own_policy_as_its_fixed_point(mdp):
    q = fixed_point(mdp, Operator(0.5, 5, sarsa=True))
    value = q_of_policy(mdp, epsilon_greedy_policy(q, 0.5))
    np.testing.assert_allclose(q[mdp.states], value[mdp.states], atol=1e-8)


@each_operator
@each_mdp
def test_the_fixed_point_does_not_depend_on_where_one_starts(mdp, kind):
    """And no two actions are nearly as good, so that a learner's noise does not decide."""
    operator = Operator(0.5, 5, **kind)
    q = fixed_point(mdp, operator)
    scale = np.abs(optimal_q(mdp)[mdp.states]).max()
    for seed in range(2):
        start = np.random.default_rng(seed).normal(scale=2 * scale, size=q.shape)
        other = fixed_point(mdp, operator, start)
        np.testing.assert_allclose(other[mdp.states], q[mdp.states], atol=1e-8)
    second, first = np.sort(q[mdp.states], axis=1)[:, -2:].T
    assert (first - second).min() > 0.03 * scale


@pytest.mark.parametrize("kind", ["n-step", "peng"])
@pytest.mark.parametrize("name", ["random", "cliff"])
def test_returns_through_exploratory_actions_miss_q_star_by_epsilon(name, kind):
    mdp, best = MDPS[name], optimal_q(MDPS[name])
    missed = [
        distance(mdp, fixed_point(mdp, Operator(epsilon, 5, **OPERATORS[kind])), best)
        for epsilon in (0.5, 0.1, 0.02, 0.0)
    ]
    assert missed[0] > 0.2 and missed[0] > 3 * missed[1] > 9 * missed[2] > 0
    assert missed[2] < 0.03 and missed[3] < 1e-8


def play(mdp: MDP, policy: np.ndarray, rollouts: int, length: int) -> dict[str, np.ndarray]:
    """Consecutive rollouts of one environment: arrays [T, rollouts], with true successors."""
    env, rng = MDPEnv(mdp), np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    cumulative = policy.cumsum(1)
    rows = []
    for draw in rng.random(rollouts * length):
        action = min(int(np.searchsorted(cumulative[state], draw)), policy.shape[1] - 1)
        successor, reward, terminated, truncated, _ = env.step(action)
        rows.append((state, action, reward, successor, terminated, truncated))
        state = env.reset()[0] if terminated or truncated else successor
    names = ("state", "action", "reward", "successor", "terminated", "truncated")
    return {n: np.array(c).reshape(rollouts, length).T for n, c in zip(names, zip(*rows))}


@pytest.mark.parametrize("kind", ["watkins", "n-step", "peng"])
@pytest.mark.parametrize("name", ["random", "grid"])
def test_the_expected_operator_is_the_mean_of_played_targets(name, kind):
    """The environment and the recursion of `returns` against the operator, at no fixed point."""
    mdp, length, settings = MDPS[name], 5, OPERATORS[kind]
    q = np.random.default_rng(1).normal(size=mdp.rewards.shape[:2])
    policy = epsilon_greedy_policy(q, 0.5)
    played = play(mdp, policy, 8000, length)
    lam = np.full((length, 8000), settings["lam"])
    if settings.get("watkins"):
        greedy = played["action"] == q.argmax(1)[played["state"]]
        lam[:-1] *= greedy[1:]
    returns = lambda_returns(
        played["reward"],
        mdp.gamma * (1.0 - played["terminated"]),
        played["terminated"] | played["truncated"],
        q.max(1)[played["successor"]],
        lam,
    )
    expected = Operator(0.5, length, **settings)(mdp, q)
    for state, action in itertools.product(mdp.states, range(q.shape[1])):
        targets = returns[(played["state"] == state) & (played["action"] == action)]
        error = 5 * targets.std() / np.sqrt(len(targets)) + 1e-6
        assert abs(targets.mean() - expected[state, action]) < error, (state, action)


@each_operator
def test_a_wrong_bootstrap_at_the_limit_moves_every_fixed_point_of_the_grid(kind):
    """Beyond the 5 % that `test_tabular_truth` tolerates; by far, where nothing is bootstrapped."""
    right = fixed_point(grid(), Operator(0.5, 5, **kind))
    nothing = fixed_point(grid(), Operator(0.5, 5, **kind, at_limit="terminate"))
    assert distance(grid(), right, nothing) > 0.2
    next_episode = fixed_point(grid(), Operator(0.5, 5, **kind, at_limit="reset"))
    assert distance(grid(), right, next_episode) > 0.06


def test_the_environment_terminates_cuts_and_repeats_with_its_seed():
    env = MDPEnv(grid())
    ends, first = set(), []
    for episode in range(200):
        first.append(env.reset(seed=episode)[0])
        assert env.reset(seed=episode)[0] == first[-1]
        for time in range(1, 10):
            state, _, terminated, truncated, _ = env.step(2 - time % 2)
            assert terminated == (state == 8)
            if terminated or truncated:
                break
        assert time <= 4 and (terminated or time == 4) and not (terminated and truncated)
        ends.add(terminated)
    assert ends == {True, False} and set(first) == set(range(8))


def test_regret_is_zero_for_the_optimal_policy_only():
    mdp = cliff()
    assert regret(mdp, optimal_q(mdp)) == 0 < regret(mdp, -optimal_q(mdp))
