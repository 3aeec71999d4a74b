"""Small Markov decision processes with exact solutions, also as gymnasium environments.

An `MDP` is arrays; `MDPEnv` plays it and the functions below solve it by iteration in numpy, with
no code of the trainer: Q*, and the fixed points of what n-step Q, Peng's and Watkins' Q(lambda)
and Sarsa do IN EXPECTATION on rollouts of T steps of their own epsilon-greedy behaviour. Row t of a
rollout bootstraps at its end, so it gets a return of at most T - t steps: the expected operator is
the mean of those of 1 .. T steps. What a time limit does to a state's target depends on how often
the state is met how late in the episode, so episode time is part of the solvers' state.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MDP:
    """S states, A actions; an episode ends in a terminal state or is cut after `limit` steps."""

    transitions: Array  # [S, A, S'] probabilities
    rewards: Array  # [S, A, S']
    terminal: NDArray[np.bool_]  # [S]: entering it ends the episode
    start: Array  # [S] probabilities
    gamma: float
    limit: int

    @property
    def states(self) -> NDArray[np.int64]:
        """The states in which one acts."""
        return np.flatnonzero(~self.terminal)


class MDPEnv(gymnasium.Env):
    """Plays an MDP; observations are state numbers. Cuts episodes at the MDP's limit itself."""

    def __init__(self, mdp: MDP):
        self.mdp = mdp
        states, actions = mdp.rewards.shape[:2]
        self.observation_space, self.action_space = (
            spaces.Discrete(states),
            spaces.Discrete(actions),
        )
        cumulative = mdp.transitions.cumsum(2)
        self._cumulative = (cumulative / cumulative[:, :, -1:]).tolist()
        self._start = (mdp.start.cumsum() / mdp.start.sum()).tolist()
        self._rewards, self._terminal = mdp.rewards.tolist(), mdp.terminal.tolist()
        self._state = self._time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self._state, self._time = bisect_right(self._start, self.np_random.random()), 0
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        before, self._time = self._state, self._time + 1
        self._state = bisect_right(self._cumulative[before][action], self.np_random.random())
        terminated = self._terminal[self._state]
        truncated = not terminated and self._time == self.mdp.limit
        return self._state, self._rewards[before][action][self._state], terminated, truncated, {}


