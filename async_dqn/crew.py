"""The crew: who plays the episodes of an evaluation.

Numbers are handed out in their order; the results are kept by number, so that it does not matter
who plays what, nor who finishes first.
"""

from collections.abc import Iterator

from async_dqn.player import Played, Player, TooManyBreaks


class Crew:
    """Plays the episodes of one evaluation after another."""

    def __init__(self, player: Player):
        self.player = player
        self.begin()

    def begin(self, first: int = 0) -> None:
        """A new evaluation, from this episode on."""
        self._first = self._next = self._whole = first
        self._end = first
        self._results: dict[int, Played] = {}
        self._playing: Iterator[tuple[int, list[Played]]] | None = None

    def play(self, end: int) -> Iterator[int]:
        """Play all episodes below `end`; yields how many environments were stepped each time.

        Stops early where environments break all the time.
        """
        self._end = end
        while self._whole < end:
            if self._playing is None:
                self._playing = self.player.play(self)
            try:
                stepped, finished = next(self._playing)
            except StopIteration:
                self._playing = None
                continue
            except TooManyBreaks:
                self._playing = None
                return
            self._note(finished)
            yield stepped

    def results(self, first: int, end: int) -> list[Played]:
        """The finished ones of these episodes, in their order."""
        return [self._results[n] for n in range(first, end) if n in self._results]

    def prefix(self, first: int) -> list[Played]:
        """The episodes from `first` on, up to the first unfinished one."""
        return self.results(first, self._whole)

    def take(self) -> int | None:
        """See `player.Source`."""
        if self._next >= self._end:
            return None
        self._next += 1
        return self._next - 1

    def take_until(self, stop: int) -> None:
        """See `player.Source`."""
        self._next = max(self._next, stop)

    def _note(self, finished: list[Played]) -> None:
        for played in finished:
            self._results.setdefault(played.number, played)
        while self._whole in self._results:
            self._whole += 1
