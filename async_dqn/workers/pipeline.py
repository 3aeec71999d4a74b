"""Model parallel: the network's layers in two processes, by `torch.distributed.pipelining`.

Worker 0 acts and computes targets with the whole network; the learning pass goes through the front
layers in its process and the back layers in worker 1's, in microbatches (GPipe, Huang et al. 2019)
over gloo on the loopback interface. Worker 1 lays its part of the gradient into the shared block;
worker 0 clips the whole and pushes it in a round of `synchronous`, like any other.

It pays if an update's arithmetic takes far longer than its ten messages and falls into equal
halves; with this package's networks it does not: benchmarks/results/model_parallel.md. A baseline.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

from async_dqn.algorithms.rollout import Rollout, flat
from async_dqn.algorithms.rollout_passes import LossOutput, actions_taken, weighted_loss
from async_dqn.networks.network import QNetwork
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import HEARTBEAT_NS, LEARNING, PHASE
from async_dqn.parameters.sync_store import GIVEN, SynchronousStore
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import RunSpec

MICROBATCHES = 4
TIMEOUT_S = 10.0  # of every message
ASKED, READY = 5, 6  # words of `rounds`: the round worker 0 wants a pass for; who can connect


class Front(nn.Sequential):
    """The first layers: raw observations [N, ...] -> features."""

    scale = 1.0

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return super().forward(obs * self.scale)


class Back(nn.Sequential):
    """The other layers and the head: features -> Q-values [N, A]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).q_values


def split(net: QNetwork) -> tuple[Front, Back]:
    """Cut before a dense layer of the torso or before the head: there the larger part is least.

    Parameters are counted; they are what a dense layer's arithmetic is proportional to.
    """
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in net.torso]
    everything = sum(p.numel() for p in net.parameters())
    dense = [k for k, layer in enumerate(net.torso) if isinstance(layer, nn.Linear)]
    cuts = [k for k in (*dense, len(sizes)) if sum(sizes[:k])]
    cut = min(cuts, key=lambda k: max(sum(sizes[:k]), everything - sum(sizes[:k])))
    front, back = Front(*net.torso[:cut]), Back(*net.torso[cut:], net.head)
    front.scale = net.scale
    return front, back


def batch_loss(q_values: torch.Tensor, pass_batch: torch.Tensor) -> torch.Tensor:
    """Q-learning's loss of some rows [n, A]; `pass_batch` [n, 3]: action, target, weight.

    The weights of the whole batch add up to 1, so that its loss is the SUM over microbatches.
    """
    _, targets, weights = pass_batch.unbind(1)
    return (weights * 0.5 * (targets - _chosen(q_values, pass_batch)).square()).sum()


def _chosen(q_values: torch.Tensor, pass_batch: torch.Tensor) -> torch.Tensor:
    return q_values.gather(1, pass_batch[:, :1].long()).squeeze(1)


class Stage:
    """What both ends have: their layers, a connection to the other, and the schedule.

    Every pass has as many rows as a whole rollout, filled up with weight 0. `rendezvous` is a file
    that does not exist yet, the same for both; it is gone afterwards.
    """

    index: int

    def __init__(
        self, run_spec: RunSpec, network: FlatNetwork, store: SynchronousStore, rendezvous: Path
    ):
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe  # two seconds

        self.network, self.store, self.rounds = network, store, store.block["rounds"]
        ends = split(network.net)
        self.back = slice(sum(p.numel() for p in ends[0].parameters()), None)  # of flat vectors
        self.back_gradient = torch.from_numpy(store.block["parts"])[1, 0, self.back]
        parallel, info = run_spec.config.parallel, run_spec.info
        rows = -(-parallel.rollout_length * parallel.envs_per_worker // MICROBATCHES)
        batch, dtype = rows * MICROBATCHES, getattr(torch, info.dtype)
        self.obs = torch.zeros(batch, *info.observation_shape, dtype=dtype)
        self.pass_batch, self.chosen = torch.zeros(batch, 3), torch.zeros(batch)
        # With all shapes given nothing but numbers is ever sent; torch would send pickles.
        shapes = [self.obs[:rows]]
        for end in ends:
            shapes.append(end(shapes[-1]).detach().requires_grad_())
        self._connect(rendezvous)
        own = shapes[self.index : self.index + 2]  # what goes in and comes out
        stage = PipelineStage(ends[self.index], self.index, 2, torch.device("cpu"), *own)
        self.schedule = ScheduleGPipe(stage, MICROBATCHES, loss_fn=batch_loss, scale_grads=False)

    def _connect(self, rendezvous: Path) -> None:
        """Meet the other process once it is there, however long its environments take."""
        self.rounds[self.index, READY] = 1
        self.store.wait(lambda: self.rounds[:, READY].all())
        # Else gloo listens where the host's name leads; a TCPStore would listen everywhere.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        store, timeout = (
            distributed.FileStore(str(rendezvous), 2),
            timedelta(seconds=TIMEOUT_S),
        )
        distributed.init_process_group(
            "gloo", store=store, rank=self.index, world_size=2, timeout=timeout
        )
        distributed.barrier()
        if self.index == 0:
            rendezvous.unlink(missing_ok=True)

    @contextmanager
    def _pass(self) -> Iterator[None]:
        self.store.slot[PHASE] = LEARNING
        self.store.beat()
        try:
            yield
        except RuntimeError as error:
            other = f"worker {1 - self.index}"
            raise RuntimeError(f"the pipeline broke, {other} may be gone: {error}") from error


