"""What is done to the shared parameters beside gradient steps, at multiples of global steps.

One process has the upkeep: the evaluator, in serial mode the trainer, in synchronous rounds
worker 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch

from async_dqn.parameters.target import Copy, Target

COPY = Copy()
AVERAGE_PARTS = 20  # of the average's time constant that lie between its updates


@dataclass(frozen=True)
class Resets:
    """Shrink and perturb (Ash & Adams 2020), as D'Oro et al. 2023 and BBF repeat it.

    `every` global steps, but not at the end of the `budget`, parameters [P] go the way `share` [P]
    towards `fresh(k)` [P], k being the number of the reset.
    """

    every: int
    budget: int
    share: torch.Tensor
    fresh: Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Upkeep:
    """The target network, an average of the parameters, resets, and weight decay.

    `target_rule` makes the target network, `target_every` global steps apart (None: never).
    `average_steps` is the time constant of the average in global steps; `averages_target` makes
    the target network of it, `averages_score` scores it. `weight_decay` times the learning rate is
    what an update takes off the parameters (AdamW, Loshchilov & Hutter 2019).
    """

    target_rule: Target = COPY
    target_every: int | None = None
    average_steps: int | None = None
    averages_target: bool = False
    averages_score: bool = False
    resets: Resets | None = None
    weight_decay: float = 0.0

    @property
    def average_every(self) -> int | None:
        """Global steps between updates of the average; None without one."""
        steps = self.average_steps
        return None if steps is None else max(1, steps // AVERAGE_PARTS)

    @property
    def intervals(self) -> tuple[int | None, int | None, int | None]:
        """Of target network, average and resets, in global steps; None: never."""
        resets = None if self.resets is None else self.resets.every
        return self.target_every, self.average_every, resets

    @property
    def shortest(self) -> int | None:
        """The shortest of its intervals; None where there is nothing to do."""
        return min((every for every in self.intervals if every is not None), default=None)

    def boundaries(self, target: int, average: int, reset: int) -> list[int]:
        """How many of its interval lie below each of these global steps."""
        if self.resets is not None:
            reset = min(reset, self.resets.budget - 1)
        pairs = zip(self.intervals, (target, average, reset), strict=True)
        return [0 if every is None else step // every for every, step in pairs]

    def averaged(self, kept: torch.Tensor, theta: torch.Tensor, steps: int) -> torch.Tensor:
        """The average [P] so many global steps after `kept` [P]."""
        return kept.lerp(theta, 1 - math.exp(-steps / self.average_steps))

    def of_another(self) -> Self:
        """The same for a process beside the one that has the upkeep."""
        return replace(self, target_every=None, average_steps=None, resets=None)
