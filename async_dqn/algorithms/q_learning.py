"""Q-learning on rollouts: what one-step, n-step and Q(lambda) share.

An algorithm is which lambda the one recursion of `returns` gets; the bootstrap value is
max_a Q(s', a), from the target network or, without one, from the acting network (whose Q-values
of the rollout are reused). Double Q-learning (van Hasselt et al. 2016) lets the acting network
choose the action that the target network values.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.algorithms.actions import FLAT, Flat
from async_dqn.algorithms.exploration import EPSILON_GREEDY, Choice, Floats, Policy
from async_dqn.algorithms.returns import lambda_returns, rescale, unscale
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import (
    LossOutput,
    behaviour_next_q,
    forward_next,
    seen_while_acting,
    squared_loss,
)
from async_dqn.networks.network import QOutput


@dataclass(frozen=True)
class QLearning:
    """A pure object: the same one serves a worker, a baseline and a test."""

    lam: float  # 0 is one-step, 1 is n-step
    double: bool = False
    watkins: bool = False  # cut the return before an exploratory action
    rescaled: bool = False  # the network's outputs are h(Q) (Pohlen et al. 2018)
    policy: Policy = EPSILON_GREEDY
    actions: Flat = field(default=FLAT, kw_only=True)  # what Q-values say of them
    asks_network: ClassVar[bool] = False  # for targets: Q-values seen while acting do not suffice

    def act(self, output: QOutput, epsilon: Floats, generator: np.random.Generator) -> Choice:
        """Return actions [B] and which of them are greedy [B]."""
        return self.policy.act(output.q_values.numpy(), epsilon, generator)

    def loss(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> LossOutput:
        """Half the squared error of the actions taken. The weights must not all be 0."""
        targets = rollout.targets
        if targets is None:
            targets = self.targets(online, target, rollout)
        return squared_loss(online, rollout, targets, self.actions)

    def fix_targets(self, rollout: Rollout) -> None:
        """Compute them once for several passes without a target network, if none asks a network."""
        if not self.asks_network and seen_while_acting(rollout):
            rollout.targets = self.targets(None, None, rollout)

    @torch.inference_mode()
    def targets(
        self, online: nn.Module, target: nn.Module | None, rollout: Rollout
    ) -> NDArray[np.float32]:
        """The lambda-returns [T, B] from the true successors."""
        needs_acting = target is None or self.asks_acting(rollout)
        acting = behaviour_next_q(online, rollout) if needs_acting else None
        lam = self.lambdas(rollout, acting)
        values = np.zeros(rollout.rewards.shape, np.float32)  # contiguous, as it is filled flat
        # Only where the recursion reads v.
        needed = rollout.ends | (lam < 1)
        needed[-1] = True
        rows = np.flatnonzero(needed & (rollout.discounts > 0))
        values.reshape(-1)[rows] = self._values(target, rollout, acting, rows)
        rewards = self.rewards(online, target, rollout)
        returns = lambda_returns(rewards, rollout.discounts, rollout.ends, values, lam)
        return rescale(returns) if self.rescaled else returns

    def lambdas(self, rollout: Rollout, acting: Floats | None) -> Floats:
        """lam [T, B]; Watkins: 0 where the next action is not the acting network's best."""
        lam = np.full_like(rollout.rewards, self.lam)
        if self.watkins:  # lam[t] multiplies G[t+1], so the cut sits one step early
            if rollout.greedy is not None:
                lam *= rollout.greedy[1:]
            else:
                lam *= rollout.actions[1:] == self.actions.best(acting)
        return lam

    def rewards(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> Floats:
        """The rewards [T, B] that enter the recursion."""
        return rollout.rewards

    def bootstrap(
        self, q_values: Floats, acting: Floats | None, rollout: Rollout, rows: NDArray[np.int64]
    ) -> Floats:
        """v [K] of the successors of the steps `rows`, from their Q-values [K, A].

        `acting` [K, A] are those of the acting network, where the method asks for them.
        """
        if not self.double:
            return self.actions.maximum(q_values)
        return self.actions.taken(q_values, self.actions.best(acting))

    def asks_acting(self, rollout: Rollout) -> bool:
        """Whether the targets read the acting network beside the target network."""
        return self.double or (self.watkins and rollout.greedy is None)

    def _values(self, target, rollout: Rollout, acting: Floats | None, rows) -> Floats:
        if acting is not None:
            acting = acting.reshape(-1, acting.shape[2])[rows]
        if target is None:
            q_values = acting
        else:
            q_values = forward_next(target, rollout, rows).q_values.numpy()
        if self.rescaled:
            q_values = unscale(q_values)
        return self.bootstrap(q_values, acting, rollout, rows)