def random_mdp(seed: int = 63, states: int = 5, actions: int = 2) -> MDP:
    """Random transitions, a random reward for every state and action; it never terminates."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(states), (states, actions))
    rewards = np.repeat(rng.uniform(-1, 1, (states, actions, 1)), states, axis=2)
    terminal, start = np.zeros(states, bool), np.full(states, 1 / states)
    return MDP(transitions, rewards, terminal, start, gamma=0.9, limit=47)


def chain(length: int = 5) -> MDP:
    """Action 1 climbs towards 1 at the far end, action 0 (and one climb in ten) falls back to the
    first state."""
    states = length + 1
    transitions, rewards = np.zeros((2, states, 2, states))
    for state in range(length):
        transitions[state, 0, 0] = 1
        transitions[state, 1, [0, state + 1]] = 0.1, 0.9
    rewards[length - 1, 1, length] = 1
    terminal = np.arange(states) == length
    transitions[length, :, length] = 1
    start = np.eye(states)[0]
    return MDP(transitions, rewards, terminal, start, gamma=0.9, limit=47)


def cliff(seed: int = 2) -> MDP:
    """2 x 4 cells: goal (1) bottom right, between it and the bottom left a cliff (-1); both
    terminate. Episodes start in any safe cell."""
    rewards = {(1, 1): -1.0, (1, 2): -1.0, (1, 3): 1.0}
    return _grid(2, 4, rewards, step_reward=-0.05, spread=0.05, slip=0.0, limit=47, seed=seed)


def grid(seed: int = 76) -> MDP:
    """3 x 3 cells, goal (1) in a corner, a step costs about 0.1, one in five slips sideways.

    Cut after 4 steps, mostly before the goal: whoever takes that for an end learns little.
    """
    return _grid(3, 3, {(2, 2): 1.0}, step_reward=-0.1, spread=0.1, slip=0.2, limit=4, seed=seed)


def _grid(
    height: int,
    width: int,
    ends: dict[tuple[int, int], float],
    step_reward: float,
    spread: float,
    slip: float,
    limit: int,
    seed: int,
) -> MDP:
    """Four moves (up, right, down, left), walls all around; `ends` are terminal cells' rewards.

    A move costs a little more or less than another by `spread`, so that no two are equally good.
    """
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
    states = height * width
    transitions, rewards = np.zeros((2, states, 4, states))
    rewards += step_reward + np.random.default_rng(seed).uniform(-spread, spread, (states, 4, 1))
    terminal = np.zeros(states, bool)
    for (row, column), reward in ends.items():
        terminal[row * width + column] = True
        rewards[:, :, row * width + column] = reward
    for state in np.flatnonzero(~terminal):
        for action in range(4):
            for turn, probability in ((0, 1 - slip), (1, slip / 2), (3, slip / 2)):
                down, right = moves[(action + turn) % 4]
                row = min(max(state // width + down, 0), height - 1)
                column = min(max(state % width + right, 0), width - 1)
                transitions[state, action, row * width + column] += probability
    transitions[terminal, :, 0] = 1
    start = ~terminal / (~terminal).sum()
    return MDP(transitions, rewards, terminal, start, gamma=0.9, limit=limit)


@dataclass(frozen=True)
class Operator:
    """What an algorithm's targets are in expectation, on its own epsilon-greedy behaviour.

    Supposes that row of the rollout and time in the episode are independent: episodes of random
    length, or a limit that has no divisor in common with `length`.
    `at_limit`: "bootstrap" from the state that the limit cut off (right), or one of the two
    errors: "terminate" (bootstrap nothing) and "reset" (bootstrap from the next episode's start).
    """

    epsilon: float
    length: int  # T of the rollout
    lam: float = 0.0
    watkins: bool = False
    sarsa: bool = False
    at_limit: str = "bootstrap"

    def __call__(self, mdp: MDP, q: Array) -> Array:
        """The expected targets [S, A] when everyone's estimate is `q` [S, A]."""
        policy = epsilon_greedy_policy(q, self.epsilon)
        values = (policy * q).sum(1) if self.sarsa else q.max(1)
        values = np.where(mdp.terminal, 0.0, values)
        kept = self.lam * (policy == policy.max(1, keepdims=True) if self.watkins else 1.0)
        step_rewards = (mdp.transitions * mdp.rewards).sum(2)
        one_step = step_rewards + mdp.gamma * mdp.transitions @ values
        last = step_rewards + mdp.gamma * self._cut(mdp, values)
        returns = np.broadcast_to(one_step, (mdp.limit, *q.shape)).copy()  # [episode time, S, A]
        returns[-1] = last
        total = returns.copy()
        for _ in range(self.length - 1):
            onward = (policy * ((1 - kept) * values[:, None] + kept * returns[1:])).sum(2)
            onward = np.where(mdp.terminal, 0.0, onward)
            returns[:-1] = step_rewards + mdp.gamma * np.einsum(
                "iaj,tj->tia", mdp.transitions, onward
            )
            total += returns
        weights = lateness(mdp, policy)
        return np.einsum("ti,tia->ia", weights, total) / self.length

    def _cut(self, mdp: MDP, values: Array) -> Array:
        """The mean bootstrap value [S, A] of a step that the limit makes the last."""
        if self.at_limit == "bootstrap":
            return mdp.transitions @ values
        survives = mdp.transitions @ ~mdp.terminal
        return survives * (mdp.start @ values if self.at_limit == "reset" else 0.0)


def epsilon_greedy_policy(q: Array, epsilon: float) -> Array:
    """Probabilities [S, A]."""
    states, actions = q.shape
    policy = np.full(q.shape, epsilon / actions)
    policy[np.arange(states), q.argmax(1)] += 1 - epsilon
    return policy


def lateness(mdp: MDP, policy: Array) -> Array:
    """How visits of a state are spread over episode time: [limit, S], columns sum to 1."""
    visits = np.zeros((mdp.limit, len(mdp.terminal)))
    visits[0] = mdp.start
    moves = (policy[:, :, None] * mdp.transitions).sum(1) * ~mdp.terminal
    for time in range(1, mdp.limit):
        visits[time] = visits[time - 1] @ moves
    total = visits.sum(0)
    return np.where(total > 0, visits / np.where(total > 0, total, 1), 1 / mdp.limit)


def fixed_point(mdp: MDP, operator: Operator, start: Array | None = None) -> Array:
    """Iterate `operator` from `start` (default 0) until nothing changes: Q [S, A].

    Raises RuntimeError where that does not happen (greedy actions that swap for ever).
    """
    return _settle(
        lambda q: operator(mdp, q), np.zeros(mdp.rewards.shape[:2]) if start is None else start
    )


def optimal_q(mdp: MDP) -> Array:
    """Q* [S, A] by value iteration; time limits do not touch it."""
    expected = (mdp.transitions * mdp.rewards).sum(2)

    def improve(q: Array) -> Array:
        return expected + mdp.gamma * mdp.transitions @ np.where(mdp.terminal, 0.0, q.max(1))

    return _settle(improve, np.zeros(expected.shape))


def _settle(improve: Callable[[Array], Array], q: Array) -> Array:
    for _ in range(5000):
        q, before = improve(q), q
        if np.abs(q - before).max() < 1e-11:
            return q
    raise RuntimeError("no fixed point reached")


def distance(mdp: MDP, q: Array, other: Array) -> float:
    """Largest difference over the states in which one acts, as a share of max |Q*|."""
    states = mdp.states
    return float(np.abs(q - other)[states].max() / np.abs(optimal_q(mdp)[states]).max())


def regret(mdp: MDP, q: Array) -> float:
    """Most that the greedy policy of `q` gives away in one step, as a share of max |Q*|."""
    best = optimal_q(mdp)[mdp.states]
    chosen = best[np.arange(len(best)), q[mdp.states].argmax(1)]
    return float((best.max(1) - chosen).max() / np.abs(best).max())
