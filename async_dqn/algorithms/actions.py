"""What Q-values [..., outputs] say of actions, which are numbers 0..A-1 everywhere else.

`Flat`: one output for each action. `Branched`: one group of outputs for each component of an
action, whose numbers are in mixed radix, the last component running fastest (`envs.actions`):

    Q(s, a) = mean over components i of Q_i(s, a_i)

so that the maximum is the mean of the groups' maxima and is found without looking at all
combinations (branching, Tavakoli et al. 2018; the mean as in the decoupled Q-networks of Seyde et
al. 2023).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Flat:
    """One output for each action."""

    def best(self, q_values: Floats) -> Numbers:
        """The greedy actions [...]."""
        return q_values.argmax(axis=-1)

    def maximum(self, q_values: Floats) -> Floats:
        """Their values [...]."""
        return q_values.max(axis=-1)

    def taken(self, q_values: Floats, numbers: Numbers) -> Floats:
        """The values [N] of actions [N], of Q-values [N, outputs]."""
        return q_values[np.arange(len(numbers)), numbers]

    def gradient(self, outputs: int, numbers: Numbers, slopes: Floats) -> Floats:
        """That of a loss by the outputs [N, outputs], from `slopes` [N], its own by `taken`."""
        gradient = np.zeros((len(numbers), outputs), np.float32)
        gradient[np.arange(len(numbers)), numbers] = slopes
        return gradient


class Branched(Flat):
    """One group of outputs for each component, of as many values as `sizes` says."""

    def __init__(self, sizes: Sequence[int]):
        self.sizes = np.array(sizes, np.int64)
        self._weights = np.append(np.cumprod(self.sizes[:0:-1])[::-1], 1)  # of the mixed radix
        self._firsts = np.cumsum(self.sizes) - self.sizes
        self._groups = len(sizes), max(sizes)
        # Where outputs lie in groups that are all as wide as the widest.
        place = np.arange(self._groups[1]) < self.sizes[:, None]
        self._places = None if place.all() else np.flatnonzero(place)

    def best(self, q_values: Floats) -> Numbers:
        return self._grouped(q_values).argmax(axis=-1) @ self._weights

    def maximum(self, q_values: Floats) -> Floats:
        return self._grouped(q_values).max(axis=-1).mean(axis=-1)

    def taken(self, q_values: Floats, numbers: Numbers) -> Floats:
        return q_values[self._index(numbers)].mean(axis=1)

    def gradient(self, outputs: int, numbers: Numbers, slopes: Floats) -> Floats:
        gradient = np.zeros((len(numbers), outputs), np.float32)
        gradient[self._index(numbers)] = slopes[:, None] / np.float32(len(self.sizes))
        return gradient

    def explore(
        self, q_values: Floats, epsilon: Floats, generator: np.random.Generator
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """Choose actions [B] from `q_values` [B, outputs]; also say which of them are greedy, [B].

        Every component explores on its own, so that what one does is mostly seen beside greedy
        others, as it will be used; all at once they would drown each other. And as often that a
        STEP explores with the probability `epsilon` [B], however many there are: steps of a
        return, their cut and the length of persistent actions depend on that. About epsilon / D
        each, as in the code of Seyde et al.; epsilon 1 draws from all combinations evenly.
        """
        best = self._grouped(q_values).argmax(axis=-1)
        each = 1 - (1 - epsilon.astype(np.float64)) ** (1 / len(self.sizes))
        drawn = generator.random(best.shape) < each[:, None]
        chosen = np.where(drawn, generator.integers(self.sizes, size=best.shape), best)
        return chosen @ self._weights, (chosen == best).all(axis=1)

    def _grouped(self, q_values: Floats) -> Floats:
        """[..., components, widest], lower than all where a component has fewer values."""
        shape = *q_values.shape[:-1], *self._groups
        if self._places is None:
            return q_values.reshape(shape)
        padded = np.full((*shape[:-2], self._groups[0] * self._groups[1]), -np.inf, np.float32)
        padded[..., self._places] = q_values
        return padded.reshape(shape)

    def _index(self, numbers: Numbers) -> tuple[NDArray, NDArray]:
        """Where the outputs of actions [N] are: rows [N, 1] and columns [N, components]."""
        values = numbers[:, None] // self._weights % self.sizes
        return np.arange(len(numbers))[:, None], values + self._firsts


FLAT = Flat()


def by_branches(branches: Sequence[int]) -> Flat:
    """Of a network whose outputs are in groups of these sizes; none: one for each action."""
    return Branched(branches) if branches else FLAT
