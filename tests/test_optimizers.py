"""The update rules against closed forms and against torch's own."""

import pytest
import torch

from async_dqn.config.config import SETTINGS
from async_dqn.parameters.optimizers import OPTIMIZERS, Momentum, RMSProp, SharedAdam, SharedRMSProp

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
    return list(torch.randn(100, 32, generator=torch.Generator().manual_seed(1)))


def test_rmsprop_first_step_at_unit_gradient_is_3_02_learning_rates() -> None:
    theta = ours(SharedRMSProp(decay=0.99, eps=0.1), torch.zeros(4), [torch.ones(4)])
    torch.testing.assert_close(theta, torch.full((4,), -LR / 0.11**0.5))
    assert abs(theta[0].item() / -LR - 3.02) < 0.01


def test_rmsprop_step_for_tiny_gradients_is_3_16_learning_rates_times_gradient() -> None:
    theta = ours(SharedRMSProp(), torch.zeros(4), [torch.full((4,), 1e-4)])
    assert abs(theta[0].item() / (-LR * 1e-4) - 3.16) < 0.01


@pytest.mark.parametrize("kind", [RMSProp, SharedRMSProp])
def test_rmsprop_equals_torch_when_epsilon_vanishes(kind, theta, gradients) -> None:
    expected = theirs(lambda p: torch.optim.RMSprop(p, LR, alpha=0.99, eps=1e-12), theta, gradients)
    torch.testing.assert_close(ours(kind(eps=1e-12), theta, gradients), expected)


def test_rmsprop_at_its_own_epsilon_is_off_torch_by_the_place_of_epsilon_only(
    theta, gradients
) -> None:
    """torch's rule written out, with epsilon moved into the root, gives ours at eps 0.1."""
    expected, square = theta.double(), torch.zeros(32, dtype=torch.float64)
    for gradient in gradients:
        square = 0.99 * square + 0.01 * gradient.double() ** 2
        expected -= LR * gradient / (square + 0.1).sqrt()
    ours_now = ours(RMSProp(), theta, gradients)
    torch.testing.assert_close(ours_now, expected.float())
    outside = theirs(lambda p: torch.optim.RMSprop(p, LR, alpha=0.99, eps=0.1), theta, gradients)
    assert (ours_now - outside).abs().max() > 0.01


def test_rmsprop_differs_from_torch_by_the_place_of_epsilon() -> None:
    def build(parameters):
        return torch.optim.RMSprop(parameters, LR, alpha=0.99, eps=0.1)

    outside = theirs(build, torch.zeros(1), [torch.ones(1)])
    assert abs(outside.item() / -LR - 5.0) < 0.01  # against our 3.02


def test_momentum_equals_torch_but_for_its_first_step(theta, gradients) -> None:
    """torch's first buffer is the whole gradient, ours (1 - a) of it: a first gradient of 0 evens
    that out, and 100 random ones follow."""
    gradients = [torch.zeros(32), *gradients]
    expected = theirs(
        lambda p: torch.optim.SGD(p, LR, momentum=0.9, dampening=0.9), theta, gradients
    )
    torch.testing.assert_close(ours(Momentum(decay=0.9), theta, gradients), expected)


def test_momentum_starts_with_a_tenth_of_the_gradient_where_torch_starts_with_all() -> None:
    def build(parameters):
        return torch.optim.SGD(parameters, LR, momentum=0.9, dampening=0.9)

    ones = [torch.ones(1)]
    assert ours(Momentum(), torch.zeros(1), ones).item() == pytest.approx(-LR / 10)
    assert theirs(build, torch.zeros(1), ones).item() == pytest.approx(-LR)


def test_momentum_ends_at_a_full_step_for_a_constant_gradient() -> None:
    theta, state = torch.zeros(4), [torch.full((4,), 2.0)]  # m long since equal to the gradient
    Momentum().step(theta, torch.full((4,), 2.0), state, LR, 10**6)
    torch.testing.assert_close(theta, torch.full((4,), -2 * LR))


def test_only_the_names_that_say_shared_share_their_state() -> None:
    assert all(kind.shared == name.startswith("shared-") for name, kind in OPTIMIZERS.items())


def test_every_optimizer_that_can_be_chosen_exists_and_no_other() -> None:
    assert list(SETTINGS["optimizer"].choices) == list(OPTIMIZERS)


def test_adam_equals_torch_for_100_updates(theta, gradients) -> None:
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
