"""`bench startup`: from starting the program to its first updates, by number of workers."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from async_dqn.bench import command
from async_dqn.bench.command import COUNTS, in_turns, present, ratios, save, spread
from async_dqn.config.config import UserError
from async_dqn.config.fields import setting
from async_dqn.processes.programs import search_path

NEVER = 10**12
OWN = {"steps": 10**9, "eval_every": NEVER, "checkpoint_every": NEVER}
HEADER = (
    *("environment", "workers", "to the first update, s", "first update / `import torch`"),
    *("to an update of every worker, s", "CPU until then, s", "CPU of a worker, ms"),
    "memory of a worker, MB",
)


@dataclass(frozen=True)
class Options(command.Options):
    """Those of `bench startup`."""

    own = command.Options.own | {*OWN, "workers", "oversubscribe"}
    workers: tuple[int, ...] = setting((2,), "numbers of workers", within=COUNTS)


def run(argv: Sequence[str]) -> int:
    """Start runs of several numbers of workers in turn, with `python -c "import torch"` among them.
    Seconds count from the start of the process, as the kernel has it (in steps of 10 ms), to when
    the trainer sees the first update, and one of every worker; each worker takes no more rollouts
    than that needs. CPU seconds are those of all processes, those of a worker from its fork to its
    first update; its memory is what it shares with no other process. Linux only.
    """
    options = Options.parse("startup", run.__doc__, argv)
    rows, results = [], []
    for env in options.env:
        measures: dict[Any, Any] = {
            count: partial(starting, [f"--env={env}", *options.words], count)
            for count in options.workers
        }
        figures = in_turns(options.pairs, {"import torch": import_torch, **measures})
        imports = figures.pop("import torch")
        for count, runs in figures.items():
            result = {name: [each[name] for each in runs] for name in runs[0]}
            rows.append((env, str(count), *_cells(result, imports)))
            results.append({"env": env, "workers": count, **result, "import_torch": imports})
    present(f"{options.pairs} starts each, in turn; median (min to max)", HEADER, rows)
    save(options.json, "startup", results)
    return 0


def _cells(result: dict[str, list[float]], imports: list[float]) -> list[str]:
    first = result["first_update"]
    cells = [spread(first, ".2f"), spread(ratios(first, imports), ".2f")]
    cells += [spread(result[name], ".2f") for name in ("last_update", "cpu_s")]
    cells += [spread([1e3 * each for each in result["worker_cpu_s"]], ".0f")]
    return [*cells, spread([each / 1e6 for each in result["private_bytes"]], ".0f")]


def starting(words: Sequence[str], workers: int) -> dict[str, float]:
    """The figures of a run with these options, started in a process of its own.

    Raises UserError if it fails.
    """
    own = [f"--{name.replace('_', '-')}={value}" for name, value in OWN.items()]
    with tempfile.TemporaryDirectory() as folder:
        own += [f"--workers={workers}", "--oversubscribe", f"--runs-dir={folder}", "--quiet"]
        printed = _run(["-m", "async_dqn.bench.one_start", *words, *own])
    return json.loads(printed.splitlines()[-1])


def import_torch() -> float:
    """Seconds of a process that imports torch, from before its start to after its end."""
    begun = time.perf_counter()
    _run(["-c", "import torch"])
    return time.perf_counter() - begun


def _run(arguments: Sequence[str]) -> str:
    """What a Python process in a session of its own prints, which finds this package.

    Raises UserError with its last line if it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": search_path()},
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{last.removeprefix('error: ')} (exit code {done.returncode})")
    return done.stdout
