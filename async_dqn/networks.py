"""Q-networks: a torso by observation shape and a linear or dueling head.

`net(obs, state=None) -> (output, state)`; the output always has `q_values` [N, A]. Observations
go in raw (bytes stay bytes until here), so that acting, learning and deployment preprocess alike.
No layer keeps running statistics (a racy update would tear them): LayerNorm only, which is also
what lets Q-learning do without a target network (PQN, Gallici et al. 2024).

Initialisation is torch's default (He-uniform, fan-in) but for the output layer, which starts at a
hundredth of it so that the first greedy policy follows no accident of the seed.
"""

from typing import NamedTuple

import torch
from torch import nn

from async_dqn.architecture import Architecture


class QOutput(NamedTuple):
    """What every head returns."""

    q_values: torch.Tensor  # [N, A]


class LinearHead(nn.Module):
    """Q(s, .) = W features + b."""

    def __init__(self, features: int, num_actions: int):
        super().__init__()
        self.q = _small(nn.Linear(features, num_actions))

    def forward(self, features: torch.Tensor) -> QOutput:
        return QOutput(self.q(features))


class DuelingHead(nn.Module):
    """Q = V + A - mean A (Wang et al. 2016, eq. 9)."""

    def __init__(self, features: int, num_actions: int):
        super().__init__()
        self.value = _small(nn.Linear(features, 1))
        self.advantage = _small(nn.Linear(features, num_actions))

    def forward(self, features: torch.Tensor) -> QOutput:
        advantage = self.advantage(features)
        return QOutput(self.value(features) + advantage - advantage.mean(1, keepdim=True))


class QNetwork(nn.Module):
    """Torso and head over raw observations [N, *observation_shape]."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.scale = architecture.scale
        self.torso, features = _torso(architecture)
        head = DuelingHead if architecture.dueling else LinearHead
        self.head = head(features, architecture.num_actions)

    def forward(self, obs: torch.Tensor, state: tuple | None = None) -> tuple[QOutput, None]:
        # One pass: multiplying bytes by a float also converts them.
        if self.scale != 1.0 or obs.dtype != torch.float32:
            obs = obs * self.scale
        return self.head(self.torso(obs)), state


class Convolutions(nn.Sequential):
    """Convolution layers, in bfloat16 if asked; the features that come out are float32.

    Only here: small differences of Q-values do not survive bfloat16 in the last layers.
    """

    def __init__(self, bfloat16: bool, *layers: nn.Module):
        super().__init__(*layers)
        self.bfloat16 = bfloat16

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return super().forward(planes).float()


# Convolution stacks: (channels, kernel, stride) per layer and the width of the dense layer.
CONVOLUTIONS = {
    "small-conv": (((16, 3, 1),), 128),  # Young & Tian 2019 (MinAtar)
    "nips": (((16, 8, 4), (32, 4, 2)), 256),  # Mnih et al. 2013, and of the asynchronous paper
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015
}


def _torso(architecture: Architecture) -> tuple[nn.Sequential, int]:
    if architecture.network == "mlp":
        return _mlp(architecture)
    if architecture.network == "conv":
        return _conv(architecture, _halving_stack(architecture.observation_shape), 256)
    return _conv(architecture, *CONVOLUTIONS[architecture.network])


def _mlp(architecture: Architecture) -> tuple[nn.Sequential, int]:
    (width,) = architecture.observation_shape
    layers: list[nn.Module] = []
    for hidden in architecture.hidden:
        layers += [*_dense(width, hidden, architecture.layer_norm), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers), width


def _conv(architecture: Architecture, stack, dense: int) -> tuple[nn.Sequential, int]:
    channels, height, width = architecture.observation_shape
    layers: list[nn.Module] = []
    for out, kernel, stride in stack:
        layers.append(nn.Conv2d(channels, out, kernel, stride))
        if architecture.layer_norm:
            layers.append(nn.GroupNorm(1, out))  # one group: LayerNorm over the whole feature map
        layers.append(nn.ReLU())
        channels = out
        height, width = (1 + (side - kernel) // stride for side in (height, width))
    convolutions = Convolutions(architecture.bfloat16, *layers, nn.Flatten())
    layers = _dense(channels * height * width, dense, architecture.layer_norm)
    return nn.Sequential(convolutions, *layers, nn.ReLU()), dense


def _halving_stack(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """3x3 convolutions of stride 2 until the shorter side is at most 8."""
    side, stack = min(shape[1:]), [(16, 3, 1)]
    side -= 2
    while side > 8:
        stack.append((32, 3, 2))
        side = 1 + (side - 3) // 2
    return stack


def _dense(inputs: int, outputs: int, layer_norm: bool) -> list[nn.Module]:
    linear = nn.Linear(inputs, outputs)
    return [linear, nn.LayerNorm(outputs)] if layer_norm else [linear]


def _small(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.zero_()
    return layer
