"""A network as one flat vector, and as named tensors for a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.parameters.layout import padded_size


class FlatNetwork:
    """A module whose parameters and gradients are views into two flat vectors [P] on its device.

    Pulling is then one copy and clearing the gradient one `zero_()`. Never call `zero_grad()` on
    the module: it replaces the gradient views by None and silently cuts them off.
    """

    def __init__(self, net: nn.Module, gradient: bool = True, vector: torch.Tensor | None = None):
        self.net = net.train(gradient)
        if vector is None:
            vector = torch.zeros(padded_size(net), device=next(net.parameters()).device)
        self.vector = vector
        self.gradient = torch.zeros_like(self.vector) if gradient else None
        start = 0
        for parameter in net.parameters():
            window = slice(start, start + parameter.numel())
            self.vector[window] = parameter.detach().flatten()
            parameter.data = self.vector[window].view(parameter.shape)
            parameter.requires_grad_(gradient)
            if self.gradient is not None:
                parameter.grad = self.gradient[window].view(parameter.shape)
            start = window.stop

    @classmethod
    def joined(cls, nets: Sequence[nn.Module], whole: nn.Module) -> Self:
        """Several networks of one size as one vector [networks, P], for no gradients.

        `whole` is the module that they make up.
        """
        size = padded_size(nets[0])
        flat = cls.__new__(cls)
        flat.net, flat.gradient = whole, None
        flat.vector = torch.zeros(len(nets) * size, device=next(nets[0].parameters()).device)
        for net, part in zip(nets, flat.vector.split(size), strict=True):
            cls(net, gradient=False, vector=part)
        return flat


def named_tensors(net: nn.Module, vector: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Copy a flat vector [P] into arrays by parameter name, for a checkpoint."""
    arrays, start = {}, 0
    for name, parameter in net.named_parameters():
        window = vector[start : start + parameter.numel()]
        arrays[name] = window.view(parameter.shape).numpy().copy()
        start += parameter.numel()
    return arrays


def flat_vector(net: nn.Module, tensors: dict[str, NDArray[np.float32]]) -> torch.Tensor:
    """The inverse of `named_tensors`. Raises ValueError as `check_named` does."""
    expected = {name: tuple(p.shape) for name, p in net.named_parameters()}
    check_named(expected, tensors)
    vector, start = torch.zeros(padded_size(net)), 0
    for name, shape in expected.items():
        count = math.prod(shape)
        vector[start : start + count] = torch.from_numpy(tensors[name]).flatten()
        start += count
    return vector


def check_named(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, NDArray]) -> None:
    """Raise ValueError on a missing, extra, misshapen or not float32 tensor."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"tensor {name} is {'missing' if name in expected else 'unexpected'}")
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            raise ValueError(f"tensor {name} is {list(found.shape)}, expected {list(shape)}")
        if found.dtype != np.float32:
            raise ValueError(f"tensor {name} is {found.dtype}, expected float32")
