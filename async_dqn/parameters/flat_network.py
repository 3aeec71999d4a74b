"""A network as one flat vector, and as named tensors for a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
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
        self.gradient = torch.zeros_like(vector) if gradient else None
        gradients = _views(net, self.gradient) if gradient else {}
        for name, view in _views(net, vector).items():
            parameter = net.get_parameter(name)
            parameter.data = view.copy_(parameter.detach())
            parameter.requires_grad_(gradient)
            parameter.grad = gradients.get(name)

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


def _views(net: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where the parameters of `net` lie in a flat vector [P], by name, each in its shape."""
    named = dict(net.named_parameters())
    ends = accumulate(p.numel() for p in named.values())
    return {
        name: vector[end - p.numel() : end].view(p.shape)
        for (name, p), end in zip(named.items(), ends)
    }


def by_parameter(net: nn.Module, value: Callable[[str], float]) -> torch.Tensor:
    """A flat vector [P] with this value for each parameter, by its name."""
    vector = torch.zeros(padded_size(net))
    for name, view in _views(net, vector).items():
        view.fill_(value(name))
    return vector


def size_before_head(net: nn.Module) -> int:
    """How many parameters of a Q-network come before those of its head, which are the last."""
    return sum(p.numel() for name, p in net.named_parameters() if "head." not in name)


def named_tensors(net: nn.Module, vector: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Copy a flat vector [P] into arrays by parameter name, for a checkpoint."""
    return {name: view.numpy().copy() for name, view in _views(net, vector).items()}


def flat_vector(net: nn.Module, tensors: dict[str, NDArray[np.float32]]) -> torch.Tensor:
    """The inverse of `named_tensors`. Raises ValueError as `check_named` does."""
    vector = torch.zeros(padded_size(net))
    views = _views(net, vector)
    check_named({name: tuple(view.shape) for name, view in views.items()}, tensors)
    for name, view in views.items():
        view.copy_(torch.from_numpy(tensors[name]))
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
