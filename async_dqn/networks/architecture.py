"""Which network an observation gets: plain data, decided and checked before torch is imported."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from async_dqn.config.config import Config, UserError
from async_dqn.config.cores import has_bfloat16
from async_dqn.config.extension import traits_of
from async_dqn.config.fields import is_foreign
from async_dqn.config.rules import check_branching

NETWORKS = {
    "linear": "no hidden layer, for vectors; a table where observations are Discrete",
    "mlp": "dense layers (--hidden), for vectors",
    "small-conv": "one 3x3 convolution of 16 and a dense layer of 128, for planes around 10x10",
    "nips": "16 8x8/4, 32 4x4/2, dense 256 (Mnih et al. 2013, 2016)",
    "nature": "32 8x8/4, 64 4x4/2, 64 3x3/1, dense 512 (Mnih et al. 2015)",
    "impala": "16, 32, 32 channels, two residual blocks each, dense 256 (Espeholt et al. 2018)",
    "conv": "3x3 convolutions of stride 2 down to 8x8, dense 256, for any other image",
}
MINIMUM_SIDE = {"small-conv": 3, "nips": 20, "nature": 36, "impala": 1, "conv": 3}
FOR_VECTORS = ("linear", "mlp")
# The Q-value of an illegal action: no other is so low, and sums and products with it are finite.
ILLEGAL = -1e30
MAX_ACTIONS = 4096  # combinations of action components with an output each


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a network's parameters; stored with every checkpoint."""

    network: str  # of NETWORKS, or module:name of the user's own
    observation_shape: tuple[int, ...]  # (n,) or channels first (C, H, W)
    scale: float | tuple[float, ...]  # raw observations are multiplied with it
    num_actions: int
    hidden: tuple[int, ...]
    layer_norm: bool
    dueling: bool
    bfloat16: bool = False  # convolutions only
    head: str = "q"  # or "categorical", "quantile", "actor-critic"
    atoms: int = 51  # of the categorical and the quantile head
    v_min: float = -10.0  # with v_max the support of the categorical head
    v_max: float = 10.0
    noisy: bool = False  # dense layers and head
    recurrent: bool = False
    low: tuple[float, ...] | None = None  # with high the bounds of a vector to map to [-1, 1]
    high: tuple[float, ...] | None = None
    codes: int | None = None  # of an image: each of its bytes becomes a one-hot of so many
    parts: tuple["Architecture", ...] = ()  # of a row [n]: images, then one vector; a torso each
    masked: bool = False  # flat rows end with which actions are legal, [num_actions]
    normalize: bool = False  # each number by its running mean and deviation
    branches: tuple[int, ...] = ()  # outputs of each action component, if they are in groups

    @property
    def outputs(self) -> int:
        """The width of the head."""
        return sum(self.branches) or self.num_actions

    @property
    def in_bfloat16(self) -> bool:
        """Whether any part of it computes so."""
        return self.bfloat16 or any(part.in_bfloat16 for part in self.parts)

    def __post_init__(self) -> None:
        """Take what a checkpoint's JSON has made of it."""
        parts = (Architecture(**part) if isinstance(part, dict) else part for part in self.parts)
        object.__setattr__(self, "parts", tuple(parts))
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))


def choose(config: Config, info) -> Architecture:
    """The network that the settings ask for, on the observations of `info` (an `EnvInfo`).

    `--network auto` goes by the observation's shape. In a row of parts the images get what it
    names; the others are one vector, which dense layers take.

    Raises:
        UserError: the network asked for does not fit the observation, or the actions.
    """
    found = replace(_of_observation(config, info), branches=_branches(config, info))
    if config.replay.random_shift and (
        found.parts or found.masked or len(info.observation_shape) != 3
    ):
        raise UserError(
            "--random-shift moves images, and these observations are no image, or not one alone; "
            "drop it"
        )
    return found


def _of_observation(config: Config, info) -> "Architecture":
    if info.kind != "parts":
        seen = Seen(tuple(info.observation_shape), info.scale, info.low, info.high, info.codes)
        return _of(config, info.num_actions, seen)
    images = [Seen(p.shape, p.scale, codes=p.codes) for p in info.parts if p.kind == "image"]
    vectors = [part for part in info.parts if part.kind == "vector"]
    seen = [*images, *([_joined(vectors)] if vectors else [])]
    masked = info.masks is not None
    if masked and config.parallel.model_parallel:
        raise UserError("--model-parallel knows no action masks; drop it, or --action-masks none")
    if len(seen) == 1:
        return replace(_of(config, info.num_actions, seen[0]), masked=masked)
    _check_parts(config)
    named = config.with_settings({"network": "auto"})
    parts = [_of(config if part in images else named, info.num_actions, part) for part in seen]
    width = sum(math.prod(part.observation_shape) for part in parts)
    row = {"observation_shape": (width,), "scale": 1.0, "codes": None, "masked": masked}
    # What is normalised is the row, before it is cut into parts.
    return replace(parts[0], **row, parts=tuple(replace(part, normalize=False) for part in parts))


