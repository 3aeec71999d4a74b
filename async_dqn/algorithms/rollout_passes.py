"""A network over a rollout: feed-forward in one batch, recurrent step by step along the episodes.

Rows are flat and time-major, t * B + b.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from async_dqn.algorithms.actions import FLAT, Flat
from async_dqn.algorithms.rollout import Rollout, flat
from async_dqn.networks.network import QOutput


class LossOutput(NamedTuple):
    """What an update needs and reports."""

    loss: float
    q_mean: float  # of the actions taken
    errors: NDArray[np.float32]  # [T * B] not negative, the priorities of replay
    backward: Callable[[], None]  # adds the gradient of the loss to that of the parameters


def weighted_loss(
    rollout: Rollout, terms: torch.Tensor, chosen: torch.Tensor, errors
) -> LossOutput:
    """The weighted MEAN of `terms` [T * B], which must not all have weight 0.

    The mean (Mnih et al. 2016 sum) keeps the learning rate independent of T and B. `chosen` are
    the Q-values of the actions taken.
    """
    weights = torch.from_numpy(rollout.weights).flatten()
    assert terms.shape == weights.shape == chosen.shape
    loss = (weights * terms).sum() / weights.sum()
    return LossOutput(loss.item(), chosen.mean().item(), errors.detach().numpy(), loss.backward)


def squared_loss(
    net: nn.Module, rollout: Rollout, targets: NDArray[np.float32], actions: Flat = FLAT
) -> LossOutput:
    """Half the squared error of the actions taken from `targets` [T, B], as `weighted_loss`.

    The gradient in closed form: in a small batch the graph of a loss costs as much as that of the
    network.
    """
    q_values, backward = _learning_pass(net, rollout)
    values, weights = q_values.detach().numpy(), rollout.weights.reshape(-1)
    numbers = rollout.actions[:-1].reshape(-1)
    chosen = actions.taken(values, numbers)
    errors = chosen - targets.reshape(-1)
    slopes = errors * (weights / np.add.reduce(weights))
    gradient = actions.gradient(values.shape[1], numbers, slopes)
    loss, q_mean = 0.5 * float(slopes.dot(errors)), float(np.add.reduce(chosen)) / len(chosen)
    return LossOutput(loss, q_mean, np.abs(errors), partial(backward, torch.from_numpy(gradient)))


def _learning_pass(net: nn.Module, rollout: Rollout):
    """As `QNetwork.learning_pass`, of any network."""
    if rollout.state is None and hasattr(net, "learning_pass"):
        return net.learning_pass(torch.from_numpy(flat(rollout.obs[:-1])))
    q_values = forward_rollout(net, rollout).q_values
    return q_values, q_values.backward


def actions_taken(rollout: Rollout) -> torch.Tensor:
    """Actions [T * B, 1] as an index."""
    return torch.from_numpy(flat(rollout.actions[:-1, :, None]))


def forward_rollout(net: nn.Module, rollout: Rollout) -> QOutput:
    """The outputs for the states of the rollout, T * B rows."""
    if rollout.state is None:
        return net(torch.from_numpy(flat(rollout.obs[:-1])))[0]
    starts = torch.from_numpy(rollout.starts[:-1])
    return net.unroll(torch.from_numpy(rollout.obs[:-1]), rollout.state, starts)[0]


@torch.inference_mode()
def forward_next(net: nn.Module, rollout: Rollout, rows: NDArray[np.int64]) -> QOutput:
    """The outputs for the TRUE successors of the steps `rows`; recurrent: one cell step on."""
    # With noise every row counts: only then does each meet the draw of its own environment.
    every = np.arange(rollout.rewards.size) if net.noisy else rows
    state = None
    if rollout.state is not None:
        obs, starts = torch.from_numpy(rollout.obs[:-1]), torch.from_numpy(rollout.starts[:-1])
        _, states = net.unroll(obs, rollout.state, starts)
        state = tuple(part.flatten(0, 1)[every] for part in states)
    output, _ = net(torch.from_numpy(rollout.next_obs(every)), state)
    if every is rows:
        return output
    return QOutput(*(None if part is None else part[rows] for part in output))


def behaviour_next_q(net: nn.Module, rollout: Rollout) -> NDArray[np.float32]:
    """Q-values [T, B, A] of the true successors under the acting network `net`.

    Those seen while acting are used again; only truncated episodes need another look. A rollout
    from replay has none.
    """
    shape = rollout.rewards.shape
    if rollout.q_values is None:
        every = np.arange(rollout.rewards.size)
        return forward_next(net, rollout, every).q_values.numpy().reshape(*shape, -1)
    q_values = rollout.q_values[1:]
    rows = _truncated(rollout)
    if not rows.size:
        return q_values
    q_values = q_values.copy()
    flat(q_values)[rows] = forward_next(net, rollout, rows).q_values.numpy()
    return q_values


def seen_while_acting(rollout: Rollout) -> bool:
    """Whether the Q-values of all successors were: `behaviour_next_q` then asks no network."""
    return rollout.q_values is not None and not _truncated(rollout).size


def _truncated(rollout: Rollout) -> NDArray[np.int64]:
    """The steps with a final observation that did not terminate."""
    rows = rollout.final_rows
    return rows[rollout.discounts.reshape(-1)[rows] > 0]
