"""Optimisers on flat vectors in the shared block: one in-place update of theta, no lock.

State is allocated before the workers start (lazily built moments would be private), and the
update count is an argument: the SUM of all workers' counts, so that a restarted worker goes on
where it was. Workers race on theta; that is the method (Hogwild, Recht et al. 2011). The state is
one for all workers, who race on it too, or one per worker (Mnih et al. 2016 compare the two).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """An update rule; `rows` is how many state vectors of theta's size it needs.

    `shared`: all workers use the same rows; otherwise each has its own.
    """

    rows: ClassVar[int] = 1
    shared: ClassVar[bool] = False
    directions: ClassVar[tuple[int, ...]] = ()  # rows that are means of gradients, not of squares

    def step(self, theta: Tensor, gradient: Tensor, state: list[Tensor], lr: float, updates: int):
        """Apply `gradient` [P] to `theta` [P] in place; `updates` is how many came before."""


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp of Mnih et al. 2016 (eq. 8-9), uncentred, each worker its own mean square.

    Epsilon lies INSIDE the root, torch adds it outside: learning rates do not carry over.
    """

    decay: float = 0.99
    eps: float = 0.1

    def step(self, theta, gradient, state, lr, updates):
        (mean_square,) = state
        mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        theta.addcdiv_(gradient, (mean_square + self.eps).sqrt_(), value=-lr)


class SharedRMSProp(RMSProp):
    """The same with one mean square for all workers: Shared RMSProp, the paper's most robust."""

    shared = True


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Momentum SGD of Mnih et al. 2016: m = a m + (1 - a) g; theta -= lr m; each worker its own m.

    The mean of gradients, not their sum: where torch's SGD without dampening takes lr, this takes
    lr / (1 - a). The paper gives no figure for a: 0.9 is common; 0.99 lags behind moving targets.
    """

    decay: float = 0.9
    directions = (0,)

    def step(self, theta, gradient, state, lr, updates):
        (mean,) = state
        mean.lerp_(gradient, 1 - self.decay)
        theta.add_(mean, alpha=-lr)


class SharedAdam(Optimizer):
    """Adam (Kingma & Ba 2015) with both moments shared, through torch's fused CPU kernel."""

    rows, shared, directions = 2, True, (0,)

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-5):
        self.rates = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0.0}
        self.count = torch.zeros(())

    def step(self, theta, gradient, state, lr, updates):
        # The kernel itself: what torch.optim puts around it takes longer than a small update.
        count = self.count.fill_(updates + 1)
        vectors = [theta], [gradient], [state[0]], [state[1]], [], [count]
        torch._fused_adam_(*vectors, lr=lr, **self.rates, amsgrad=False, maximize=False)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "shared-adam": SharedAdam,
    "shared-rmsprop": SharedRMSProp,
    "rmsprop": RMSProp,
    "momentum": Momentum,
}
