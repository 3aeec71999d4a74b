"""torch's layers without what surrounds a module call: hooks, and parameters looked up by name.

In the pass of a small network that costs more than the arithmetic. Names and initialisation are
torch's; hooks on these layers are not called.

For the same reason they know their backward pass, which `Chain` uses. `kept(x)` gives the output
and what `backward(kept, gradient, further)` needs: that takes the gradient of the loss by the
output, adds those by the parameters to theirs, and returns the one by x where it goes `further`.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Linear):
    """y = x W' + b."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self._parameters
        return functional.linear(x, own["weight"], own["bias"])

    __call__ = forward

    def kept(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.forward(x), x

    def backward(self, kept: Any, gradient: torch.Tensor, further: bool) -> torch.Tensor | None:
        own = self._parameters
        _add(own["weight"], gradient.t().mm(kept))
        _add(own["bias"], gradient.sum(0))
        return gradient.mm(own["weight"]) if further else None


class Normalize(nn.Module):
    """(x - mean) * factor, cut to [-10, 10]: each number by its running mean and deviation.

    Both are parameters, so that they go wherever parameters go, but no gradient reaches them, and
    hence no optimiser: `parameters.moments` writes them. At first they leave x as it is.
    """

    LIMIT = 10.0

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(*shape))
        self.factor = nn.Parameter(torch.ones(*shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, factor = (part.detach() for part in self._parameters.values())
        # Images are large: one pass for both, and no further copies.
        return torch.addcmul(-mean * factor, x, factor).clamp_(-self.LIMIT, self.LIMIT)

    __call__ = forward

    def kept(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.forward(x), None

    def backward(self, kept: Any, gradient: torch.Tensor, further: bool) -> torch.Tensor | None:
        return None  # it comes first, and learns nothing


class LayerNorm(nn.LayerNorm):
    """Over the last dimension, with a learned scale and shift."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self._parameters
        return torch.layer_norm(x, self.normalized_shape, own["weight"], own["bias"], self.eps)

    __call__ = forward

    def kept(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        shape, weight, bias = self.normalized_shape, *self._parameters.values()
        y, mean, factor = torch.native_layer_norm(x, shape, weight, bias, self.eps)
        return y, (x, shape, mean, factor, weight, bias)

    def backward(self, kept: Any, gradient: torch.Tensor, further: bool) -> torch.Tensor | None:
        by_x, by_weight, by_bias = _layer_norm_backward(gradient, *kept, [further, True, True])
        _add(kept[-2], by_weight)
        _add(kept[-1], by_bias)
        return by_x


class ReLU(nn.Module):
    """max(x, 0), in place: what it follows keeps no copy of its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(x)

    __call__ = forward

    def kept(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        y = torch.relu_(x)
        return y, y

    def backward(self, kept: Any, gradient: torch.Tensor, further: bool) -> torch.Tensor | None:
        return _relu_backward(gradient, kept, 0)


class Sequential(nn.Sequential):
    """One layer after another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self._modules.values():
            x = layer(x)
        return x

    __call__ = forward


class Chain:
    """`Linear`, `LayerNorm` and `ReLU` one after another, perhaps after a `Normalize`, learning
    without autograd's graph.

    Its nodes take as long as the arithmetic of a small batch. The kernels are the same, and so is
    the gradient, bit for bit.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = layers
        self._kept: list[Any] = []

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Self | None:
        """The chain of these layers; None where one of them is of another kind."""
        kinds = (Normalize, Linear, LayerNorm, ReLU)
        return cls(layers) if all(type(layer) in kinds for layer in layers) else None

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output; what the backward pass needs is kept until the next call."""
        self._kept = []
        for layer in self.layers:
            x, kept = layer.kept(x)
            self._kept.append(kept)
        return x

    @torch.no_grad()
    def backward(self, gradient: torch.Tensor) -> None:
        """Add to the parameters' gradients, from that of the loss by the last output."""
        for k in reversed(range(len(self.layers))):
            gradient = self.layers[k].backward(self._kept[k], gradient, k > 0)


_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default


def _add(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)
