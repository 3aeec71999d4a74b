"""Batches of environments behind one interface, whatever vectorises them.

gymnasium's vectorised CartPole resets an ended environment in the NEXT step (a dummy step), ale-py
and our own loop in the SAME step (the true last observation travels in `final_obs`). `EnvBatch`
says which and hides the rest: seeds, the layout of `final_obs`, rewards clipped for learning but
scored in full, lost lives of Atari that end a return but not a game. A reward or observation that
is not finite goes no further, nor does an exception: the environment is built anew.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from async_dqn.config.fields import describe_error
from async_dqn.envs.notes import Notes
from async_dqn.envs.rows import stored
from async_dqn.envs.spec import EnvInfo

SEED_LIMIT = 2**31  # ale-py takes int32 seeds, numpy's RandomState (MinAtar) 32 bits
MAX_REBUILDS = 3  # in a row, for a sound first observation
Failures = dict[int, Exception]  # by row


class NotFinite(Exception):
    """A reward or an observation was not."""


class Step(NamedTuple):
    """What one step of B environments gave; arrays may be reused by the next step.

    `rewards` is what learning sees, `scores` the true rewards; `terminated` includes lost lives in
    Atari training, `ended` means that the episode is over and its return complete. `final_obs`
    [K, ...] holds the true last observations of `final_rows` [K], whose `obs` is the first one of
    the next episode. `dummy` rows only reset: no transition, nothing to count. `faulty` rows are
    dummies too: their environment failed, or was built anew with one that did; the transition and
    the rest of the episode are lost (flags False, reward and score 0), `obs` starts a new one, and
    a return must not run across.
    """

    obs: np.ndarray  # [B, ...] uint8 or float32
    rewards: np.ndarray  # [B] float32
    scores: np.ndarray  # [B] float64
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    ended: np.ndarray  # [B] bool
    dummy: np.ndarray  # [B] bool
    final_rows: np.ndarray  # [K] int64
    final_obs: np.ndarray  # [K, ...] as obs
    faulty: np.ndarray  # [B] bool


class EnvBatch:
    """B environments stepped together, around any gymnasium vector environment.

    `next_step` tells the autoreset mode: True means that the step after an end is a dummy.
    `make` builds the vector environment anew after a fault; without it, a reset must do.
    `rebuilds` counts how often that happened; `fault` is what was wrong the last time. `notes` are
    numbers that environments tell for the logs, if any.
    """

    notes: Notes | None = None

    def __init__(
        self, vector: VectorEnv, info: EnvInfo, make: Callable[[], Any] | None = None
    ) -> None:
        self.vector = vector
        self.info = info
        self.num_envs = vector.num_envs
        self.next_step = vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        self.rebuilds = 0
        self.fault: Exception = NotFinite("nothing was wrong yet")
        self._make = make
        self._dtype = np.dtype(info.dtype)
        self._bytes = self._dtype == np.uint8  # these are always finite
        self._none = np.zeros(self.num_envs, np.bool_)
        self._all = np.arange(self.num_envs)
        self._dummy = self._none
        self._no_rows = np.zeros(0, np.int64)
        self._no_finals = np.zeros((0, *info.observation_shape), info.dtype)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start new episodes everywhere, one seed per environment; the observations [B, ...].

        Raises RuntimeError if environments cannot begin, however often built anew.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        self._seeds = [int(seed) for seed in seeds]
        obs, bad = self._attempt(self._begin)
        return self._restart(bad)[1] if bad.size else obs

    def step(self, actions: np.ndarray) -> Step:
        """Take actions int64 [B] from 0..num_actions-1.

        Raises RuntimeError if environments cannot begin again, however often built anew.
        """
        try:
            observations, scores, terminated, truncated, infos = self.vector.step(actions)
            observations = stored(observations, self._dtype)
            ended = self._ended(terminated, truncated, infos)
            dummy, rows, finals = self._none, self._no_rows, self._no_finals
            if self.next_step:
                dummy, self._dummy = self._dummy, ended
                observations = self._without_last(observations, terminated)
            elif np.count_nonzero(ended):
                rows = np.flatnonzero(ended)
                finals = self._finals(infos["final_obs"], rows, terminated)
        except Exception as error:
            return self._repair(self._empty_step(), dict.fromkeys(self._all, error))
        step = Step(
            observations,
            self._rewards(scores),
            np.asarray(scores, np.float64),
            terminated,
            truncated,
            ended,
            dummy,
            rows,
            finals,
            self._none,
        )
        failed = infos.get("failed")
        sound = _finite(step.rewards) and self._sound(step.obs) and self._sound(finals)
        return step if sound and not failed else self._repair(step, failed or {})

    def starts(self, step: Step) -> np.ndarray:
        """Rows [B] bool whose `obs` is the first one of an episode."""
        return step.dummy if self.next_step else step.ended | step.dummy

    def close(self) -> None:
        """Free the environments; safe to call twice, and whatever they raise."""
        with contextlib.suppress(Exception):
            self.vector.close()

    def _begin(self) -> tuple[np.ndarray, Failures]:
        """Reset all with the seeds they have now; the observations [B, ...], and who failed."""
        self._dummy = self._none
        observations, infos = self.vector.reset(seed=self._seed(self._seeds))
        self._started(infos)
        return stored(observations, self._dtype), infos.get("failed", {})

    def _attempt(self, begin: Callable) -> tuple[np.ndarray, np.ndarray]:
        """First observations [B, ...], and the rows [K] that have none to go on from."""
        try:
            obs, failed = begin()
        except Exception as error:
            self.fault = error
            return self._empty_step().obs, self._all
        bad = self._none if self._sound(obs) else _not_finite(obs)
        return obs, self._noted(bad, failed, "the first observation of an episode")

    def _empty_step(self) -> Step:
        """A step of which nothing is known."""
        obs = np.zeros((self.num_envs, *self.info.observation_shape), self.info.dtype)
        zeros, flags = np.zeros(self.num_envs, np.float32), [self._none] * 4
        return Step(obs, zeros, zeros, *flags, self._no_rows, self._no_finals, self._none)

    def _noted(self, bad: np.ndarray, failed: Failures, what: str) -> np.ndarray:
        """The rows [K] `bad` [B] or raised (union1d imports numpy.ma: slow); keeps the reason."""
        if bad.any():
            self.fault = NotFinite(f"{what} was not finite")
        if failed:
            *_, self.fault = failed.values()
        return np.array([row for row in self._all if bad[row] or row in failed], np.int64)

    def _finals(self, finals: np.ndarray, rows: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        """Final observations [K, ...] of `rows`; both layouts: an object array, or dense."""
        if finals.dtype != object:
            return self._without_last(stored(finals[rows], self._dtype), terminated[rows])
        kept = np.zeros((len(rows), *self.info.observation_shape), self._dtype)
        for place, row in enumerate(rows):
            if finals[row] is not None or not terminated[row]:
                kept[place] = stored(np.asarray(finals[row]), self._dtype)
        return self._without_last(kept, terminated[rows])

    def _without_last(self, observations: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        """0 for what is not finite after a termination: nothing is estimated from it."""
        if self._sound(observations):
            return observations
        kept = observations.copy()
        kept[terminated & _not_finite(kept)] = 0
        return kept

    def _sound(self, observations: np.ndarray) -> bool:
        return self._bytes or not len(observations) or _finite(observations)

    def _repair(self, step: Step, failed: Failures) -> Step:
        """The step without what was wrong, its environments built anew."""
        bad = ~np.isfinite(step.rewards) | _not_finite(step.obs)
        bad[step.final_rows[_not_finite(step.final_obs)]] = True
        last = " in the last step of an episode" if (bad & step.ended).any() else ""
        rows, obs = self._restart(self._noted(bad, failed, f"a reward or an observation{last}"))
        faulty = self._none.copy()
        faulty[rows] = True
        keep = ~faulty[step.final_rows]
        return Step(
            obs,
            np.where(faulty, 0, step.rewards),
            np.where(faulty, 0, step.scores),
            step.terminated & ~faulty,
            step.truncated & ~faulty,
            step.ended & ~faulty,
            step.dummy | faulty,
            step.final_rows[keep],
            step.final_obs[keep],
            faulty,
        )

    def _restart(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Build `rows` anew; the rows that begin again, and all observations [B, ...]."""
        begun = rows = self._rebuild_group(rows)
        for _ in range(MAX_REBUILDS):
            obs, bad = self._attempt(lambda rows=rows: self._rebuild(rows))
            if not bad.size:
                return begun, obs
            rows = self._rebuild_group(bad)
        raise RuntimeError(
            f"an episode could not begin, {MAX_REBUILDS} times in a row after building the "
            f"environment anew ({describe_error(self.fault)}); correct its reset"
        )

    def _rebuild_group(self, rows: np.ndarray) -> np.ndarray:
        """The rows that are built anew with `rows`: all of them here."""
        return self._all

    def _rebuild(self, rows: np.ndarray) -> tuple[np.ndarray, Failures]:
        """Make `rows` anew and reset them with fresh seeds; as `_begin`."""
        self.rebuilds += 1
        if self._make is not None:
            self.close()
            self.vector = self._make()
        self._seeds = [next_seed(seed) for seed in self._seeds]
        return self._begin()

    def _seed(self, seeds: list[int]) -> Any:
        """The seeds as this vector environment takes them: one generator here, hence one int."""
        return int(np.random.SeedSequence(seeds).generate_state(1, np.uint32)[0])

    def _started(self, infos: Mapping[str, Any]) -> None:
        """Called with the infos of a reset."""

    def _rewards(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores, np.float32)

    def _ended(
        self, terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
    ) -> np.ndarray:
        return terminated | truncated


