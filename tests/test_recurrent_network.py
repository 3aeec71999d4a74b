"""Recurrent networks: a rollout unrolled is what stepping through it gave."""

import pytest
import torch

from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork

T, B, ACTIONS = 6, 4, 3
SHAPES = {"linear": (5,), "mlp": (5,), "small-conv": (2, 6, 7), "impala": (2, 9, 10)}
HEADS = ("q", "categorical", "quantile", "actor-critic")


def network(name: str = "mlp", head: str = "q", **changes) -> QNetwork:
    torch.manual_seed(0)
    fields = {"layer_norm": True, "dueling": False, "head": head, "atoms": 7, "recurrent": True}
    net = QNetwork(Architecture(name, SHAPES[name], 0.5, ACTIONS, (16, 8), **fields | changes))
    with torch.no_grad():  # away from the small beginning, so that Q-values tell states apart
        for parameter in net.head.parameters():
            parameter.mul_(100.0)
    return net


def observations(name: str = "mlp", seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (T, B, *SHAPES[name])
    return torch.randint(0, 8, shape, dtype=torch.uint8, generator=generator)


def random_state(net: QNetwork, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = net.cell.hidden_size
    return tuple(torch.randn(B, width, generator=generator) for _ in range(2))


def step_by_step(net, obs, state, starts):
    """Q-values, atoms and states, row by row and reset by reset, as a collector sees them."""
    outputs, states = [], []
    for t in range(T):
        zeros = net.initial_state(B)
        state = tuple(
            torch.stack([zeros[i][b] if starts[t, b] else state[i][b] for b in range(B)])
            for i in range(2)
        )
        output, state = net(obs[t], state)
        outputs.append(output)
        states.append(state)
    return outputs, states


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_unroll_equals_step_by_step_with_resets(name: str, head: str, noisy: bool) -> None:
    net = network(name, head, noisy=noisy)
    net.reset_noise(B, torch.Generator().manual_seed(1))
    obs, state = observations(name), random_state(net)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        starts = torch.rand(T, B, generator=generator) < 0.3
        output, (hidden, cell) = net.unroll(obs, state, starts)
        outputs, states = step_by_step(net, obs, state, starts)
        close = {"rtol": 1e-4, "atol": 1e-5}
        expected = torch.cat([one.q_values for one in outputs])
        torch.testing.assert_close(output.q_values, expected, **close)
        if output.distribution is not None:
            torch.testing.assert_close(
                output.distribution, torch.cat([one.distribution for one in outputs]), **close
            )
        for t, (h, c) in enumerate(states):
            torch.testing.assert_close(hidden[t], h, **close)
            torch.testing.assert_close(cell[t], c, **close)
    assert output.q_values.shape == (T * B, ACTIONS)
    assert hidden.shape == cell.shape == (T, B, net.cell.hidden_size)


def test_the_state_matters_until_an_episode_starts() -> None:
    net, obs = network(), observations()
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[3, 1] = True
    one, other = (net.unroll(obs, random_state(net, seed), starts)[0] for seed in (0, 1))
    same = (one.q_values == other.q_values).all(1).view(T, B)
    expected = torch.zeros(T, B, dtype=torch.bool)
    expected[3:, 1] = True  # only there the past is forgotten
    assert torch.equal(same, expected)


def test_a_reset_forgets_even_what_is_not_a_number() -> None:
    net, state = network(), tuple(torch.full((B, 8), torch.nan) for _ in range(2))
    output, _ = net.unroll(observations(), state, torch.ones(T, B, dtype=torch.bool))
    assert output.q_values.isfinite().all()


def test_gradient_flows_through_time_but_not_over_a_reset() -> None:
    net = network()
    state = tuple(part.requires_grad_() for part in random_state(net))
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[2, 0] = True
    output, _ = net.unroll(observations(), state, starts)
    output.q_values.view(T, B, ACTIONS)[-1].square().sum().backward()
    for part in state:
        reached = part.grad.abs().sum(1) > 0
        assert reached.tolist() == [False, True, True, True]


def test_the_gradient_is_that_of_the_steps_chained() -> None:
    net, obs = network(), observations()
    starts = torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.3
    net.unroll(obs, random_state(net), starts)[0].q_values.square().sum().backward()
    unrolled = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    outputs, _ = step_by_step(net, obs, random_state(net), starts)
    torch.cat([one.q_values for one in outputs]).square().sum().backward()
    for gradient, parameter in zip(unrolled, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-2)
        assert gradient.abs().sum() > 0


def test_no_state_is_the_state_of_a_new_episode() -> None:
    net, obs = network(), observations()[0]
    state = net.initial_state(B)
    assert [part.shape for part in state] == [(B, 8), (B, 8)]
    assert not any(part.any() for part in state)
    assert torch.equal(net(obs)[0].q_values, net(obs, state)[0].q_values)


def test_a_state_from_acting_starts_an_unroll_with_gradients() -> None:
    net, obs = network(), observations()
    with torch.inference_mode():
        _, state = net(obs[0])
    starts = torch.zeros(T, B, dtype=torch.bool)
    net.unroll(obs, state, starts)[0].q_values.sum().backward()
    assert net.cell.weight_hh.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "width"), [("linear", 8), ("mlp", 8), ("small-conv", 128)])
def test_the_lstm_is_as_wide_as_the_torso(name: str, width: int) -> None:
    net = network(name)
    assert net.cell.hidden_size == width
    assert net.cell.input_size == (5 if name == "linear" else width)
    assert net(observations(name)[0, :0])[0].q_values.shape == (0, ACTIONS)


def test_a_feed_forward_network_has_no_state() -> None:
    net = network(recurrent=False)
    assert net.initial_state(B) is None
    assert net(observations()[0])[1] is None
