"""`RunSpec`: all that a process needs to build its part of a run; plain picklable data."""

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from async_dqn.algorithms.actions import Flat, by_branches
from async_dqn.algorithms.exploration import OwnSchedule, Schedule, schedule
from async_dqn.algorithms.horizon import Horizon
from async_dqn.algorithms.registry import Algorithm, build_algorithm
from async_dqn.config.config import Config
from async_dqn.config.cores import usable_cores
from async_dqn.config.extension import ALGORITHMS, Traits
from async_dqn.config.fields import UserError, describe_error
from async_dqn.config.scaling import MOST_EVALUATING, evaluation_processes
from async_dqn.envs.spec import EnvInfo, EnvSpec
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import AveragedNetwork, OnDevice, QNetwork
from async_dqn.parameters import layout
from async_dqn.parameters.block import BlockSection, SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork, by_parameter
from async_dqn.parameters.optimizers import OPTIMIZERS, Optimizer
from async_dqn.parameters.store import ParameterStore
from async_dqn.parameters.sync_store import SynchronousStore, round_sections
from async_dqn.parameters.target import Average, Copy, Polyak, Target
from async_dqn.parameters.upkeep import Resets, Upkeep
from async_dqn.processes.child_side import ParentIdentity
from async_dqn.replay.shard import ReplayShard, replay_bytes, segment_length

# First words of the seed key: disjoint branches of the run's seed.
TRAINING, SCREENING, CONFIRMATION, NOISE, REPLAY, GLOBAL, FRESH, RESETS = range(8)


