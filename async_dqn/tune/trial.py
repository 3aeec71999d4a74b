"""One trial: a run in a process of its own, read from its folder, and what it is worth."""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from async_dqn.compare.runner import started
from async_dqn.config.config import UserError
from async_dqn.processes.programs import last_words
from async_dqn.report.results import quantity, read_json
from async_dqn.runs.growing import GrowingTable

LEAST = 1e30  # of worth, negative
PARTS = 10  # of a trial, at whose ends it is compared with others
STOPPED = 130  # exit code of a run that was told to end
LEAVING_S = 60.0  # for a run to save and end, once told to


@dataclass(frozen=True)
class Worth:
    """What is wanted: a score of `threshold` as soon as can be; without one, high scores early.

    A trial may take `steps` or `seconds`, whatever is over first.
    """

    threshold: float | None
    steps: int
    seconds: float

    def of(self, scores: Sequence[tuple[float, float]], reached_s: float | None) -> float:
        """The worth of a trial with these `scores`: (share of the trial at which, score).

        With a threshold, minus the seconds to it; where it was missed, less than minus all seconds
        by how far. Without, the mean score over the trial.
        """
        if reached_s is not None:
            return -reached_s
        if not scores:
            return -LEAST if self.threshold is None else -2 * self.seconds
        if self.threshold is None:
            begins = [0.0, *(share for share, _ in scores[1:])]
            widths = np.diff([*begins, 1.0])
            return float(widths @ [score for _, score in scores])
        first, best = scores[0][1], max(score for _, score in scores)
        missing = self.threshold - first
        share = 1.0 if missing <= 0 else min(1.0, (self.threshold - best) / missing)
        return -self.seconds * (1.0 + share)

    def in_words(self, value: float) -> str:
        """A value for people."""
        if self.threshold is None:
            return f"mean score {quantity(value)}"
        if -value <= self.seconds:
            return f"{-value:.1f} s to {self.threshold:g}"
        missed = -value / self.seconds - 1
        return f"{self.threshold:g} missed by {missed:.0%} of the way"


class Attempt:
    """A run that is under way or over.

    `scores` are as `Worth` takes them; it is in its `part` of PARTS, and `news` says that it came
    there since the last look; `behind` that it was stopped because others were better.
    """

    def __init__(self, folder: Path, log: Path, words: Sequence[str], worth: Worth):
        """Begin the run; what an interrupted one has left in `folder` is removed."""
        if folder.exists():
            shutil.rmtree(folder)
        place = ["--runs-dir", str(folder.parents[1]), "--run-name", folder.name, "--quiet"]
        self.folder, self.worth, self._log = folder, worth, log
        self._process = started(["-m", "async_dqn", *words, *place], log)
        self._begun, self._told_at = time.monotonic(), math.inf
        self._table = GrowingTable(folder / "evaluations.csv")
        self.scores: list[tuple[float, float]] = []
        self.part, self.news, self.behind = 0, False, False

    def is_over(self) -> bool:
        """Look at it: read its new scores, and tell it to end when its time is up."""
        seconds, over = time.monotonic() - self._begun, self._process.poll() is not None
        if not over and seconds > self.worth.seconds:
            self.stop()
        if not over and time.monotonic() - self._told_at > LEAVING_S:
            self._process.kill()
        for row in self._table.new():
            share = max(row["step"] / self.worth.steps, row["wall_s"] / self.worth.seconds)
            self.scores.append((min(1.0, share), row["mean"]))
        if self.scores:
            share = max(seconds / self.worth.seconds, self.scores[-1][0])
            part = min(PARTS, int(share * PARTS))
            self.news, self.part = part > self.part, part
        return over

    def stop(self, behind: bool = False) -> None:
        """Tell it to end, once."""
        if self._told_at == math.inf:
            self.behind, self._told_at = behind, time.monotonic()
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Until it has ended."""
        while not self.is_over():
            time.sleep(0.05)

    @property
    def best(self) -> float:
        """The highest score so far."""
        return max(score for _, score in self.scores)

    @property
    def failure(self) -> str:
        """Why its worth is not known; "" where it is."""
        if self._process.returncode in (0, STOPPED):
            known = self.scores or self.worth.threshold is not None
            return "" if known else "no evaluation in its time"
        return last_words(self._log)

    @property
    def value(self) -> float:
        """Its worth; that of the worst where it failed."""
        reached = None
        with contextlib.suppress(UserError):
            reached = read_json(self.folder / "result.json").get("seconds_to_threshold")
        return self.worth.of(self.scores, reached)
