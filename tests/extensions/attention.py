"""A torso that attends over the cells of a grid, or the numbers of a vector.

python launch.py --import attention --network attention:Attention --network-arg width=32
"""

import torch
from torch import nn


class Attention(nn.Module):
    """Each cell is a token: its channels and a learned place; their mean is what comes out."""

    def __init__(self, shape, width=32, heads=4):
        super().__init__()
        channels, cells = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1] * shape[2])
        self.embed = nn.Linear(channels, width)
        self.place = nn.Parameter(torch.randn(cells, width))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU())

    def forward(self, x):
        """Features [N, 128] of observations [N, n] or [N, C, H, W]."""
        tokens = x[:, :, None] if x.dim() == 2 else x.flatten(2).transpose(1, 2)
        tokens = self.embed(tokens) + self.place
        attended, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return self.out((tokens + attended).mean(1))
