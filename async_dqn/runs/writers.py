"""The plain writers of a run folder: events.jsonl, CSV tables, the TensorBoard file.

Logging never stops training: a write that the disk refuses is dropped, counted and warned of
once. What is on the disk is whole: a cut-off last line is dropped when the file is reopened.
"""

import csv
import io
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from async_dqn.runs.durable import Lines, replace_file

GLOBAL_TAGS = {  # with what TensorBoard says of them; the x axis is global steps
    "rollout/ep_rew_mean": "true return, mean of the last 100 training episodes",
    "rollout/ep_len_mean": "length in steps, mean of the last 100 training episodes",
    "rollout/exploration_rate": "mean epsilon over all environments",
    "time/fps": "steps of all workers per second",
    "time/updates_per_second": "updates of all workers per second",
    "train/loss": "mean since the last report",
    "train/grad_norm": "before clipping, mean since the last report",
    "train/q_mean": "mean Q-value of the actions taken, since the last report",
    "train/learning_rate": "as scheduled; half of that once training has diverged",
    "eval/mean_reward": "true return of the last evaluation, played greedily",
    "eval/mean_ep_length": "episode length in steps, of the last evaluation",
    "async/staleness_mean": "updates by others between a worker's pull of the parameters and its "
    "push of a gradient: about workers - 1; far more: some worker is slow, and its gradients old",
    "async/staleness_max": "as staleness_mean, the oldest gradient since the last report",
    "async/target_lag_steps": "age of the target network; far above --target-sync-steps: the "
    "evaluator gets no core",
    "async/restarts": "processes restarted since the start of the run",
    "async/skipped_updates": "gradients dropped since the start of the run: not finite, or staler "
    "than --max-staleness",
    "async/env_errors": "environments built anew since the start of the run",
    "async/retired_workers": "workers given up in this session",
}
LAYOUT = {  # of the tab "custom scalars": scores first
    "scores": {
        "return": ["Multiline", ["eval/mean_reward", "rollout/ep_rew_mean"]],
        "episode length": ["Multiline", ["eval/mean_ep_length", "rollout/ep_len_mean"]],
    },
    "learning": {
        tag: ["Multiline", [f"train/{tag}"]]
        for tag in ("loss", "grad_norm", "q_mean", "learning_rate")
    },
    "speed": {
        "steps per second": ["Multiline", ["time/fps"]],
        "of each worker": ["Multiline", [r"async/worker_\d+/fps"]],
    },
    "asynchrony": {
        "staleness": ["Multiline", ["async/staleness_mean", "async/staleness_max"]],
        "target lag": ["Multiline", ["async/target_lag_steps"]],
    },
}


def info_tag(key: str) -> str:
    """Of a number that environments tell in `info` under this key (`--log-info`)."""
    return f"info/{key}"


METRICS_HEADER = ("step", "wall_s", "cpu_s", *GLOBAL_TAGS)
EVALUATIONS_HEADER = ("step", "wall_s", "cpu_s", "episodes", "mean", "std", "min", "max")


