"""The actor-learner: pull, collect, loss, gradient, push. The body of every mode's worker."""

import math
import time
from typing import Any

import numpy as np
import torch

from async_dqn.algorithms import build_algorithm
from async_dqn.collector import Collector
from async_dqn.envs import make_vector
from async_dqn.exploration import anneal
from async_dqn.optimizers import Optimizer
from async_dqn.parameters import (
    ENV_STEP,
    EPISODES,
    HEARTBEAT_NS,
    LEARNING,
    PHASE,
    SKIPPED,
    STEPS,
    FlatNetwork,
    ParameterStore,
)
from async_dqn.task import TRAINING, Task


class Learner:
    """Worker number `index`: its environments, its private networks and its slot of the store."""

    def __init__(self, task: Task, store: ParameterStore, index: int):
        config = task.config
        self.task, self.store, self.slot = task, store, store.slot
        self.network = FlatNetwork(task.network())
        has_target = config.optimizer.target_sync_steps is not None
        self.target = FlatNetwork(task.network(), gradient=False) if has_target else None
        self.algorithm = build_algorithm(config.algorithm)
        self.finals = task.final_epsilons(index)
        self.collector = Collector(
            make_vector(task.spec, config.parallel.envs_per_worker, training=True),
            self.algorithm,
            self.network.net,
            config.parallel.rollout_length,
            config.algorithm.gamma,
            config.algorithm.reward_scale,
            task.info.num_actions,
        )
        self.statistics = Statistics()
        self_check(self.network, task.optimizer())

    def reset(self, *stream: int) -> None:
        """Start new episodes; every random number now follows from the seed and `stream`."""
        count = self.task.config.parallel.envs_per_worker
        self.store.pull(self.network)
        self.collector.reset(
            self.task.seeds(count, TRAINING, *stream),
            self.epsilon(self.store.steps),
            self.task.generator(TRAINING, *stream),
        )

    def epsilon(self, step: int) -> np.ndarray:
        """Epsilon [B] at a global step."""
        exploration = self.task.config.exploration
        return anneal(
            self.finals, exploration.epsilon_start, exploration.epsilon_steps, step
        ) * np.float32(self.store.epsilon_multiplier)

    def update(self, budget: int) -> None:
        """One rollout of at most `budget` steps and, unless it teaches nothing, one update."""
        step = self.store.steps
        self.store.pull(self.network)
        if self.target is not None:
            self.store.pull_target(self.target)
        self.slot[PHASE] = ENV_STEP
        rollout = self.collector.collect(self.epsilon(step), budget, self._record)
        self.slot[PHASE] = LEARNING
        self.slot[EPISODES] += self.collector.take_episode_count()
        if rollout.weights.any():
            target = self.target.net if self.target is not None else None
            self.network.gradient.zero_()
            loss, q_values = self.algorithm.loss(self.network.net, target, rollout)
            loss.backward()
            self._push(step, loss, q_values)

    def record(self) -> dict[str, Any]:
        """What happened since `clear`: sums over updates and (return, length) of episodes."""
        return vars(self.statistics) | {"episodes": list(self.collector.finished)}

    def clear(self) -> None:
        """Begin a new record."""
        self.statistics = Statistics()
        self.collector.finished.clear()

    def _push(self, step: int, loss: torch.Tensor, q_values: torch.Tensor) -> None:
        gradient = self.network.gradient
        limit = self.task.config.optimizer.max_grad_norm
        norm = gradient.norm().item()
        if not math.isfinite(norm):  # checked before any shared write
            self.slot[SKIPPED] += 1
            return
        if norm > limit:
            gradient.mul_(limit / norm)
        staleness = self.store.push(gradient, self.task.learning_rate(step))
        self.statistics.add(loss.item(), norm, q_values.mean().item(), staleness)

    def _record(self, count: int) -> None:
        """Count a vector step at once, so that a kill loses at most one."""
        self.slot[STEPS] += count
        self.slot[HEARTBEAT_NS] = time.monotonic_ns()


class Statistics:
    """Sums over updates, added up by the worker and merged by the trainer."""

    def __init__(self):
        self.updates, self.loss, self.grad_norm, self.q_mean = 0, 0.0, 0.0, 0.0
        self.staleness, self.staleness_max = 0, 0

    def add(self, loss: float, grad_norm: float, q_mean: float, staleness: int) -> None:
        """Count one update."""
        self.merge(
            {
                "updates": 1,
                "loss": loss,
                "grad_norm": grad_norm,
                "q_mean": q_mean,
                "staleness": staleness,
                "staleness_max": staleness,
            }
        )

    def merge(self, sums: dict[str, float]) -> None:
        """Add the sums of another."""
        self.staleness_max = max(self.staleness_max, sums["staleness_max"])
        for name in ("updates", "loss", "grad_norm", "q_mean", "staleness"):
            setattr(self, name, getattr(self, name) + sums[name])

    def means(self) -> dict[str, float]:
        """Means per update by TensorBoard tag; empty before the first update."""
        if not self.updates:
            return {}
        return {
            "train/loss": self.loss / self.updates,
            "train/grad_norm": self.grad_norm / self.updates,
            "train/q_mean": self.q_mean / self.updates,
            "async/staleness_mean": self.staleness / self.updates,
            "async/staleness_max": self.staleness_max,
        }


def self_check(network: FlatNetwork, optimizer: Optimizer) -> None:
    """Prove that the optimiser sees THIS update's gradient, not an older or a summed one.

    The widespread asynchronous loops that share `.grad` by aliasing fail this since torch 2.0.
    The network is left unchanged. Raises RuntimeError.
    """
    weights = torch.zeros((2, 1 + optimizer.rows, len(network.vector)))
    size = sum(p.numel() for p in network.net.parameters())
    for k in range(1, 4):
        network.gradient.zero_()
        (k * sum(p.sum() for p in network.net.parameters())).backward()
        wanted = torch.zeros_like(network.gradient)
        wanted[:size] = k
        for gradient, (theta, *state) in zip((network.gradient, wanted), weights):
            optimizer.step(theta, gradient, state, 1e-3, k - 1)
    network.gradient.zero_()
    if not torch.equal(weights[0], weights[1]):
        raise RuntimeError("gradient self-check failed: the optimiser sees another gradient")
