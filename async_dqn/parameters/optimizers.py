"""Optimisers on flat vectors in the shared block: one in-place update of theta, no lock.

State is allocated before the workers start (lazily built moments would be private), and the
update count is an argument: the SUM of all workers' counts, so that a restarted worker goes on
where it was. Workers race on theta; that is the method (Hogwild, Recht et al. 2011). The state is
one for all workers, who race on it too, or one per worker (Mnih et al. 2016 compare the two).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch


class Optimizer(Protocol):
    """An update rule; `rows` is how many state vectors of theta's size it needs.

    `shared`: all workers use the same rows; otherwise each has its own.
    """

    rows: ClassVar[int]
    shared: ClassVar[bool]
    directions: ClassVar[tuple[int, ...]]  # rows that are means of gradients, not of their squares

    def step(
        self,
        theta: torch.Tensor,
        gradient: torch.Tensor,
        state: list[torch.Tensor],
        lr: float,
        updates: int,
    ) -> None:
        """Apply `gradient` [P] to `theta` [P] in place; `updates` is how many came before."""


@dataclass(frozen=True)
class RMSProp:
    """RMSProp of Mnih et al. 2016 (eq. 8-9), uncentred, each worker its own mean square.

    Epsilon lies INSIDE the root, torch adds it outside: learning rates do not carry over.
    """

    decay: float = 0.99
    eps: float = 0.1
    rows: ClassVar[int] = 1
    shared: ClassVar[bool] = False
    directions: ClassVar[tuple[int, ...]] = ()

    def step(self, theta, gradient, state, lr, updates):
        (mean_square,) = state
        mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        theta.addcdiv_(gradient, (mean_square + self.eps).sqrt_(), value=-lr)


class SharedRMSProp(RMSProp):
    """The same with one mean square for all workers: Shared RMSProp, the paper's most robust."""

    shared = True


@dataclass(frozen=True)
class Momentum:
    """Momentum SGD of Mnih et al. 2016: m = a m + (1 - a) g; theta -= lr m; each worker its own m.

    The mean of gradients, not their sum: where torch's SGD without dampening takes lr, this takes
    lr / (1 - a). The paper gives no figure for a: 0.9 is common; 0.99 lags behind moving targets.
    """

    decay: float = 0.9
    rows: ClassVar[int] = 1
    shared: ClassVar[bool] = False
    directions: ClassVar[tuple[int, ...]] = (0,)

    def step(self, theta, gradient, state, lr, updates):
        (mean,) = state
        mean.lerp_(gradient, 1 - self.decay)
        theta.add_(mean, alpha=-lr)


class SharedAdam:
    """Adam (Kingma & Ba 2015) with both moments shared, through torch's fused CPU kernel."""

    rows: ClassVar[int] = 2
    shared: ClassVar[bool] = True
    directions: ClassVar[tuple[int, ...]] = (0,)

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-5):
        self.betas = (beta1, beta2)
        self.eps = eps
        self.count = torch.zeros(())

    def step(self, theta, gradient, state, lr, updates):
        # The kernel itself: what torch.optim puts around it takes longer than a small update.
        torch._fused_adam_(
            [theta],
            [gradient],
            [state[0]],
            [state[1]],
            [],
            [self.count.fill_(updates + 1)],
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


OPTIMIZERS: dict[str, type] = {
    "shared-adam": SharedAdam,
    "shared-rmsprop": SharedRMSProp,
    "rmsprop": RMSProp,
    "momentum": Momentum,
}
