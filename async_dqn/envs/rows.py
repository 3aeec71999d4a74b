"""Raw observations written into rows of a batch, in the layout of their space.

What numpy would broadcast, cast or wrap around without a word is refused: an observation of the
wrong shape, or with values that its space does not have.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from async_dqn.envs.spaces import (
    ObservationLayout,
    Path,
    at,
    channels_last,
    in_a_row,
    is_image,
    is_text,
    leaves,
    ordered_leaves,
    spell,
)
from async_dqn.envs.texts import hashed_words

BYTES = ("B", "?")  # dtypes, by their characters, whose values bytes can hold

RowWriter = Callable[[int, Any], None]


def row_writer(space: spaces.Space, batch: np.ndarray, layout: ObservationLayout) -> RowWriter:
    """A function that stores one raw observation as row i of `batch` [B, *layout.shape].

    It raises ValueError for what does not fit the space.
    """
    masked = layout.parts[-1].kind == "mask"
    if not (masked or (isinstance(space, spaces.Dict | spaces.Tuple) and in_a_row(space))):
        return _whole_writer(space, batch)
    writers, start, flat = [], 0, batch.reshape(len(batch), -1)
    for (path, leaf), part in zip(ordered_leaves(space, masked), layout.parts, strict=True):
        rows = flat[:, start : start + part.size].reshape(len(batch), *part.shape)
        assert np.shares_memory(rows, batch)
        write_part = _mask_writer(rows) if part.kind == "mask" else _part_writer(leaf, rows, path)
        writers.append((path, write_part))
        start += part.size

    def write(row: int, observation: Any) -> None:
        for path, write_part in writers:
            write_part(row, at(observation, path))

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


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """The means of blocks of `factor` x `factor` pixels of an image [H, W, C], rounded in bytes.

    What is left over at the edges is cut off, evenly. Rows are added first, as they lie in one
    piece: four times faster than numpy's mean over two axes.
    """
    height, width = (side // factor for side in image.shape[:2])
    top, left = ((side % factor) // 2 for side in image.shape[:2])
    image = image[top : top + height * factor, left : left + width * factor]
    in_bytes = image.dtype == np.uint8
    rows = image.reshape(height, factor, width * factor, -1)
    total = rows[:, 0].astype(np.uint32 if factor > 16 else np.uint16 if in_bytes else np.float32)
    for k in range(1, factor):
        total += rows[:, k]
    columns = total.reshape(height, width, factor, -1)
    total = columns[:, :, 0].copy()
    for k in range(1, factor):
        total += columns[:, :, k]
    count = factor * factor
    return (total + count // 2) // count if in_bytes else total / np.float32(count)


def _whole_writer(space: spaces.Space, batch: np.ndarray) -> RowWriter:
    if is_text(space):
        return _text_writer(space, batch)
    if isinstance(space, spaces.Discrete):
        return _one_hot_writer(space, batch)
    if isinstance(space, spaces.MultiDiscrete | spaces.Dict | spaces.Tuple):
        return _flattening_writer(space, batch)
    if is_image(space):
        return _image_writer(space, batch)
    return _box_writer(space, batch.reshape(len(batch), *space.shape))


def _part_writer(space: spaces.Space, rows: np.ndarray, path: Path) -> RowWriter:
    """As alone; what is wrong says where it is, and flags are flags."""
    where = spell(path)
    write_whole = _whole_writer(space, rows)
    flags = isinstance(space, spaces.MultiBinary)

    def write(row: int, observation: Any) -> None:
        try:
            write_whole(row, observation)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if flags and rows[row].max(initial=0) > 1:
            raise ValueError(f"{where}: {observation} is not in {space}")

    return write


def _mask_writer(rows: np.ndarray) -> RowWriter:
    def write(row: int, mask: Any) -> None:
        if mask is None:
            raise ValueError("action_mask is missing")
        given = np.asarray(mask)
        if given.shape != rows.shape[1:]:
            raise ValueError(f"action_mask has shape {given.shape}, expected {rows.shape[1:]}")
        legal = given == 1
        if not (legal | (given == 0)).all():
            raise ValueError(f"action_mask {given.tolist()} holds more than 0 and 1")
        if not legal.any():
            raise ValueError("action_mask leaves no legal action")
        rows[row] = legal

    return write


def _image_writer(space: spaces.Box, batch: np.ndarray) -> RowWriter:
    """Into `batch` [B, C, h, w]: one assignment also transposes."""
    last = len(space.shape) == 3 and channels_last(space.shape)
    sides = space.shape[:2] if last or len(space.shape) == 2 else space.shape[1:]
    factor = sides[0] // batch.shape[2]
    if factor == 1:
        native = np.moveaxis(batch, 1, -1) if last else batch.reshape(len(batch), *space.shape)
        return _box_writer(space, native)
    whole = np.zeros((1, *space.shape), np.uint8 if space.dtype == np.uint8 else np.float32)
    write_whole = _box_writer(space, whole)

    def write(row: int, observation: Any) -> None:
        image = observation
        if getattr(image, "dtype", None) != whole.dtype or image.shape != space.shape:
            write_whole(0, observation)
            image = whole[0]
        if not last:  # as shrinking wants it
            image = image[..., None] if image.ndim == 2 else np.moveaxis(image, 0, -1)
        batch[row] = np.moveaxis(shrunk(image, factor), -1, 0)

    return write


def _box_writer(space: spaces.Space, rows: np.ndarray) -> RowWriter:
    """Into `rows` [B, *space.shape]."""
    shape, in_bytes = space.shape, rows.dtype == np.uint8

    def write(row: int, observation: Any) -> None:
        if getattr(observation, "shape", None) != shape:
            observation = np.asarray(observation)
            if observation.shape != shape:
                raise ValueError(f"observation has shape {observation.shape}, expected {shape}")
        if in_bytes and observation.dtype.char not in BYTES:
            observation = stored(observation, rows.dtype)
        rows[row] = observation

    return write


def _text_writer(space: spaces.Space, rows: np.ndarray) -> RowWriter:
    longest = getattr(space, "max_length", None)

    def write(row: int, observation: Any) -> None:
        if not isinstance(observation, str):
            raise ValueError(f"observation is a {type(observation).__name__}, not a text")
        if longest is not None and len(observation) > longest:
            raise ValueError(f"observation has {len(observation)} characters, at most {longest}")
        rows[row] = hashed_words(observation)

    return write


def _one_hot_writer(space: spaces.Discrete, batch: np.ndarray) -> RowWriter:
    start, states = int(space.start), int(space.n)

    def write(row: int, observation: Any) -> None:
        state = int(observation) - start
        if not 0 <= state < states or state + start != observation:
            raise ValueError(f"observation {observation} is not in {space}")
        batch[row] = 0
        batch[row, state] = 1

    return write


def _flattening_writer(space: spaces.Space, batch: np.ndarray) -> RowWriter:
    write_flat = _box_writer(spaces.flatten_space(space), batch)
    found = list(leaves(space))

    def write(row: int, observation: Any) -> None:
        for path, leaf in found:
            _check_leaf(leaf, at(observation, path), path)
        write_flat(row, spaces.flatten(space, observation))

    return write


def _check_leaf(space: spaces.Space, observation: Any, path: tuple) -> None:
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
        raise ValueError(f"observation{spell(path)} {observation} is not in {space}")
