"""What an exported agent computes: an environment's own observations in, its own actions out.

`Policy` has all that lies between: the layout of observations, scaling and normalisation, the
network, masks, and which action is meant by which output.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from async_dqn.algorithms.exploration import ILLEGAL
from async_dqn.envs.make import layout_of
from async_dqn.envs.spaces import (
    MASK,
    Part,
    Path,
    channels_last,
    is_image,
    is_text,
    ordered_leaves,
    planes,
)
from async_dqn.envs.texts import WIDTH
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.workers.run_spec import RunSpec

OwnActions = Callable[[NDArray[np.int64]], NDArray]
OUTPUTS, STATE, NEXT_STATE = ("action", "q_values"), ("state_h", "state_c"), ("next_h", "next_c")


@dataclass(frozen=True)
class Input:
    """One part of an observation as a policy takes it: [N, *shape].

    `path` leads to it in an observation of the environment. A text goes in as its hashed words
    (`envs.texts`). What is counted has so many `states` in each component, from `starts` on.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str  # uint8, int64 or float32
    kind: str = "numbers"  # or "text", "mask"
    states: tuple[int, ...] | None = None
    starts: tuple[int, ...] | None = None


class Policy(nn.Module):
    """The greedy policy of an agent, in float32 throughout.

    `forward(*inputs)` takes the `inputs` in their order, of a recurrent agent then its state (h, c)
    [N, width] each, and returns the environment's own actions [N, ...], Q-values float32
    [N, outputs] (-inf for illegal actions), and of a recurrent agent the next (h, c).
    """

    def __init__(
        self, run_spec: RunSpec, network: FlatNetwork, space: gymnasium.Space, own: OwnActions
    ):
        super().__init__()
        layout = layout_of(run_spec.spec, space)
        masked = layout.parts[-1].kind == "mask"
        found = ordered_leaves(space, masked)
        self.image = layout.shape if layout.kind == "image" else None
        in_order = zip(found, _of_each(layout.parts, len(found)), strict=True)
        self.readers = nn.ModuleList(_reader(leaf, part) for (_, leaf), part in in_order)
        self.inputs = _inputs(found, masked)
        self.net = QNetwork(_exact(run_spec.architecture), run_spec.own.get("network"))
        self.net.load_state_dict(network.net.state_dict())
        self.actions = Greedy(run_spec, own)
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Of the state of a recurrent agent; 0 without one."""
        return 0 if self.net.cell is None else self.net.cell.hidden_size

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of inputs and outputs, in their order."""
        recurrent = self.width > 0
        taken = [*(known.name for known in self.inputs), *(STATE if recurrent else ())]
        return taken, [*OUTPUTS, *(NEXT_STATE if recurrent else ())]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given, state = inputs[: len(self.inputs)], inputs[len(self.inputs) :]
        read = [reader(part) for reader, part in zip(self.readers, given, strict=True)]
        rows = read[0] if self.image else torch.cat([part.flatten(1) for part in read], 1)
        output, state = self.net(rows, state or None)
        q_values = output.q_values
        actions = self.actions(q_values)
        shown = torch.where(q_values <= ILLEGAL, -math.inf, q_values)
        return actions, shown, *(state or ())

    def example(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Inputs of so many rows, all zero, but that every action is legal."""
        given = []
        for known in self.inputs:
            fill = torch.ones if known.kind == "mask" else torch.zeros
            given.append(fill(rows, *known.shape, dtype=getattr(torch, known.dtype)))
        return *given, *(torch.zeros(rows, self.width) for _ in (STATE if self.width else ()))


def described(policy: Policy, run_spec: RunSpec) -> dict[str, Any]:
    """What a player has to know beside the file's inputs and outputs, JSON-able."""
    settings = run_spec.config.environment
    return {
        "inputs": [asdict(known) for known in policy.inputs],
        "masks": run_spec.info.masks,
        "state": policy.width,
        "epsilon": run_spec.eval_epsilon,
        "num_actions": run_spec.info.num_actions,
        "branches": list(run_spec.architecture.branches),
        "env": run_spec.spec.name,
        "registered": run_spec.spec.id is not None,
        "environment": asdict(settings),
    }


class Greedy(nn.Module):
    """Q-values [N, outputs] -> the environment's own actions [N, ...] that have the highest."""

    def __init__(self, run_spec: RunSpec, own: OwnActions):
        super().__init__()
        sizes = run_spec.architecture.branches
        count, info = run_spec.architecture.outputs, run_spec.info
        self.sizes = list(sizes) or [count]
        self.shape = tuple(info.actions["shape"]) if sizes else None
        for k, table in enumerate(_components(sizes, own) if sizes else [own(np.arange(count))]):
            self.register_buffer(f"table_{k}", torch.from_numpy(np.ascontiguousarray(table)))

    def forward(self, q_values: torch.Tensor) -> torch.Tensor:
        groups = q_values.split(self.sizes, 1)
        tables = list(self.buffers())
        pairs = zip(tables, groups, strict=True)
        chosen = [table.index_select(0, part.argmax(1)) for table, part in pairs]
        return chosen[0] if self.shape is None else torch.stack(chosen, 1).unflatten(1, self.shape)


def _components(sizes: Sequence[int], own: OwnActions) -> list[NDArray]:
    """The values [n] that each component of an action can have, by their numbers."""
    weights = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).astype(np.int64)
    return [
        own(np.arange(n) * weight).reshape(n, -1)[:, k]
        for k, (n, weight) in enumerate(zip(sizes, weights, strict=True))
    ]