class FirstStage(Stage):
    """Worker 0's end."""

    index = 0

    def gradient(self, obs: torch.Tensor, pass_batch: torch.Tensor) -> torch.Tensor:
        """Leave the gradient of `batch_loss` in the network's; return Q [N] of the actions taken.

        `obs` [N, ...] and `pass_batch` [N, 3] may be shorter than a whole rollout.
        Raises RuntimeError if the other process is gone or gives no answer for `TIMEOUT_S`.
        """
        self.obs[: len(obs)] = obs
        self.pass_batch[: len(obs)] = pass_batch
        self.pass_batch[len(obs) :] = 0.0
        self.network.gradient.zero_()
        self.rounds[0, ASKED] = self.rounds[0, GIVEN] + 1
        with self._pass():
            # Blocked in gloo this process gives no sign of life; it is not the one that hangs.
            self.store.slot[HEARTBEAT_NS] += int(TIMEOUT_S * 1e9)
            distributed.send(self.pass_batch, 1)
            self.schedule.step(self.obs)
            distributed.recv(self.chosen, 1)
        self.network.gradient[self.back] = self.back_gradient
        return self.chosen[: len(obs)].clone()


class LastStage(Stage):
    """Worker 1's end: it takes no steps, and serves passes and rounds."""

    index = 1

    def serve(self, lr: float) -> None:
        """One round: its half of the pass, if there is one, and its slice of the update."""
        number = self.rounds[1, GIVEN] + 1
        self.store.beat()
        self.store.wait(lambda: self.rounds[0, (ASKED, GIVEN)].max() >= number)
        if self.rounds[0, ASKED] >= number:
            with self._pass():
                self._answer()
        self.store.push(None, lr)

    def _answer(self) -> None:
        self.network.vector[self.back] = self.store.theta[self.back]
        self.network.gradient[self.back] = 0.0
        distributed.recv(self.pass_batch, 0)
        q_values = self.schedule.step(target=self.pass_batch)
        self.back_gradient.copy_(self.network.gradient[self.back])
        distributed.send(_chosen(q_values.detach(), self.pass_batch), 0)


class FirstLearner(Learner):
    """Worker 0: a learner whose learning pass is the pipeline's."""

    def __init__(self, run_spec: RunSpec, store: SynchronousStore, rendezvous: Path):
        super().__init__(run_spec, store, 0)
        self.stage = FirstStage(run_spec, self.network, store, rendezvous)

    def _gradient(self, rollout: Rollout) -> LossOutput:
        target = self.target.net if self.target is not None else None
        targets = self.algorithm.targets(self.network.net, target, rollout)
        targets, weights = (torch.from_numpy(a).flatten() for a in (targets, rollout.weights))
        actions = actions_taken(rollout).squeeze(1)
        pass_batch = torch.stack((actions, targets, weights / weights.sum()), 1)
        chosen = self.stage.gradient(torch.from_numpy(flat(rollout.obs[:-1])), pass_batch)
        errors = targets - chosen
        return weighted_loss(rollout, 0.5 * errors.square(), chosen, errors.abs())
