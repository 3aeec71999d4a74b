"""Who explores how much: two exploring policies, and their strength over environments and time.

The ladder is the mix of Mnih et al. 2016 (section 5.1): final epsilons 0.1, 0.01 and 0.5 in the
proportions 0.4, 0.3, 0.3. The paper draws one per worker; here they are dealt over all W x B
environments by largest remainder, so that the mix is the same at every number of workers. Ape-X's
ladder (Horgan et al. 2018, section 4.1) is geometric. Both run over global steps, annealed from
one start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_dqn.networks import architecture

ILLEGAL = architecture.ILLEGAL / 2  # Q-values below it are those of illegal actions
LADDER = ((0.1, 0.4), (0.01, 0.3), (0.5, 0.3))
APEX_EPSILON, APEX_ALPHA = 0.4, 7.0

Floats = NDArray[np.float32]
Choice = tuple[NDArray[np.int64], NDArray[np.bool_]]


# How strong, of which environment, at which step


class Schedule(NamedTuple):
    """Epsilon (Boltzmann: the temperature) of some environments over global steps."""

    start: float
    finals: Floats  # [B]
    steps: int

    def at(self, step: int) -> Floats:
        """The values [B] at a GLOBAL step: linear from `start` to `finals` over `steps`."""
        progress = min(1.0, step / self.steps)
        return (self.start + (self.finals - self.start) * progress).astype(np.float32)

    def of(self, worker: int, count: int) -> "Schedule":
        """The part of one worker with `count` environments."""
        return self._replace(finals=self.finals[worker * count : (worker + 1) * count])


class OwnSchedule(NamedTuple):
    """The same by a `rule(step, count)` of the user's: epsilons [count], or one for all."""

    rule: Callable[[int, int], Any]
    count: int
    first: int = 0
    last: int | None = None

    def at(self, step: int) -> Floats:
        """The values [B] at a GLOBAL step. Raises ValueError where one is no epsilon."""
        values = np.asarray(self.rule(step, self.count), np.float32)
        if values.shape not in ((), (self.count,)) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"at step {step} exploration gave {values!r}; one number within [0, 1] is wanted, "
                f"or {self.count} of them"
            )
        return np.full(self.count, values)[self.first : self.last]

    def of(self, worker: int, count: int) -> "OwnSchedule":
        """The part of one worker with `count` environments."""
        return self._replace(first=worker * count, last=(worker + 1) * count)


def schedule(exploration: Any, count: int) -> Schedule:
    """The schedule of all `count` environments for the exploration settings."""
    start, final = exploration.epsilon_start, exploration.epsilon_final
    match exploration.exploration:
        case "ladder":
            finals = ladder(count)
        case "apex":
            finals = apex_ladder(count)
        case "boltzmann":
            start, finals = exploration.temperature_start, exploration.temperature_final
        case "noisy":  # alone from the first step on, the noise of a new network gets stuck
            finals = 0.0
        case _:
            finals = final
    finals = np.broadcast_to(np.float32(finals), count)
    return Schedule(start, finals, exploration.epsilon_steps)


def ladder(count: int) -> Floats:
    """Return the final epsilons [count] in the ladder's proportions, evenly interleaved."""
    shares = np.array([share for _, share in LADDER]) * count
    counts = np.floor(shares).astype(int)
    neediest = np.argsort(counts - shares, kind="stable")
    counts[neediest[: count - counts.sum()]] += 1
    dealt = [((k + 0.5) / n, epsilon) for (epsilon, _), n in zip(LADDER, counts) for k in range(n)]
    return np.array([epsilon for _, epsilon in sorted(dealt)], np.float32)


def apex_ladder(count: int) -> Floats:
    """Return epsilons [count]: 0.4^(1 + 7 i / (count - 1)) for i = 0..count-1."""
    exponents = 1 + APEX_ALPHA * np.arange(count) / max(1, count - 1)
    return (APEX_EPSILON**exponents).astype(np.float32)


