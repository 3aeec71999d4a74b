"""A network over a rollout: feed-forward in one batch, recurrent step by step along the episodes.

Rows are flat and time-major, t * B + b.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.networks import QOutput
from async_dqn.rollout import Rollout, flat


class Loss(NamedTuple):
    """What an update needs and reports."""

    loss: torch.Tensor  # []
    q_values: torch.Tensor  # [T * B] of the actions taken, without a graph
    errors: torch.Tensor  # [T * B] not negative, the priorities of replay; without a graph


def weighted_loss(rollout: Rollout, terms: torch.Tensor, chosen: torch.Tensor, errors) -> Loss:
    """The weighted MEAN of `terms` [T * B], which must not all have weight 0.

    The mean (Mnih et al. 2016 sum) keeps the learning rate independent of T and B.
    """
    weights = torch.from_numpy(rollout.weights).flatten()
    assert terms.shape == weights.shape == chosen.shape
    loss = (weights * terms).sum() / weights.sum()
    return Loss(loss, chosen.detach(), errors.detach())


def actions_taken(rollout: Rollout) -> torch.Tensor:
    """Actions [T * B, 1] as an index."""
    return torch.from_numpy(flat(rollout.actions[:-1, :, None]))


def present(net: nn.Module, rollout: Rollout) -> QOutput:
    """The outputs for the states of the rollout, T * B rows."""
    if rollout.state is None:
        return net(torch.from_numpy(flat(rollout.obs[:-1])))[0]
    starts = torch.from_numpy(rollout.starts[:-1])
    return net.unroll(torch.from_numpy(rollout.obs[:-1]), rollout.state, starts)[0]


@torch.inference_mode()
def successors(net: nn.Module, rollout: Rollout, rows: NDArray[np.int64]) -> QOutput:
    """The outputs for the TRUE successors of the steps `rows`; recurrent: one cell step on."""
    # With noise every row counts: only then does each meet the draw of its own environment.
    every = np.arange(rollout.rewards.size) if net.noisy else rows
    state = None
    if rollout.state is not None:
        obs, starts = torch.from_numpy(rollout.obs[:-1]), torch.from_numpy(rollout.starts[:-1])
        _, states = net.unroll(obs, rollout.state, starts)
        state = tuple(part.flatten(0, 1)[every] for part in states)
    output, _ = net(torch.from_numpy(flat(rollout.next_obs)[every]), state)
    if every is rows:
        return output
    return QOutput(*(None if part is None else part[rows] for part in output))


def acting_q_values(net: nn.Module, rollout: Rollout) -> NDArray[np.float32]:
    """Q-values [T, B, A] of the true successors under the acting network `net`.

    Those seen while acting are used again; only truncated episodes need another look. A rollout
    from replay has none.
    """
    shape = rollout.rewards.shape
    if rollout.q_values is None:
        every = np.arange(rollout.rewards.size)
        return successors(net, rollout, every).q_values.numpy().reshape(*shape, -1)
    q_values = rollout.q_values[1:]
    rows = rollout.final_rows
    rows = rows[flat(rollout.discounts[:, :, None])[rows, 0] > 0]  # truncated, not terminated
    if not rows.size:
        return q_values
    q_values = q_values.copy()
    flat(q_values)[rows] = successors(net, rollout, rows).q_values.numpy()
    return q_values