class Numbers(nn.Module):
    """Numbers [N, ...] as they are, in float32."""

    def forward(self, part: torch.Tensor) -> torch.Tensor:
        return part.float().flatten(1) if part.ndim > 1 else part.float().unsqueeze(1)


class OneHot(nn.Module):
    """Counted components [N, ...] -> a one-hot of each, [N, their states together]."""

    def __init__(self, sizes: Sequence[int], starts: Sequence[int]):
        super().__init__()
        column = [k for k, n in enumerate(sizes) for _ in range(n)]
        value = [start + i for n, start in zip(sizes, starts, strict=True) for i in range(n)]
        self.register_buffer("column", torch.tensor(column))
        self.register_buffer("value", torch.tensor(value))

    def forward(self, part: torch.Tensor) -> torch.Tensor:
        counted = part.flatten(1) if part.ndim > 1 else part.unsqueeze(1)
        return (counted.index_select(1, self.column) == self.value).float()


class Image(nn.Module):
    """An image as its environment gives it -> [N, C, h, w], shrunk like `envs.rows.shrunk`."""

    def __init__(self, space: spaces.Box, shape: tuple[int, ...]):
        super().__init__()
        self.flat = len(space.shape) == 2
        self.last = not self.flat and channels_last(space.shape)
        self.in_bytes = space.dtype == np.uint8
        _, height, width = planes(space)
        self.factor, self.sides = height // shape[1], shape[1:]
        self.corner = ((height % self.factor) // 2, (width % self.factor) // 2)

    def forward(self, part: torch.Tensor) -> torch.Tensor:
        image = part.float()
        if self.flat:
            image = image.unsqueeze(1)
        elif self.last:
            image = image.permute(0, 3, 1, 2)
        if self.factor == 1:
            return image
        (top, left), (height, width), factor = self.corner, self.sides, self.factor
        image = image[:, :, top : top + height * factor, left : left + width * factor]
        blocks = image.reshape(-1, image.shape[1], height, factor, width, factor)
        total, count = blocks.sum((3, 5)), factor * factor
        # Whole numbers below 2^24: exact.
        return torch.floor((total + count // 2) / count) if self.in_bytes else total / count


def _reader(space: spaces.Space, part: Part | None) -> nn.Module:
    if is_image(space):
        assert part is not None
        return Image(space, part.shape)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return OneHot(*_states(space))
    return Numbers()


def _of_each(parts: Sequence[Part], leaves: int) -> Sequence[Part | None]:
    """The part of each leaf; what is flattened as a whole has no parts of its own."""
    return parts if len(parts) == leaves else [None] * leaves


def _inputs(found: Sequence[tuple[Path, spaces.Space]], masked: bool) -> list[Input]:
    inputs: list[Input] = []
    for path, space in found:
        if masked and path == (MASK,):
            inputs.append(Input(MASK, path, space.shape, "uint8", "mask"))
            continue
        inner = path[path[:1] == ("observation",) :]
        name = "/".join(["observation", *map(str, inner)])
        while any(name == known.name for known in inputs):
            name += "_"
        if is_text(space):
            inputs.append(Input(name, path, (WIDTH,), "uint8", "text"))
        else:
            inputs.append(Input(name, path, space.shape, _dtype(space), "numbers", *_states(space)))
    return inputs


def _dtype(space: spaces.Space) -> str:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return "int64"
    in_bytes = isinstance(space, spaces.MultiBinary) or space.dtype in (np.uint8, np.bool_)
    return "uint8" if in_bytes else "float32"


def _states(space: spaces.Space) -> tuple[tuple[int, ...], tuple[int, ...]] | tuple[()]:
    """How many each component has, and the first of them; () where nothing is counted."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),), (int(space.start),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
    if isinstance(space, spaces.MultiBinary):
        components = math.prod(space.shape)
        return (2,) * components, (0,) * components
    return ()


def _exact(architecture: Architecture) -> Architecture:
    """The same in float32."""
    parts = tuple(map(_exact, architecture.parts))
    return replace(architecture, bfloat16=False, parts=parts)
