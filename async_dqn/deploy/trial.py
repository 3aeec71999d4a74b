"""A file tried against the agent it was made of, on observations as they come in play."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from async_dqn.config.fields import UserError
from async_dqn.envs.masks import told_mask

EXPLORATION = 0.1  # share of steps with a random action, so that more is seen
TIE = 2.0  # errors that Q-values may be apart and still count as equal


class Choice(Protocol):
    """What an agent and a player decide."""

    action: Any
    q_values: NDArray[np.float32]
    state: Any


Decide = Callable[[Any, Any, Any], Choice]  # of an observation, the state and the mask


class Agreement(NamedTuple):
    """How far a file and its agent agree.

    Of so many `observations`, `same` have the same action, and `ties` more have Q-values too near
    to each other to tell; these differ by `error` at most, and the largest is `largest`.
    """

    observations: int
    same: int
    ties: int
    error: float
    largest: float


def agreement(agent: Decide, file: Decide, seen: "Seen", groups: Sequence[int]) -> Agreement:
    """Both on what is `seen`; `groups` are the sizes of the groups of Q-values."""
    states: list[Any] = [None, None]
    same = ties = 0
    error = largest = 0.0
    for count, (observation, mask, begins) in enumerate(seen, 1):
        before = [None, None] if begins else states
        ours, theirs = agent(observation, before[0], mask), file(observation, before[1], mask)
        states = [ours.state, theirs.state]
        off, size = _difference(ours.q_values, theirs.q_values)
        error, largest = max(error, off), max(largest, size)
        if np.array_equal(ours.action, theirs.action):
            same += 1
        else:
            ties += _is_tie(ours.q_values, theirs.q_values, groups, TIE * off)
        seen.action = ours.action
    return Agreement(count, same, ties, error, largest)


def _difference(ours: NDArray, theirs: NDArray) -> tuple[float, float]:
    """The largest difference of Q-values [A], infinite if other actions are legal; the largest."""
    legal = np.isfinite(ours)
    if not np.array_equal(legal, np.isfinite(theirs)):
        return np.inf, 0.0
    return float(np.abs(ours[legal] - theirs[legal]).max()), float(np.abs(ours[legal]).max())


def _is_tie(ours: NDArray, theirs: NDArray, groups: Sequence[int], least: float) -> bool:
    ends = np.cumsum(groups)[:-1]
    pairs = zip(np.split(ours, ends), np.split(theirs, ends), strict=True)
    return all(own.max() - own[other.argmax()] <= least for own, other in pairs)


class Seen:
    """Observations of an environment in play, their masks, and whether an episode begins.

    `action` is to be set before the next one is asked for.
    """

    def __init__(self, env: gymnasium.Env, told: str | None, count: int):
        self.env, self.told, self.count = env, told, count
        self.action: Any = None

    def __iter__(self) -> Iterator[tuple[Any, Any, bool]]:
        generator = np.random.default_rng(0)
        self.env.action_space.seed(0)
        ended = True
        for number in range(self.count):
            begins = ended
            if begins:
                observation, info = self.env.reset(seed=number)
            yield observation, told_mask(self.env, self.told, info), begins
            if self.told is None and generator.random() < EXPLORATION:
                self.action = self.env.action_space.sample()
            observation, _, terminated, truncated, info = self.env.step(self.action)
            ended = terminated or truncated


def check(found: Agreement, tolerance: float) -> None:
    """Raise UserError unless all actions are the same but for ties, and Q-values within
    `tolerance` of the largest, or of 1 where that is smaller."""
    if found.same + found.ties < found.observations or found.error > tolerance * max(
        1.0, found.largest
    ):
        raise UserError(
            f"the file does not decide like the agent ({in_words(found)}); nothing was written"
        )


def in_words(found: Agreement) -> str:
    """Such as "1,000 observations: the same actions, Q-values within 3e-07"."""
    shares = "the same actions"
    if found.same < found.observations:
        shares = f"{found.same:,} times the same action"
    if found.ties:
        shares += f", {found.ties:,} ties"
    return f"{found.observations:,} observations: {shares}, Q-values within {found.error:.1g}"
