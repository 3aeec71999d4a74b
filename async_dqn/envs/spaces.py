"""Gymnasium observation spaces in the one form the networks know.

Observations become vectors (float32, or uint8 for bytes), images (channels first), or rows of
several parts. An image is a 3-D Box, or a 2-D Box of bytes with sides of 8 and more, or of floats
within 0..1 or 0..255 with sides of 16 and more; its channels are the smaller of the first and the
last axis, the last when equal (Seaquest of MinAtar is 10 x 10 x 10, channels last). Dict, Tuple and
MultiDiscrete become one vector as gymnasium's `flatten` (what FlattenObservation calls) lays it
out; a Dict or Tuple with an image or a text a row: its images, then the rest.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from async_dqn.config.config import UserError
from async_dqn.envs.texts import BUCKETS, WIDTH

MAX_ONE_HOT = 4096
UNBOUNDED = 1e6  # bounds this wide (float32 maxima, for one) say nothing about the scale of inputs
LEAST_SIDE = 3  # of an image; below that there is nothing to convolve
BRIGHTEST = (1, 255)  # of floats that are grey pixels
FIXED_SIZE = "; a network's input has one size: wrap the environment so that it gives a Box"
# What no network takes, and what to do about it.
REASONS = {
    spaces.Sequence: f": its length changes{FIXED_SIZE}, padded to the longest",
    spaces.Graph: f": its nodes and edges come and go{FIXED_SIZE}, padded to the most",
    spaces.OneOf: ": it is now this, now that space; wrap the environment in FlattenObservation",
}

MASK = "action_mask"  # key of a Dict

Path = tuple[Any, ...]  # keys and places on the way to a part


@dataclass(frozen=True)
class Part:
    """A vector or an image, alone or in a row of several, or a mask of legal actions; JSON-able.

    `name` says where in a Dict or Tuple it was; the other fields are as those of `EnvInfo`, and
    `observation` says in words what was made of its space.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    codes: int | None = None
    observation: str = ""

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ObservationLayout:
    """How observations of a space are stored: kind, shape and dtype as in EnvInfo.

    Kind "vector" or "image" is the one part there is; "parts" are several, in a row.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]


def observation_layout(
    space: spaces.Space, image_size: int | None = None, masked: bool = False
) -> ObservationLayout:
    """The layout of a space's observations, with images of at most `image_size` on a side.

    If `masked`, the part of a Dict at "action_mask" is which actions are legal, last in the row.
    Raises UserError for spaces other than Box of up to 3 dimensions, MultiBinary, Text, Discrete
    and MultiDiscrete of up to 4096 states, and Dict and Tuple of these.
    """
    found = ordered_leaves(space, masked)
    if len(found) == masked:
        raise UserError(f"observation space {describe(space)} is empty; give it a Box")
    several = isinstance(space, spaces.Dict | spaces.Tuple)
    for path, leaf in found:
        if not _is_supported(leaf):
            holds = f"{describe(space)} holds {describe(leaf)} at {spell(path)}, which"
            raise UserError(
                f"observation space {holds if several else describe(space)} is not supported"
                f"{_reason(leaf)}"
            )
    if several and not masked and not in_a_row(space):
        made_of = in_words(_part(path, leaf, None) for path, leaf in found)
        part = replace(_vector_part("", spaces.flatten_space(space)), observation=made_of)
        return ObservationLayout("vector", part.shape, part.dtype, (part,))
    parts = tuple(_part(path, leaf, image_size) for path, leaf in found)
    if masked:
        parts = (*parts[:-1], replace(parts[-1], kind="mask", dtype="uint8", observation=""))
    if len(parts) == 1:
        return ObservationLayout(parts[0].kind, parts[0].shape, parts[0].dtype, parts)
    dtype = "uint8" if all(part.dtype == "uint8" for part in parts) else "float32"
    return ObservationLayout("parts", (sum(part.size for part in parts),), dtype, parts)


def in_a_row(space: spaces.Space) -> bool:
    """Whether a Dict or Tuple is laid out part by part: it has images or texts among others."""
    return any(is_text(leaf) or is_image(leaf) for _, leaf in leaves(space))


def ordered_leaves(space: spaces.Space, masked: bool) -> list[tuple[Path, spaces.Space]]:
    """The leaves of a space in the order of the row: images first, a mask last."""

    def place(leaf: tuple[Path, spaces.Space]) -> int:
        return 2 if masked and leaf[0] == (MASK,) else not is_image(leaf[1])

    return sorted(leaves(space), key=place)


def leaves(space: spaces.Space, path: Path = ()) -> Iterator[tuple[Path, spaces.Space]]:
    """(path, space) of every part of a Dict or Tuple; any other space is one part."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces
        keys = inner if isinstance(space, spaces.Dict) else range(len(inner))
        for key in keys:
            yield from leaves(inner[key], (*path, key))
    else:
        yield path, space


def at(observation: Any, path: Path) -> Any:
    """The part of an observation at a path."""
    for key in path:
        observation = observation[key]
    return observation


def spell(path: Path) -> str:
    """A path as it is written in Python."""
    return "".join(f"[{key!r}]" for key in path)


