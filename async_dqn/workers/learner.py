"""The actor-learner: pull, collect, loss, gradient, push. The body of every mode's worker."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from async_dqn.algorithms.rollout import Rollout, flat
from async_dqn.algorithms.rollout_passes import LossOutput
from async_dqn.config.fields import describe_error, one_line
from async_dqn.envs.make import make_vector
from async_dqn.parameters.flat_network import FlatNetwork, size_before_head
from async_dqn.parameters.layout import (
    ENV_ERRORS,
    ENV_STEP,
    EPISODES,
    FAILING,
    LEARNING,
    PHASE,
    SKIPPED,
    STEPS,
)
from async_dqn.parameters.moments import DiscountedSums
from async_dqn.parameters.optimizers import Optimizer
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes.child_side import PermanentError
from async_dqn.replay.shifts import shift_images
from async_dqn.workers.collector import Collector
from async_dqn.workers.records import Statistics
from async_dqn.workers.run_spec import NOISE, REPLAY, TRAINING, RunSpec

MAX_FAULTS, GOOD_STEPS = 100, 1000  # of environments in a row; what ends the row
MANY_NUMBERS = 1000  # of an observation
FAULT_LENGTH = 120  # characters; a record must fit into one write to the pipe


class Learner:
    """Worker number `index`: its environments, its private networks and its slot of the store."""

    def __init__(self, run_spec: RunSpec, store: ParameterStore, index: int):
        # In this thread. Moments of weights without a gradient fade until they are denormal, and
        # remain it; an update by Adam then takes up to ten times as long.
        torch.set_flush_denormal(True)
        config = run_spec.config
        self.run_spec, self.store, self.slot = run_spec, store, store.slot
        self.network = FlatNetwork(run_spec.learning_network())
        self.target = run_spec.target_network()
        # How many parameters the target network takes from the learner's own: none, or its torso's.
        shares = config.optimizer.target_layers == "last"
        self._shared = size_before_head(self.network.net) if shares else 0
        frozen = config.optimizer.freeze == "torso"
        self._frozen = size_before_head(self.network.net) if frozen else 0
        self.actor = self.network
        if config.optimizer.act_by_average:
            self.actor = FlatNetwork(run_spec.learning_network(), gradient=False)
        self.algorithm, self._horizon = run_spec.algorithm, run_spec.horizon
        self._passes = config.parallel.epochs * config.parallel.minibatches
        self.exploration = run_spec.exploration.of(index, config.parallel.envs_per_worker)
        count = config.parallel.envs_per_worker
        self.envs = make_vector(run_spec.spec, count, training=True, alive=store.beat)
        seen, known = (
            f"{info.num_actions} actions and observations of {info.observation_shape}"
            for info in (self.envs.info, run_spec.info)
        )
        if seen != known:
            raise PermanentError(f"sees {seen}; the trainer saw {known}")
        self.collector = Collector(
            self.envs,
            self.algorithm,
            self.actor.net,
            config.parallel.rollout_length,
            config.algorithm,
            run_spec.architecture.outputs,
            config.exploration.persistence,
        )
        self.shard = run_spec.replay_shard()
        self._sums = DiscountedSums(count, config.algorithm.gamma)
        self.statistics = Statistics()
        self._fault, self._faults, self._fault_step = "", 0, 0
        self_check(self.network, run_spec.optimizer())

    def reset(self, *stream: int) -> None:
        """Start new episodes; every random number now follows from the seed and `stream`."""
        run_spec, count = self.run_spec, self.envs.num_envs
        run_spec.seed_globals(TRAINING, *stream)
        self.generator = run_spec.generator(REPLAY, *stream)
        self._noise = torch.Generator().manual_seed(run_spec.seeds(1, NOISE, *stream)[0])
        self._pull()
        self.collector.reset(
            run_spec.seeds(count, TRAINING, *stream),
            self.epsilon(self.store.steps),
            run_spec.generator(TRAINING, *stream),
        )
        self._sums.reset()
        self._owed = 0.0  # draws from replay
        self.store.moments.begin()
        if self.shard is not None:
            self.shard.cut()

    def close(self) -> None:
        """Free the environments."""
        self.envs.close()

    def epsilon(self, step: int) -> np.ndarray:
        """Epsilon [B] at a global step."""
        return self.exploration.at(step)

    def update(self, budget: int) -> None:
        """One rollout of at most `budget` steps, and what is to be learned after it."""
        for _ in self.update_steps(budget):
            pass

    def update_steps(self, budget: int) -> Iterator[None]:
        """`update` in parts: pauses before every push, when its gradient is ready.

        A mode in which time is simulated lets others push meanwhile.
        """
        step = self.store.steps
        self._pull()
        self.slot[PHASE] = ENV_STEP
        rollout = self.collector.collect(self.epsilon(step), budget, self._record)
        self.slot[PHASE] = LEARNING
        self.slot[EPISODES] += self.collector.take_episode_count()
        self._add_moments(rollout)
        if self.shard is not None:
            self.shard.add(rollout)
        else:
            self._prepare(rollout, step)
            if self._passes > 1 and self.target is None:  # Q-learning: no other makes several
                self.algorithm.fix_targets(rollout)
        for k, batch in enumerate(self._batches(rollout, step)):
            if k:
                self._pull()
            learned = None
            if batch is not None and np.count_nonzero(batch.weights):
                learned = self._gradient(batch)
            yield
            self._push(step, learned)

    def _batches(self, rollout: Rollout, step: int) -> Iterator[Rollout | None]:
        """What each update learns from: the rollout, parts of it, or a draw from replay."""
        parallel = self.run_spec.config.parallel
        if self.shard is not None:
            draws = self._draws(rollout)
            for k in range(max(1, draws)):  # a push is due in any case
                yield self._sample_replay(step) if k < draws else None
            return
        for _ in range(parallel.epochs):
            if parallel.minibatches == 1:
                yield rollout
            else:
                order = self.generator.permutation(self.envs.num_envs)
                yield from map(rollout.columns, np.array_split(order, parallel.minibatches))

    def _draws(self, rollout: Rollout) -> int:
        """How many draws from replay follow a rollout, fractions of one carried over."""
        replay = self.run_spec.config.replay
        if replay.samples_per_step is None:
            return self.run_spec.config.parallel.epochs
        steps = np.count_nonzero(rollout.weights)
        self._owed += replay.samples_per_step * steps / (replay.batch_size * self.shard.length)
        draws, self._owed = divmod(self._owed, 1)
        return int(draws)

    def _pull(self) -> None:
        """Copy the shared networks; noisy ones draw anew, one draw per environment."""
        self.store.pull(self.network)
        self.network.net.reset_noise(self.envs.num_envs, self._noise)
        if self.actor is not self.network:
            self.store.average.pull(self.actor.vector)
            self.actor.net.reset_noise(self.envs.num_envs, self._noise)
        if self.target is not None:
            self.store.target.pull(self.target.vector)
            if self._shared:
                self.target.vector[: self._shared] = self.network.vector[: self._shared]
            self.target.net.reset_noise(self.envs.num_envs, self._noise)

    def _sample_replay(self, step: int) -> Rollout | None:
        """A batch from replay, once there is enough to draw from: in all, and in its own shard,
        which is empty in a restarted worker and in a resumed asynchronous run."""
        replay, workers = self.run_spec.config.replay, self.run_spec.config.parallel.workers
        if step < replay.replay_start or not self.shard.ready(replay.replay_start // workers):
            return None
        progress = step / self.run_spec.config.run.steps
        beta = replay.priority_beta + (1 - replay.priority_beta) * min(1.0, progress)
        rollout = self.shard.sample(self.generator, beta)
        if replay.random_shift:
            shift_images(rollout, replay.random_shift, self.generator)
        return self._prepare(rollout, step)

    def _add_moments(self, rollout: Rollout) -> None:
        moments = self.store.moments
        if moments.normalizes:
            columns = moments.inputs.rows.shape[2]
            # Images change little from step to step, and are dear to add up.
            seen = flat(rollout.obs[:1] if columns > MANY_NUMBERS else rollout.obs[:-1])
            moments.inputs.add(seen.reshape(len(seen), -1)[:, :columns])
        if moments.scales_rewards:
            sums = self._sums.after(rollout.rewards, rollout.ends)
            moments.returns.add(sums.reshape(-1, 1))

    def _prepare(self, rollout: Rollout, step: int) -> Rollout:
        """Scale rewards and set the horizon, in place: replay holds them as they came."""
        if self.store.moments.scales_rewards:
            rollout.rewards *= np.float32(self.store.moments.reward_factor)
        if self._horizon is not None:
            lam, gamma = self._horizon.at(step)
            rollout.discounts[rollout.discounts > 0] = gamma
            if self.run_spec.config.algorithm.lam_start is not None:
                self.algorithm = replace(self.algorithm, lam=lam)
        return rollout

    def _gradient(self, rollout: Rollout) -> LossOutput:
        target = self.target.net if self.target is not None else None
        self.network.gradient.zero_()
        learned = self.algorithm.loss(self.network.net, target, rollout)
        learned.backward()
        if self._frozen:
            self.network.gradient[: self._frozen].zero_()
        if self.shard is not None:
            self.shard.update_priorities(learned.errors[: rollout.rewards.shape[1]])
        return learned

    def record(self) -> dict[str, Any]:
        """What happened since `clear`: sums over updates, (return, length) of episodes, a fault,
        and sums of what environments tell."""
        told = {} if self.envs.notes is None else self.envs.notes.sums
        episodes = list(self.collector.finished)
        return vars(self.statistics) | {"episodes": episodes, "fault": self._fault, "info": told}

    def clear(self) -> None:
        """Begin a new record."""
        self.statistics = Statistics()
        self.collector.finished.clear()
        if self.envs.notes is not None:
            self.envs.notes.clear()

    def _push(self, step: int, learned: LossOutput | None) -> None:
        """Hand over the gradient, if there is one and it is finite."""
        settings = self.run_spec.config.optimizer
        self.store.beat()
        if learned is not None:
            norm = torch.linalg.vector_norm(self.network.gradient).item()
            sound = math.isfinite(norm)  # checked before any shared write
            self.slot[FAILING] = 0 if sound else self.slot[FAILING] + 1
            if not sound:
                self.slot[SKIPPED] += 1
                learned = None
            elif norm > settings.max_grad_norm:
                self.network.gradient.mul_(settings.max_grad_norm / norm)
        staleness = self.store.push(
            self.network.gradient.cpu() if learned is not None else None,
            self.run_spec.learning_rate(step),
            settings.staleness_scaling,
            settings.max_staleness,
        )
        if learned is not None:
            self.statistics.add(learned.loss, norm, learned.q_mean, staleness)

    def _record(self, count: int) -> None:
        """Count a vector step at once, so that a kill loses at most one."""
        self.slot[STEPS] += count
        if self.envs.rebuilds:
            self._count_faults()
        self.store.beat()

    def _count_faults(self) -> None:
        """A fault now and then is counted; environments that do little else end the worker."""
        count, self.envs.rebuilds = self.envs.rebuilds, 0
        self.slot[ENV_ERRORS] += count
        step = int(self.slot[STEPS])
        since, self._fault_step = step - self._fault_step, step
        self._faults = count if since >= GOOD_STEPS else self._faults + count
        self._fault = one_line(describe_error(self.envs.fault))[:FAULT_LENGTH]
        if self._faults > MAX_FAULTS:
            raise RuntimeError(
                f"its environments failed {self._faults} times with fewer than {GOOD_STEPS:,} "
                f"steps between ({self._fault})"
            )


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
        wanted = torch.zeros(len(network.gradient))
        wanted[:size] = k
        for gradient, (theta, *state) in zip((network.gradient.cpu(), wanted), weights):
            optimizer.step(theta, gradient, state, 1e-3, k - 1)
    network.gradient.zero_()
    if not torch.equal(weights[0], weights[1]):
        raise RuntimeError("gradient self-check failed: the optimiser sees another gradient")
