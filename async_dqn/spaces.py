"""Gymnasium spaces in the one form the networks know.

Observations become vectors (float32, or uint8 for bytes) or images (channels first), actions
become 0..A-1. An image is a 3-D Box, or a 2-D Box of bytes with sides of 8 and more; its channels
are the smaller of the first and the last axis, the last when equal (Seaquest of MinAtar is
10 x 10 x 10, channels last).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from async_dqn.config import UserError

MAX_ONE_HOT = 4096
UNBOUNDED = 1e6  # bounds this wide (float32 maxima, for one) say nothing about the scale of inputs

RowWriter = Callable[[int, Any], None]


@dataclass(frozen=True)
class ObservationLayout:
    """How observations of a space are stored: shape, dtype and scale as in EnvInfo."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


def observation_layout(space: spaces.Space) -> ObservationLayout:
    """The layout of a space's observations.

    Raises UserError for spaces that are neither Box of up to 3 dimensions, MultiBinary nor
    Discrete of up to 4096 states.
    """
    if isinstance(space, spaces.Discrete) and space.n <= MAX_ONE_HOT:
        return ObservationLayout("vector", (int(space.n),), "float32")
    if isinstance(space, spaces.MultiBinary):
        return ObservationLayout("vector", (math.prod(space.shape),), "float32")
    if isinstance(space, spaces.Box) and len(space.shape) <= 3 and math.prod(space.shape) > 0:
        return _image_layout(space) if _is_image(space) else _vector_layout(space)
    raise UserError(
        f"observation space {_describe(space)} is not supported; "
        "wrap the environment so that it gives one Box"
    )


def num_actions(space: spaces.Space, name: str) -> int:
    """The number of discrete actions; UserError for any other action space."""
    if not isinstance(space, spaces.Discrete):
        raise UserError(
            f"DQN needs a Discrete action space; {name} has {_describe(space)}: "
            "choose an environment with discrete actions"
        )
    return int(space.n)


def row_writer(space: spaces.Space, batch: np.ndarray) -> RowWriter:
    """A function that stores one raw observation as row i of `batch` [B, *layout.shape].

    It raises ValueError for an observation of the wrong shape, which numpy would broadcast.
    """
    if isinstance(space, spaces.Discrete):
        return _one_hot_writer(space, batch)
    shape, rows = space.shape, _native_view(space, batch)

    def write(row: int, observation: Any) -> None:
        if getattr(observation, "shape", None) != shape:
            observation = np.asarray(observation)
            if observation.shape != shape:
                raise ValueError(f"observation has shape {observation.shape}, expected {shape}")
        rows[row] = observation

    return write


def _one_hot_writer(space: spaces.Discrete, batch: np.ndarray) -> RowWriter:
    start, states = int(space.start), int(space.n)

    def write(row: int, observation: Any) -> None:
        state = int(observation) - start
        if not 0 <= state < states:
            raise ValueError(f"observation {observation} is not in {space}")
        batch[row] = 0
        batch[row, state] = 1

    return write


def _native_view(space: spaces.Space, batch: np.ndarray) -> np.ndarray:
    """The same memory with the axes of the space, so that one assignment also transposes."""
    if batch.ndim == 4 and len(space.shape) == 3:
        return np.moveaxis(batch, 1, -1) if _channels_last(space.shape) else batch
    return batch.reshape(len(batch), *space.shape)


def _is_image(space: spaces.Box) -> bool:
    two_dimensional = len(space.shape) == 2 and space.dtype == np.uint8 and min(space.shape) >= 8
    return len(space.shape) == 3 or two_dimensional


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[-1] <= shape[0]


def _image_layout(space: spaces.Box) -> ObservationLayout:
    shape = space.shape
    if len(shape) == 2:
        shape = (1, *shape)
    elif _channels_last(shape):
        shape = (shape[2], shape[0], shape[1])
    return ObservationLayout("image", shape, _stored_dtype(space), _peak_scale(space))


def _vector_layout(space: spaces.Box) -> ObservationLayout:
    shape, dtype = (math.prod(space.shape),), _stored_dtype(space)
    if dtype == "uint8":
        return ObservationLayout("vector", shape, dtype, _peak_scale(space))
    low, high = space.low.astype(float).ravel(), space.high.astype(float).ravel()
    if max(np.abs(low).max(), np.abs(high).max()) >= UNBOUNDED:
        return ObservationLayout("vector", shape, dtype)
    return ObservationLayout("vector", shape, dtype, 1.0, tuple(low.tolist()), tuple(high.tolist()))


def _stored_dtype(space: spaces.Box) -> str:
    return "uint8" if space.dtype in (np.uint8, np.bool_) else "float32"


def _peak_scale(space: spaces.Box) -> float:
    """1 / the largest value, so that bytes and pixels arrive in 0..1."""
    peak = float(space.high.max())
    return 1 / peak if 1 < peak < UNBOUNDED else 1.0


def _describe(space: spaces.Space) -> str:
    if isinstance(space, spaces.Box):
        return f"Box{space.shape}"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return str(space)
    return f"{type(space).__name__}(...)"
