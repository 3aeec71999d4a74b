"""What turns features into Q-values: linear, dueling, categorical, quantile and actor-critic heads.

Every head returns a `QOutput` with `q_values` [N, A], so acting and evaluating need not know which.
A is the number of outputs: that of actions, or of the values of all their components together.

Initialisation: output layers start at a hundredth of torch's default (uniform within
1 / sqrt(features)) and with bias 0, so that the first greedy policy follows no accident of the
seed. The noise of NoisyLinear keeps its full size there: it IS the exploration, and as the means
are near 0 the first actions are close to uniformly random.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from async_dqn.networks.architecture import ILLEGAL, Architecture
from async_dqn.networks.layers import Linear
from async_dqn.networks.noisy import NoisyLinear

Dense = Callable[[int, int], nn.Linear]


class QOutput(NamedTuple):
    """What every head returns."""

    q_values: torch.Tensor  # [N, A]
    distribution: torch.Tensor | None = None  # [N, A, atoms]: log-probabilities, or quantile values


def build_head(architecture: Architecture, features: int) -> nn.Module:
    """The head that the architecture names, on `features` inputs."""
    dense = NoisyLinear if architecture.noisy else Linear
    actions, atoms = architecture.outputs, architecture.atoms
    if architecture.head == "actor-critic":
        return ActorCriticHead(features, actions, dense)
    if architecture.head == "q":
        if architecture.dueling and architecture.branches:
            return BranchingDuelingHead(features, architecture.branches, dense)
        head = DuelingHead if architecture.dueling else LinearHead
        return head(features, actions, dense)
    streams = DuelingStreams if architecture.dueling else LinearStream
    scores = streams(features, actions, atoms, dense)
    if architecture.head == "categorical":
        return CategoricalHead(scores, architecture.v_min, architecture.v_max, atoms)
    return QuantileHead(scores)


class Head(nn.Module):
    """Called without what surrounds a module call, as in `layers`."""

    def __call__(self, features: torch.Tensor, illegal: torch.Tensor | None = None) -> QOutput:
        """The output for `features` [N, F]; `illegal` [N, A] bool marks actions not to be taken."""
        return self.forward(features) if illegal is None else self.masked(features, illegal)

    def masked(self, features: torch.Tensor, illegal: torch.Tensor) -> QOutput:
        """With ILLEGAL for the value of illegal actions, once all is combined."""
        output = self.forward(features)
        return output._replace(q_values=output.q_values.masked_fill(illegal, ILLEGAL))


class LinearHead(Head):
    """Q(s, .) = W features + b."""

    def __init__(self, features: int, num_actions: int, dense: Dense = Linear):
        super().__init__()
        self.q = _small(dense(features, num_actions))

    def forward(self, features: torch.Tensor) -> QOutput:
        return QOutput(self.q(features))


class DuelingHead(Head):
    """Q = V + A - mean A (Wang et al. 2016, eq. 9)."""

    def __init__(self, features: int, num_actions: int, dense: Dense = Linear):
        super().__init__()
        self.value = _small(dense(features, 1))
        self.advantage = _small(dense(features, num_actions))

    def forward(self, features: torch.Tensor) -> QOutput:
        return QOutput(_dueling(self.value(features), self.advantage(features)))


class BranchingDuelingHead(DuelingHead):
    """Q_i = V + A_i - mean A_i for each component of an action (Tavakoli et al. 2018, eq. 1)."""

    def __init__(self, features: int, branches: Sequence[int], dense: Dense = Linear):
        super().__init__(features, sum(branches), dense)
        self.branches = list(branches)

    def forward(self, features: torch.Tensor) -> QOutput:
        value, advantages = self.value(features), self.advantage(features)
        groups = [_dueling(value, part) for part in advantages.split(self.branches, 1)]
        return QOutput(torch.cat(groups, 1))


class ActorCriticHead(Head):
    """A policy and a state value (Mnih et al. 2016) as q = V + log pi + H(pi).

    So softmax(q) = pi and sum(pi q) = V: the Q-values of soft optimality at temperature 1 for this
    policy and value (O'Donoghue et al. 2017), and the greedy action is the policy's mode.
    """

    def __init__(self, features: int, num_actions: int, dense: Dense = Linear):
        super().__init__()
        self.value = _small(dense(features, 1))
        self.policy = _small(dense(features, num_actions))

    def forward(self, features: torch.Tensor) -> QOutput:
        return self._of(self.value(features), self.policy(features))

    def masked(self, features: torch.Tensor, illegal: torch.Tensor) -> QOutput:
        """Policy and entropy over the legal actions."""
        scores = self.policy(features).masked_fill(illegal, ILLEGAL)
        return self._of(self.value(features), scores)

    def _of(self, value: torch.Tensor, scores: torch.Tensor) -> QOutput:
        log_pi = scores.log_softmax(1)
        entropy = -(log_pi.exp() * log_pi).sum(1, keepdim=True)
        return QOutput(value + log_pi + entropy)


class LinearStream(nn.Module):
    """Scores [N, A, atoms] = W features + b."""

    def __init__(self, features: int, num_actions: int, atoms: int, dense: Dense = Linear):
        super().__init__()
        self.shape = (num_actions, atoms)
        self.q = _small(dense(features, num_actions * atoms))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.q(features).unflatten(1, self.shape)


class DuelingStreams(nn.Module):
    """Scores [N, A, atoms], dueling atom by atom as in Rainbow (Hessel et al. 2018, section 3)."""

    def __init__(self, features: int, num_actions: int, atoms: int, dense: Dense = Linear):
        super().__init__()
        self.shape = (num_actions, atoms)
        self.value = _small(dense(features, atoms))
        self.advantage = _small(dense(features, num_actions * atoms))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        advantage = self.advantage(features).unflatten(1, self.shape)
        return _dueling(self.value(features).unsqueeze(1), advantage)


class CategoricalHead(Head):
    """Probabilities of fixed values, `support` [atoms] (C51, Bellemare et al. 2017, section 4)."""

    def __init__(self, scores: nn.Module, v_min: float, v_max: float, atoms: int):
        super().__init__()
        self.scores = scores
        self.register_buffer("support", torch.linspace(v_min, v_max, atoms), persistent=False)

    def forward(self, features: torch.Tensor) -> QOutput:
        log_probabilities = self.scores(features).log_softmax(2)
        return QOutput(log_probabilities.exp() @ self.support, log_probabilities)


class QuantileHead(Head):
    """Quantiles at the midpoints (i + 1/2) / atoms (QR-DQN, Dabney et al. 2018, section 4).

    No bounds, unlike the categorical head; nothing keeps the quantiles in order.
    """

    def __init__(self, scores: nn.Module):
        super().__init__()
        self.scores = scores

    def forward(self, features: torch.Tensor) -> QOutput:
        quantiles = self.scores(features)
        return QOutput(quantiles.mean(2), quantiles)


def _dueling(value: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    return value + advantage - advantage.mean(1, keepdim=True)


def _small(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.zero_()
    return layer
