"""The progress display: one bar on a terminal, else a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

PLAIN_SECONDS = 10.0
BAR_SECONDS = 0.25  # four refreshes a second
BESIDES = 10  # columns for the percentage and the shortest bar


@dataclass
class Status:
    """What the display shows; returns are means over episodes, None before the first."""

    step: int = 0  # global
    total: int = 1  # the budget
    fps: float = 0.0  # global steps per second
    elapsed_s: float = 0.0
    training_return: float | None = None
    evaluation: float | None = None
    playing: tuple[int, int, float] | None = None  # final evaluation: done, all, its seconds


class PlainLines:
    """One line every ten seconds and at each evaluation, for logs and pipes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + PLAIN_SECONDS

    def show(self, status: Status, now: bool = False) -> None:
        """Print a line when one is due, or `now`."""
        if now or self._clock() >= self._next:
            self._next = self._clock() + PLAIN_SECONDS
            print_line(plain_line(status))

    def close(self) -> None:
        """Nothing to put away."""


class Bar:
    """One progress bar, drawn from the calling thread at most four times a second.

    While it is up, prints to the terminal appear above it instead of tearing it.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._next = 0.0
        self._bar = Progress(
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(),
            auto_refresh=False,
            transient=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=1, text="starting")
        self._bar.start()
        self._open = True

    def show(self, status: Status, now: bool = False) -> None:
        """Redraw when due, or `now`."""
        if self._open and (now or time.monotonic() >= self._next):
            self._next = time.monotonic() + BAR_SECONDS
            text = bar_text(status, self._bar.console.width - BESIDES)
            self._bar.update(
                self._task, completed=status.step, total=status.total, text=text, refresh=True
            )

    def close(self) -> None:
        """Leave the bar as last drawn and give the terminal back. Idempotent."""
        if self._open:
            self._open = False
            self._bar.stop()


def display(console: bool) -> Bar | PlainLines | None:
    """The display for this process's stdout; None without `console`."""
    if not console:
        return None
    return Bar() if sys.stdout is not None and sys.stdout.isatty() else PlainLines()


def plain_line(status: Status) -> str:
    """Such as "00:01:30  450,000 steps (45%)  5,000 steps/s  return 180.2  ..."."""
    percent = 100 * status.step / max(1, status.total)
    clock = duration(status.elapsed_s)
    return "  ".join([clock, f"{status.step:,} steps ({percent:.0f}%)", *_details(status)])


def bar_text(status: Status, room: int) -> str:
    """Time elapsed and details; of these as many, the last ones, as fit whole into `room`."""
    parts = [duration(status.elapsed_s), *_details(status)]
    while len("  ".join(parts)) > room and len(parts) > 1:
        del parts[1]
    return "  ".join(parts)


def _details(status: Status) -> list[str]:
    """Speed, training return, last evaluation, time left; or how far the final evaluation is."""
    if status.playing is not None:
        done, episodes, seconds = status.playing
        left = f", about {seconds / done * (episodes - done):,.0f} s left" if done else ""
        return [f"final evaluation: {done} of {episodes} episodes{left}"]
    left = (status.total - status.step) / status.fps if status.fps > 0 else None
    return [
        f"{status.fps:,.0f} steps/s" if status.fps else "- steps/s",  # not known yet
        f"return {score(status.training_return)}",
        f"evaluation {score(status.evaluation)}",
        f"left {duration(left)}",
    ]


def duration(seconds: float | None) -> str:
    """Hours:minutes:seconds; dashes where unknown."""
    if seconds is None:
        return "--:--:--"
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def score(value: float | None) -> str:
    """Such as 180.2 or 0.95; "-" where there is none."""
    return "-" if value is None else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line now; that nobody reads it (`| head`, a full disk, a closed stdout) is fine."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=file, flush=True)


def print_warning(text: str) -> None:
    """Say it on stderr, whoever reads that."""
    print_line(f"warning: {text}", sys.stderr)
