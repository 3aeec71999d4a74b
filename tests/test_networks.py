"""Every network: shapes, raw observations, heads, and no state that workers could tear."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.networks.architecture import MINIMUM_SIDE, NETWORKS, Architecture, choose
from async_dqn.networks.network import QNetwork
from async_dqn.networks.noisy import NoisyLinear
from async_dqn.parameters.flat_network import FlatNetwork

SHAPES = {
    "linear": (5,),
    "mlp": (5,),
    "small-conv": (6, 10, 10),
    "nips": (4, 84, 84),
    "nature": (4, 84, 84),
    "impala": (3, 21, 10),
    "conv": (3, 40, 61),
}


def architecture(name: str, shape: tuple[int, ...] | None = None, **changes) -> Architecture:
    fields = {"scale": 1 / 255, "num_actions": 3, "hidden": (32, 16), "layer_norm": True}
    fields |= {"dueling": False, **changes}
    return Architecture(name, shape or SHAPES[name], **fields)


def raw_observations(name: str, count: int = 7, shape: tuple[int, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (count, *(shape or SHAPES[name]))
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)


def small_shape(name: str) -> tuple[int, ...]:
    side = max(9, MINIMUM_SIDE.get(name, 0))
    return (2, side, side + 1) if name in MINIMUM_SIDE else SHAPES[name]


def info(shape: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(observation_shape=shape, scale=0.5, num_actions=2, actions=None)


def config(**settings) -> Config:
    return Config.from_flat(settings)


def test_the_cases_below_cover_every_network() -> None:
    assert set(SHAPES) == set(NETWORKS) == set(SETTINGS["network"].choices) - {"auto"}


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
    assert count(normed, nn.LayerNorm, nn.GroupNorm) == layers >= (0 if name == "linear" else 2)
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
    assert convolutions("impala") == [(16, 3, 1)] * 5 + [(32, 3, 1)] * 10
    size = sum(p.numel() for p in QNetwork(architecture("nature", layer_norm=False)).parameters())
    assert size == 1_684_128 + 513 * 3  # the torso of Mnih et al. 2015 on 84x84x4, and the head


@pytest.mark.parametrize(
    ("shape", "name"),
    [((8,), "mlp"), ((4, 10, 10), "small-conv"), ((4, 84, 84), "nips"), ((3, 210, 160), "conv")],
)
def test_choose_goes_by_the_shape(shape: tuple[int, ...], name: str) -> None:
    chosen = choose(config(hidden=(7,), dueling=True), info(shape))
    assert chosen == Architecture(name, shape, 0.5, 2, (7,), layer_norm=True, dueling=True)
    assert QNetwork(chosen)(torch.zeros(2, *shape))[0].q_values.shape == (2, 2)


def test_choose_obeys_the_settings() -> None:
    chosen = choose(config(network="nature", layer_norm=False), info((1, 36, 99)))
    assert (chosen.network, chosen.layer_norm, chosen.dueling) == ("nature", False, False)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", MINIMUM_SIDE)
def test_the_smallest_image_works_and_one_pixel_less_is_refused_with_reason(name: str) -> None:
    side = MINIMUM_SIDE[name]
    net = QNetwork(architecture(name, (1, side, side + 9)))
    assert net(torch.zeros(1, 1, side, side + 9))[0].q_values.shape == (1, 3)
    with pytest.raises(UserError, match=f"needs {side}x{side}"):
        choose(config(network=name), info((1, side - 1, side + 9)))
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):  # the check has a reason
        QNetwork(architecture(name, (1, side - 1, side + 9)))(torch.zeros(1, 1, side - 1, side + 9))


def test_an_image_too_small_for_nature_is_one_clear_line() -> None:
    with pytest.raises(UserError) as caught:
        choose(config(network="nature"), info((4, 20, 20)))
    assert str(caught.value) == (
        "observation 20x20 is too small for the Nature network (needs 36x36); drop --network"
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mlp", (4, 84, 84)), ("linear", (1, 9, 9)), ("nips", (4,)), ("impala", (4,))],
)
def test_a_network_for_the_other_kind_of_observation_is_refused(name, shape) -> None:
    with pytest.raises(UserError, match=f"the {name} network does not fit .*; drop --network"):
        choose(config(network=name), info(shape))


@pytest.mark.parametrize("name", ["nips", "impala"])
def test_bfloat16_is_for_convolutions_only(name: str) -> None:
    plain = dataclasses.replace(architecture(name), bfloat16=False)
    nets = [QNetwork(dataclasses.replace(plain, bfloat16=flag)) for flag in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    obs = torch.randint(0, 256, (4, *plain.observation_shape), dtype=torch.uint8)
    exact, rounded = (net(obs)[0].q_values for net in nets)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=2e-3)
    from_float32 = nets[1].head(nets[1].torso(obs * nets[1].scale)).q_values
    assert torch.equal(rounded, from_float32)  # bytes may be rounded before they are scaled
    rounded.sum().backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in nets[1].parameters())


VARIANTS = [
    {"head": head, "dueling": dueling, "noisy": noisy, "recurrent": recurrent}
    for head in ("q", "categorical", "quantile", "actor-critic")
    for dueling in (False, True)
    for noisy in (False, True)
    for recurrent in (False, True)
    if not (head == "actor-critic" and dueling)
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_variant_of_every_network_learns_and_changes_nothing(name, variant) -> None:
    net = QNetwork(architecture(name, small_shape(name), hidden=(8, 6), atoms=4, **variant))
    flat = FlatNetwork(net)
    net.reset_noise(2, torch.Generator().manual_seed(0))
    parameters, buffers = flat.vector.clone(), [b.clone() for b in net.buffers()]
    obs = raw_observations(name, 4, small_shape(name))
    _, state = net(obs, net.initial_state(4))
    output, state = net(obs, state)
    assert output.q_values.shape == (4, 3)
    distributional = variant["head"] in ("categorical", "quantile")
    assert output.distribution.shape == (4, 3, 4) if distributional else output.distribution is None
    assert (state is not None) == variant["recurrent"]
    torch.manual_seed(0)
    (output.q_values * torch.randn(4, 3)).sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), f"{parameter_name} learns nothing"
    assert torch.equal(flat.vector, parameters)
    assert all(torch.equal(*pair) for pair in zip(net.buffers(), buffers, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_noise_is_in_every_dense_layer_by_row_and_off_until_drawn(name: str) -> None:
    net, plain = (QNetwork(architecture(name, noisy=noisy)) for noisy in (True, False))
    dense = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert dense and all(isinstance(layer, NoisyLinear) for layer in dense)
    net.load_state_dict(plain.state_dict(), strict=False)
    row = raw_observations(name, 1).expand(6, *SHAPES[name])
    exact = plain(row)[0].q_values
    assert torch.equal(net(row)[0].q_values, exact)
    net.reset_noise(3, torch.Generator().manual_seed(0))
    noisy = net(row)[0].q_values
    torch.testing.assert_close(noisy[:3], noisy[3:])  # row n has draw n % 3
    assert (noisy[:3, None] - noisy[None, :3]).abs().amax(2).fill_diagonal_(1).min() > 1e-3
    net.reset_noise(0, torch.Generator())
    assert torch.equal(net(row)[0].q_values, exact)
    plain.reset_noise(3, torch.Generator())
    assert torch.equal(plain(row)[0].q_values, exact)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_dense_layers_backward_pass_is_autograds_to_the_bit(name, layer_norm) -> None:
    torch.manual_seed(0)
    network = FlatNetwork(QNetwork(architecture(name, layer_norm=layer_norm)))
    slopes, gradients = torch.randn(7, 3), []
    for chain in (network.net.chain, None):
        network.net.chain = chain
        network.gradient.zero_()
        for _ in range(2):  # gradients are added up
            q_values, backward = network.net.learning_pass(raw_observations(name))
            assert q_values.requires_grad == (chain is None)
            backward(slopes)
        gradients.append(network.gradient.clone())
    assert gradients[0].any() and torch.equal(*gradients)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("small-conv", {}),
        ("mlp", {"dueling": True}),
        ("mlp", {"noisy": True}),
        ("mlp", {"recurrent": True}),
        ("mlp", {"head": "quantile", "atoms": 5}),
        ("mlp", {"low": (0.0,) * 5, "high": (1.0,) * 5}),
    ],
)
def test_only_dense_layers_have_a_backward_pass_of_their_own(name, changes) -> None:
    assert QNetwork(architecture(name, **changes)).chain is None


def test_linear_is_a_table_where_observations_are_one_hot() -> None:
    net = QNetwork(architecture("linear", scale=1.0))
    nn.init.normal_(net.head.q.weight)
    assert sum(p.numel() for p in net.parameters()) == 3 * 5 + 3
    table = net.head.q.weight.T + net.head.q.bias
    torch.testing.assert_close(net(torch.eye(5))[0].q_values, table)


def test_impala_is_the_network_of_the_paper() -> None:
    net = QNetwork(architecture("impala", (4, 84, 84), layer_norm=False))
    channels = [(4, 16), (16, 32), (32, 32)]
    stages = sum((9 * a * b + b) + 4 * (9 * b * b + b) for a, b in channels)
    dense = 32 * 11 * 11 * 256 + 256  # 84 -> 42 -> 21 -> 11
    assert sum(p.numel() for p in net.parameters()) == stages + dense + 257 * 3
    for module in net.torso.modules():  # residual blocks with branches of 0 do nothing
        if isinstance(module, nn.Conv2d) and module.in_channels == module.out_channels == 16:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    first, pool, *blocks = list(net.torso[0])[:4]
    planes = pool(first(torch.rand(1, 4, 84, 84)))
    assert planes.min() < 0  # no ReLU on the way past a block
    for block in blocks:
        assert torch.equal(block(planes), planes)


def test_bounds_become_minus_one_to_one_before_the_torso() -> None:
    low, high = (-2.0, 0.0, 3.0, -1.0, 5.0), (2.0, 10.0, 4.0, 1.0, 5.0)
    scaled = QNetwork(architecture("mlp", scale=1.0, low=low, high=high))
    plain = QNetwork(architecture("mlp", scale=1.0))
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(scaled.parameters()), plain.parameters()
    )
    raw = torch.tensor([low, high, (0.0, 2.5, 3.5, 1.0, 5.0)])
    unit = torch.tensor([[-1.0] * 4 + [0], [1.0] * 4 + [0], [0.0, -0.5, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(scaled(raw)[0].q_values, plain(unit)[0].q_values)
    assert set(scaled.state_dict()) == {name for name, _ in scaled.named_parameters()}


def test_choose_scales_inputs_only_when_asked() -> None:
    bounded = SimpleNamespace(**vars(info((2,))), low=(0.0, -3.0), high=(1.0, 3.0))
    assert choose(config(), bounded).low is None
    chosen = choose(config(input_scaling=True), bounded)
    assert (chosen.low, chosen.high) == (bounded.low, bounded.high)
    unbounded = SimpleNamespace(**vars(info((2,))), low=None, high=None)
    with pytest.raises(UserError, match="--input-scaling needs a vector with finite bounds"):
        choose(config(input_scaling=True), unbounded)


@pytest.mark.parametrize(
    ("settings", "head"),
    [
        ({}, "q"),
        ({"distributional": "categorical", "atoms": 9, "v_min": -1.0, "v_max": 3.0}, "categorical"),
        ({"distributional": "quantile", "atoms": 9}, "quantile"),
        ({"algorithm": "a3c"}, "actor-critic"),
    ],
)
def test_choose_takes_head_noise_and_memory_from_the_settings(settings, head: str) -> None:
    chosen = choose(config(noisy=True, recurrent=True, **settings), info((4,)))
    assert (chosen.head, chosen.noisy, chosen.recurrent) == (head, True, True)
    for name in settings.keys() & {"atoms", "v_min", "v_max"}:
        assert getattr(chosen, name) == settings[name]


def test_an_architecture_stored_as_json_builds_the_same_network_old_ones_too() -> None:
    new = architecture("mlp", head="categorical", recurrent=True, low=(0.0,) * 5, high=(1.0,) * 5)
    old = architecture("mlp")
    fields = ("network", "observation_shape", "scale", "num_actions", "hidden", "layer_norm")
    stored = dataclasses.asdict(old)
    first_release = {name: stored[name] for name in (*fields, "dueling", "bfloat16")}
    for written, original in ((dataclasses.asdict(new), new), (first_release, old)):
        rebuilt = QNetwork(Architecture(**json.loads(json.dumps(written))))
        shapes = {name: p.shape for name, p in QNetwork(original).named_parameters()}
        assert {name: p.shape for name, p in rebuilt.named_parameters()} == shapes


@pytest.mark.parametrize(
    ("name", "dueling", "names"),
    [
        ("mlp", False, ["torso.0", "torso.1", "torso.3", "torso.4", "head.q"]),
        ("small-conv", True, ["torso.0.0", "torso.0.1", "torso.1", "torso.2", "head.value"]),
    ],
)
def test_parameters_keep_the_names_that_checkpoints_have(name, dueling, names) -> None:
    net = QNetwork(architecture(name, dueling=dueling))
    layers = [key.rpartition(".")[0] for key, _ in net.named_parameters()][::2]
    assert layers == names + ["head.advantage"] * dueling