class Seen(NamedTuple):
    """What a torso gets."""

    shape: tuple[int, ...]
    scale: float | tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    codes: int | None = None


def _of(config: Config, num_actions: int, seen: Seen) -> Architecture:
    network, shape = config.network, seen.shape
    name = _by_shape(shape) if network.network == "auto" else network.network
    if not is_foreign(name):
        _check_fit(name, shape)
    if network.normalize_observations and seen.codes is not None:
        raise UserError(
            "--normalize-observations is for what is measured, and this image consists of codes; "
            "drop it, or add --image-codes none"
        )
    if network.input_scaling and seen.low is None:
        raise UserError("--input-scaling needs a vector with finite bounds; drop it")
    is_ours = len(shape) == 3 and not is_foreign(name)
    return Architecture(
        network=name,
        observation_shape=shape,
        scale=1.0 if network.normalize_observations else seen.scale,
        num_actions=num_actions,
        hidden=tuple(network.hidden),
        layer_norm=True if network.layer_norm is None else network.layer_norm,
        dueling=network.dueling,
        bfloat16=is_ours and network.precision == "bfloat16" and has_bfloat16(),
        head=_head(config),
        atoms=network.atoms,
        v_min=network.v_min,
        v_max=network.v_max,
        noisy=network.noisy,
        recurrent=network.recurrent,
        low=seen.low if network.input_scaling else None,
        high=seen.high if network.input_scaling else None,
        codes=seen.codes,
        normalize=network.normalize_observations,
    )


def _joined(vectors) -> Seen:
    """The vectors among the parts of a row as one: bytes keep the scales of their own."""
    scales = [part.scale for part in vectors for _ in range(part.size)]
    scale = scales[0] if len(set(scales)) == 1 else tuple(scales)
    if any(part.low is None for part in vectors):
        return Seen((len(scales),), scale)
    low, high = (sum((getattr(p, end) for p in vectors), ()) for end in ("low", "high"))
    return Seen((len(scales),), scale, low, high)


def _check_parts(config: Config) -> None:
    """Refuse what is for one vector, or one chain of layers."""
    if config.network.input_scaling:
        raise UserError("--input-scaling is for a vector alone, not one beside images; drop it")
    if config.parallel.model_parallel:
        raise UserError(
            "--model-parallel cuts one chain of layers, here every image has its own; drop it"
        )


def _head(config: Config) -> str:
    head = traits_of(config.algorithm.algorithm).head
    if head != "q":
        return head
    distributional = config.network.distributional
    return "q" if distributional == "none" else distributional


def _branches(config: Config, info) -> tuple[int, ...]:
    """The sizes of the groups of outputs, one for each action component; () for one group."""
    env, asked, count = config.environment.env, config.network.branching, info.num_actions
    sizes = () if info.actions is None else tuple(info.actions["sizes"])
    if not sizes:
        if asked == "on":
            raise UserError(f"--branching on is for actions of components, {env} has none; drop it")
        return ()
    if asked == "off" and count > MAX_ACTIONS:
        raise UserError(
            f"{env} has {count} combinations of actions, more than the {MAX_ACTIONS} that can have "
            "an output each; drop --branching off"
        )
    if asked == "off" or (asked == "auto" and count <= MAX_ACTIONS):
        return ()
    if sum(sizes) > MAX_ACTIONS:
        advice = "lower --action-bins" if info.actions["kind"] == "bins" else "use fewer"
        raise UserError(
            f"{env} has actions whose components have {sum(sizes)} values together, more than "
            f"{MAX_ACTIONS}; {advice}"
        )
    check_branching(config)
    return sizes


def _check_fit(name: str, shape: tuple[int, ...]) -> None:
    is_image = len(shape) == 3
    if is_image == (name in FOR_VECTORS):
        kind = "an image" if is_image else "a vector"
        raise UserError(f"the {name} network does not fit {kind} of shape {shape}; drop --network")
    side = MINIMUM_SIDE.get(name, 0)
    if is_image and min(shape[1:]) < side:
        raise UserError(
            f"observation {shape[1]}x{shape[2]} is too small for the {name.capitalize()} "
            f"network (needs {side}x{side}); drop --network"
        )


def _by_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "mlp"
    if max(shape[1:]) <= 16:
        return "small-conv"
    return "nips" if shape[1:] == (84, 84) else "conv"
