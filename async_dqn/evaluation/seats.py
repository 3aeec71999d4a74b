"""Seats: how the evaluator gives episodes to other processes, without a lock or a message.

Each player has a row of seats. The evaluator writes an order into a free one, the player writes the
result beside it; both carry the sequence number of the snapshot and the number of the episode, so
that a process that was killed and started again finds in the seats what is to be done. Nobody waits
for a player that shows no sign of life: the evaluator plays its episodes itself, and the first
result of an episode counts.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_dqn.parameters.layout import HEARTBEAT_NS, PLAYING
from async_dqn.parameters.store import ParameterStore

SILENT_NS = 1_000_000_000  # without a sign of life a player gets nothing more to do
UNPLAYABLE = -1  # the length of an episode that could not be played


class Played(NamedTuple):
    """A finished episode: its number, return and length in steps."""

    number: int
    score: float
    length: int


def _order(sequence: int, number: int) -> int:
    return sequence << 32 | number


class Seats:
    """The evaluator's view: all seats [players, seats]."""

    def __init__(self, store: ParameterStore):
        self._orders, self._results = store.block["seats"], store.block["results"]
        count = len(self._orders)
        self._own, self._slots = store.slots[-count - 2], store.slots[-count - 1 : -1]
        self._given = np.zeros_like(self._orders)  # 0: the seat is free
        self._sequence = 0

    def begin(self, sequence: int) -> None:
        """An evaluation of this snapshot begins; 0: it is over, all stop."""
        self._sequence = self._own[PLAYING] = sequence
        self._given[:] = 0

    @property
    def present(self) -> NDArray[np.bool_]:
        """Players [players] that have shown a sign of life just now."""
        return time.monotonic_ns() - self._slots[:, HEARTBEAT_NS] < SILENT_NS

    @property
    def waiting(self) -> bool:
        """Whether some seat has an order without a result."""
        return bool(self._given.any())

    def collect(self) -> Iterator[Played]:
        """Results that have come; their seats are free again."""
        for player, seat in np.argwhere(
            (self._given != 0) & (self._results[..., 0] == self._given)
        ).tolist():
            order, bits, length, check = self._results[player, seat].tolist()
            if check == order ^ bits ^ length:
                self._given[player, seat] = 0
                yield Played(order & 0xFFFFFFFF, float(np.int64(bits).view(np.float64)), length)

    def most_free(self, share: int) -> tuple[int, int] | None:
        """A free seat of the present player with fewest orders, if it has fewer than `share`."""
        busy = np.where(self.present, (self._given != 0).sum(axis=1), len(self._given[0]))
        player = int(busy.argmin())
        if busy[player] >= min(share, len(self._given[0])):
            return None
        return player, int((self._given[player] == 0).argmax())

    def give(self, place: tuple[int, int], number: int) -> None:
        """Order this episode."""
        self._given[place] = self._orders[place] = _order(self._sequence, number)

    def abandoned(self) -> list[int]:
        """Episodes that players who show no sign of life have not finished."""
        orders = self._given[~self.present]
        return sorted((orders[orders != 0] & 0xFFFFFFFF).tolist())


class OwnSeats:
    """A player's view: its own seats; a `player.Source` of episodes."""

    def __init__(self, store: ParameterStore, player: int):
        self._orders, self._results = store.block["seats"][player], store.block["results"][player]
        self._evaluator = store.slots[-len(store.block["seats"]) - 2]
        self._taken = np.zeros_like(self._orders)
        self._sequence = 0

    @property
    def wanted(self) -> int:
        """The sequence number of the snapshot that is being evaluated; 0 if none is."""
        return int(self._evaluator[PLAYING])

    def begin(self, sequence: int) -> None:
        """Play this snapshot; what was taken before and has no result is taken again."""
        self._sequence = sequence
        self._taken[:] = 0

    def take(self) -> int | None:
        """The next episode that is ordered and not yet taken."""
        orders = self._orders.copy()
        new = (orders != self._taken) & (orders >> 32 == self._sequence)
        seats = np.flatnonzero(new & (self._results[:, 0] != orders))
        if not seats.size:
            return None
        seat = seats[orders[seats].argmin()]
        self._taken[seat] = orders[seat]
        return int(orders[seat]) & 0xFFFFFFFF

    def take_until(self, stop: int) -> None:
        """For batches, which are never shared."""
        raise NotImplementedError

    def put(self, played: Played) -> None:
        """Write down a result."""
        order, length = _order(self._sequence, played.number), played.length
        bits = int(np.float64(played.score).view(np.int64))
        seat = int((self._taken == order).argmax())
        # With a checksum: the words may arrive in any order.
        self._results[seat] = order, bits, length, order ^ bits ^ length

    def give_up(self) -> None:
        """The episodes that were taken cannot be played."""
        for order in self._taken[self._taken != self._results[:, 0]].tolist():
            self.put(Played(order & 0xFFFFFFFF, 0.0, UNPLAYABLE))
