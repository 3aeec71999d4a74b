"""Making many runs one after another, each a process of its own with the machine to itself.

Finished runs are kept, interrupted ones made again. A run that fails does not stop the others.
"""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from async_dqn.compare.methods import Contender
from async_dqn.config.config import UserError
from async_dqn.processes.child_side import end_with_parent
from async_dqn.processes.programs import last_words, start
from async_dqn.processes.signals import StopSignals
from async_dqn.report.results import FAILED, quantity, read_json, run_name
from async_dqn.runs.folder import RunFolder, env_folder

KEPT = ("threshold reached", "budget reached", FAILED)


class Job(NamedTuple):
    """One run to make."""

    method: Contender
    seed: int
    folder: Path
    log: Path

    @property
    def name(self) -> str:
        """Its run name."""
        return self.folder.name


def job_of(out: Path, env: str, method: Contender, seed: int) -> Job:
    """The run of a method below `out`."""
    name = run_name(method.label, seed)
    return Job(method, seed, out / "runs" / env_folder(env) / name, out / "logs" / f"{name}.log")


def make_all(jobs: Sequence[Job], failures: dict[str, str], save: Callable[[], None]) -> int:
    """Make every run that is not there yet; 0, or the exit code of the signal that ended it.

    `failures` is kept up to date (causes by run name), and `save` is called whenever it was.
    """
    seconds: dict[str, list[float]] = {}
    running: list[subprocess.Popen] = []

    def pass_on(number: signal.Signals) -> None:
        for process in running:  # which passes a Ctrl-Z on in its turn
            process.send_signal(signal.SIGTSTP if number == signal.SIGSTOP else number)

    with StopSignals(lambda: pass_on(signal.SIGINT), pass_on) as signals:
        for number, job in enumerate(jobs, 1):
            result, note, begun = _result(job), "kept", time.monotonic()
            if result is None:
                if signals.received is not None:
                    return signals.exit_code
                _clear(job.folder)
                code = _run(job, running, signals)
                if signals.received is not None:
                    print(f"stopped; the same command goes on with {job.name}", flush=True)
                    return signals.exit_code
                result, note = _result(job), ""
                failures.pop(job.name, None)
                if code or result is None or result.get("status") == FAILED:
                    failures[job.name] = f"{last_words(job.log)} (exit code {code})"
                save()
            taken = float(result.get("wall_s") or 0) if note else time.monotonic() - begun
            seconds.setdefault(job.method.label, []).append(taken)
            ended = _ending(failures.get(job.name), result)
            left = _time_left(seconds, jobs[number:])
            words = [word for word in (note, left) if word]
            line = f"[{number} of {len(jobs)}] {job.method.label}, seed {job.seed}: {ended}"
            print("; ".join([line, *words]), flush=True)
    return 0


def started(arguments: Sequence[str], log: Path) -> subprocess.Popen:
    """A program of this package that is told to end when this process does.

    It has a process group of its own: Ctrl-C on a terminal would else reach it twice, and the
    second makes it leave without cleaning up.
    """
    return start(arguments, log, process_group=0, preexec_fn=end_with_parent)


def _run(job: Job, running: list[subprocess.Popen], signals: StopSignals) -> int:
    """Run to the end, or pass the signal on and wait; the exit code."""
    where = ["--seed", str(job.seed), "--runs-dir", str(job.folder.parent.parent)]
    command = ["-m", job.method.module, *job.method.arguments, *where, "--run-name", job.name]
    with started(command, job.log) as process:
        running[:] = [process]
        passed_on = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.5)
            if signals.received is not None and not passed_on:
                process.send_signal(signals.received)
                passed_on = True


def _result(job: Job) -> dict[str, Any] | None:
    """result.json of a run that is finished, else None."""
    with contextlib.suppress(UserError):
        result = read_json(job.folder / "result.json")
        return result if result.get("status") in KEPT else None
    return None


def _clear(folder: Path) -> None:
    """Remove an interrupted run; nothing that is not one, and none that is still going on."""
    if not os.path.lexists(folder):
        return
    if (folder / "checkpoints").is_dir():
        RunFolder.open(folder).close()  # refuses a link, and a run in progress
    elif folder.is_symlink() or not (folder / "config.json").is_file():
        raise UserError(f"{folder} is in the way and no run folder; move it away")
    shutil.rmtree(folder)


def _ending(cause: str | None, result: Mapping[str, Any] | None) -> str:
    if cause is not None or result is None:
        return f"failed: {cause}"
    seconds, steps = quantity(result.get("wall_s")), quantity(result.get("steps"))
    return f"{result['status']}, {seconds} s, {steps} steps"


def _time_left(seconds: Mapping[str, Sequence[float]], todo: Sequence[Job]) -> str:
    """From the mean time of each method so far, the mean of all where it has none."""
    if not todo:
        return ""
    mean = statistics.fmean(s for runs in seconds.values() for s in runs)
    left = sum(statistics.fmean(seconds.get(job.method.label, [mean])) for job in todo)
    return f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
