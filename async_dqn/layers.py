"""torch's layers without what surrounds a module call: hooks, and parameters looked up by name.

In the pass of a small network that costs more than the arithmetic. Names and initialisation are
torch's; hooks on these layers are not called.
"""

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Linear):
    """y = x W' + b."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self._parameters
        return functional.linear(x, own["weight"], own["bias"])

    __call__ = forward


class LayerNorm(nn.LayerNorm):
    """Over the last dimension, with a learned scale and shift."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self._parameters
        return torch.layer_norm(x, self.normalized_shape, own["weight"], own["bias"], self.eps)

    __call__ = forward


class ReLU(nn.Module):
    """max(x, 0), in place: what it follows keeps no copy of its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(x)

    __call__ = forward


class Sequential(nn.Sequential):
    """One layer after another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self._modules.values():
            x = layer(x)
        return x

    __call__ = forward
