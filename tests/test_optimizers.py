"""The shared update rules against closed forms and against torch's own."""

import pytest
import torch

from async_dqn.optimizers import OPTIMIZERS, SharedAdam, SharedRMSProp

LR = 0.01


def ours(optimizer, theta: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """theta after all gradients; the state starts at 0."""
    theta, state = theta.clone(), list(torch.zeros(optimizer.rows, len(theta)))
    for updates, gradient in enumerate(gradients):
        optimizer.step(theta, gradient, state, LR, updates)
    return theta


def theirs(build, theta: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = build([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.fixture
def theta() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    return list(torch.randn(50, 32, generator=torch.Generator().manual_seed(1)))


def test_rmsprop_first_step_at_unit_gradient_is_3_02_learning_rates() -> None:
    theta = ours(SharedRMSProp(decay=0.99, eps=0.1), torch.zeros(4), [torch.ones(4)])
    torch.testing.assert_close(theta, torch.full((4,), -LR / 0.11**0.5))
    assert abs(theta[0].item() / -LR - 3.02) < 0.01


def test_rmsprop_step_for_tiny_gradients_is_3_16_learning_rates_times_gradient() -> None:
    theta = ours(SharedRMSProp(), torch.zeros(4), [torch.full((4,), 1e-4)])
    assert abs(theta[0].item() / (-LR * 1e-4) - 3.16) < 0.01


def test_rmsprop_equals_torch_when_epsilon_vanishes(theta, gradients) -> None:
    expected = theirs(lambda p: torch.optim.RMSprop(p, LR, alpha=0.99, eps=1e-12), theta, gradients)
    torch.testing.assert_close(ours(SharedRMSProp(eps=1e-12), theta, gradients), expected)


def test_rmsprop_differs_from_torch_by_the_place_of_epsilon() -> None:
    def build(parameters):
        return torch.optim.RMSprop(parameters, LR, alpha=0.99, eps=0.1)

    outside = theirs(build, torch.zeros(1), [torch.ones(1)])
    assert abs(outside.item() / -LR - 5.0) < 0.01  # against our 3.02


def test_adam_equals_torch_for_50_updates(theta, gradients) -> None:
    expected = theirs(lambda p: torch.optim.Adam(p, LR, eps=1e-5), theta, gradients)
    torch.testing.assert_close(ours(SharedAdam(), theta, gradients), expected)


def test_adam_counts_by_the_argument_not_by_its_own_calls(theta, gradients) -> None:
    """Two processes' optimisers taking turns on one state equal one optimiser doing it all."""
    pair = (SharedAdam(), SharedAdam())
    shared, state = theta.clone(), list(torch.zeros(2, len(theta)))
    for updates, gradient in enumerate(gradients):
        pair[updates % 2].step(shared, gradient, state, LR, updates)
    torch.testing.assert_close(shared, ours(SharedAdam(), theta, gradients))


def test_adam_bias_correction_vanishes_late() -> None:
    """At update 10^6 the first step from zero moments is lr * 0.1 / sqrt(0.001)."""
    theta, state = torch.zeros(4), list(torch.zeros(2, 4))
    SharedAdam(eps=0.0).step(theta, torch.ones(4), state, LR, 10**6)
    torch.testing.assert_close(theta, torch.full((4,), -LR * 0.1 / 0.001**0.5))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_happen_in_place_and_leave_the_gradient(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    memory = torch.zeros(1 + optimizer.rows, 16)
    theta, *state = memory
    gradient = torch.ones(16)
    optimizer.step(theta, gradient, state, LR, 0)
    assert (memory != 0).all()
    assert torch.equal(gradient, torch.ones(16))
