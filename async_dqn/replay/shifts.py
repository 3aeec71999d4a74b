"""Random shifts of images drawn from replay (DrQ, Kostrikov et al. 2021, section 3.1)."""

import numpy as np
from numpy.typing import NDArray

from async_dqn.algorithms.rollout import Rollout


def shift_images(rollout: Rollout, most: int, generator: np.random.Generator) -> None:
    """Move the observations of each segment by up to `most` pixels each way.

    Observations are images [..., height, width]; what comes in from outside repeats the edge. All
    images of a segment move alike, so that what changes between them is what has moved.
    """
    segments = rollout.obs.shape[1]
    moves = generator.integers(-most, most + 1, (segments, 2)).tolist()
    obs, finals = np.empty_like(rollout.obs), np.empty_like(rollout.final_obs)
    for segment, move in enumerate(moves):
        _move(rollout.obs[:, segment], obs[:, segment], *move)
    for number, row in enumerate(rollout.final_rows.tolist()):
        _move(rollout.final_obs[number], finals[number], *moves[row % segments])
    rollout.obs, rollout.final_obs = obs, finals


def _move(images: NDArray, moved: NDArray, down: int, right: int) -> None:
    """Write images [..., height, width] into `moved`, so many pixels further."""
    height, width = images.shape[-2:]
    down, right = (max(-n + 1, min(n - 1, by)) for n, by in ((height, down), (width, right)))
    rows, columns = (
        slice(max(0, down), height + min(0, down)),
        slice(max(0, right), width + min(0, right)),
    )
    from_rows = slice(rows.start - down, rows.stop - down)
    moved[..., rows, columns] = images[..., from_rows, columns.start - right : columns.stop - right]
    # The edges: columns of these rows, then whole rows.
    moved[..., rows, : columns.start] = moved[..., rows, columns.start : columns.start + 1]
    moved[..., rows, columns.stop :] = moved[..., rows, columns.stop - 1 : columns.stop]
    moved[..., : rows.start, :] = moved[..., rows.start : rows.start + 1, :]
    moved[..., rows.stop :, :] = moved[..., rows.stop - 1 : rows.stop, :]
