"""The collector steps a worker's environments with its network and fills a `Rollout`.

The network acts without a graph; the loss recomputes the rollout in one batch. The last action
of a rollout is pending: it is carried over and taken first in the next one.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.algorithms.exploration import Persistence
from async_dqn.algorithms.registry import Algorithm
from async_dqn.algorithms.rollout import Rollout
from async_dqn.config.config import AlgorithmConfig
from async_dqn.envs.make import EnvBatch, Step
from async_dqn.networks.network import restarted
from async_dqn.processes.child_side import RECORD_BYTES

# Each takes up to 40 bytes of a record, which must fit into one write to the pipe.
EPISODES_KEPT = max(10, (RECORD_BYTES - 1000) // 40)


class Collector:
    """Collects rollouts of up to `length` steps from `envs`; counts episodes itself.

    `finished` holds (return, length) of whole episodes: true scores, before clipping and scaling.
    """

    def __init__(
        self,
        envs: EnvBatch,
        algorithm: Algorithm,
        net: nn.Module,
        length: int,
        settings: AlgorithmConfig,
        outputs: int,
        persistence: float | None = None,
    ):
        self.envs, self.algorithm, self.net = envs, algorithm, net
        self.length, self.gamma = length, settings.gamma
        self.reward_clip, self.reward_scale = settings.reward_clip, settings.reward_scale
        self.finished: deque[tuple[float, int]] = deque(maxlen=EPISODES_KEPT)
        self._episodes = 0
        self._shape = (length, envs.num_envs)
        self._outputs = outputs
        self._persistence = None if persistence is None else Persistence(persistence, envs.num_envs)

    def reset(self, seeds: Sequence[int], epsilon: NDArray, generator: np.random.Generator):
        """Start new episodes in all environments (one seed each) and choose the first actions."""
        length, count = self._shape
        obs = self.envs.reset(seeds)
        self._generator = generator
        self._score = np.zeros(count)
        self._steps = np.zeros(count, np.int64)
        self._obs = np.zeros((length + 1, *obs.shape), obs.dtype)
        self._actions = np.zeros((length + 1, count), np.int64)
        self._greedy = np.zeros((length + 1, count), bool)
        self._q_values = np.zeros((length + 1, count, self._outputs), np.float32)
        self._rewards, self._discounts, self._weights = np.zeros((3, length, count), np.float32)
        self._terminated, self._truncated, self._ends = np.zeros((3, length, count), bool)
        self._starts = np.zeros((length + 1, count), bool)
        self._rows = list(torch.from_numpy(self._obs))  # what the network sees, by time step
        self._taken = 0
        self._obs[0] = obs
        self._starts[0] = True
        self._state = self.net.initial_state(count)
        self._act(0, epsilon)

    def collect(
        self, epsilon: NDArray[np.float32], budget: int, record: Callable[[int], None]
    ) -> Rollout:
        """Take up to `length` steps, at most `budget` (>= 1) transitions, and return them.

        `epsilon` is [B]. `record(n)` is called after every vector step with the number of real
        transitions in it; surplus ones beyond the budget get weight 0 and are not counted.
        """
        for rows in (self._obs, self._actions, self._greedy, self._q_values, self._starts):
            rows[0] = rows[self._taken]
        state = self._state_before  # of the pending row, which is now row 0
        final_rows, final_obs = [], []
        t = 0
        while t < self.length and budget > 0:
            step = self.envs.step(self._actions[t])
            count = self._store(t, step, budget)
            if step.final_rows.size:
                final_rows.append(step.final_rows + t * len(step.obs))
                final_obs.append(step.final_obs.copy())
            budget -= count
            record(count)
            t += 1
            self._act(t, epsilon)
        self._taken = t
        self._prepare(t)
        return self._rollout(t, epsilon, state, final_rows, final_obs)

    def take_episode_count(self) -> int:
        """How many episodes ended since the last call."""
        count, self._episodes = self._episodes, 0
        return count

    def _act(self, t: int, epsilon: NDArray[np.float32]) -> None:
        with torch.inference_mode():
            self._state_before = restarted(self._state, self._starts[t])
            output, self._state = self.net(self._rows[t], self._state_before)
            self._q_values[t] = output.q_values.numpy()
            choice = self.algorithm.act(output, epsilon, self._generator)
            if self._persistence is not None:
                q_values = None if self.envs.info.masks is None else self._q_values[t]
                choice = self._persistence.prolong(
                    choice, q_values, self._starts[t], self._generator
                )
            self._actions[t], self._greedy[t] = choice

    def _store(self, t: int, step: Step, budget: int) -> int:
        """Write row t as the environments give it; return how many of its transitions count."""
        self._obs[t + 1] = step.obs
        self._rewards[t] = step.rewards
        self._terminated[t] = step.terminated
        self._truncated[t] = step.truncated
        self._starts[t + 1] = self.envs.starts(step)
        real = ~step.dummy
        self._score += step.scores
        self._steps += real
        count = int(np.count_nonzero(real))
        if count > budget:
            real &= np.cumsum(real) <= budget
            count = budget
        self._weights[t] = real
        if np.count_nonzero(step.faulty):
            self._break_off(t, step.faulty)
        if np.count_nonzero(step.ended):
            self._finish_episodes(np.flatnonzero(step.ended))
        return count

    def _prepare(self, steps: int) -> None:
        """Make of what the environments gave in so many steps what is learned from."""
        rewards, terminated = self._rewards[:steps], self._terminated[:steps]
        if self.reward_clip is not None:
            np.clip(rewards, -self.reward_clip, self.reward_clip, out=rewards)
        rewards *= self.reward_scale
        np.multiply(~terminated, self.gamma, out=self._discounts[:steps])
        np.logical_or(terminated, self._truncated[:steps], out=self._ends[:steps])

    def _break_off(self, t: int, faulty: NDArray[np.bool_]) -> None:
        """The environment broke and begins anew: no return runs across, the episode is forgotten.

        The step before bootstraps from its successor, the last good observation.
        """
        self._terminated[t, faulty] = True
        if t:
            self._truncated[t - 1, faulty] = True
        self._score[faulty] = 0.0
        self._steps[faulty] = 0

    def _finish_episodes(self, rows: NDArray[np.int64]) -> None:
        for row in rows:
            self.finished.append((float(self._score[row]), int(self._steps[row])))
        self._episodes += len(rows)
        self._score[rows] = 0.0
        self._steps[rows] = 0

    def _rollout(self, t: int, epsilon, state, final_rows: list, final_obs: list) -> Rollout:
        return Rollout(
            obs=self._obs[: t + 1],
            actions=self._actions[: t + 1],
            greedy=self._greedy[: t + 1],
            q_values=self._q_values[: t + 1],
            rewards=self._rewards[:t],
            discounts=self._discounts[:t],
            ends=self._ends[:t],
            weights=self._weights[:t],
            final_rows=np.concatenate(final_rows) if final_rows else np.zeros(0, np.int64),
            final_obs=np.concatenate(final_obs) if final_obs else self._obs[0, :0],
            starts=self._starts[: t + 1],
            epsilon=epsilon,
            state=state,
        )
