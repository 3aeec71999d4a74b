"""How processes start and end: a fork server with the heavy imports done, never `fork`.

Forking a process that has used torch hangs the child (its thread pools do not survive), so the
server only imports. `spawn` stands in where there is no fork server.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from async_dqn.processes.child_side import receive
from async_dqn.processes.programs import search_path

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MAX_FAILURES = 10  # of a child in a row
PROGRESS_STEPS = 1000  # what ends the row
LONGEST_PAUSE_S = 10.0
NAMES = {number.value: number.name for number in signal.Signals}
PRELOADED = (
    "async_dqn.processes.fork_server",
    "async_dqn.workers.worker",
    "async_dqn.evaluation.evaluator",
    "setproctitle",
)


def context() -> BaseContext:
    """The context that starts our children."""
    return multiprocessing.get_context(METHOD)


def preload(modules: list[str]) -> None:
    """Start the fork server now; it imports torch and `modules` while the trainer goes on.

    The server is a fresh interpreter: it must find this package wherever it was started, and its
    children must not open one compute thread per core each.
    """
    if METHOD == "spawn":
        return
    multiprocessing.set_forkserver_preload([*PRELOADED, *modules])
    changes = {"PYTHONPATH": search_path()} | dict.fromkeys(THREAD_VARIABLES, "1")
    before = os.environ.copy()
    os.environ.update(changes)
    try:
        with interrupts_blocked():
            forkserver.ensure_running()
    finally:
        for name in changes:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in what is started here: a Ctrl-C must not meet a child that is not ready.

    Children of the fork server inherit its signal mask, not the trainer's. Starting the resource
    tracker unblocks SIGINT, so it goes first.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_as_it_is() -> Iterator[None]:
    """Children import the `__main__` of a file again; a program from standard input has none."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or os.path.exists(path):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


@dataclass
class Child:
    """A worker, a player or the evaluator over all its incarnations."""

    role: str
    index: int  # of its slot
    number: int | None = None  # among those of its role, of whom there are several
    incarnation: int = -1
    process: Any = None
    pipe: Connection | None = None
    cause: str = ""  # what it said before it died
    raised: str = ""  # what it said when it last died of an exception
    failures: int = 0
    steps_at_start: int = 0
    started_at: float = 0.0  # monotonic seconds
    restart_at: float | None = 0.0  # monotonic seconds; at first at once
    retired: bool = False

    @property
    def alive(self) -> bool:
        """Whether there is a process, running or not yet reaped."""
        return self.process is not None

    @property
    def due(self) -> bool:
        """Whether it is to be started now."""
        return self.restart_at is not None and time.monotonic() >= self.restart_at

    @property
    def name(self) -> str:
        """Such as "worker 3"; there is one evaluator."""
        return self.role if self.number is None else f"{self.role} {self.number}"

    @property
    def failed_often(self) -> str:
        """How often in a row, for messages."""
        return "failed once" if self.failures == 1 else f"failed {self.failures} times"

    def start(self, target: Callable[..., None], arguments: tuple, child_end: Connection) -> None:
        """Start the next incarnation; main thread only (the parent-death signal follows it)."""
        self.started_at = time.monotonic()
        process = context().Process(target=target, args=arguments, name=self.name)
        with interrupts_blocked(), _main_as_it_is():
            process.start()
        self.process = process
        child_end.close()  # with our copy open the end of the pipe would never be seen

    def records(self) -> Iterator[dict[str, Any]]:
        """What it has sent so far; the end of the pipe (its last writer is gone) closes it."""
        while not self.pipe.closed and self.pipe.poll():
            record = receive(self.pipe)
            if record is None:
                self.pipe.close()
                return
            yield record

    def reap(self) -> int:
        """Collect the dead process, and what its environment left running; return its exit code."""
        self.process.join()
        code = self.process.exitcode
        with suppress(ProcessLookupError, PermissionError):  # gone without members; or reused
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.close()
        self.pipe.close()
        self.process = self.pipe = None
        return code

    def describe_exit(self, code: int, phase: str) -> str:
        """Settle the `cause` of its death: what is known of it, else how it ended; with details."""
        how = f"{NAMES.get(-code, f'exit {code}')} in {phase}"
        unasked = code == -signal.SIGKILL and not self.cause  # the trainer's kills have a cause
        self.cause = self.cause or how + unasked * ", probably out of memory"
        return f"{self.cause} ({how})"

    def record_failure(self, progress: int, raised: str, most: int = MAX_FAILURES) -> None:
        """Count a failure: start again at once, then after 0.1 to 10 s; after `most` never.

        `progress` is how many steps the incarnation took, `raised` the exception it died of. Where
        one dies twice of the same before its first step, a third would too.
        """
        self.failures = 1 if progress >= PROGRESS_STEPS else self.failures + 1
        is_permanent = bool(raised) and raised == self.raised and not progress
        self.raised = raised
        self.retired = self.failures > most or is_permanent
        pause = 0.0 if self.failures == 1 else min(LONGEST_PAUSE_S, 0.025 * 2**self.failures)
        self.restart_at = None if self.retired else time.monotonic() + pause

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the child's process group, which holds what its environment started."""
        if not self.alive:
            return
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # not yet in its own group, or gone
            self.process.kill() if number == signal.SIGKILL else self.process.terminate()


def failure_summary(workers: Sequence[Child]) -> str:
    """How many were given up, and the cause of the last."""
    *_, last = gone = [worker for worker in workers if worker.retired]
    return f"{len(gone)} of {len(workers)} workers {last.failed_often} (last: {last.cause})"
