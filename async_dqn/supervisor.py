"""The asynchronous mode: the one place where processes live and die.

The trainer's main thread starts the workers and the evaluator, waits on what the kernel says of
them (sentinels, pipes), hands out the step budget in leases, restarts who died, and stops in
stages: stop word, SIGTERM, SIGKILL.
"""

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from typing import Any

from async_dqn import processes
from async_dqn.child import Lifeline, receive
from async_dqn.evaluator import Evaluation, run_evaluator
from async_dqn.parameters import (
    ACKNOWLEDGED,
    EVALUATOR_ORDER,
    FINISH,
    PHASE,
    PHASES,
    QUIT,
    STEPS,
    UPDATES,
    WORKERS_STOP,
)
from async_dqn.run import STOPPED, Run
from async_dqn.signals import StopSignals
from async_dqn.task import ChildStart
from async_dqn.worker import run_worker

GRACE_SECONDS = 2.0  # for the stop word, then for SIGTERM
TICK_SECONDS, SHORT_TICK_SECONDS = 0.05, 0.005
MAX_FAILURES = 10  # in a row, without PROGRESS_STEPS between
PROGRESS_STEPS = 1000
STOPPED_RESUMABLE = 75


@dataclass
class Child:
    """A worker or the evaluator over all its incarnations."""

    role: str
    index: int  # of its slot
    incarnation: int = -1
    process: Any = None
    pipe: connection.Connection | None = None
    cause: str = ""  # what it said before it died
    failures: int = 0
    steps_at_start: int = 0
    revive_at: float | None = None  # monotonic seconds
    retired: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process is not None