@dataclass(frozen=True)
class RunSpec:
    """The settings, the environment and the network of a run; `own` is code of the user's."""

    config: Config
    spec: EnvSpec
    info: EnvInfo
    architecture: Architecture
    own: dict[str, Any] = field(default_factory=dict)  # by setting (`extension.find`)

    def __post_init__(self) -> None:
        """Every process takes masks from where the trainer found them."""
        if self.info.masks is not None:
            object.__setattr__(self, "spec", replace(self.spec, masks=self.info.masks))

    def packed(self) -> bytes:
        """By cloudpickle: what is from a script, a notebook or a function goes as its code, as a
        child cannot import it. Raises UserError where something in it cannot travel."""
        try:
            return cloudpickle.dumps(self)
        except Exception as error:
            raise UserError(
                f"{self.spec.name}, or code of your own, cannot be sent to workers "
                f"({describe_error(error)}); let it open what it holds itself, or use mode serial"
            ) from error

    @property
    def algorithm(self) -> Algorithm:
        """What acts and has the loss."""
        return build_algorithm(self.config, self.own.get("algorithm"), self.actions)

    @property
    def actions(self) -> Flat:
        """What the network's Q-values say of actions."""
        return by_branches(self.architecture.branches)

    @property
    def traits(self) -> Traits:
        """Those of its algorithm."""
        own = self.own.get("algorithm")
        return ALGORITHMS[self.config.algorithm.algorithm] if own is None else own.traits

    def network(self) -> QNetwork:
        """The network, in host memory."""
        return QNetwork(self.architecture, self.own.get("network"))

    def learning_network(self) -> QNetwork | OnDevice:
        """The network where a learner computes with it."""
        device = self.config.run.device
        return self.network() if device == "cpu" else OnDevice(self.network(), device)

    def target_network(self) -> FlatNetwork | None:
        """The target network of a learner; None without one."""
        if self.config.optimizer.target_sync_steps is None:
            return None
        count = self.target_rule.networks
        if count == 1:
            return FlatNetwork(self.learning_network(), gradient=False)
        copies = [self.learning_network() for _ in range(count)]
        return FlatNetwork.joined(copies, AveragedNetwork(copies))

    @property
    def target_rule(self) -> Target:
        """What the target network is after each interval."""
        settings = self.config.optimizer
        if "target" in self.own:
            return self.own["target"]
        if settings.target == "polyak":
            return Polyak(settings.target_tau)
        return Average(settings.target_networks) if settings.target == "average" else Copy()

    @property
    def upkeep(self) -> Upkeep:
        """What is done to the shared parameters beside gradient steps."""
        settings = self.config.optimizer
        resets = None
        if settings.reset_every is not None:
            to = self._reset_shares(), self._fresh_parameters
            resets = Resets(settings.reset_every, self.config.run.steps, *to)
        return Upkeep(
            self.target_rule,
            settings.target_sync_steps,
            settings.average_steps,
            settings.target_by_average,
            settings.score_by_average,
            resets,
            settings.weight_decay,
        )

    def _reset_shares(self) -> torch.Tensor:
        """How far each parameter [P] goes in a reset: those of the head all the way."""
        net, share = self.network(), self.config.optimizer.reset_share
        shares = {"head": 1.0, "torso": share, "cell": share}
        vector = by_parameter(net, lambda name: shares[name.partition(".")[0]])
        vector[: 2 * self.normalized_inputs] = 0.0  # running moments
        return vector

    def _fresh_parameters(self, number: int) -> torch.Tensor:
        """New random parameters [P] for the reset of this number."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds(1, RESETS, number)[0])
            return FlatNetwork(self.network(), gradient=False).vector

    def optimizer(self) -> Optimizer:
        """The update rule."""
        settings = self.config.optimizer
        own = {"beta1": settings.beta1, "eps": settings.adam_eps}
        return OPTIMIZERS[settings.optimizer](**own if settings.optimizer == "shared-adam" else {})

    @property
    def horizon(self) -> Horizon | None:
        """How far the returns look, over time; None where that does not change."""
        learned = self.config.algorithm
        if learned.horizon_steps is None:
            return None
        first = [learned.lam_start, learned.gamma_start]
        last = learned.lam, learned.gamma
        pairs = [(b if a is None else a, b) for a, b in zip(first, last, strict=True)]
        return Horizon(learned.horizon_steps, *pairs)

    @property
    def shared_state(self) -> bool:
        """Whether all workers update one optimiser state; always where they update together."""
        return self.optimizer().shared or self.config.parallel.mode == "sync"

    def state_names(self, workers: int) -> list[str]:
        """Names of the optimiser's vectors in a checkpoint of so many workers, in their order."""
        owners = [""] if self.shared_state else [f"worker_{worker}." for worker in range(workers)]
        return [f"{owner}row_{k}" for owner in owners for k in range(self.optimizer().rows)]

    @property
    def most_players(self) -> int:
        """Processes that may play beside the evaluator: as many as cores once the workers left.

        None where environments are stepped as one batch: a share of it would take as long.
        """
        if self.config.parallel.mode == "serial" or self.info.batched:
            return 0
        return max(self.players, min(MOST_EVALUATING, usable_cores()) - 1)

    @property
    def players(self) -> int:
        """Processes that play beside the evaluator while workers learn."""
        if self.config.parallel.mode == "serial" or self.info.batched:
            return 0
        return evaluation_processes(self.config.parallel.workers, usable_cores()) - 1

    @property
    def normalized_inputs(self) -> int:
        """How many numbers of an observation are normalised by their running moments."""
        shape = self.architecture.observation_shape
        return math.prod(shape) if self.architecture.normalize else 0

    def sections(self, size: int) -> tuple[BlockSection, ...]:
        """The table of the shared block for `size` parameters (padded)."""
        parallel, rows = self.config.parallel, self.optimizer().rows
        table = layout.sections(
            parallel.workers,
            size,
            rows,
            self.shared_state,
            self.most_players,
            self.target_rule.networks,
            (self.normalized_inputs, int(self.config.algorithm.scale_rewards)),
            self.config.optimizer.average_steps is not None,
        )
        if parallel.mode != "sync":
            return table
        parts = 1 if parallel.sync_average == "gradients" else 1 + rows
        return (*table, *round_sections(parallel.workers, size, parts))

    def plain_store(self, block: SharedBlock, slot: int) -> ParameterStore:
        """The store of the trainer, the evaluator, or a worker that waits for no other."""
        upkeep = self.upkeep
        if self.config.parallel.mode == "sync":  # worker 0 has it
            upkeep = upkeep.of_another()
        return ParameterStore(block, self.optimizer(), slot, upkeep)

    def alone(self) -> tuple[ParameterStore, FlatNetwork]:
        """A new network, and a store with it on a block of its own, to try a learner with."""
        network = FlatNetwork(self.network(), gradient=False)
        block = SharedBlock(self.sections(len(network.vector)))
        block["multipliers"][:] = 1.0
        store = self.plain_store(block, 0)
        store.theta.copy_(network.vector)
        store.begin(0)
        return store, network

    def store(self, block: SharedBlock, worker: int) -> ParameterStore:
        """The store of a worker."""
        parallel = self.config.parallel
        if parallel.mode != "sync":
            return self.plain_store(block, worker)
        return SynchronousStore(
            block,
            self.optimizer(),
            worker,
            None if parallel.sync_average == "gradients" else parallel.sync_every,
            self.upkeep,
        )

    @property
    def exploration(self) -> Schedule | OwnSchedule:
        """The schedule of all environments, worker by worker; 0 where actions explore by itself."""
        config = self.config
        count = config.parallel.actors * config.parallel.envs_per_worker
        if "exploration" in self.own:
            return OwnSchedule(self.own["exploration"], count)
        exploration = schedule(config.exploration, count)
        if self.traits.explores_itself:
            return exploration._replace(start=0.0, finals=np.zeros_like(exploration.finals))
        return exploration

    @property
    def eval_epsilon(self) -> float:
        """Exploration in evaluations: none, but for Atari, where a greedy policy can get stuck.

        At Rainbow's 0.001 a young policy waits 4,000 steps for each ball of Breakout: an
        evaluation took eight minutes.
        """
        return 0.01 if self.spec.is_atari else 0.0

    def replay_shard(self) -> ReplayShard | None:
        """One worker's part of the replay memory; None without replay."""
        replay, parallel = self.config.replay, self.config.parallel
        if replay.replay == "none":
            return None
        return ReplayShard(
            shape=self.info.observation_shape,
            dtype=self.info.dtype,
            capacity=replay.replay_capacity // parallel.workers,
            num_envs=parallel.envs_per_worker,
            length=segment_length(self.traits.one_step, parallel.rollout_length),
            batch_size=replay.batch_size,
            alpha=replay.priority_exponent if replay.replay == "prioritized" else None,
        )

    @property
    def replay_bytes(self) -> int:
        """Memory of all shards, without building them."""
        replay, parallel = self.config.replay, self.config.parallel
        if replay.replay == "none":
            return 0
        capacity = replay.replay_capacity // parallel.workers
        shape, dtype = self.info.observation_shape, self.info.dtype
        return parallel.workers * replay_bytes(capacity, parallel.envs_per_worker, shape, dtype)

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

    def seed_globals(self, *key: int) -> None:
        """Seed the global generators of Python, NumPy and torch, which environments may draw from.

        Children of one fork server would all begin with the same numbers.
        """
        python, numpy, own = self.seeds(3, GLOBAL, *key)
        random.seed(python)
        np.random.seed(numpy)
        torch.manual_seed(own)

    def generator(self, *key: int) -> np.random.Generator:
        """A random generator of the branch `key`, independent of the seeds drawn from it."""
        return np.random.default_rng(
            np.random.SeedSequence(self.config.run.seed, spawn_key=(*key, 1))
        )


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """Leave the caller's global random generators and torch's threads as they were."""
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])


@dataclass(frozen=True)
class ProcessArgs:
    """The start arguments of a child: the only thing that is ever pickled."""

    run_spec: RunSpec
    block: SharedBlock
    parent: ParentIdentity
    pipe: Connection
    index: int
    incarnation: int
    title: str
    log: Path

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"run_spec": self.run_spec.packed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, run_spec=cloudpickle.loads(state["run_spec"]))
