"""Every network: shapes, raw observations, heads, and no state that workers could tear."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from async_dqn.architecture import MINIMUM_SIDE, NETWORKS, Architecture, choose
from async_dqn.config import NetworkConfig, UserError
from async_dqn.networks import QNetwork

SHAPES = {
    "mlp": (5,),
    "small-conv": (6, 10, 10),
    "nips": (4, 84, 84),
    "nature": (4, 84, 84),
    "conv": (3, 40, 61),
}


def architecture(name: str, shape: tuple[int, ...] | None = None, **changes) -> Architecture:
    fields = {"scale": 1 / 255, "num_actions": 3, "hidden": (32, 16), "layer_norm": True}
    fields |= {"dueling": False, **changes}
    return Architecture(name, shape or SHAPES[name], **fields)


def raw_observations(name: str, count: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *SHAPES[name]), dtype=torch.uint8, generator=generator)


def info(shape: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(observation_shape=shape, scale=0.5, num_actions=2)


def test_the_cases_below_cover_every_network() -> None:
    assert set(SHAPES) == set(NETWORKS)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_give_q_values_n_by_a_and_change_nothing(name, layer_norm, dueling) -> None:
    net = QNetwork(architecture(name, layer_norm=layer_norm, dueling=dueling)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    obs = raw_observations(name)
    output, state = net(obs)
    assert output.q_values.shape == (7, 3) and output.q_values.dtype == torch.float32
    assert state is None
    assert torch.equal(net(obs)[0].q_values, output.q_values)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not list(net.buffers())


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_and_scaled_floats_give_the_same_q_values(name: str) -> None:
    net = QNetwork(architecture(name))
    obs = raw_observations(name)
    from_bytes = net(obs)[0].q_values
    torch.testing.assert_close(net(obs.float())[0].q_values, from_bytes)
    net.scale = 1.0
    torch.testing.assert_close(net(obs / 255)[0].q_values, from_bytes)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_batch_do_not_mix_and_a_batch_may_be_empty(name: str) -> None:
    net, obs = QNetwork(architecture(name)), raw_observations(name)
    together = net(obs)[0].q_values
    alone = torch.cat([net(row[None])[0].q_values for row in obs])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)
    assert net(obs[:0])[0].q_values.shape == (0, 3)  # no row of a rollout needs a bootstrap


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_norm_follows_every_torso_layer_or_none(name: str) -> None:
    def count(net: nn.Module, *kinds: type) -> int:
        return sum(isinstance(module, kinds) for module in net.torso.modules())

    normed, plain = (QNetwork(architecture(name, layer_norm=on)) for on in (True, False))
    layers = count(normed, nn.Linear, nn.Conv2d)
    assert count(normed, nn.LayerNorm, nn.GroupNorm) == layers >= 2
    assert count(plain, nn.LayerNorm, nn.GroupNorm) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_dueling_mean_over_actions_is_the_state_value(name: str) -> None:
    net, obs = QNetwork(architecture(name, dueling=True)), raw_observations(name)
    nn.init.normal_(net.head.advantage.weight)
    features = net.torso(obs.float() * net.scale)
    q_values, value = net(obs)[0].q_values, net.head.value(features)
    torch.testing.assert_close(q_values.mean(1, keepdim=True), value, rtol=1e-4, atol=1e-5)
    advantage = net.head.advantage(features)
    spread = advantage - advantage[:, :1]
    torch.testing.assert_close(q_values - q_values[:, :1], spread, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_first_q_values_are_near_zero(name: str) -> None:
    assert QNetwork(architecture(name))(raw_observations(name))[0].q_values.abs().max() < 0.1


def test_layers_are_those_of_the_papers() -> None:
    def convolutions(name: str) -> list[tuple]:
        layers = QNetwork(architecture(name)).torso
        return [
            (layer.out_channels, layer.kernel_size[0], layer.stride[0])
            for layer in layers.modules()
            if isinstance(layer, nn.Conv2d)
        ]

    assert convolutions("nips") == [(16, 8, 4), (32, 4, 2)]
    assert convolutions("nature") == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert convolutions("small-conv") == [(16, 3, 1)]
    size = sum(p.numel() for p in QNetwork(architecture("nature", layer_norm=False)).parameters())
    assert size == 1_684_128 + 513 * 3  # the torso of Mnih et al. 2015 on 84x84x4, and the head


@pytest.mark.parametrize(
    ("shape", "name"),
    [((8,), "mlp"), ((4, 10, 10), "small-conv"), ((4, 84, 84), "nips"), ((3, 210, 160), "conv")],
)
def test_choose_goes_by_the_shape(shape: tuple[int, ...], name: str) -> None:
    chosen = choose(NetworkConfig(hidden=(7,), dueling=True), info(shape))
    assert chosen == Architecture(name, shape, 0.5, 2, (7,), layer_norm=True, dueling=True)
    assert QNetwork(chosen)(torch.zeros(2, *shape))[0].q_values.shape == (2, 2)


def test_choose_obeys_the_settings() -> None:
    chosen = choose(NetworkConfig(network="nature", layer_norm=False), info((1, 36, 99)))
    assert (chosen.network, chosen.layer_norm, chosen.dueling) == ("nature", False, False)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", MINIMUM_SIDE)
def test_the_smallest_image_works_and_one_pixel_less_is_refused_with_reason(name: str) -> None:
    side = MINIMUM_SIDE[name]
    net = QNetwork(architecture(name, (1, side, side + 9)))
    assert net(torch.zeros(1, 1, side, side + 9))[0].q_values.shape == (1, 3)
    with pytest.raises(UserError, match=f"needs {side}x{side}"):
        choose(NetworkConfig(network=name), info((1, side - 1, side + 9)))
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):  # the check has a reason
        QNetwork(architecture(name, (1, side - 1, side + 9)))(torch.zeros(1, 1, side - 1, side + 9))


def test_an_image_too_small_for_nature_is_one_clear_line() -> None:
    with pytest.raises(UserError) as caught:
        choose(NetworkConfig(network="nature"), info((4, 20, 20)))
    assert str(caught.value) == (
        "observation 20x20 is too small for the Nature network (needs 36x36); drop --network"
    )


@pytest.mark.parametrize(("name", "shape"), [("mlp", (4, 84, 84)), ("nips", (4,))])
def test_a_network_for_the_other_kind_of_observation_is_refused(name, shape) -> None:
    with pytest.raises(UserError, match=f"the {name} network does not fit .*; drop --network"):
        choose(NetworkConfig(network=name), info(shape))


def test_bfloat16_is_for_convolutions_only() -> None:
    plain = dataclasses.replace(architecture("nips"), bfloat16=False)
    nets = [QNetwork(dataclasses.replace(plain, bfloat16=flag)) for flag in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    obs = torch.randint(0, 256, (4, *plain.observation_shape), dtype=torch.uint8)
    exact, rounded = (net(obs)[0].q_values for net in nets)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=2e-3)
    rounded.sum().backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in nets[1].parameters())
