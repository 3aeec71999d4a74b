"""A small network taught by an agent (policy distillation, Rusu et al. 2016).

The student learns from the agent's Q-values on what both of them see: first the agent plays, then
the student itself, whose mistakes lead elsewhere (DAgger, Ross et al. 2011).
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from async_dqn.agent import Agent
from async_dqn.config.config import UserError
from async_dqn.envs.make import EnvBatch, make_vector
from async_dqn.networks.architecture import ILLEGAL, Architecture
from async_dqn.networks.layers import Normalize
from async_dqn.networks.network import QNetwork
from async_dqn.networks.torsos import CONVOLUTIONS
from async_dqn.parameters.flat_network import FlatNetwork

ENVS = 16  # played side by side
ROUNDS = 4  # the first with the agent's actions, the others with the student's
RANDOM = 0.1  # share of random actions, so that more is seen
BATCH, RATE = 256, 1e-3
PASSES = 20  # over what has been seen, in each round
SHARPNESS = 10.0  # of the choice that is learned, in typical differences of Q-values
NARROWER = 2  # of convolutions' channels


def student_of(agent: Agent, hidden: Sequence[int], observations: int, seed: int = 0) -> Agent:
    """An agent that decides like `agent`, with dense layers of the widths `hidden`.

    Convolutions keep their kernels and strides, with half the channels; before them and at the end
    all is as it was. It learns from so many `observations`. Raises UserError for networks that
    remember, and those of the user.
    """
    architecture = agent.run_spec.architecture
    if architecture.recurrent:
        raise UserError("a recurrent agent is not distilled: the student has no memory")
    if architecture.parts or architecture.network not in (*CONVOLUTIONS, "mlp", "linear"):
        raise UserError(
            f"distill is for vectors and the networks {', '.join(CONVOLUTIONS)} (this agent has "
            f"{'several parts' if architecture.parts else architecture.network})"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small, torso = _smaller(architecture, hidden)
        network = FlatNetwork(QNetwork(small, torso))
        _normalise_alike(agent.network.net, network.net)
        _teach(agent, network, observations, seed)
    network.net.eval().requires_grad_(False)
    student = copy.copy(agent)
    own = agent.run_spec.own | ({} if torso is None else {"network": torso})
    student.run_spec = replace(agent.run_spec, architecture=small, own=own)
    student.network = network
    return student


def _smaller(
    architecture: Architecture, hidden: Sequence[int]
) -> tuple[Architecture, "Torso | None"]:
    plain = {"head": "q", "dueling": False, "noisy": False, "bfloat16": False}
    small = replace(architecture, **plain, hidden=tuple(hidden))
    if architecture.network not in CONVOLUTIONS:
        return replace(small, network="mlp"), None
    stack, _ = CONVOLUTIONS[architecture.network]
    return small, Torso(stack, tuple(hidden), architecture.layer_norm)


class Torso:
    """Builds narrower convolutions and dense layers, for the shape [C, H, W] of an image."""

    def __init__(self, stack: Sequence[tuple[int, int, int]], hidden: Sequence[int], norm: bool):
        self.stack, self.hidden, self.norm = stack, hidden, norm

    def __call__(self, shape: tuple[int, ...]) -> nn.Module:
        channels, *sides = shape
        layers: list[nn.Module] = []
        for out, kernel, stride in self.stack:
            out = max(1, out // NARROWER)
            layers.append(nn.Conv2d(channels, out, kernel, stride))
            layers += [nn.GroupNorm(1, out)] * self.norm + [nn.ReLU()]
            channels, sides = out, [1 + (side - kernel) // stride for side in sides]
        widths = [channels * sides[0] * sides[1], *self.hidden]
        layers.append(nn.Flatten())
        for width, further in itertools.pairwise(widths):
            layers.append(nn.Linear(width, further))
            layers += [nn.LayerNorm(further)] * self.norm + [nn.ReLU()]
        return nn.Sequential(*layers)


def _normalise_alike(teacher: QNetwork, student: QNetwork) -> None:
    """The running moments of observations are the agent's; they come first in both."""
    for mine, other in zip(student.torso.modules(), teacher.torso.modules()):
        if isinstance(mine, Normalize) and isinstance(other, Normalize):
            mine.load_state_dict(other.state_dict())


def _teach(agent: Agent, student: FlatNetwork, observations: int, seed: int) -> None:
    spec, generator = agent.run_spec, np.random.default_rng(seed)
    envs = make_vector(spec.spec, ENVS, training=True)
    optimizer = torch.optim.Adam([p for p in student.net.parameters() if p.requires_grad], RATE)
    seen: list[np.ndarray] = []
    taught: list[torch.Tensor] = []
    try:
        obs = envs.reset(spec.seeds(ENVS, 0, seed))
        for number in range(ROUNDS):
            player = agent.network.net if number == 0 else student.net
            obs, rows = _play(agent, player, envs, obs, observations // ROUNDS, generator)
            seen.append(rows)
            taught.append(_q_values(agent.network.net, rows))
            _learn(agent, student, optimizer, np.concatenate(seen), torch.cat(taught), generator)
    finally:
        envs.close()


def _play(
    agent: Agent,
    net: nn.Module,
    envs: EnvBatch,
    obs: np.ndarray,
    count: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The observations to go on from, and those that were seen [count, ...]."""
    rows = []
    for _ in range(-(-count // ENVS)):
        rows.append(obs.copy())
        q_values = _q_values(net, obs).numpy()
        random = np.where(q_values > ILLEGAL / 2, generator.random(q_values.shape), -1)
        explores = generator.random(len(obs)) < RANDOM
        choice = np.where(explores[:, None], random.astype(np.float32), q_values)
        obs = envs.step(agent.run_spec.actions.best(choice)).obs
    return obs, np.concatenate(rows)


def _q_values(net: nn.Module, rows: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        parts = [net(part)[0].q_values for part in torch.from_numpy(rows).split(BATCH)]
    return torch.cat(parts)


def _learn(
    agent: Agent,
    student: FlatNetwork,
    optimizer: torch.optim.Optimizer,
    rows: np.ndarray,
    wanted: torch.Tensor,
    generator: np.random.Generator,
) -> None:
    """The choices of the agent, and its Q-values, in the scale of their differences."""
    sizes = list(agent.run_spec.architecture.branches) or [wanted.shape[1]]
    scale = _scale(wanted, sizes)
    inputs = torch.from_numpy(rows)
    for _ in range(PASSES):
        order = torch.from_numpy(generator.permutation(len(rows)))
        for index in order.split(BATCH):
            found, right = student.net(inputs[index])[0].q_values, wanted[index]
            legal = right > ILLEGAL / 2
            error = torch.where(legal, found - right, 0.0) / scale
            loss = functional.smooth_l1_loss(error, torch.zeros_like(error))
            pairs = zip((found / scale).split(sizes, 1), (right / scale).split(sizes, 1))
            for mine, other in pairs:
                choice = (SHARPNESS * other).log_softmax(1), (SHARPNESS * mine).log_softmax(1)
                loss = loss + functional.kl_div(
                    choice[1], choice[0], log_target=True, reduction="batchmean"
                )
            student.gradient.zero_()
            loss.backward()
            optimizer.step()


def _scale(wanted: torch.Tensor, sizes: Sequence[int]) -> float:
    """The typical distance of a Q-value from the best one."""
    gaps = []
    for part in wanted.split(sizes, 1):
        legal = part > ILLEGAL / 2
        gaps.append((part.amax(1, keepdim=True) - part)[legal])
    return max(1e-6, float(torch.cat(gaps).mean()))