class Supervisor:
    """Runs one training run in processes; `run()` returns the exit code."""

    def __init__(self, run: Run):
        self.run_ = run
        self.store, self.block = run.store, run.block
        parallel = run.task.config.parallel
        self.workers = [Child("worker", w) for w in range(parallel.workers)]
        self.evaluator = Child("evaluator", parallel.workers)
        self.context = processes.context()
        self.budget = run.task.config.run.steps
        self.vector_steps = parallel.envs_per_worker
        self.rollout_steps = parallel.envs_per_worker * parallel.rollout_length
        self.lifeline = Lifeline.here()

    @property
    def children(self) -> list[Child]:
        return [*self.workers, self.evaluator]

    def run(self) -> int:
        """Train until the budget, the threshold or a signal ends it."""
        with StopSignals(force=self._kill_all) as self.signals:
            try:
                self._grant()
                self._start_all()
                self.run_.recorder.open_board()
                while not self._over():
                    self._turn()
                self._stop_workers()
                if not self.run_.reached and self.store.steps >= self.budget:
                    self._final_evaluation()
                self._order_evaluator(QUIT)
                self._end(self.children)
            finally:
                self._kill_all()
            return self._conclude()

    def _conclude(self) -> int:
        if self.signals.received is not None:
            self.run_.finish(STOPPED)
            return self.signals.exit_code
        if self.run_.stopped_by_callback:
            self.run_.finish(STOPPED)
            return 0
        if self.store.steps < self.budget and not self.run_.reached:
            self.run_.finish(STOPPED, cause=self._last_cause())
            return STOPPED_RESUMABLE
        self.run_.finish()
        return 0

    def _over(self) -> bool:
        return (
            self._interrupted()
            or self.run_.reached
            or self.run_.stopped_by_callback
            or self.store.steps >= self.budget
            or all(worker.retired for worker in self.workers)
        )

    def _interrupted(self) -> bool:
        return self.signals.received is not None

    def _last_cause(self) -> str:
        return next((c.cause for c in reversed(self.workers) if c.cause), "no worker is left")

    # Life and death

    def _start_all(self) -> None:
        # Starting the first child also starts the resource tracker, which unblocks SIGINT; so it
        # goes first. A Ctrl-C must not reach a child before it ignores it.
        resource_tracker.ensure_running()
        for child in self.children:
            self._start(child)

    def _start(self, child: Child) -> None:
        child.incarnation += 1
        child.steps_at_start = int(self.store.slots[child.index, STEPS])
        child.cause, child.revive_at = "", None
        child.pipe, child_end = self.context.Pipe(duplex=False)
        name = f"{child.role} {child.index}" if child.role == "worker" else child.role
        start = ChildStart(
            task=self.run_.task,
            block=self.block,
            lifeline=self.lifeline,
            pipe=child_end,
            index=child.index,
            incarnation=self.run_.first_incarnation + child.incarnation,
            title=f"async-dqn {name} {self.run_.folder.name}",
            log=self.run_.folder.logs / f"{name.replace(' ', '-')}.log",
        )
        target, arguments = run_worker, (start,)
        if child is self.evaluator:
            target, arguments = run_evaluator, (start, self.run_.best)
        child.process = self.context.Process(target=target, args=arguments, name=name)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        child_end.close()  # with our copy open the end of the pipe would never be seen
        event = "restart" if child.incarnation else "start"
        self._event(event, child, pid=child.process.pid)
        self.run_.restarts += bool(child.incarnation)

    def _reap(self, child: Child) -> int:
        """Collect a dead child; return its exit code."""
        self._drain(child)
        child.process.join()
        code = child.process.exitcode
        child.process.close()
        child.pipe.close()
        child.process = child.pipe = None
        return code

    def _bury(self, child: Child) -> None:
        """A child died before its time: say why, and restart it after a pause."""
        phase = PHASES[int(self.store.slots[child.index, PHASE])]
        pid = child.process.pid
        code = self._reap(child)
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        child.cause = child.cause or f"{how} in {phase}"
        progress = int(self.store.slots[child.index, STEPS]) - child.steps_at_start
        child.failures = 1 if progress >= PROGRESS_STEPS else child.failures + 1
        self._event("death", child, pid=pid, cause=f"{child.cause} ({how} in {phase})")
        name = f"{child.role} {child.index}" if child.role == "worker" else child.role
        if child.failures > MAX_FAILURES:
            child.retired = True
            if child.role == "worker":  # its lease goes back: the steps it will never take
                self.block["limits"][child.index] = self.store.slots[child.index, STEPS]
            self.run_.recorder.warn(f"{name} failed {child.failures} times, given up ({child.cause})")
            return
        pause = 0.0 if child.failures == 1 else min(10.0, 0.025 * 2**child.failures)
        child.revive_at = time.monotonic() + pause
        self.run_.recorder.warn(f"{name} died ({child.cause}), restarting")

    # The loop

    def _turn(self) -> None:
        self._wait(self._tick())
        self._grant()
        for child in self.children:
            if child.revive_at is not None and time.monotonic() >= child.revive_at:
                self._start(child)
        self.run_.turn()

    def _tick(self) -> float:
        """Short before the first update and near the end of the budget, where leases are short."""
        close = self.budget - self.store.steps < 0.2 * self.run_.steps_per_second
        if close or self.run_.startup_s is None:
            return SHORT_TICK_SECONDS
        return TICK_SECONDS

    def _wait(self, seconds: float, bury: bool = True) -> None:
        """Sleep until something happens; read records, and bury the dead."""
        alive = [child for child in self.children if child.alive]
        watched = {child.process.sentinel: child for child in alive}
        pipes = [child.pipe for child in alive if not child.pipe.closed]
        ready = connection.wait([*watched, *pipes, self.signals.fd], seconds)
        if self.signals.fd in ready:
            os.read(self.signals.fd, 64)
        for child in alive:
            if child.pipe in ready:
                self._drain(child)
            if child.process.sentinel in ready:
                self._bury(child) if bury else self._reap(child)

    def _drain(self, child: Child) -> None:
        while not child.pipe.closed and child.pipe.poll():
            record = receive(child.pipe)
            if record is None:  # end of the pipe: its last writer is gone
                child.pipe.close()
                return
            self._handle(child, record)

    def _handle(self, child: Child, record: dict[str, Any]) -> None:
        kind = record.pop("kind", None)
        if kind == "failure":
            child.cause = record["cause"]
        elif kind == "training":
            self.run_.add_training(record)
        elif kind == "evaluation":
            evaluation = Evaluation(**record)
            self.run_.add_evaluation(evaluation)
            self.store.control[ACKNOWLEDGED] = evaluation.sequence

    def _grant(self) -> None:
        """Lease steps: nobody waits for a slower worker, and the total is met exactly."""
        limits = self.block["limits"]
        base = int(self.store.slots[-1, STEPS])
        for worker in self.workers:
            remaining = self.budget - base - int(limits.sum())
            if remaining <= 0 or worker.retired:
                continue
            chunk = max(self.rollout_steps, remaining // (4 * len(self.workers)))
            if limits[worker.index] - self.store.slots[worker.index, STEPS] < chunk / 2:
                whole = -(-chunk // self.vector_steps) * self.vector_steps
                limits[worker.index] += min(remaining, whole)

    # The end

    def _order_evaluator(self, order: int) -> None:
        self.store.control[EVALUATOR_ORDER] = order

    def _stop_workers(self) -> None:
        self.store.control[WORKERS_STOP] = 1
        self._end(self.workers)

    def _end(self, children: Iterable[Child]) -> None:
        """Let them leave; then SIGTERM, then SIGKILL, each after its grace time."""
        children = list(children)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for child in children:
                child.revive_at = None
                if number is not None:
                    self._kill(child, number)
            deadline = time.monotonic() + GRACE_SECONDS
            while any(c.alive for c in children) and time.monotonic() < deadline:
                self._wait(SHORT_TICK_SECONDS, bury=False)

    def _final_evaluation(self) -> None:
        """Have the final parameters evaluated; a second signal is not needed to leave early."""
        self._order_evaluator(FINISH)
        while not self._interrupted() and not self.run_.final_evaluated:
            if not self.evaluator.alive and self.evaluator.revive_at is None:
                return
            self._wait(SHORT_TICK_SECONDS)
            if self.evaluator.revive_at and time.monotonic() >= self.evaluator.revive_at:
                self._start(self.evaluator)
            self.run_.turn()

    def _kill(self, child: Child, number: int) -> None:
        if child.alive:
            try:
                os.killpg(child.process.pid, number)
            except ProcessLookupError:  # not yet in its own group, or gone
                child.process.kill() if number == signal.SIGKILL else child.process.terminate()

    def _kill_all(self) -> None:
        for child in self.children:
            self._kill(child, signal.SIGKILL)

    def _event(self, event: str, child: Child, **extra: Any) -> None:
        self.run_.recorder.event(event, role=child.role, index=child.index, **extra)
