"""The player: whole episodes with fixed parameters, for scores that can be compared."""

from collections.abc import Iterator

import numpy as np
import torch

from async_dqn.envs import EnvBatch, make_vector
from async_dqn.exploration import epsilon_greedy
from async_dqn.networks import restarted
from async_dqn.parameters import FlatNetwork
from async_dqn.task import Task

LOOPED_ENVS, BATCHED_ENVS = 20, 100  # at once


class Player:
    """Plays whole episodes with a fixed network: true rewards, greedy but for `eval_epsilon`."""

    def __init__(self, task: Task, network: FlatNetwork):
        self.task, self.network = task, network
        self._envs: dict[int, EnvBatch] = {}

    def play(self, episodes: int, *key: int) -> Iterator[list[tuple[float, int]]]:
        """Yield, after every vector step, the (score, length) pairs finished so far.

        The same key gives the same episodes to the same network. Every environment plays a fixed
        number of them, so that short episodes are not over-represented. An episode whose
        environment breaks is played again; after as many breaks as episodes, playing ends early.
        """
        count = min(episodes, BATCHED_ENVS if self.task.info.batched else LOOPED_ENVS)
        if count not in self._envs:
            self._envs[count] = make_vector(self.task.spec, count, training=False)
        envs = self._envs[count]
        left = np.full(count, episodes // count)
        left[: episodes % count] += 1
        epsilon = np.full(count, self.task.eval_epsilon, np.float32)
        generator = self.task.generator(*key)
        finished: list[tuple[float, int]] = []
        score, length = np.zeros(count), np.zeros(count, np.int64)
        allowed, net = envs.rebuilds + episodes, self.network.net
        obs, state = envs.reset(self.task.seeds(count, *key)), net.initial_state(count)
        while left.any():
            with torch.inference_mode():
                output, state = net(torch.from_numpy(obs), state)
            actions, _ = epsilon_greedy(output.q_values.numpy(), epsilon, generator)
            step = envs.step(actions)
            obs = step.obs
            state = restarted(state, envs.starts(step))
            score += step.scores
            length += ~step.dummy
            score[step.faulty], length[step.faulty] = 0.0, 0  # played again
            if envs.rebuilds > allowed:
                return
            for row in np.flatnonzero(step.ended):
                if left[row]:
                    finished.append((float(score[row]), int(length[row])))
                    left[row] -= 1
                    if not left[row]:
                        envs.leave_out(int(row))
                score[row], length[row] = 0.0, 0
            yield finished
