"""An annealed horizon: early in training returns look less far, or bootstrap less.

Bigger, Better, Faster (Schwarzer et al. 2023, section 4) anneals the steps of its returns from 10
to 3 and gamma from 0.97 to 0.997. Here it is lambda that falls, which does for returns of all
lengths what fewer steps do for those of one.
"""

from typing import NamedTuple


class Horizon(NamedTuple):
    """Lambda and gamma over global steps, as (first, last) each, reached after `steps`.

    1 - lambda and 1 - gamma, the inverses of the horizons, change by the same factor in every step;
    where one end is 0, which no factor leads to, by the same difference.
    """

    steps: int
    lam: tuple[float, float]
    gamma: tuple[float, float]

    def at(self, step: int) -> tuple[float, float]:
        """Lambda and gamma at a global step."""
        progress = min(1.0, step / self.steps)
        return _between(*self.lam, progress), _between(*self.gamma, progress)


def _between(first: float, last: float, progress: float) -> float:
    first, last = 1 - first, 1 - last
    if first == 0 or last == 0:
        return 1 - (first + (last - first) * progress)
    return 1 - first * (last / first) ** progress