class BestEffort:
    """Runs writes; those that fail are counted, and the first is reported to `warn`."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.count = 0
        self._warn = warn

    def attempt(self, write: Callable[..., Any], *args: Any) -> Any:
        """`write(*args)`, or None where it raised: logging must never stop training."""
        try:
            return write(*args)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            self.count += 1
            if self.count == 1:
                reason = getattr(error, "strerror", None) or error
                self._warn(f"logging failed ({reason}); training goes on, lines are dropped")
            return None


def finite(value: Any) -> float | None:
    """`value` as a float; None where it is missing, NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """`value` as JSON has it: numpy scalars as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class LogFile:
    """A file of records, written as far as the disk takes them."""

    def __init__(self, drops: BestEffort, open_lines: Callable[..., Lines], *args: Any) -> None:
        self._drops = drops
        self._lines: Lines | None = drops.attempt(open_lines, *args)

    def _append(self, data: bytes) -> None:
        if self._lines is not None:
            self._drops.attempt(self._lines.append, data)

    def close(self) -> None:
        """Idempotent."""
        if self._lines is not None:
            self._lines.close()


class EventLog(LogFile):
    """events.jsonl: one JSON object per line; `time` is in seconds since the epoch."""

    def __init__(self, path: Path, drops: BestEffort) -> None:
        super().__init__(drops, Lines, path)

    def write(
        self,
        event: str,
        role: str = "supervisor",
        index: int | None = None,
        pid: int | None = None,
        cause: str | None = None,
        **extra: Any,
    ) -> None:
        """Append one event."""
        record = dict(event=event, role=role, index=index, pid=pid, cause=cause, **extra)
        line = json.dumps(plain({"time": round(time.time(), 3), **record}))
        self._append(f"{line}\n".encode())


class CsvTable(LogFile):
    """A CSV file with a fixed header whose first column is the global step."""

    def __init__(
        self, path: Path, header: Sequence[str], drops: BestEffort, up_to: int = 0
    ) -> None:
        """Open for appending after step `up_to`; later rows of a former attempt are dropped."""
        self._header = header
        super().__init__(drops, self._open, path, up_to)

    def _open(self, path: Path, up_to: int) -> Lines:
        rows = [self._header]
        if path.exists() and not path.is_symlink():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                kept = [row for row in csv.DictReader(file) if _is_kept(row, up_to)]
            rows += [[row.get(name, "") for name in self._header] for row in kept]
        replace_file(path, _csv(rows))
        return Lines(path)

    def write(self, row: Mapping[str, float | None]) -> None:
        """Append one row; columns missing in `row`, NaN and infinity stay empty."""
        self._append(_csv([[_cell(name, row.get(name)) for name in self._header]]))


def _is_kept(row: Mapping[str, Any], up_to: int) -> bool:
    """Whether the row is whole (a kill can cut the last one short) and not beyond `up_to`."""
    step = row.get("step") or ""
    return step.isdecimal() and int(step) <= up_to and None not in row.values()


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(name: str, value: float | None) -> str:
    number = finite(value)
    if number is None:
        return ""
    if number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    return f"{number:.3f}" if name.endswith("_s") else f"{number:.6g}"


class Board:
    """The TensorBoard file of the run: all scalars and the HPARAMS entry, in one file per start.

    The records are TensorBoard's own; the file is ours. `SummaryWriter` writes from a thread that
    dies on a full disk with a traceback and leaves half a record, and its `add_hparams` opens a
    second writer (a second run, unless told otherwise). Here a report is on disk whole or not at
    all, and logging goes on when the disk has room again.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Start a new events file; on resume TensorBoard forgets steps from `purge_step` on.

        Imports tensorboard (a quarter of a second). Raises OSError, ImportError.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._writer = Event, RecordWriter
        self._told: set[str] = set()  # tags that are plotted, and described
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._lines = Lines(folder / name)
        first: list[dict[str, Any]] = [{"file_version": "brain.Event:2"}]
        if purge_step is not None:
            first.append({"step": purge_step, "session_log": {"status": "START"}})
        self._append(first)

    def introduce(self, settings: Mapping[str, Any], step: int) -> None:
        """The layout of the charts, and the settings as a text."""
        from torch.utils.tensorboard.summary import custom_scalars

        self._append([{"step": step, "summary": custom_scalars(LAYOUT)}])
        lines = [f"    {name} = {value}" for name, value in settings.items()]
        self.text("settings", "\n".join(lines), step)

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Plot `values` at the global step `step`, leaving out what is not finite.

        And what only matters when it is not 0: async/ tags that have always been.
        """
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        entries: list[Any] = []
        for tag, value in values.items():
            number = finite(value)
            idle = tag.startswith("async/") and not number and tag not in self._told
            if number is None or idle:
                continue
            if tag in GLOBAL_TAGS and tag not in self._told:
                # TensorBoard reads a description with tensors only, other readers plain numbers
                # only: the first point is there as both.
                with np.errstate(over="ignore"):  # to infinity: it has float32
                    entries += scalar_pb(tag, number, GLOBAL_TAGS[tag]).value
            self._told.add(tag)
            entries.append({"tag": tag, "simple_value": number})
        self._append([{"step": step, "summary": {"value": entries}}])

    def picture(self, tag: str, data: bytes, step: int) -> None:
        """A PNG or a GIF, as its file has it; films move."""
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
        image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": data}
        value = [{"tag": tag, "image": image}]
        self._append([{"step": step, "summary": {"value": value}}])

    def text(self, tag: str, text: str, step: int) -> None:
        """A line of text at the global step `step`."""
        from torch.utils.tensorboard.summary import text as summary_of

        self._append([{"step": step, "summary": summary_of(tag, text)}])

    def hparams(
        self, settings: Mapping[str, Any], results: Mapping[str, float | None], step: int
    ) -> None:
        """The HPARAMS entry of this run; once, at the end, when the `results` are known."""
        from torch.utils.tensorboard.summary import hparams

        shown = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        known = {tag: value for tag, value in results.items() if finite(value) is not None}
        self._append({"step": step, "summary": summary} for summary in hparams(shown, known))
        self.scalars(known, step)

    def _append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events, given by their fields."""
        records = io.BytesIO()
        writer = self._writer(records)
        for fields in events:
            event = self._event(wall_time=time.time(), **fields)
            writer.write(event.SerializeToString())
        self._lines.append(records.getvalue())

    def close(self) -> None:
        """Idempotent."""
        self._lines.close()
