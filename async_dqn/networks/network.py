"""Q-networks: a torso by observation shape, perhaps an LSTM, and a head.

`net(obs, state=None) -> (output, state)`; the output always has `q_values` [N, A]. Observations
go in raw (bytes stay bytes until here), so that acting, learning and deployment preprocess alike.
Initialisation is stated where the layers are: `torsos`, `heads`, `noisy`; the LSTM has torch's
default, all weights and biases uniform within 1 / sqrt(its width).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from async_dqn.networks.architecture import ILLEGAL, Architecture
from async_dqn.networks.heads import LinearHead, QOutput, build_head
from async_dqn.networks.layers import Chain
from async_dqn.networks.noisy import NoisyLinear
from async_dqn.networks.torsos import build_torso

__all__ = ["OnDevice", "QNetwork", "QOutput", "State", "restarted"]

State = tuple[torch.Tensor, torch.Tensor]  # (h, c) of an LSTM, [N, width] each


class QNetwork(nn.Module):
    """Torso, LSTM if recurrent, and head over raw observations [N, *observation_shape].

    With action masks over rows [N, n + A], whose last numbers say which actions are legal (not 0);
    the Q-value of the others is ILLEGAL.

    The LSTM (DRQN, Hausknecht & Stone 2015) follows the torso's last layer and is as wide as that;
    as wide as the last of `hidden` where the torso has no layer. It has no noise of its own in
    noisy networks. Without it the state is None. `torso` builds one of the user's.
    """

    def __init__(self, architecture: Architecture, torso: Callable | None = None):
        super().__init__()
        scale = architecture.scale
        self.scale, self.noisy = 1.0 if isinstance(scale, tuple) else scale, architecture.noisy
        self.masked = architecture.num_actions if architecture.masked else 0
        self.shape = architecture.observation_shape
        # Beside images there are numbers that would suffer: there it is the convolutions' own.
        self.bfloat16 = architecture.bfloat16 and not architecture.parts
        self.torso, features = build_torso(architecture, torso)
        self.cell = None
        if architecture.recurrent:
            width = architecture.hidden[-1] if architecture.network == "linear" else features
            self.cell = nn.LSTMCell(features, width)
            features = width
        self.head = build_head(architecture, features)
        self._noisy_layers = [m for m in self.modules() if isinstance(m, NoisyLinear)]
        dense = self.cell is None and isinstance(self.head, LinearHead)
        # All of it, where it is nothing but dense layers with a backward pass of their own.
        self.chain = Chain.of([*self.torso, self.head.q]) if dense else None

    def forward(
        self, obs: torch.Tensor, state: State | None = None
    ) -> tuple[QOutput, State | None]:
        """One step of N rows; a recurrent network starts from zeros where `state` is None."""
        obs, illegal = self._parted(obs)
        features = self._features(obs)
        if self.cell is not None:
            state = self.cell(features, state)
            features = state[0]
        return self.head(features, illegal), state

    __call__ = forward  # without what surrounds a module call, as in `layers`

    def initial_state(self, count: int) -> State | None:
        """The state of `count` rows at the start of an episode: zeros; None if not recurrent."""
        if self.cell is None:
            return None
        return torch.zeros(count, self.cell.hidden_size), torch.zeros(count, self.cell.hidden_size)

    def unroll(
        self, obs: torch.Tensor, state: State, starts: torch.Tensor
    ) -> tuple[QOutput, State]:
        """T steps of B rows in one graph, gradients through time; recurrent networks only.

        `obs` is [T, B, ...], `state` what was before row 0, and `starts` [T, B] bool marks first
        observations of an episode, before which the state is zeroed. Returns the output over T * B
        rows, time-major, and the states AFTER every row, [T, B, width] each.
        """
        obs, illegal = self._parted(obs.flatten(0, 1))
        features, cell = self._features(obs), self.cell
        # The inputs' part of the gates at once: half the products, and half the weight gradients.
        inputs = functional.linear(features, cell.weight_ih, cell.bias_ih)
        states = []
        for row, start in zip(inputs.unflatten(0, starts.shape), starts.unsqueeze(2), strict=True):
            h, c = (part.masked_fill(start, 0.0) for part in state)
            state = _lstm(row + functional.linear(h, cell.weight_hh, cell.bias_hh), c)
            states.append(state)
        h, c = (torch.stack(parts) for parts in zip(*states, strict=True))
        return self.head(h.flatten(0, 1), illegal), (h, c)

    def reset_noise(self, rows: int, generator: torch.Generator) -> None:
        """Draw the noise of a noisy network, kept until the next call: one draw per row.

        A forward of N rows gives row n the draw n % `rows`. 0 rows switch noise off, as it is at
        construction. Nothing happens in networks without noise.
        """
        for layer in self._noisy_layers:
            layer.draw(rows, generator)

    def learning_pass(
        self, obs: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], None]]:
        """Q-values [N, A], and what makes of the loss's gradient by them that by the parameters.

        That is added to theirs. Not for recurrent networks.
        """
        if self.chain is not None:
            obs, illegal = self._parted(obs)
            q_values = self.chain.forward(self._scaled(obs))
            if illegal is not None:  # whose part of the gradient is 0: they are not taken
                q_values = q_values.masked_fill(illegal, ILLEGAL)
            return q_values, self.chain.backward
        q_values = self(obs)[0].q_values
        return q_values, q_values.backward

    def _parted(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Observations, and which actions are illegal [N, A] bool (None: masks are not known)."""
        if not self.masked:
            return rows, None
        seen, legal = rows.split((rows.shape[1] - self.masked, self.masked), 1)
        return seen.reshape(rows.shape[0], *self.shape), legal == 0

    def _features(self, obs: torch.Tensor) -> torch.Tensor:
        return self.torso(self._scaled(obs))

    def _scaled(self, obs: torch.Tensor) -> torch.Tensor:
        if self.bfloat16 and obs.dtype == torch.uint8:
            # Holds every byte exactly, in half the memory of float32.
            planes = obs.bfloat16()
            return planes if self.scale == 1.0 else planes.mul_(self.scale)
        # One pass: multiplying bytes by a float also converts them.
        return obs.float() if self.scale == 1.0 else obs * self.scale


