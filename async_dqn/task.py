"""`Task`: all that a process needs to build its part of a run; plain picklable data."""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from async_dqn.architecture import Architecture
from async_dqn.child import Lifeline
from async_dqn.config import Config
from async_dqn.env_spec import EnvInfo, EnvSpec
from async_dqn.exploration import final_epsilons
from async_dqn.memory import SharedBlock
from async_dqn.networks import QNetwork
from async_dqn.optimizers import OPTIMIZERS, Optimizer

# First words of the seed key: disjoint branches of the run's seed.
TRAINING, SCREENING, CONFIRMATION = range(3)


@dataclass(frozen=True)
class Task:
    """The settings, the environment and the network of a run."""

    config: Config
    spec: EnvSpec
    info: EnvInfo
    architecture: Architecture

    def network(self) -> QNetwork:
        return QNetwork(self.architecture)

    def optimizer(self) -> Optimizer:
        return OPTIMIZERS[self.config.optimizer.optimizer]()

    def final_epsilons(self, worker: int) -> np.ndarray:
        """The final epsilon [B] of each environment of one worker."""
        parallel, exploration = self.config.parallel, self.config.exploration
        count = parallel.envs_per_worker
        everyone = final_epsilons(
            exploration.exploration, exploration.epsilon_final, parallel.workers * count
        )
        return everyone[worker * count : (worker + 1) * count]

    @property
    def eval_epsilon(self) -> float:
        """Exploration in evaluations: none, but for Atari, where a greedy policy can get stuck."""
        return 0.001 if self.spec.is_atari else 0.0

    def learning_rate(self, step: int) -> float:
        """The learning rate at a global step."""
        optimizer = self.config.optimizer
        if optimizer.lr_schedule == "linear":
            return optimizer.lr * max(0.0, 1 - step / self.config.run.steps)
        return optimizer.lr

    def seeds(self, count: int, *key: int) -> list[int]:
        """Return `count` environment seeds of the branch `key` of the run's seed."""
        sequence = np.random.SeedSequence(self.config.run.seed, spawn_key=key)
        return sequence.generate_state(count).tolist()

    def generator(self, *key: int) -> np.random.Generator:
        """A random generator of the branch `key`, independent of the seeds drawn from it."""
        return np.random.default_rng(
            np.random.SeedSequence(self.config.run.seed, spawn_key=(*key, 1))
        )


@dataclass(frozen=True)
class ChildStart:
    """The start arguments of a child: the only thing that is ever pickled."""

    task: Task
    block: SharedBlock
    lifeline: Lifeline
    pipe: Connection
    index: int
    incarnation: int
    title: str
    log: Path
