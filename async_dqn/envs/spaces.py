"""Gymnasium observation spaces in the one form the networks know.

Observations become vectors (float32, or uint8 for bytes) or images (channels first). An image is
a 3-D Box, or a 2-D Box of bytes with sides of 8 and more; its channels are the smaller of the first
and the last axis, the last when equal (Seaquest of MinAtar is 10 x 10 x 10, channels last). Dict,
Tuple and MultiDiscrete become one vector as gymnasium's `flatten` (what FlattenObservation calls)
lays it out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate

from async_dqn.config.config import UserError

MAX_ONE_HOT = 4096
UNBOUNDED = 1e6  # bounds this wide (float32 maxima, for one) say nothing about the scale of inputs

BYTES = ("B", "?")  # dtypes, by their characters, whose values bytes can hold

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

    Raises UserError for spaces other than Box of up to 3 dimensions, MultiBinary, Discrete and
    MultiDiscrete of up to 4096 states, and Dict and Tuple of these that hold no image.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        _check_parts(space)
        return _vector_layout(spaces.flatten_space(space))
    if isinstance(space, spaces.Box) and _is_image(space):
        return _image_layout(space)
    if _is_vector(space):
        one_hot = not isinstance(space, spaces.Box)
        shape = (spaces.flatdim(space),)
        return ObservationLayout("vector", shape, "float32") if one_hot else _vector_layout(space)
    raise UserError(
        f"observation space {describe(space)} is not supported; "
        "wrap the environment so that it gives one Box"
    )


def num_actions(space: spaces.Space, name: str) -> int:
    """The number of discrete actions; UserError for any other action space."""
    if not isinstance(space, spaces.Discrete):
        raise UserError(
            f"DQN needs a Discrete action space; {name} has {describe(space)}: choose an "
            "environment with Discrete, MultiDiscrete, MultiBinary or Box actions"
        )
    return int(space.n)


def split_batch(space: spaces.Space, observation: Any) -> tuple[list[Any], bool]:
    """Single raw observations of `space`, and whether only one was given.

    A batch is stacked as gymnasium's vector environments stack it: an array [N, ...], or a Dict or
    Tuple of those. Raises UserError where shapes do not fit.
    """
    try:
        given = [np.shape(part) for _, _, part in parts(space, observation)]
        wanted = [part.shape for _, part, _ in parts(space)]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"observation does not fit {describe(space)}: {error!r}") from error
    if given == wanted:
        return [observation], True
    counts = {shape[:1] for shape in given}
    if len(counts) > 1 or [shape[1:] for shape in given] != wanted:
        expected = wanted[0] if len(wanted) == 1 else wanted
        raise UserError(
            f"observation has shape {given[0] if len(given) == 1 else given}, expected {expected}"
        )
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return list(iterate(batch_space(space, counts.pop()[0]), observation)), False
    return list(np.asarray(observation)), False


def parts(
    space: spaces.Space, observation: Any = None, name: str = ""
) -> Iterator[tuple[str, spaces.Space, Any]]:
    """(name, space, observation) of every part of a Dict or Tuple; any other space is one part."""
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = list(enumerate(space.spaces))
    else:
        yield name, space, observation
        return
    for key, part in inner:
        held = None if observation is None else observation[key]
        yield from parts(part, held, f"{name}[{key!r}]")


def row_writer(space: spaces.Space, batch: np.ndarray) -> RowWriter:
    """A function that stores one raw observation as row i of `batch` [B, *layout.shape].

    It raises ValueError for what numpy would broadcast or change without a word: an observation of
    the wrong shape, or with values that the space's dtype does not have.
    """
    if isinstance(space, spaces.Discrete):
        return _one_hot_writer(space, batch)
    if isinstance(space, spaces.MultiDiscrete | spaces.Dict | spaces.Tuple):
        return _flattening_writer(space, batch)
    shape, rows = space.shape, _native_view(space, batch)
    in_bytes = rows.dtype == np.uint8

    def write(row: int, observation: Any) -> None:
        if getattr(observation, "shape", None) != shape:
            observation = np.asarray(observation)
            if observation.shape != shape:
                raise ValueError(f"observation has shape {observation.shape}, expected {shape}")
        if in_bytes and observation.dtype.char not in BYTES:
            observation = stored(observation, rows.dtype)
        rows[row] = observation

    return write


def stored(observations: Any, dtype: np.dtype) -> np.ndarray:
    """Observations as `dtype`. Raises ValueError where bytes would hold other numbers."""
    if getattr(observations, "dtype", None) == dtype:
        return observations
    given = np.asarray(observations)
    if dtype != np.uint8 or given.dtype.char in BYTES:
        return given.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        kept = given.astype(dtype)
    if (kept != given).any():
        value = given[kept != given].flat[0]
        raise ValueError(
            f"observation holds {value:g}, which is no byte; correct its observation_space"
        )
    return kept


def _one_hot_writer(space: spaces.Discrete, batch: np.ndarray) -> RowWriter:
    start, states = int(space.start), int(space.n)

    def write(row: int, observation: Any) -> None:
        state = int(observation) - start
        if not 0 <= state < states:
            raise ValueError(f"observation {observation} is not in {space}")
        batch[row] = 0
        batch[row, state] = 1

    return write


def _flattening_writer(space: spaces.Space, batch: np.ndarray) -> RowWriter:
    write_flat = row_writer(spaces.flatten_space(space), batch)

    def write(row: int, observation: Any) -> None:
        for name, part, held in parts(space, observation):
            _check_part(part, held, name)
        write_flat(row, spaces.flatten(space, observation))

    return write


def _check_part(space: spaces.Space, observation: Any, name: str) -> None:
    """Raise ValueError for what `flatten` would cast or wrap around without a word."""
    held = np.asarray(observation)
    if isinstance(space, spaces.Discrete):
        space, held = spaces.MultiDiscrete([space.n], start=[space.start]), held.reshape(-1)
    if isinstance(space, spaces.MultiDiscrete):
        counted = held - space.start
        sound = held.shape == space.shape and (counted >= 0).all() and (counted < space.nvec).all()
    else:
        sound = np.can_cast(held.dtype, space.dtype, "same_kind")
        sound = sound or np.array_equal(held.astype(space.dtype), held)
    if not sound:
        raise ValueError(f"observation{name} {observation} is not in {space}")


def _native_view(space: spaces.Space, batch: np.ndarray) -> np.ndarray:
    """The same memory with the axes of the space, so that one assignment also transposes."""
    if batch.ndim == 4 and len(space.shape) == 3:
        return np.moveaxis(batch, 1, -1) if _channels_last(space.shape) else batch
    return batch.reshape(len(batch), *space.shape)


def _check_parts(space: spaces.Space) -> None:
    found = list(parts(space))
    for name, part, _ in found:
        if isinstance(part, spaces.Box) and _is_image(part):
            raise UserError(
                f"observation space {describe(space)} holds an image at {name}, {describe(part)}; "
                "wrap the environment so that it gives the image alone, or no image"
            )
        if not _is_vector(part):
            raise UserError(
                f"observation space {describe(space)} holds {describe(part)} at {name}, which "
                "is not supported; wrap the environment so that it gives one Box"
            )
    if not found:
        raise UserError(f"observation space {describe(space)} is empty; give it a Box")


def _is_vector(space: spaces.Space) -> bool:
    """Whether `flatten` makes a vector of sensible length of it."""
    if isinstance(space, spaces.Box):
        return len(space.shape) <= 3 and math.prod(space.shape) > 0
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return spaces.flatdim(space) <= MAX_ONE_HOT
    return isinstance(space, spaces.MultiBinary)


def _is_image(space: spaces.Box) -> bool:
    if 0 in space.shape:
        return False
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


def describe(space: spaces.Space) -> str:
    """A space in a few words, for messages."""
    if isinstance(space, spaces.Box):
        return f"Box{space.shape}"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return str(space)
    return f"{type(space).__name__}(...)"
