"""A sum tree: draws indices in proportion to their mass (Schaul et al. 2016, appendix B.2.1).

The paper's tree is binary. Here a node has 16 children, because NumPy pays per call and not per
number: a million leaves are five levels instead of twenty.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FAN_OUT = 16


class SumTree:
    """`size` masses >= 0, all 0 at first; changes and draws come in batches, O(log size) each.

    A node is the running sum, in order, of its children as they are now. So nothing drifts, and
    the tree is a function of `masses` alone: restoring these restores every later draw.
    """

    def __init__(self, size: int):
        self.size = size
        self.total = 0.0
        # Leaves first; float32 halves the memory, the sums above are float64.
        leaves, *sums = _nodes(size)
        self._levels = [np.zeros((leaves, FAN_OUT), np.float32)]
        self._levels += [np.zeros((count, FAN_OUT)) for count in sums]

    @property
    def masses(self) -> NDArray[np.float32]:
        """The leaves [size], to be read; `update` changes them."""
        return self._levels[0].reshape(-1)[: self.size]

    def update(self, leaves: NDArray[np.int64], masses: NDArray[np.float32]) -> None:
        """Set `masses` [K], finite and >= 0, of `leaves` [K]; of a repeated leaf the last holds."""
        self.masses[leaves] = masses
        self._sum_up(leaves // FAN_OUT)

    def load(self, masses: NDArray[np.float32]) -> None:
        """Set the first leaves to `masses`, finite and >= 0, and the others to 0."""
        self.masses[:] = 0.0
        self.masses[: len(masses)] = masses
        self._sum_up(np.arange(len(self._levels[0])))

    def _sum_up(self, nodes: NDArray[np.int64]) -> None:
        """Renew what lies above these `nodes` [K] of the lowest level."""
        for below, above in pairwise(self._levels):
            above.reshape(-1)[nodes] = _running_sums(below[nodes])[:, -1]
            nodes = nodes // FAN_OUT
        self.total = float(_running_sums(self._levels[-1])[0, -1])

    def find(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaves [K] in which `points` [K] of [0, total) lie, masses laid end to end.

        A leaf of mass 0 is never returned. The total must not be 0.
        """
        rows = np.arange(len(points))
        nodes = np.zeros(len(points), np.int64)
        for level in reversed(self._levels):
            sums = _running_sums(level[nodes])
            # Rounding may have carried a point to the end of its node, beyond all mass.
            points = np.minimum(points, np.nextafter(sums[:, -1], 0.0))
            children = (sums > points[:, None]).argmax(axis=1)
            points = points - sums[rows, children - 1] * (children > 0)
            nodes = nodes * FAN_OUT + children
        return nodes


def tree_bytes(size: int) -> int:
    """What a tree of `size` leaves takes, without building it."""
    leaves, *sums = _nodes(size)
    return FAN_OUT * (4 * leaves + 8 * sum(sums))


def _nodes(size: int) -> list[int]:
    """How many each level has, the lowest first."""
    counts = [-(-size // FAN_OUT)]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FAN_OUT))
    return counts


def _running_sums(nodes: NDArray) -> NDArray[np.float64]:
    """The sums [K, FAN_OUT] of children [K, FAN_OUT] up to each, added in order."""
    return nodes.cumsum(axis=1, dtype=np.float64)
