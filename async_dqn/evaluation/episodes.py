"""The player: whole episodes with fixed parameters, for scores that can be compared.

The episodes of an evaluation are numbered: first those that screen, then those that confirm. Each
has its own seed and its own random numbers, whoever plays it and beside whichever others.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch

from async_dqn.algorithms.exploration import uniform
from async_dqn.envs.loop_batch import LoopBatch
from async_dqn.envs.make import EnvBatch, make_vector
from async_dqn.evaluation.seats import Played
from async_dqn.networks.network import restarted
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import SEATS
from async_dqn.workers.run_spec import CONFIRMATION, FRESH, SCREENING, RunSpec

SCREENING_EPISODES = 10
# At once: games (a larger batch of images costs no less for each); others; those stepped as one.
GAMES, LOOPED_ENVS, BATCHED_ENVS = 10, SEATS, 128


class Source(Protocol):
    """Where a player gets the numbers of its episodes from."""

    def take(self) -> int | None:
        """The next one to play; None if there is none now."""

    def take_until(self, stop: int) -> None:
        """All numbers below `stop` are being played."""


class EpisodeRunner:
    """Plays whole episodes with a fixed network: true rewards, greedy but for `eval_epsilon`.

    An evaluation has `screening` episodes, `confirming` ones (default: `--eval-episodes`) and
    `total` together. While `fresh`, the latter have other seeds.
    """

    fresh = False

    def __init__(
        self,
        run_spec: RunSpec,
        network: FlatNetwork,
        confirming: int | None = None,
        alive: Callable[[], None] = lambda: None,
    ):
        self.run_spec, self.network, self._alive = run_spec, network, alive
        self._actions = run_spec.actions
        self.confirming = confirming or run_spec.config.evaluation.eval_episodes
        self.screening = min(SCREENING_EPISODES, (self.confirming + 1) // 2)
        self.total = self.screening + self.confirming
        self._seeds = [  # of the episodes by number: those if not `fresh`, and those if they are
            run_spec.seeds(self.screening, SCREENING) + run_spec.seeds(self.confirming, branch)
            for branch in (CONFIRMATION, FRESH)
        ]
        most = GAMES if run_spec.spec.is_atari else LOOPED_ENVS
        self.rows = min(most, self.confirming)
        self._batches: dict[int, EnvBatch] = {}

    def close(self) -> None:
        """Free the environments."""
        for batch in self._batches.values():
            batch.close()

    def prepare(self) -> None:
        """Build the environments now rather than with the first episodes."""
        self._batch(self.rows)

    def play(self, source: Source) -> Iterator[tuple[int, list[Played]]]:
        """After every vector step: how many environments it stepped, and what finished.

        Ends when nothing is left to take. An episode whose environment breaks is played again with
        another seed. Raises TooManyBreaks after as many breaks as an evaluation has episodes.
        """
        batched = self.run_spec.info.batched
        return self._play_batches(source) if batched else self._play_one_by_one(source)

    def _play_one_by_one(self, source: Source) -> Iterator[tuple[int, list[Played]]]:
        """A row that has finished its episode takes the next one."""
        envs, net = self._batch(self.rows), self.network.net
        assert isinstance(envs, LoopBatch)
        obs, state = envs.one_at_a_time(), net.initial_state(self.rows)
        numbers, begun = np.full(self.rows, -1), np.zeros(self.rows, np.bool_)
        score, length = np.zeros(self.rows), np.zeros(self.rows, np.int64)
        random: list[np.random.Generator] = [np.random.default_rng()] * self.rows
        most = envs.rebuilds + self.total
        while True:
            for row in np.flatnonzero(numbers < 0).tolist():
                number = source.take()
                if number is None:
                    break
                obs = envs.begin(row, self._seeds[self.fresh][number])
                numbers[row], random[row] = number, self._random(number)
                score[row], length[row], begun[row] = 0.0, 0, True
            playing = np.flatnonzero(numbers >= 0)
            if not playing.size:
                return
            state = restarted(state, begun)
            q_values, state = self._q_values(obs, state, playing)
            actions = np.zeros(self.rows, np.int64)
            actions[playing] = self._choose(q_values, [random[row] for row in playing])
            step = envs.step(actions)
            obs, begun = step.obs, step.faulty.copy()
            score += step.scores
            length[playing] += 1
            score[step.faulty], length[step.faulty] = 0.0, 0  # played again
            if envs.rebuilds > most:
                raise TooManyBreaks
            ended = np.flatnonzero(step.ended & (numbers >= 0))
            finished = _played(ended, numbers, score, length)
            numbers[ended] = -1
            yield len(playing), finished

    def _play_batches(self, source: Source) -> Iterator[tuple[int, list[Played]]]:
        """All at once, as one random generator serves the whole batch: screening beside the rest.

        A step of these environments hardly costs more for many of them.
        """
        net = self.network.net
        while (number := source.take()) is not None:
            first = number // BATCHED_ENVS * BATCHED_ENVS
            numbers = np.arange(first, min(first + BATCHED_ENVS, self.total))
            source.take_until(first + len(numbers))
            envs, left = self._batch(len(numbers)), np.ones(len(numbers), np.bool_)
            score, length = np.zeros(len(left)), np.zeros(len(left), np.int64)
            most = envs.rebuilds + self.total
            obs = envs.reset([self._seeds[self.fresh][number] for number in numbers])
            state, every = net.initial_state(len(left)), np.arange(len(left))
            while left.any():
                q_values, state = self._q_values(obs, state, every)
                step = envs.step(self._actions.best(q_values))
                obs, state = step.obs, restarted(state, envs.starts(step))
                score += step.scores
                length += ~step.dummy
                score[step.faulty], length[step.faulty] = 0.0, 0  # played again
                if envs.rebuilds > most:
                    raise TooManyBreaks
                ended = np.flatnonzero(step.ended & left)
                left[ended] = False
                yield len(left), _played(ended, numbers, score, length)

    def _batch(self, count: int) -> EnvBatch:
        if count not in self._batches:
            self._batches[count] = make_vector(self.run_spec.spec, count, False, self._alive)
        return self._batches[count]

    def _q_values(self, obs: np.ndarray, state, rows: np.ndarray):
        """Q-values [N, A] of `rows` [N] of the observations [B, ...]; the state of all after it."""
        if state is None and len(rows) < len(obs):
            obs = obs[rows]
        with torch.inference_mode():
            output, state = self.network.net(torch.from_numpy(obs), state)
        q_values = output.q_values.numpy()
        return (q_values if state is None else q_values[rows]), state

    def _random(self, number: int) -> np.random.Generator:
        """The random numbers of one episode."""
        if number < self.screening:
            return self.run_spec.generator(SCREENING, number)
        branch = FRESH if self.fresh else CONFIRMATION
        return self.run_spec.generator(branch, number - self.screening)

    def _choose(self, q_values: np.ndarray, random: list[np.random.Generator]) -> np.ndarray:
        """Greedy actions [N], or with the probability `eval_epsilon` any other that is legal."""
        best, epsilon = self._actions.best(q_values), self.run_spec.eval_epsilon
        for row, generator in enumerate(random if epsilon else ()):
            if generator.random() < epsilon:
                best[row] = uniform(q_values[row : row + 1], generator)[0]
        return best


class TooManyBreaks(Exception):
    """The environments break all the time."""


def _played(rows: np.ndarray, *columns: np.ndarray) -> list[Played]:
    return [Played(*row) for row in zip(*(column[rows].tolist() for column in columns))]
