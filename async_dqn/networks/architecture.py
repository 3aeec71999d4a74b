"""Which network an observation gets: plain data, decided and checked before torch is imported."""

from dataclasses import dataclass

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
MAX_ACTIONS = 4096  # combinations of action components with an output each


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a network's parameters; stored with every checkpoint."""

    network: str  # of NETWORKS, or module:name of the user's own
    observation_shape: tuple[int, ...]  # (n,) or channels first (C, H, W)
    scale: float  # raw observations are multiplied with it
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
    normalize: bool = False  # vectors, by running mean and deviation
    branches: tuple[int, ...] = ()  # outputs of each action component, if they are in groups

    @property
    def outputs(self) -> int:
        """The width of the head."""
        return sum(self.branches) or self.num_actions


def choose(config: Config, info) -> Architecture:
    """The network that the settings ask for, on the observations of `info` (an `EnvInfo`).

    `--network auto` goes by the observation's shape.

    Raises:
        UserError: the network asked for does not fit the observation, or the actions.
    """
    network, shape = config.network, tuple(info.observation_shape)
    name = _by_shape(shape) if network.network == "auto" else network.network
    if not is_foreign(name):
        _check_fit(name, shape)
    if network.input_scaling and info.low is None:
        raise UserError("--input-scaling needs a vector with finite bounds; drop it")
    if network.normalize_observations and len(shape) != 1:
        raise UserError("--normalize-observations is for vectors; images have a scale; drop it")
    is_ours = len(shape) == 3 and not is_foreign(name)
    return Architecture(
        network=name,
        observation_shape=shape,
        scale=1.0 if network.normalize_observations else info.scale,
        num_actions=info.num_actions,
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
        low=info.low if network.input_scaling else None,
        high=info.high if network.input_scaling else None,
        normalize=network.normalize_observations,
        branches=_branches(config, info),
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
