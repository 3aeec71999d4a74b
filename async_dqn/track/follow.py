"""A run folder read as it grows: what is new in its tables goes to a service, until it ends.

The folder is all there is between trainer and service: a service that hangs or is gone cannot
reach the training, and what it missed is sent by `track RUN` later.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_dqn.runs.checkpoint import marked
from async_dqn.runs.durable import replace_json
from async_dqn.runs.folder import is_locked
from async_dqn.runs.growing import GrowingTable
from async_dqn.track.services import SERVICES, Service

LOOK_S = 2.0
STATE = "track-{}.json"  # in the run folder: the run's id at a service, and how far it is sent
TABLES = ("metrics.csv", "evaluations.csv")
SCORES = {"mean": "eval/mean_reward", "std": "eval/std_reward", "episodes": "eval/episodes"}
LOST = "lost"  # status of a run whose trainer left without a word


class Follower:
    """Sends one run to one service."""

    def __init__(self, folder: Path, name: str):
        self.folder, self._state = folder, folder / STATE.format(name)
        known = _read(self._state) or {}
        sent, begun_at = known.get("sent", {}), self._begun_at(known.get("time", 0))
        self._metrics, self._evaluations = (
            GrowingTable(folder / table, min(sent.get(table, -1), begun_at)) for table in TABLES
        )
        config = json.loads((folder / "config.json").read_text())
        self.service: Service = SERVICES[name](folder, known.get("id"), _flat(config["settings"]))
        self._remember()

    def follow(self) -> None:
        """Until the run has ended, or its trainer is gone."""
        while True:
            # Looked up before the last rows are read.
            result, at_work = _read(self.folder / "result.json"), is_locked(self.folder)
            self._send()
            if result is not None or not at_work:
                break
            time.sleep(LOOK_S)
        result = result or {"status": LOST}
        files = [self.folder / name for name in ("config.json", "result.json", *TABLES)]
        best = marked(self.folder / "checkpoints", "best")
        files += [] if best is None else [best]
        failed = result["status"] in ("failed", LOST)
        self.service.end(result, failed, [path for path in files if path.exists()])

    def _send(self) -> None:
        for row in self._metrics.new():
            step, wall_s = int(row.pop("step")), row.pop("wall_s")
            row = {tag: value for tag, value in row.items() if not tag.startswith("eval/")}
            self.service.log(step, wall_s, row)
        for row in self._evaluations.new():
            scores = {tag: row[name] for name, tag in SCORES.items() if name in row}
            self.service.log(int(row["step"]), row["wall_s"], scores)
        self.service.flush()
        self._remember()

    def _remember(self) -> None:
        sent = {table.path.name: table.last for table in (self._metrics, self._evaluations)}
        state = {"id": self.service.id, "sent": sent, "time": time.time()}
        with contextlib.suppress(OSError):  # a full disk: it may be sent twice
            replace_json(self._state, state)

    def _begun_at(self, then: float) -> float:
        """The step up to which rows sent until `then` still hold: a run that was resumed since
        went back to a checkpoint."""
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        starts = [event for event in map(json.loads, lines) if event["event"] == "start"]
        since = [e["step"] for e in starts if "step" in e and e["time"] > then]
        return min(since, default=math.inf)


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By dotted name; what holds for all workers (`whole`) is derived, and left out."""
    return {
        f"{section}.{name}": value
        for section, values in settings.items()
        if isinstance(values, Mapping) and section != "whole"
        for name, value in values.items()
    }
