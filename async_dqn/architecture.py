"""Which network an observation gets: plain data, decided and checked before torch is imported."""

from dataclasses import dataclass

from async_dqn.config import NetworkConfig, UserError
from async_dqn.cores import has_bfloat16

NETWORKS = {
    "mlp": "dense layers (--hidden), for vectors",
    "small-conv": "one 3x3 convolution of 16 and a dense layer of 128, for planes around 10x10",
    "nips": "16 8x8/4, 32 4x4/2, dense 256 (Mnih et al. 2013, 2016)",
    "nature": "32 8x8/4, 64 4x4/2, 64 3x3/1, dense 512 (Mnih et al. 2015)",
    "conv": "3x3 convolutions of stride 2 down to 8x8, dense 256, for any other image",
}
MINIMUM_SIDE = {"small-conv": 3, "nips": 20, "nature": 36, "conv": 3}


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a network's parameters; stored with every checkpoint."""

    network: str
    observation_shape: tuple[int, ...]  # (n,) or channels first (C, H, W)
    scale: float  # raw observations are multiplied with it
    num_actions: int
    hidden: tuple[int, ...]
    layer_norm: bool
    dueling: bool
    bfloat16: bool = False  # convolutions only


def choose(config: NetworkConfig, info) -> Architecture:
    """Resolve `--network auto` by the observation shape of `info` (an `EnvInfo`).

    Raises:
        UserError: the network asked for does not fit the observation.
    """
    shape = tuple(info.observation_shape)
    name = _by_shape(shape) if config.network == "auto" else config.network
    is_image = len(shape) == 3
    if is_image == (name == "mlp"):
        kind = "an image" if is_image else "a vector"
        raise UserError(f"the {name} network does not fit {kind} of shape {shape}; drop --network")
    side = MINIMUM_SIDE.get(name, 0)
    if is_image and min(shape[1:]) < side:
        raise UserError(
            f"observation {shape[1]}x{shape[2]} is too small for the {name.capitalize()} "
            f"network (needs {side}x{side}); drop --network"
        )
    return Architecture(
        network=name,
        observation_shape=shape,
        scale=info.scale,
        num_actions=info.num_actions,
        hidden=tuple(config.hidden),
        layer_norm=True if config.layer_norm is None else config.layer_norm,
        dueling=config.dueling,
        bfloat16=is_image and config.precision == "bfloat16" and has_bfloat16(),
    )


def _by_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "mlp"
    if max(shape[1:]) <= 16:
        return "small-conv"
    return "nips" if shape[1:] == (84, 84) else "conv"
