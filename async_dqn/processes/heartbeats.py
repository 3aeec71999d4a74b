"""Who shows no sign of life: judged by the clock that every child writes into its slot.

A child that starts gets longer. If the trainer's own loop came late (a suspended machine, Ctrl-Z),
everybody was asleep, and all clocks begin anew.
"""

import time
from collections.abc import Iterable, Iterator

from numpy.typing import NDArray

from async_dqn.parameters.layout import HEARTBEAT_NS, PHASE, STARTING
from async_dqn.processes.spawn import Child

START_UP_S = 120.0
LATE_S = 2.0


class Heartbeats:
    """Finds the hung among children that live; `timeout` in seconds."""

    def __init__(self, slots: NDArray, timeout: float):
        self._slots, self._timeout = slots, timeout
        self._since = self._looked = time.monotonic()

    def silent(self, children: Iterable[Child]) -> Iterator[tuple[Child, float]]:
        """Children without a sign of life for too long, and for how many seconds."""
        now = time.monotonic()
        if now - self._looked > LATE_S:
            self._since = now
        self._looked = now
        for child in children:
            if not child.alive:
                continue
            slot = self._slots[child.index]
            last = max(self._since, child.started_at, int(slot[HEARTBEAT_NS]) / 1e9)
            begun = slot[HEARTBEAT_NS] / 1e9 > child.started_at and slot[PHASE] != STARTING
            if now - last > (self._timeout if begun else max(START_UP_S, self._timeout)):
                yield child, now - last
