"""NoisyNet's dense layer: weights with noise whose size is learned (Fortunato et al. 2018).

The noise is factorised and drawn per ROW of the input: every environment of a batch explores in its
own way and a draw can be kept for as long as a policy should last. It lies in plain buffers, which
are no parameters: workers never share it and no checkpoint holds it.
"""

import math

import torch
from torch import nn
from torch.nn import functional

SIGMA_0 = 0.5  # section 3.2 of the paper, for factorised noise


class NoisyLinear(nn.Linear):
    """y = x W' + b + ((x * e_in) S' + s) * e_out, with fresh e for every row of a draw.

    Without a draw (at construction, and in evaluations) it is exactly its mean x W' + b.
    W and b start like those of nn.Linear, uniform within 1 / sqrt(inputs), as in the paper; S and s
    (`weight_sigma`, `bias_sigma`) start at 0.5 / sqrt(inputs).
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        sigma = SIGMA_0 / math.sqrt(inputs)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma))
        self.register_buffer("noise_in", torch.zeros(0, inputs), persistent=False)
        self.register_buffer("noise_out", torch.zeros(0, outputs), persistent=False)

    # Not an inference tensor, even if the caller is in inference mode: the loss comes later.
    @torch.inference_mode(False)
    def draw(self, rows: int, generator: torch.Generator) -> None:
        """Draw noise for `rows` rows, kept until the next call; 0 switches it off."""
        normal = torch.randn(rows, self.in_features + self.out_features, generator=generator)
        normal = normal.to(self.weight.device)
        factors = normal.sign() * normal.abs().sqrt()  # f of eq. 10
        self.noise_in, self.noise_out = factors.split((self.in_features, self.out_features), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs] -> [N, outputs]; row n has the noise of row n % rows of the draw."""
        mean = functional.linear(x, self.weight, self.bias)
        rows = len(self.noise_in)
        if not rows:
            return mean
        noise_in, noise_out = self.noise_in, self.noise_out
        if len(x) != rows:
            times = -(-len(x) // rows)
            noise_in, noise_out = (e.repeat(times, 1)[: len(x)] for e in (noise_in, noise_out))
        noise = functional.linear(x * noise_in, self.weight_sigma, self.bias_sigma)
        return mean + noise * noise_out
