"""Q-learning on rollouts: what one-step, n-step and Q(lambda) share.

An algorithm is which lambda the one recursion of `returns` gets; the bootstrap value is
max_a Q(s', a), from the target network or, without one, from the acting network (whose Q-values
of the rollout are reused). Double Q-learning (van Hasselt et al. 2016) lets the acting network
choose the action that the target network values.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.exploration import epsilon_greedy
from async_dqn.networks import QOutput
from async_dqn.returns import lambda_returns
from async_dqn.rollout import Rollout, flat


@dataclass(frozen=True)
class QLearning:
    """A pure object: the same one serves a worker, a baseline and a test."""

    lam: float  # 0 is one-step, 1 is n-step
    double: bool = False
    watkins: bool = False  # cut the return before an exploratory action

    def act(
        self, output: QOutput, epsilon: NDArray[np.float32], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return actions [B] and which of them are greedy [B]."""
        return epsilon_greedy(output.q_values.numpy(), epsilon, generator)

    def loss(
        self, online: nn.Module, target: nn.Module | None, rollout: Rollout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, half the weighted MEAN squared error over T x B, and the Q-values.

        The mean (the paper sums) keeps the learning rate independent of T and B. The Q-values
        [T * B] are those of the actions taken. The weights must not all be 0.
        """
        targets = torch.from_numpy(self.targets(online, target, rollout)).flatten()
        actions = torch.from_numpy(flat(rollout.actions[:-1, :, None]))
        weights = torch.from_numpy(rollout.weights).flatten()
        output, _ = online(torch.from_numpy(flat(rollout.obs[:-1])), rollout.state)
        chosen = output.q_values.gather(1, actions).squeeze(1)
        assert chosen.shape == targets.shape == weights.shape
        loss = 0.5 * (weights * (targets - chosen).square()).sum() / weights.sum()
        return loss, chosen.detach()

    @torch.inference_mode()
    def targets(
        self, online: nn.Module, target: nn.Module | None, rollout: Rollout
    ) -> NDArray[np.float32]:
        """The lambda-returns [T, B] from the true successors."""
        lam = np.full_like(rollout.rewards, self.lam)
        if self.watkins:
            lam *= rollout.greedy[1:]  # lam[t] multiplies G[t+1], so the cut sits one step early
        acting = self._acting_values(online, rollout)
        if target is None:
            values = acting.max(axis=2)
        else:
            values = self._target_values(target, rollout, acting, lam)
        return lambda_returns(rollout.rewards, rollout.discounts, rollout.ends, values, lam)

    def _acting_values(self, online: nn.Module, rollout: Rollout) -> NDArray[np.float32]:
        """Q-values [T, B, A] of the true successors under the acting network."""
        q_values = rollout.q_values[1:]
        rows = rollout.final_rows
        open_rows = flat(rollout.discounts[:, :, None])[rows, 0] > 0  # truncated, not terminated
        if not open_rows.any():
            return q_values
        q_values = q_values.copy()
        output, _ = online(torch.from_numpy(rollout.final_obs[open_rows]))
        flat(q_values)[rows[open_rows]] = output.q_values.numpy()
        return q_values

    def _target_values(
        self,
        target: nn.Module,
        rollout: Rollout,
        acting: NDArray[np.float32],
        lam: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """v [T, B] under the target network, computed only where the recursion reads it."""
        needed = rollout.ends | (lam < 1)
        needed[-1] = True
        rows = np.flatnonzero(needed & (rollout.discounts > 0))
        output, _ = target(torch.from_numpy(flat(rollout.next_obs)[rows]))
        q_values = output.q_values.numpy()
        if self.double:
            best = flat(acting)[rows].argmax(axis=1)
            chosen = q_values[np.arange(len(rows)), best]
        else:
            chosen = q_values.max(axis=1)
        values = np.zeros_like(rollout.rewards)
        values.reshape(-1)[rows] = chosen
        return values
