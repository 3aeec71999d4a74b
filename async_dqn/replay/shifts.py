"""Random shifts of images drawn from replay (DrQ, Kostrikov et al. 2021, section 3.1)."""

import numpy as np
from numpy.typing import NDArray

from async_dqn.algorithms.rollout import Rollout


def shift_images(rollout: Rollout, most: int, generator: np.random.Generator) -> None:
    """Move the observations of each segment, in place, by up to `most` pixels each way.

    Observations are images [..., height, width]; what comes in from outside repeats the edge. All
    images of a segment move alike, so that what changes between them is what has moved.
    """
    segments = rollout.obs.shape[1]
    moves = generator.integers(-most, most + 1, (segments, 2)).tolist()
    rollout.obs = rollout.obs.copy()  # what was drawn may be in another order in memory
    padding = [(0, 0)] * (rollout.obs.ndim - 3) + [(most, most)] * 2
    for segment, move in enumerate(moves):
        rollout.obs[:, segment] = _moved(rollout.obs[:, segment], padding, most, *move)
    finals = [
        _moved(image[None], padding, most, *moves[row % segments])[0]
        for row, image in zip(rollout.final_rows.tolist(), rollout.final_obs, strict=True)
    ]
    if finals:
        rollout.final_obs = np.stack(finals)


def _moved(images: NDArray, padding: list, most: int, down: int, right: int) -> NDArray:
    """Images [n, ..., height, width] moved by so many pixels."""
    height, width = images.shape[-2:]
    padded = np.pad(images, padding, mode="edge")
    top, left = most - down, most - right
    return padded[..., top : top + height, left : left + width]