class AtariTrainingBatch(EnvBatch):
    """Atari as DQN learns it: a lost life may terminate, the game goes on; rewards may be clipped.

    To their sign, which is clipping, as scores are whole numbers.
    """

    def __init__(
        self, vector: VectorEnv, info: EnvInfo, make: Callable[[], Any], clipped: bool
    ) -> None:
        super().__init__(vector, info, make)
        self._clipped = clipped

    def _seed(self, seeds: list[int]) -> np.ndarray:
        return np.array([seed % SEED_LIMIT for seed in seeds], np.int64)

    def _started(self, infos: Mapping[str, Any]) -> None:
        self._lives = infos["lives"].copy()

    def _rewards(self, scores: np.ndarray) -> np.ndarray:
        return (np.sign(scores) if self._clipped else scores).astype(np.float32)

    def _ended(
        self, terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
    ) -> np.ndarray:
        before, self._lives = self._lives, infos["lives"].copy()
        lost = (self._lives > 0) & (self._lives < before)
        return truncated | (terminated & ~lost)


def _finite(numbers: np.ndarray) -> bool:
    """Whether all are; the sum of squares tells in a third of the time unless it overflows."""
    return math.isfinite(np.vdot(numbers, numbers)) or bool(np.isfinite(numbers).all())


def _not_finite(observations: np.ndarray) -> np.ndarray:
    """Which rows of [B, ...] hold a number that is not finite, bool [B]."""
    return ~np.isfinite(observations).all(axis=tuple(range(1, observations.ndim)))


def next_seed(seed: int) -> int:
    """The seed of an environment that is built in the place of one with this seed."""
    return int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0])
