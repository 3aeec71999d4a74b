"""Signals that end a run: the handler only sets a flag and wakes the loop."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from async_dqn.config import UserError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, the first ending signal sets `received`; the second calls `force`.

    `fd` becomes readable at a signal, for use in a wait. Main thread only (UserError elsewhere).
    """

    def __init__(self, force: Callable[[], None]):
        self.received: signal.Signals | None = None
        self._force = force

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            raise UserError("training must start in the main thread; call learn() there")
        self.fd, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._old_wake = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._handle) for number in ENDING}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wake)
        os.close(self.fd)
        os.close(self._wake)

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM and SIGHUP, 0 without a signal."""
        if self.received is None:
            return 0
        return 130 if self.received == signal.SIGINT else 143

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._force()
            os._exit(self.exit_code)
        self.received = signal.Signals(number)
