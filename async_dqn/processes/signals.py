"""Signals that end a run, where the handler only sets a flag and wakes the loop; Ctrl-Z; alarms."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from async_dqn.config.config import UserError

STOPPING = "note: stopping, saving (again to quit now)"
SAME_S = 1.0  # seconds
STRAGGLERS_S = 0.1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _install(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Set these handlers of signals; returns those before."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise UserError(message) in what takes longer, even if it sleeps.

    In another than the main thread there is no limit.
    """

    class Late(BaseException):  # nothing that handles errors on the way may swallow it
        pass

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Late

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = _install({signal.SIGALRM: give_up})
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Late:
        raise UserError(message) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _install(old)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """While entered, an ending signal ends the process: as long as there is nothing to save.

    A KeyboardInterrupt could meet an import that catches all, and then nobody would stop.
    """
    old = _install(dict.fromkeys(ENDING, lambda number, frame: os._exit(exit_code(number))))
    try:
        yield
    finally:
        _install(old)


def exit_code(number: int) -> int:
    """130 for SIGINT, 143 for SIGTERM and SIGHUP."""
    return 130 if number == signal.SIGINT else 143


def write_stderr(line: str) -> None:
    """Write a line to stderr in a signal handler, which may have interrupted a print."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


class StopSignals:
    """While entered, the first ending signal sets `received`; a second one calls `force`.

    What comes within SAME_S of the first is the same: `timeout` and service managers signal the
    process and then its whole group. `note` is said at the first. Ctrl-Z passes SIGSTOP to
    `pass_on`, and SIGCONT when this process goes on. `fd` becomes readable at a signal, for use in
    a wait. Main thread only (UserError elsewhere).
    """

    def __init__(
        self,
        force: Callable[[], None],
        pass_on: Callable[[signal.Signals], None] = lambda number: None,
        note: str = "",
    ):
        self.received: signal.Signals | None = None
        self._force, self._pass_on, self._note = force, pass_on, note

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            raise UserError("training must start in the main thread; call learn() there")
        self.fd, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._old_wake = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._old = self.arm()
        return self

    def arm(self) -> dict[int, Any]:
        """Set the handlers; those before. An environment made in this process may set its own."""
        return _install(dict.fromkeys(ENDING, self._handle) | {signal.SIGTSTP: self._suspend})

    def __exit__(self, *exc: object) -> None:
        if self.received is not None:  # what is the same signal must not meet the old handlers
            time.sleep(max(0.0, self._first + STRAGGLERS_S - time.monotonic()))
        _install(self._old)
        signal.set_wakeup_fd(self._old_wake)
        os.close(self.fd)
        os.close(self._wake)

    @property
    def exit_code(self) -> int:
        """As of the function `exit_code`; 0 without a signal."""
        return 0 if self.received is None else exit_code(self.received)

    @property
    def words(self) -> str | None:
        """Such as "stopped by SIGTERM"; None without a signal."""
        return None if self.received is None else f"stopped by {self.received.name}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None:
            if now - self._first < SAME_S:
                return
            self._force()
            os._exit(self.exit_code)
        self.received, self._first = signal.Signals(number), now
        if self._note:
            write_stderr(self._note)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Children have process groups of their own, which the terminal does not stop."""
        self._pass_on(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._pass_on(signal.SIGCONT)
