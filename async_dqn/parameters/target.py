"""What the target network is after each interval: a rule on flat vectors.

A target of the user's own is any object like these.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch


class Target(Protocol):
    """`networks` vectors [P] make up the target network: its Q-values are their mean."""

    networks: int

    def following(self, kept: torch.Tensor, theta: torch.Tensor, intervals: int) -> torch.Tensor:
        """The target [networks, P] after `kept` [networks, P], from the parameters `theta` [P].

        So many `intervals` have passed since; more than one where steps come fast.
        """


@dataclass(frozen=True)
class Copy:
    """The parameters of that moment (Mnih et al. 2015)."""

    networks: ClassVar[int] = 1

    def following(self, kept: torch.Tensor, theta: torch.Tensor, intervals: int) -> torch.Tensor:
        return theta[None]


@dataclass(frozen=True)
class Polyak:
    """Moved towards them by the share `tau` at each interval (Lillicrap et al. 2016)."""

    tau: float
    networks: ClassVar[int] = 1

    def following(self, kept: torch.Tensor, theta: torch.Tensor, intervals: int) -> torch.Tensor:
        return kept.lerp(theta[None], 1 - (1 - self.tau) ** intervals)


@dataclass(frozen=True)
class Average:
    """The last copies, whose Q-values are averaged (Averaged-DQN, Anschel et al. 2017, eq. 5)."""

    networks: int

    def following(self, kept: torch.Tensor, theta: torch.Tensor, intervals: int) -> torch.Tensor:
        return torch.cat([theta[None], kept[:-1]])