class OnDevice(nn.Module):
    """A `QNetwork` on a GPU for callers in host memory, which are all of them.

    Observations go over, Q-values come back: environments, rollouts and losses need not know where
    the network computes. Parameters and gradients lie on `device`.
    """

    def __init__(self, net: QNetwork, device: str):
        super().__init__()
        self.net, self.device, self.noisy = net.to(device), device, net.noisy
        self.initial_state, self.reset_noise = net.initial_state, net.reset_noise

    def forward(
        self, obs: torch.Tensor, state: State | None = None
    ) -> tuple[QOutput, State | None]:
        """`QNetwork.forward`."""
        return _to_host(*self.net(obs.to(self.device), _moved(state, self.device)))

    def unroll(
        self, obs: torch.Tensor, state: State, starts: torch.Tensor
    ) -> tuple[QOutput, State]:
        """`QNetwork.unroll`."""
        state = _moved(state, self.device)
        return _to_host(*self.net.unroll(obs.to(self.device), state, starts.to(self.device)))


class AveragedNetwork(nn.Module):
    """The mean Q-values of several networks, which have no distributions.

    Their states, if they are recurrent, lie side by side.
    """

    def __init__(self, nets: Sequence[QNetwork | OnDevice]):
        super().__init__()
        self.nets, self.noisy = nn.ModuleList(nets), nets[0].noisy

    def forward(
        self, obs: torch.Tensor, state: State | None = None
    ) -> tuple[QOutput, State | None]:
        """`QNetwork.forward`."""
        return self._mean([net(obs, own) for net, own in zip(self.nets, self._own(state))])

    def unroll(
        self, obs: torch.Tensor, state: State, starts: torch.Tensor
    ) -> tuple[QOutput, State]:
        """`QNetwork.unroll`; `state` is that of one network, with which all begin."""
        return self._mean([net.unroll(obs, state, starts) for net in self.nets])

    def reset_noise(self, rows: int, generator: torch.Generator) -> None:
        """`QNetwork.reset_noise`."""
        for net in self.nets:
            net.reset_noise(rows, generator)

    def _own(self, state: State | None) -> Sequence[State | None]:
        count = len(self.nets)
        if state is None:
            return [None] * count
        return list(zip(*(part.chunk(count, -1) for part in state), strict=True))

    def _mean(self, results: Sequence[tuple]) -> tuple[QOutput, State | None]:
        outputs, states = zip(*results, strict=True)
        q_values = torch.stack([output.q_values for output in outputs]).mean(0)
        if states[0] is None:
            return QOutput(q_values), None
        hidden, cell = (torch.cat(parts, -1) for parts in zip(*states, strict=True))
        return QOutput(q_values), (hidden, cell)


def restarted(state: State | None, starts: NDArray[np.bool_]) -> State | None:
    """The state [N, width], zeroed in the rows [N] where an episode starts."""
    if state is None or not starts.any():
        return state
    hidden, cell = (part.masked_fill(torch.from_numpy(starts)[:, None], 0.0) for part in state)
    return hidden, cell


def _lstm(gates: torch.Tensor, c: torch.Tensor) -> State:
    """nn.LSTMCell from the sum of its two products on: the next (h, c)."""
    enter, keep, candidate, show = gates.chunk(4, 1)
    c = keep.sigmoid() * c + enter.sigmoid() * candidate.tanh()
    return show.sigmoid() * c.tanh(), c


def _to_host(output: QOutput, state: State | None) -> tuple[QOutput, State | None]:
    return QOutput(*_moved(output, "cpu")), _moved(state, "cpu")


def _moved(parts: tuple | None, device: str) -> tuple | None:
    if parts is None:
        return None
    return tuple(None if part is None else part.to(device) for part in parts)
