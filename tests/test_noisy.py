"""Noisy layers: off they are their mean, on every row has its own factorised noise."""

import math

import pytest
import torch
from torch import nn

from async_dqn.networks.noisy import NoisyLinear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(inputs: int = 5, outputs: int = 4, rows: int = 0) -> NoisyLinear:
    torch.manual_seed(0)
    noisy = NoisyLinear(inputs, outputs)
    nn.init.uniform_(noisy.weight_sigma, 0.1, 1.0)  # told apart by row and column
    nn.init.uniform_(noisy.bias_sigma, 0.1, 1.0)
    noisy.draw(rows, generator())
    return noisy


def by_hand(noisy: NoisyLinear, x: torch.Tensor, draw: int) -> torch.Tensor:
    """One row with the weights of eqs. 9 to 11: W + S * (e_out e_in'), b + s * e_out."""
    noise_in, noise_out = noisy.noise_in[draw], noisy.noise_out[draw]
    weight = noisy.weight + noisy.weight_sigma * torch.outer(noise_out, noise_in)
    return weight @ x + noisy.bias + noisy.bias_sigma * noise_out


def test_initialisation_is_the_papers() -> None:
    noisy = NoisyLinear(64, 32)
    assert torch.all(noisy.weight_sigma == 0.5 / 8) and torch.all(noisy.bias_sigma == 0.5 / 8)
    assert noisy.weight.abs().max() <= 1 / 8 and noisy.bias.abs().max() <= 1 / 8
    assert noisy.weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


def test_without_a_draw_and_after_a_draw_of_no_rows_it_is_exactly_its_mean() -> None:
    noisy, x = layer(), torch.randn(7, 5)
    mean = nn.functional.linear(x, noisy.weight, noisy.bias)
    assert torch.equal(noisy(x), mean)
    noisy.draw(7, generator())
    assert not torch.isclose(noisy(x), mean).any()
    noisy.draw(0, generator())
    assert torch.equal(noisy(x), mean)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 9])
def test_row_n_has_the_weights_of_draw_n_modulo_rows(count: int) -> None:
    noisy, x = layer(rows=3), torch.randn(count, 5)
    expected = [by_hand(noisy, x[n], n % 3) for n in range(count)]
    torch.testing.assert_close(noisy(x), torch.stack(expected) if count else torch.zeros(0, 4))


def test_rows_differ_and_a_draw_stays_until_the_next() -> None:
    noisy, x = layer(rows=4), torch.ones(4, 5)
    first, factor = noisy(x), noisy.noise_out
    assert len(torch.unique(first[:, 0])) == 4
    assert torch.equal(noisy(x), first)
    noisy.draw(4, generator(1))
    assert not torch.isclose(noisy(x), first).any()
    assert not torch.isclose(noisy.noise_out, factor).any()
    noisy.draw(4, generator())
    assert torch.equal(noisy(x), first)  # the generator is the only source of noise


def test_the_factors_are_signed_roots_of_normals() -> None:
    noisy = layer(200, 100)
    noisy.draw(1000, generator())
    for factor, width in ((noisy.noise_in, 200), (noisy.noise_out, 100)):
        assert factor.shape == (1000, width)
        assert factor.mean().abs() < 0.02
        normal = factor.sign() * factor.square()  # undoes f
        quantiles = torch.quantile(normal.flatten()[:100_000], torch.tensor([0.1, 0.5, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([-1.2816, 0, 1.2816]), atol=0.02, rtol=0)
        assert normal.var().item() == pytest.approx(1.0, abs=0.03)
    together = noisy.noise_in[:, :100] * noisy.noise_out
    assert together.mean().abs() < 0.02  # inputs and outputs have independent factors
    assert noisy.noise_in[:-1].mul(noisy.noise_in[1:]).mean().abs() < 0.02  # and so have the rows


def test_gradients_are_those_of_the_weights_by_hand() -> None:
    noisy, x = layer(rows=3), torch.randn(6, 5)
    noisy(x).square().sum().backward()
    gradients = [p.grad.clone() for p in noisy.parameters()]
    noisy.zero_grad()
    torch.stack([by_hand(noisy, x[n], n % 3) for n in range(6)]).square().sum().backward()
    for gradient, parameter in zip(gradients, noisy.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


def test_noise_is_no_parameter_and_not_saved() -> None:
    noisy = layer(rows=3)
    names = {"weight", "bias", "weight_sigma", "bias_sigma"}
    assert {name for name, _ in noisy.named_parameters()} == names == set(noisy.state_dict())


def test_noise_drawn_while_acting_serves_the_loss() -> None:
    noisy = layer()
    with torch.inference_mode():
        noisy.draw(2, generator())
    noisy(torch.randn(2, 5)).sum().backward()  # inference tensors could not be saved for this
    assert noisy.weight_sigma.grad.abs().min() > 0
