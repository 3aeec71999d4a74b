"""Asynchronous advantage actor-critic, A3C (Mnih et al. 2016, algorithm S3).

The network gives q = V + log pi + H(pi), so softmax(q) is the policy and its mean of q the state
value: the one output of every method serves this one too. No target network; the return is that
of n-step Q-learning, with V for the maximum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from async_dqn.algorithms.exploration import Choice, Floats, sample_softmax, softmax
from async_dqn.algorithms.returns import lambda_returns
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import (
    LossOutput,
    actions_taken,
    behaviour_next_q,
    forward_rollout,
    weighted_loss,
)
from async_dqn.networks.network import QOutput

VALUE_WEIGHT = 0.5


@dataclass(frozen=True)
class ActorCritic:
    """Policy gradient with a learned baseline; `act` samples the policy itself."""

    entropy_weight: float = 0.01

    def act(self, output: QOutput, epsilon: Floats, generator: np.random.Generator) -> Choice:
        """Return actions [B] and which of them are the likeliest [B]; epsilon is not used."""
        return sample_softmax(output.q_values.numpy(), np.ones_like(epsilon), generator)

    def loss(self, online: nn.Module, target: nn.Module | None, rollout: Rollout) -> LossOutput:
        """Policy gradient, value error and entropy bonus; the target network is not used."""
        returns = torch.from_numpy(self.targets(online, rollout)).flatten()
        q_values = forward_rollout(online, rollout).q_values
        log_pi = q_values.log_softmax(1)
        values = (log_pi.exp() * q_values).sum(1)
        entropy = -(log_pi.exp() * log_pi).sum(1)
        advantages = returns - values
        policy_loss = -log_pi.gather(1, actions_taken(rollout)).squeeze(1) * advantages.detach()
        value_loss = 0.5 * advantages.square()
        terms = policy_loss + VALUE_WEIGHT * value_loss - self.entropy_weight * entropy
        return weighted_loss(rollout, terms, values, advantages.abs())

    @torch.inference_mode()
    def targets(self, online: nn.Module, rollout: Rollout) -> Floats:
        """The n-step returns [T, B]."""
        q_values = behaviour_next_q(online, rollout)
        rows = q_values.reshape(-1, q_values.shape[2])
        values = (softmax(rows, np.ones(len(rows), np.float32)) * rows).sum(axis=1)
        shape = rollout.rewards.shape
        lam = np.ones(shape, np.float32)
        args = rollout.rewards, rollout.discounts, rollout.ends, values.reshape(shape), lam
        return lambda_returns(*args)
