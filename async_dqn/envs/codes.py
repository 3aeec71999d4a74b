"""Images whose bytes are codes, not colours: numbers for kinds of things, as MiniGrid's 0 to 10.

Divided by 255 they would all be near 0, and as numbers a key would be half a door. So networks see
a one-hot of each. Whether a small image declared as any bytes holds codes, a random player sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from async_dqn.config.config import UserError
from async_dqn.envs.batch import EnvBatch
from async_dqn.envs.masks import legal_actions
from async_dqn.envs.spaces import Part, in_words
from async_dqn.envs.spec import EnvInfo

SIDE, STEPS = 16, 200  # of a small image; that a random player looks on
LARGEST = 31  # number taken for a code
FEWEST = 16  # codes told apart where not all need have been seen


def with_codes(
    batch: EnvBatch, obs: np.ndarray, setting: str, stored: Mapping[str, Any] | None
) -> EnvInfo:
    """What is known of the environment, with how many codes its images hold.

    `obs` are its observations now, `setting` is `--image-codes`. `stored` is what a checkpoint has
    of the environment: a model goes on with the codes it learned with. Raises UserError for a
    number where no image is of bytes.
    """
    info = batch.info
    alone = Part("", info.kind, info.observation_shape, info.dtype, info.scale)
    parts = info.parts or (replace(alone, observation=info.observation),)
    of_bytes = [part.kind == "image" and part.dtype == "uint8" for part in parts]
    if setting.isdecimal() and not any(of_bytes):
        raise UserError("--image-codes needs an image of bytes; drop it")
    peak = None
    if stored is not None:
        found = _as_stored(parts, stored)
        peak = stored.get("peak")
    elif setting == "auto":
        peaks = _peaks(batch, obs, parts, [k for k, fits in enumerate(of_bytes) if fits])
        found = tuple(_of_largest(part, peaks.get(k)) for k, part in enumerate(parts))
        peak = peaks.get(0) if not info.parts and found != parts else None
    elif setting == "none":
        found = parts
    else:
        found = tuple(
            _one_hot(part, int(setting)) if fits else part for part, fits in zip(parts, of_bytes)
        )
    if info.parts:
        return replace(info, parts=found, observation=in_words(found))
    (part,) = found
    words = part.observation
    return replace(info, scale=part.scale, codes=part.codes, peak=peak, observation=words)


def _peaks(
    batch: EnvBatch, obs: np.ndarray, parts: Sequence[Part], images: Sequence[int]
) -> dict[int, int]:
    """The largest number that small images may hold, by their place: declared, or else seen."""
    small = [k for k in images if max(parts[k].shape[1:]) <= SIDE]
    peaks = {k: round(1 / parts[k].scale) for k in small}
    looked_at = [k for k in small if peaks[k] == 255]
    if not looked_at:
        return peaks
    starts = np.cumsum([0, *(part.size for part in parts)])
    peaks |= dict.fromkeys(looked_at, 0)
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        obs = batch.step(legal_actions(batch.info, obs, generator)).obs
        for k in looked_at:
            seen = obs.reshape(-1)[starts[k] : starts[k + 1]]
            peaks[k] = max(peaks[k], int(seen.max()))
    return peaks


def _of_largest(part: Part, peak: int | None) -> Part:
    """The image with codes up to `peak`, if that is what they are."""
    declared = round(1 / part.scale)
    if peak is None or not 0 < peak <= LARGEST or declared == 1:
        return part
    if peak == 1:  # flags
        return replace(part, scale=1.0)
    if peak == declared:
        return _one_hot(part, peak + 1)
    return _one_hot(part, FEWEST if peak < FEWEST else LARGEST + 1)


def _one_hot(part: Part, codes: int) -> Part:
    words = f"{part.observation} of codes (one-hot, {codes})"
    return replace(part, scale=1.0, codes=codes, observation=words)


def _as_stored(parts: tuple[Part, ...], stored: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts with the codes and scales of a checkpoint's, where they are the same otherwise."""
    before = stored.get("parts") or [stored]
    if len(before) != len(parts):
        return parts
    return tuple(_as_before(part, old) for part, old in zip(parts, before, strict=True))


def _as_before(part: Part, old: Mapping[str, Any]) -> Part:
    shape = old.get("shape", old.get("observation_shape"))
    if part.kind != "image" or list(part.shape) != shape:
        return part
    codes, scale = old.get("codes"), float(old.get("scale", part.scale))
    return replace(part, scale=scale) if codes is None else _one_hot(part, int(codes))
