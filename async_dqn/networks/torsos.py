"""The layers between observation and head: dense layers for vectors, convolutions for images.

A row of parts has a torso for each, joined by a dense layer.

No layer keeps running statistics (a racy update would tear them): LayerNorm only, which is also
what lets Q-learning do without a target network (PQN, Gallici et al. 2024).

Initialisation is torch's default everywhere: dense layers and convolutions, weights and biases,
uniform within 1 / sqrt(fan-in); norms start as the identity after normalising.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from async_dqn.config.fields import UserError, describe_error, is_foreign
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.layers import LayerNorm, Linear, Normalize, ReLU, Sequential
from async_dqn.networks.noisy import NoisyLinear

# Convolution stacks: (channels, kernel, stride) per layer and the width of the dense layer.
CONVOLUTIONS = {
    "small-conv": (((16, 3, 1),), 128),  # Young & Tian 2019 (MinAtar)
    "nips": (((16, 8, 4), (32, 4, 2)), 256),  # Mnih et al. 2013, and of the asynchronous paper
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015
}
SMALL_SIDE = 16  # up to here the ordinary layout is the faster one (docs/tuning.md)
RESIDUAL_STAGES = (16, 32, 32)  # channels, Espeholt et al. 2018, fig. 3


def build_torso(
    architecture: Architecture, own: Callable[[tuple[int, ...]], nn.Module] | None = None
) -> tuple[nn.Sequential, int]:
    """The torso that the architecture names and the number of features [N, features] it gives.

    `own` builds that of the user for the shape of an observation.
    """
    if architecture.parts:
        return _joined_torso(architecture, own)
    if own is not None:
        return _own_torso(architecture, own)
    if len(architecture.observation_shape) == 1:
        return _vector_torso(architecture)
    if architecture.network == "impala":
        return _image_torso(architecture, *_residual_layers(architecture), 256)
    if architecture.network == "conv":
        stack, dense = _halving_stack(architecture.observation_shape), 256
    else:
        stack, dense = CONVOLUTIONS[architecture.network]
    return _image_torso(architecture, *_plain_layers(architecture, stack), dense)


def _own_torso(architecture: Architecture, build: Callable) -> tuple[nn.Sequential, int]:
    """Raises UserError for what cannot be shared out to workers as a vector of parameters."""
    first, shape = _inputs(architecture)
    name = architecture.network
    try:
        module = build(shape)
        torso = Sequential(*first, module)
        before = [buffer.clone() for buffer in torso.buffers()]
        features = torso(torch.zeros(2, *architecture.observation_shape))
    except Exception as error:
        raise UserError(
            f"network {name} failed ({describe_error(error)}); it is to build, for the shape "
            f"{shape}, a module that makes features [N, F] of observations [N, *shape]"
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features)
        raise UserError(f"network {name} makes {got} of observations {(2, *shape)}, not [2, F]")
    if any(p.dtype != torch.float32 or not p.requires_grad for p in torso.parameters()):
        raise UserError(f"network {name} has parameters that are not float32, or are not learned")
    if not all(map(torch.equal, before, torso.buffers())):
        raise UserError(
            f"network {name} keeps running statistics, which workers cannot share; use LayerNorm"
        )
    return torso, features.shape[1]


def _joined_torso(
    architecture: Architecture, own: Callable[[tuple[int, ...]], nn.Module] | None
) -> tuple[nn.Sequential, int]:
    """A torso for every part of a row, and a dense layer as wide as the widest of them."""
    built = [
        build_torso(part, own if is_foreign(part.network) else None) for part in architecture.parts
    ]
    torsos, features = zip(*built, strict=True)
    width = max(features)
    first, _ = _inputs(architecture)
    row = Row(architecture.parts, torsos)
    return Sequential(*first, row, *_dense(architecture, sum(features), width)), width


def _inputs(architecture: Architecture) -> tuple[list[nn.Module], tuple[int, ...]]:
    """What comes before the first layer, and the shape that it sees."""
    layers: list[nn.Module] = []
    shape = architecture.observation_shape
    if architecture.normalize:
        layers.append(Normalize(shape))
    if isinstance(architecture.scale, tuple):
        layers.append(Scale(architecture.scale))
    if architecture.low is not None:
        layers.append(RescaleBox(architecture.low, architecture.high))
    if architecture.codes is not None:
        layers.append(OneHot(architecture.codes))
        shape = (shape[0] * architecture.codes, *shape[1:])
    return layers, shape


class Row(nn.Module):
    """Rows [N, n] of parts -> the features [N, F] that their torsos make of them, side by side."""

    def __init__(self, parts: Sequence[Architecture], torsos: Sequence[nn.Module]):
        super().__init__()
        self.torsos = nn.ModuleList(torsos)
        self.shapes = [part.observation_shape for part in parts]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.scales = [1.0 if isinstance(part.scale, tuple) else part.scale for part in parts]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        features = []
        for k, part in enumerate(rows.split(self.sizes, 1)):
            own = part.reshape(-1, *self.shapes[k])
            features.append(self.torsos[k](own if self.scales[k] == 1 else own * self.scales[k]))
        return torch.cat(features, 1)


class OneHot(nn.Module):
    """Codes [N, C, H, W] -> planes [N, C * codes, H, W]; what lies beyond is the last code."""

    def __init__(self, codes: int):
        super().__init__()
        numbers = torch.arange(codes, dtype=torch.float32)[:, None, None]
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        known = images.clamp(max=len(self.numbers) - 1)
        return (known.unsqueeze(2) == self.numbers).float().flatten(1, 2)


class Scale(nn.Module):
    """Each number of a vector by its own factor."""

    def __init__(self, factors: Sequence[float]):
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors * self.factors


class RescaleBox(nn.Module):
    """Maps the box of `low` and `high` (one number per input) to [-1, 1]; it learns nothing."""

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...]):
        super().__init__()
        # An input that has only one value becomes 0.
        factor = [2 / (b - a) if b > a else 1.0 for a, b in zip(low, high, strict=True)]
        shift = [-(a + b) / 2 * f for a, b, f in zip(low, high, factor, strict=True)]
        self.register_buffer("factor", torch.tensor(factor), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, vectors, self.factor)


class Convolutions(nn.Sequential):
    """Convolution layers, in bfloat16 if asked; the features that come out are float32.

    Only here: small differences of Q-values do not survive bfloat16 in the last layers.
    """

    def __init__(self, bfloat16: bool, *layers: nn.Module):
        super().__init__(*layers)
        self.bfloat16 = bfloat16

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        if self.bfloat16:
            with torch.autocast(planes.device.type, torch.bfloat16):
                return super().forward(planes).float()
        if torch.is_grad_enabled() and planes.shape[-1] > SMALL_SIDE:
            # Gradients of float32 weights take half the time in this layout, forwards no less.
            planes = planes.contiguous(memory_format=torch.channels_last)
        return super().forward(planes)


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return planes + super().forward(planes)


def _vector_torso(architecture: Architecture) -> tuple[nn.Sequential, int]:
    layers, (width,) = _inputs(architecture)
    for hidden in architecture.hidden if architecture.network == "mlp" else ():
        layers += _dense(architecture, width, hidden)
        width = hidden
    return Sequential(*layers), width


def _image_torso(
    architecture: Architecture, layers: list[nn.Module], pixels: int, dense: int
) -> tuple[nn.Sequential, int]:
    """Convolution layers that give `pixels` numbers, and a dense layer."""
    convolutions = Convolutions(architecture.bfloat16, *layers, nn.Flatten())
    first, _ = _inputs(architecture)
    return Sequential(*first, convolutions, *_dense(architecture, pixels, dense)), dense


def _plain_layers(architecture: Architecture, stack) -> tuple[list[nn.Module], int]:
    _, (channels, height, width) = _inputs(architecture)
    layers: list[nn.Module] = []
    for out, kernel, stride in stack:
        layers += [*_convolution(architecture, channels, out, kernel, stride), ReLU()]
        channels = out
        height, width = (1 + (side - kernel) // stride for side in (height, width))
    return layers, channels * height * width


def _residual_layers(architecture: Architecture) -> tuple[list[nn.Module], int]:
    """Per stage a convolution, a max-pool that halves the sides, rounded up, and two blocks."""
    _, (channels, height, width) = _inputs(architecture)
    layers: list[nn.Module] = []
    for out in RESIDUAL_STAGES:
        layers += _convolution(architecture, channels, out, 3, 1, padding=1)
        layers += [nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [_residual_block(architecture, out) for _ in range(2)]
        channels, height, width = out, -(-height // 2), -(-width // 2)
    return [*layers, nn.ReLU()], channels * height * width


def _residual_block(architecture: Architecture, channels: int) -> Residual:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.ReLU(), *_convolution(architecture, channels, channels, 3, 1, padding=1)]
    return Residual(*layers)


def _convolution(
    architecture: Architecture, channels: int, out: int, kernel: int, stride: int, padding: int = 0
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, padding)
    # One group: LayerNorm over the whole feature map.
    return [convolution, nn.GroupNorm(1, out)] if architecture.layer_norm else [convolution]


def _dense(architecture: Architecture, inputs: int, outputs: int) -> list[nn.Module]:
    linear = (NoisyLinear if architecture.noisy else Linear)(inputs, outputs)
    norm = [LayerNorm(outputs)] if architecture.layer_norm else []
    return [linear, *norm, ReLU()]


def _halving_stack(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """3x3 convolutions of stride 2 until the shorter side is at most 8."""
    side, stack = min(shape[1:]), [(16, 3, 1)]
    side -= 2
    while side > 8:
        stack.append((32, 3, 2))
        side = 1 + (side - 3) // 2
    return stack
