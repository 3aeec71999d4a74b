"""Action spaces as numbers 0..A-1, in which actions are chosen, stored and learned from.

Box actions are cut into bins by gymnasium's own wrapper, whose actions are the bins' centres;
MultiDiscrete and MultiBinary vectors, and Boxes of whole numbers, are numbered in mixed radix.
Discrete spaces stay as they are.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import DiscretizeAction

from async_dqn.config.config import UserError
from async_dqn.envs.spaces import describe, num_actions

TABLED = 4096  # actions of which a table is made


class MixedRadixAction(gymnasium.ActionWrapper):
    """Vectors of counted components as numbers 0..A-1, the last component running fastest."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.vectors = env.action_space
        self.radices = component_sizes(self.vectors)
        self.action_space = spaces.Discrete(math.prod(self.radices))

    def action(self, action: int) -> np.ndarray:
        """The vector with this number, in the shape and dtype of the environment's space."""
        vector = np.array(np.unravel_index(action, self.radices), self.vectors.dtype)
        return vector.reshape(self.vectors.shape) + component_starts(self.vectors)


def numbered(env: gymnasium.Env, bins: int | tuple[int, ...], name: str) -> gymnasium.Env:
    """The environment with a Discrete action space; Box actions get `bins` values per dimension,
    those of whole numbers every one.

    Raises UserError for spaces that cannot be numbered, Box without finite bounds, bins for other
    dimensions, and more actions than numbers of 64 bits.
    """
    space = env.action_space
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        bins = _checked_bins(space, bins, name)
        fits = 2 ** len(bins) < 2**63
        advice = "lower --action-bins" if fits else "use fewer action dimensions"
        _check_count(math.prod(bins), name, advice)
        return DiscretizeAction(env, bins)
    if not isinstance(bins, int):
        raise UserError(
            f"--action-bins lists dimensions, and {name} has {describe(space)} actions, not "
            "continuous ones; drop it"
        )
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        _check_count(math.prod(component_sizes(space)), name, "use fewer action components")
        return MixedRadixAction(env)
    num_actions(space, name)  # refuses all but Discrete
    return env


def own_actions(env: gymnasium.Env) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the environment's own actions [N, *shape] by their numbers [N], `env` as
    `numbered` gives it."""
    space = env.action_space
    if not isinstance(env, DiscretizeAction | MixedRadixAction):
        return lambda numbers: numbers + space.start

    own = env.env.action_space

    def decoded(numbers: np.ndarray) -> np.ndarray:
        every = [env.action(number) for number in numbers]
        return np.array(every, own.dtype).reshape(-1, *own.shape)

    return decoded(np.arange(space.n)).__getitem__ if space.n <= TABLED else decoded


def action_mapping(env: gymnasium.Env) -> dict[str, Any] | None:
    """What the numbers mean, JSON-able, `env` as `numbered` gives it; None for Discrete spaces.

    Number n is the vector of indices `unravel_index(n, sizes)`. With kind "bins", component i is
    the centre of that bin out of sizes[i] between low[i] and high[i]; with kind "vector" it is
    the index plus start[i].
    """
    if isinstance(env, DiscretizeAction):
        low, high = env.low.astype(float).tolist(), env.high.astype(float).tolist()
        meaning = {"kind": "bins", "sizes": env.bins.tolist(), "low": low, "high": high}
    elif isinstance(env, MixedRadixAction):
        start = component_starts(env.vectors).ravel().tolist()
        meaning = {"kind": "vector", "sizes": list(env.radices), "start": start}
    else:
        return None
    own = env.env.action_space
    return {**meaning, "shape": list(own.shape), "dtype": str(own.dtype)}


def component_sizes(
    space: spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box,
) -> tuple[int, ...]:
    """How many values each component has, in the order of the ravelled vector."""
    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    if isinstance(space, spaces.Box):
        ends = zip(space.low.ravel().tolist(), space.high.ravel().tolist())
        return tuple(int(high) - int(low) + 1 for low, high in ends)
    return tuple(np.ravel(space.nvec).tolist())


def component_starts(space: spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box) -> np.ndarray:
    """The least value of each component, in the shape and dtype of the space."""
    start = space.low if isinstance(space, spaces.Box) else getattr(space, "start", None)
    return np.zeros(space.shape, space.dtype) if start is None else np.asarray(start, space.dtype)


def _checked_bins(space: spaces.Box, bins: int | tuple[int, ...], name: str) -> tuple[int, ...]:
    """Those of every dimension."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(space.high - space.low).all()  # float32 maxima overflow: no bounds
    if not finite:
        raise UserError(
            f"{name} has {describe(space)} actions without finite bounds; "
            "give its action space a finite low and high"
        )
    dimensions = math.prod(space.shape)
    every = (bins,) * dimensions if isinstance(bins, int) else bins
    if len(every) != dimensions:
        raise UserError(
            f"--action-bins lists {len(every)} dimensions, the actions of {name} have "
            f"{dimensions}; list as many, or give one number for all"
        )
    return every


def _check_count(count: int, name: str, advice: str) -> None:
    if count >= 2**63:
        raise UserError(
            f"{name} has more combinations of actions than numbers of 64 bits can count; {advice}"
        )