class Persistence:
    """Random actions that last: epsilon-z-greedy (Dabney et al. 2021, section 4.1).

    Where a policy takes another than the greedy action, it is repeated for a number of steps drawn
    from the zeta distribution with this exponent, or until the episode ends.
    """

    LONGEST = 1_000  # steps; the distribution has no end

    def __init__(self, exponent: float, count: int):
        self.exponent, self._left = exponent, np.zeros(count, np.int64)
        self._actions = np.zeros(count, np.int64)

    def prolong(
        self,
        choice: Choice,
        q_values: Floats | None,
        starts: NDArray[np.bool_],
        generator: np.random.Generator,
    ) -> Choice:
        """The choice [B] with what goes on in place of it, while that is legal.

        Where actions can be illegal they are known by `q_values` [B, A]; `starts` [B] marks new
        episodes.
        """
        actions, greedy = choice
        self._left[starts] = 0
        if q_values is not None:
            illegal = q_values[np.arange(len(actions)), self._actions] <= ILLEGAL
            self._left[illegal] = 0
        lasting = self._left > 0
        actions = np.where(lasting, self._actions, actions)
        greedy = greedy & ~lasting
        self._left[lasting] -= 1
        begun = np.flatnonzero(~greedy & ~lasting)
        if begun.size:
            lengths = generator.zipf(self.exponent, begun.size)
            self._left[begun] = np.minimum(lengths, self.LONGEST) - 1
            self._actions[begun] = actions[begun]
        return actions, greedy


# Policies


class Policy(NamedTuple):
    """A stochastic policy over Q-values with a strength per row.

    `act(q_values [N, A], strength [N], generator)` draws actions [N] and says which of them are
    greedy [N]; `probabilities(q_values, strength)` [N, A] are those it draws with, for methods
    that ask for them.
    """

    act: Callable[[Floats, Floats, np.random.Generator], Choice]
    probabilities: Callable[[Floats, Floats], Floats] | None = None


def epsilon_greedy(q_values: Floats, epsilon: Floats, generator: np.random.Generator) -> Choice:
    """Choose actions [B] from `q_values` [B, A]; also say which of them are greedy, [B]."""
    best = q_values.argmax(axis=1)
    explore = generator.random(len(best)) < epsilon
    if not np.count_nonzero(explore):  # a fifth of any()'s time
        return best, ~explore
    actions = np.where(explore, uniform(q_values, generator), best)
    return actions, actions == best


def uniform(q_values: Floats, generator: np.random.Generator) -> NDArray[np.int64]:
    """Random legal actions [B], each as likely."""
    drawn = generator.integers(q_values.shape[1], size=len(q_values))
    illegal = q_values[np.arange(len(drawn)), drawn] <= ILLEGAL
    if np.count_nonzero(illegal):
        keys = generator.random((np.count_nonzero(illegal), q_values.shape[1]))
        drawn[illegal] = np.where(q_values[illegal] <= ILLEGAL, -1, keys).argmax(axis=1)
    return drawn


def epsilon_soft(q_values: Floats, epsilon: Floats) -> Floats:
    """The probabilities [N, A] of `epsilon_greedy`."""
    legal = q_values > ILLEGAL
    counts = np.maximum(np.count_nonzero(legal, axis=1), 1).astype(np.float32)
    soft = (epsilon / counts)[:, None] * legal
    soft[np.arange(len(soft)), q_values.argmax(axis=1)] += 1 - epsilon
    return soft.astype(np.float32)


def sample_softmax(q_values: Floats, temperature: Floats, generator: np.random.Generator) -> Choice:
    """Draw actions [B] from softmax(Q / temperature), by the Gumbel-max trick."""
    noise = generator.gumbel(size=q_values.shape)
    actions = (q_values / temperature[:, None] + noise).argmax(axis=1)
    return actions, actions == q_values.argmax(axis=1)


def softmax(q_values: Floats, temperature: Floats) -> Floats:
    """The probabilities [N, A] of `sample_softmax`."""
    scaled = (q_values - q_values.max(axis=1, keepdims=True)) / temperature[:, None]
    weights = np.exp(scaled)
    return weights / weights.sum(axis=1, keepdims=True)


EPSILON_GREEDY = Policy(epsilon_greedy, epsilon_soft)
BOLTZMANN = Policy(sample_softmax, softmax)
