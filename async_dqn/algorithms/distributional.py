"""Distributional Q-learning: categorical (C51, Bellemare et al. 2017) and quantile (Dabney et al.
2018) on one-step and n-step returns.

A return is R + D Z(s', a*), with R, D and s' from `returns.composed_returns`, so that the
distribution of the successor is moved and projected once. a* is the best mean value of the target
network, with Double Q-learning of the acting one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.returns import composed_returns, rescale, unscale
from async_dqn.algorithms.rollout import Rollout, flat
from async_dqn.algorithms.rollout_passes import (
    LossOutput,
    actions_taken,
    behaviour_next_q,
    forward_next,
    forward_rollout,
    weighted_loss,
)


@dataclass(frozen=True)
class Distributional(QLearning):
    """What both share; `lam` is 0 or 1."""

    asks_network = True

    def loss(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> LossOutput:
        """The mean divergence of the distributions of the actions taken from their targets."""
        returns, atoms = self.target_distributions(online, target, rollout)
        output = forward_rollout(online, rollout)
        actions = actions_taken(rollout)
        index = actions[:, :, None].expand(-1, 1, output.distribution.shape[2])
        chosen = output.distribution.gather(1, index).squeeze(1)
        terms = self.divergence(chosen, returns, atoms)
        q_values = output.q_values.gather(1, actions).squeeze(1)
        return weighted_loss(rollout, terms, q_values, terms.abs())

    @torch.inference_mode()
    def target_distributions(
        self, online: nn.Module, target: nn.Module | None, rollout: Rollout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The returns [T * B, atoms] and, per row, what the head says of the successor."""
        acting = behaviour_next_q(online, rollout) if self.asks_acting(rollout) else None
        lam = self.lambdas(rollout, acting)
        args = rollout.rewards, rollout.discounts, rollout.ends, lam
        rewards, discounts, rows = (array.reshape(-1) for array in composed_returns(*args))
        needed, place = np.unique(rows, return_inverse=True)
        output = forward_next(online if target is None else target, rollout, needed)
        chooser = flat(acting)[needed] if self.double else output.q_values.numpy()
        best = chooser.argmax(axis=1)
        successor = output.distribution[np.arange(len(needed)), best][place]
        values = self.values(successor)
        if self.rescaled:
            values = torch.from_numpy(unscale(values.numpy()))
        returns = torch.from_numpy(rewards)[:, None] + torch.from_numpy(discounts)[:, None] * values
        if self.rescaled:
            returns = torch.from_numpy(rescale(returns.numpy()))
        return returns, successor

    def values(self, atoms: torch.Tensor) -> torch.Tensor:
        """The values [N, atoms] that the head's output [N, atoms] is about."""
        raise NotImplementedError

    def divergence(
        self, chosen: torch.Tensor, returns: torch.Tensor, successor: torch.Tensor
    ) -> torch.Tensor:
        """Per row [N], of the prediction `chosen` [N, atoms] from the returns."""
        raise NotImplementedError


@dataclass(frozen=True)
class Categorical(Distributional):
    """Log-probabilities of fixed values; cross-entropy to the projected target."""

    v_min: float = -10.0
    v_max: float = 10.0

    def values(self, atoms: torch.Tensor) -> torch.Tensor:
        return torch.linspace(self.v_min, self.v_max, atoms.shape[1]).expand_as(atoms)

    def divergence(self, chosen, returns, successor):
        projected = project(returns, successor.exp(), self.v_min, self.v_max)
        # Cross-entropy less the entropy of the target, which has no gradient: 0 is a perfect fit.
        return -(projected * chosen).sum(1) + torch.xlogy(projected, projected).sum(1)


@dataclass(frozen=True)
class Quantile(Distributional):
    """Values of equally likely quantiles; Huber quantile regression with kappa = 1 (eq. 10)."""

    def values(self, atoms: torch.Tensor) -> torch.Tensor:
        return atoms

    def divergence(self, chosen, returns, successor):
        errors = returns[:, None, :] - chosen[:, :, None]  # [N, predicted, target]
        size = errors.abs()
        huber = torch.where(size <= 1, 0.5 * errors.square(), size - 0.5)
        count = chosen.shape[1]
        middles = (torch.arange(count) + 0.5) / count
        below = (errors.detach() < 0).float()
        return ((middles[:, None] - below).abs() * huber).mean(2).sum(1)


def project(
    returns: torch.Tensor, probabilities: torch.Tensor, v_min: float, v_max: float
) -> torch.Tensor:
    """Share mass at `returns` [N, atoms] among the neighbouring fixed values, [N, atoms].

    Bellemare et al. 2017, eq. 7; mass beyond the range goes to its ends.
    """
    atoms = returns.shape[1]
    position = (returns.clamp(v_min, v_max) - v_min) * ((atoms - 1) / (v_max - v_min))
    position = position.clamp(max=atoms - 1)  # which rounding may have passed
    lower = position.floor().clamp(max=atoms - 2)
    upper_share = position - lower
    lower = lower.long()
    projected = torch.zeros_like(probabilities)
    projected.scatter_add_(1, lower, probabilities * (1 - upper_share))
    return projected.scatter_add_(1, lower + 1, probabilities * upper_share)
