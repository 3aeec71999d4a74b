"""The crew: who plays the episodes of an evaluation.

Numbers are handed out in their order, to this process and to players in others; the results are
kept by number, so that it does not matter who plays what, nor who finishes first.
"""

import contextlib
import time
from collections.abc import Iterator

import torch

from async_dqn.evaluation.episodes import EpisodeRunner, TooManyBreaks
from async_dqn.evaluation.seats import UNPLAYABLE, OwnSeats, Played, Seats
from async_dqn.parameters import layout
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.processes.child_side import in_child
from async_dqn.workers.run_spec import ProcessArgs

LEAST_SHARE = 5  # episodes a process plays together: one by one they take twice the CPU time
PAUSE_S, LONG_PAUSE_S = 0.001, 0.02  # of a player without an episode, without an evaluation


class Crew:
    """Plays the episodes of one evaluation after another; `seats` are those of other players."""

    def __init__(self, player: EpisodeRunner, seats: Seats | None = None):
        self.player, self._seats = player, seats

    def begin(self, first: int = 0, sequence: int = 0, hurry: bool = False) -> None:
        """A new evaluation, of this snapshot, from this episode on.

        In a `hurry`, when cores are idle, all who may come will have their part of it.
        """
        self._first = self._next = self._whole = self._end = first
        self._hurry = hurry
        self._results: dict[int, Played] = {}
        self._own: set[int] = set()  # what this process plays
        self._playing: Iterator[tuple[int, list[Played]]] | None = None
        self._broken = False
        if self._seats is not None:
            self._seats.begin(sequence)

    def end(self) -> None:
        """The evaluation is over; nobody need finish what is being played."""
        self._playing = None
        if self._seats is not None:
            self._seats.begin(0)

    def play(self, end: int) -> Iterator[int]:
        """Play all episodes below `end`; yields how many environments were stepped each time.

        That is 0 where only others play. Stops early where environments break all the time.
        """
        self._first, self._end = self._next, end
        while self._whole < end:
            if self._seats is not None:
                self._exchange(self._seats)
            stepped = self._step()
            if self._broken:
                return
            yield stepped

    def results(self, first: int, end: int) -> list[Played]:
        """The finished ones of these episodes, in their order."""
        return [self._results[n] for n in range(first, end) if n in self._results]

    @property
    def finished(self) -> int:
        """How many episodes are, from the first one that `play` was asked for."""
        return sum(number >= self._first for number in self._results)

    def prefix(self, first: int) -> list[Played]:
        """The episodes from `first` on, up to the first unfinished one."""
        return self.results(first, self._whole)

    def take(self) -> int | None:
        """See `episodes.Source`."""
        if self._next < self._end and len(self._own) < self._share:
            self._own.add(self._next)
            self._next += 1
            return self._next - 1
        if self._next == self._end and self._seats is not None and self._seats.waiting:
            for number in self._seats.abandoned():
                if number not in self._own and number not in self._results:
                    self._own.add(number)
                    return number
        return None

    def take_until(self, stop: int) -> None:
        """See `episodes.Source`."""
        self._next = max(self._next, stop)

    @property
    def _share(self) -> int:
        """How many episodes one process may play at once."""
        present = [] if self._seats is None else self._seats.present
        players = len(present) if self._hurry else sum(present)
        even = -(-(self._end - self._first) // (1 + players))
        return min(self.player.rows, even if self._hurry else max(LEAST_SHARE, even))

    def _step(self) -> int:
        """One vector step of the episodes that this process plays; how many."""
        if self._playing is None:
            self._playing = self.player.play(self)
        try:
            stepped, finished = next(self._playing, (0, []))
        except TooManyBreaks:
            self._broken = True
            return 0
        if not stepped:  # nothing was left to take
            self._playing = None
        self._own.difference_update(played.number for played in finished)
        self._note(finished)
        return stepped

    def _exchange(self, seats: Seats) -> None:
        """Take the results of the others; give them what is next."""
        self._note(list(seats.collect()))
        share = self._share
        while self._next < self._end and (place := seats.most_free(share)) is not None:
            seats.give(place, self._next)
            self._next += 1

    def _note(self, finished: list[Played]) -> None:
        for played in finished:
            self._broken |= played.length == UNPLAYABLE
            self._results.setdefault(played.number, played)
        while self._whole in self._results:
            self._whole += 1


def run_player(start: ProcessArgs) -> None:
    """Entry point of a player process."""
    with in_child(start.title, start.parent, start.log, start.pipe):
        start.run_spec.seed_globals(start.index, start.incarnation)
        loop = PlayerLoop(start)
        with contextlib.closing(loop.player):
            loop.run()


class PlayerLoop:
    """Plays what the evaluator orders, until the trainer tells the evaluator to quit."""

    def __init__(self, start: ProcessArgs):
        torch.set_num_threads(1)
        self.store = start.run_spec.plain_store(start.block, start.index)
        self.store.enter(start.incarnation)
        players = len(start.block["seats"])
        self.seats = OwnSeats(self.store, start.index - (len(self.store.slots) - 1 - players))
        self.network = FlatNetwork(start.run_spec.network(), gradient=False)
        self.player = EpisodeRunner(start.run_spec, self.network, alive=self.store.beat)
        self._loaded = 0
        self.player.prepare()
        self.store.slot[layout.STARTUP_NS] += time.process_time_ns()

    def run(self) -> None:
        """Look for orders."""
        while self._order != layout.QUIT:
            self._beat(layout.WAITING)
            wanted = self.seats.wanted
            if wanted and self._load(wanted):
                self._play(wanted)
            time.sleep(PAUSE_S if wanted else LONG_PAUSE_S)

    @property
    def _order(self) -> int:
        return self.store.control[layout.EVALUATOR_ORDER]

    def _load(self, sequence: int) -> bool:
        """Have the parameters of this snapshot; False if they cannot be had (any more)."""
        if self._loaded != sequence:
            read = self.store.snapshot.read(self.network.vector)
            self._loaded = 0 if read is None else read[0]
        return self._loaded == sequence

    def _play(self, sequence: int) -> None:
        """Play what is ordered now and while that is going on."""
        self.seats.begin(sequence)
        self.player.fresh = bool(self._order == layout.AFRESH)
        try:
            for _, finished in self.player.play(self.seats):
                self._beat(layout.EVALUATING)
                for played in finished:
                    self.seats.put(played)
                    self.store.slot[layout.LAST_PROGRESS_STEP] = self.store.steps
                if self.seats.wanted != sequence or self._order == layout.QUIT:
                    return
        except TooManyBreaks:
            self.seats.give_up()

    def _beat(self, phase: int) -> None:
        self.store.slot[layout.PHASE] = phase
        self.store.beat()
        self.store.count_cpu()