def in_words(parts: Iterable[Part]) -> str:
    """What is made of the parts of an observation, and how many numbers that are."""
    parts = [part for part in parts if part.kind != "mask"]
    made_of = ", ".join(part.observation for part in parts)
    return f"{made_of} -> {sum(part.size for part in parts)} numbers"


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
    Tuple of those, of texts a list or tuple. Raises UserError where shapes do not fit.
    """
    found = list(leaves(space))
    try:
        given = [np.shape(at(observation, path)) for path, _ in found]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"observation does not fit {describe(space)}: {error!r}") from error
    wanted = [() if is_text(leaf) else leaf.shape for _, leaf in found]
    if given == wanted:
        return [observation], True
    counts = {shape[:1] for shape in given}
    if len(counts) > 1 or [shape[1:] for shape in given] != wanted:
        expected = wanted[0] if len(wanted) == 1 else wanted
        raise UserError(
            f"observation has shape {given[0] if len(given) == 1 else given}, expected {expected}"
        )
    (count,) = counts.pop()
    return [_member(space, observation, k) for k in range(count)], False


def _member(space: spaces.Space, observations: Any, k: int) -> Any:
    """Observation k of a batch."""
    if isinstance(space, spaces.Dict):
        inner = space.spaces.items()
        return {key: _member(part, observations[key], k) for key, part in inner}
    if isinstance(space, spaces.Tuple):
        return tuple(_member(*pair, k) for pair in zip(space.spaces, observations, strict=True))
    return observations[k]


def is_text(space: spaces.Space) -> bool:
    """Whether observations are texts: `Text`, or a space of one's own (MiniGrid's missions)."""
    return space.dtype is not None and space.dtype.kind == "U"


def is_image(space: spaces.Space) -> bool:
    """Whether a space is a Box that is seen as an image."""
    if not isinstance(space, spaces.Box) or 0 in space.shape:
        return False
    if len(space.shape) == 2:
        in_bytes = space.dtype == np.uint8
        grey = (space.low == 0).all() and space.high.min() == space.high.max() in BRIGHTEST
        return min(space.shape) >= (8 if in_bytes else 16) and (in_bytes or bool(grey))
    return len(space.shape) == 3 and min(planes(space)[1:]) >= LEAST_SIDE


def planes(space: spaces.Box) -> tuple[int, ...]:
    """The shape (C, H, W) of an image as the environment gives it, but for the order."""
    shape = space.shape
    if len(shape) == 2:
        return (1, *shape)
    return (shape[2], shape[0], shape[1]) if channels_last(shape) else shape


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether the channels of a 3-D image are its last axis."""
    return shape[-1] <= shape[0]


def shrink_factor(space: spaces.Box, image_size: int | None) -> int:
    """By which whole number the sides of an image are divided to be at most `image_size`.

    Codes and planes of flags stay as they are: a mean of them means nothing.
    """
    pixels = space.dtype.kind == "f" or float(space.high.max()) >= 32
    if image_size is None or not pixels:
        return 1
    return -(-max(planes(space)[1:]) // image_size)


def describe(space: spaces.Space) -> str:
    """A space in a few words, for messages."""
    if isinstance(space, spaces.Box):
        return f"Box{space.shape}"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return str(space)
    return f"{type(space).__name__}(...)"


def _reason(space: spaces.Space) -> str:
    for kind, reason in REASONS.items():
        if isinstance(space, kind):
            return reason
    return "; wrap the environment so that it gives one Box"


def _is_supported(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Box):
        return len(space.shape) <= 3 and math.prod(space.shape) > 0
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return spaces.flatdim(space) <= MAX_ONE_HOT
    return isinstance(space, spaces.MultiBinary) or is_text(space)


def _part(path: Path, space: spaces.Space, image_size: int | None) -> Part:
    name = "/".join(map(str, path[path[:1] == ("observation",) :]))  # as PettingZoo has it
    if is_image(space):
        return _image_part(name, space, image_size)
    if isinstance(space, spaces.Box):
        return _vector_part(name, space)
    if is_text(space):
        words = f"{name} Text as {BUCKETS} hashed words and {BUCKETS} pairs".lstrip()
        return Part(name, "vector", (WIDTH,), "uint8", observation=words)
    words = f"{name} {space}{'' if isinstance(space, spaces.MultiBinary) else ' one-hot'}".lstrip()
    dtype = "uint8" if path else "float32"  # in a row bytes save memory
    return Part(name, "vector", (spaces.flatdim(space),), dtype, observation=words)


def _image_part(name: str, space: spaces.Box, image_size: int | None) -> Part:
    channels, height, width = planes(space)
    factor = shrink_factor(space, image_size)
    shape = (channels, height // factor, width // factor)
    words = f"{name or 'image'} {height}x{width}x{channels}"
    if factor > 1:
        words += f" shrunk to {shape[1]}x{shape[2]}"
    dtype, scale = _stored_dtype(space), _peak_scale(space)
    return Part(name, "image", shape, dtype, scale, observation=words)


def _vector_part(name: str, space: spaces.Box) -> Part:
    shape, dtype = (math.prod(space.shape),), _stored_dtype(space)
    words = f"{name} {describe(space)}".lstrip()
    if dtype == "uint8":
        return Part(name, "vector", shape, dtype, _peak_scale(space), observation=words)
    low, high = space.low.astype(float).ravel(), space.high.astype(float).ravel()
    if max(np.abs(low).max(), np.abs(high).max()) >= UNBOUNDED:
        return Part(name, "vector", shape, dtype, observation=words)
    bounds = tuple(low.tolist()), tuple(high.tolist())
    return Part(name, "vector", shape, dtype, 1.0, *bounds, None, words)


def _stored_dtype(space: spaces.Box) -> str:
    return "uint8" if space.dtype in (np.uint8, np.bool_) else "float32"


def _peak_scale(space: spaces.Box) -> float:
    """1 / the largest value, so that bytes and pixels arrive in 0..1."""
    peak = float(space.high.max())
    return 1 / peak if 1 < peak < UNBOUNDED else 1.0
