"""`bench startup`: from starting the program to its first update, against importing torch alone."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from async_dqn.bench.command import Options, in_turns, present, ratios, save, spread
from async_dqn.config import UserError
from async_dqn.jobs import PACKAGE
from async_dqn.results import read_json

# The run is over soon after its first update, and scored briefly.
SHORT = {
    "workers": 2,
    "steps": 1000,
    "eval_every": 10**12,
    "eval_episodes": 1,
    "checkpoint_every": 10**12,
    "max_episode_steps": 100,
}
HEADER = (
    *("environment", "workers", "to the first update, s", "import torch, s"),
    "first update / import, pair by pair",
)


def run(argv: Sequence[str]) -> int:
    """Compare the seconds to the first update of a run of two workers with those of `python -c
    "import torch"`, in turn. The former count from the start of the process, as the kernel has it
    (in steps of 10 ms), to when the trainer sees the count of updates rise (it looks every 5 ms at
    least): `startup_s` of result.json. The latter are those of a whole process, its end included.
    """
    options = Options.parse("startup", run.__doc__, argv)
    given, _ = options.given()
    short = {name: value for name, value in SHORT.items() if name not in given}
    rows, results = [], []
    for env in options.env:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in short.items()]
        measures = {
            "first_update": partial(first_update, [f"--env={env}", *words, *options.words]),
            "import_torch": import_torch,
        }
        seconds = in_turns(options.pairs, measures)
        shares = ratios(seconds["first_update"], seconds["import_torch"])
        workers = options.config(env, **short).parallel.workers
        cells = [spread(each, ".2f") for each in (*seconds.values(), shares)]
        rows.append((env, str(workers), *cells))
        results.append({"env": env, "workers": workers, **seconds})
    present(f"{options.pairs} pairs of whole processes; median (min to max)", HEADER, rows)
    save(options.json, "startup", results)
    return 0


def first_update(words: Sequence[str]) -> float:
    """Seconds from the start of a training process with these options to its first update.

    Raises UserError if it fails, or ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run(["-m", "async_dqn", "train", *words, f"--runs-dir={folder}", "--quiet"])
        (path,) = Path(folder).glob("*/*/result.json")
        seconds = read_json(path).get("startup_s")
    if seconds is None:
        raise UserError("the run ended before its first update; give --set steps=N, more than 1000")
    return seconds


def import_torch() -> float:
    """Seconds of a process that imports torch, from before its start to after its end."""
    begun = time.perf_counter()
    _run(["-c", "import torch"])
    return time.perf_counter() - begun


def _run(arguments: Sequence[str]) -> None:
    """A Python process that finds this package; raises UserError with its last line if it fails."""
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{last.removeprefix('error: ')} (exit code {done.returncode})")
