"""The asynchronous mode: the one place where processes live and die.

The trainer's main thread starts all children, waits on what the kernel says of them (sentinels,
pipes), hands out the step budget, restarts who died, and stops in stages (`_end`).
"""

import os
import signal
import time
from collections.abc import Iterable
from multiprocessing import connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_dqn.config.config import UserError
from async_dqn.evaluation.crew import run_player
from async_dqn.evaluation.evaluator import run_evaluator
from async_dqn.parameters import layout
from async_dqn.processes import spawn
from async_dqn.processes.child_side import ParentIdentity
from async_dqn.processes.signals import STOPPING, StopSignals
from async_dqn.processes.spawn import MAX_FAILURES, Child, failure_summary
from async_dqn.runs.run import STOPPED, Run
from async_dqn.training.divergence import has_diverged, roll_back
from async_dqn.training.leases import grant, share
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import ProcessArgs
from async_dqn.workers.worker import run_worker

GRACE_SECONDS = 2.0  # for the stop word, then for SIGTERM
START_UP_S, LATE_S = 120.0, 2.0  # to the first sign of life; for one turn of the loop
TICK_SECONDS, SHORT_TICK_SECONDS = 0.05, 0.005
CALL_AFTER_S = 0.5  # about what the start of a player takes
STOPPED_RESUMABLE = 75


class Supervisor:
    """Runs one training run in processes; `run()` returns the exit code."""

    worker_entry = staticmethod(run_worker)

    def __init__(self, run: Run):
        self.run_ = run
        self.store, self.block = run.store, run.block
        parallel = run.run_spec.config.parallel
        self.workers = [Child("worker", w, w) for w in range(parallel.workers)]
        self.evaluator = Child("evaluator", parallel.workers)
        self.players: list[Child] = []
        self.budget = run.run_spec.config.run.steps
        self.rollout_steps = parallel.envs_per_worker * parallel.rollout_length
        self.parent = ParentIdentity.here()
        self.together = parallel.mode == "sync"
        self.board_due = True
        # A pipeline cannot be formed again by one of its two processes.
        self.max_failures = 0 if parallel.model_parallel else MAX_FAILURES  # of a worker
        self.min_workers = parallel.workers if self.together else parallel.min_workers
        self.patience_s = parallel.patience_s
        self._looked = self._awake_since = time.monotonic()

    @property
    def children(self) -> list[Child]:
        return [self.evaluator, *self.workers, *self.players]  # the one to wait for first

    def run(self) -> int:
        """Train until the budget, the threshold or a signal ends it."""
        with StopSignals(self._abandon, self._signal_all, STOPPING) as self.signals:
            try:
                self._call_players(self.run_.run_spec.players)
                while not self._over():
                    self._turn()
                self.store.control[layout.WORKERS_STOP] = 1
                self._end(self.workers)
                if self.run_.reached:
                    self.run_.take_decisive()
                    if self.run_.scores_afresh:
                        self._final_evaluation(layout.AFRESH)
                elif self._spent:
                    self._final_evaluation(layout.FINISH)
                self.store.control[layout.EVALUATOR_ORDER] = layout.QUIT
                self._end(self.children)
            finally:
                self._signal_all()
            return self._conclude()

    def _conclude(self) -> int:
        if self.signals.received or self.run_.reporter.stop_wanted:
            self.run_.finish(STOPPED, cause=self.signals.words)
            return self.signals.exit_code
        if self._spent or self.run_.reached:
            self.run_.finish()
            return 0
        self.run_.finish(STOPPED, cause=failure_summary(self.workers))
        return STOPPED_RESUMABLE

    @property
    def _spent(self) -> bool:
        """Whether budget or patience is used up."""
        return self.store.steps >= self.budget or self.run_.patience_over

    def _over(self) -> bool:
        return bool(
            self.signals.received
            or self.run_.reached
            or self.run_.reporter.stop_wanted
            or self._spent
            or sum(not worker.retired for worker in self.workers) < self.min_workers
        )

    # Life and death

    def _start(self, child: Child) -> None:
        child.incarnation += 1
        child.steps_at_start = self._progress(child)
        child.cause, child.restart_at = "", None
        child.pipe, child_end = spawn.context().Pipe(duplex=False)
        start = ProcessArgs(
            run_spec=self.run_.run_spec,
            block=self.block,
            parent=self.parent,
            pipe=child_end,
            index=child.index,
            incarnation=self.run_.first_incarnation + child.incarnation,
            title=f"async-dqn {child.name} {self.run_.folder.name}",
            log=self.run_.folder.logs / f"{child.name.replace(' ', '-')}.log",
        )
        entries = {"worker": self.worker_entry, "evaluator": run_evaluator, "player": run_player}
        best = [self.run_.best] if child is self.evaluator else []
        child.start(entries[child.role], (start, *best), child_end)
        self._event("restart" if child.incarnation else "start", child, pid=child.process.pid)
        self.run_.restarts += bool(child.incarnation)

    def _start_due(self) -> bool:
        """Start one child that is due, if there is one: who has started gets a lease meanwhile."""
        due = next((child for child in self.children if child.due), None)
        if due is not None:
            self._start(due)
        return due is not None

    def _call_players(self, count: int) -> None:
        for number in range(len(self.players) + 1, count + 1):
            self.players.append(Child("player", self.evaluator.index + number, number))

    def _on_child_death(self, child: Child) -> None:
        """A child died before its time: say why, and restart it after a pause."""
        phase, pid = self._phase(child), child.process.pid
        code = child.reap()
        order, slot = self.store.control[layout.EVALUATOR_ORDER], self._slot(child)
        if child is self.evaluator and code == 0 and order != layout.RUN:
            return  # it has done what it was told
        died_on_start = not child.incarnation and slot[layout.PID] != pid
        if died_on_start and code > 0 and not child.cause and child.role != "player":
            raise UserError(
                f"{child.name} could not start (exit {code}); start the trainer under "
                'if __name__ == "__main__": (see the README)'
            )
        raised = child.cause if code == 1 else ""
        self._event("death", child, pid=pid, cause=child.describe_exit(code, phase))
        progress = self._progress(child) - child.steps_at_start
        most = self.max_failures if child.role == "worker" else MAX_FAILURES
        child.record_failure(progress, raised, most)
        often = f"restarting {child.failures} of {MAX_FAILURES}"
        said = f"{child.name} died ({child.cause}), {often}"
        if child.retired:
            said = f"{child.name} {child.failed_often}, given up ({child.cause})"
            if child.role == "worker":  # its lease goes back: the steps it will never take
                self.run_.retired += 1
                self.block["lease_limits"][child.index] = slot[layout.STEPS]
        self.run_.recorder.warn(said)

    def _slot(self, child: Child) -> NDArray[np.int64]:
        return self.store.slots[child.index]

    def _progress(self, child: Child) -> int:
        word = layout.STEPS if child.role == "worker" else layout.LAST_PROGRESS_STEP
        return int(self._slot(child)[word])

    def _phase(self, child: Child) -> str:
        return layout.PHASES[int(self._slot(child)[layout.PHASE])]

    def _kill_hung(self) -> None:
        """Who shows no sign of life dies; burying it starts the next one.

        A child that starts gets longer. If this loop came late (a suspended machine, Ctrl-Z),
        everybody was asleep, and all clocks begin anew.
        """
        now = time.monotonic()
        if now - self._looked > LATE_S:
            self._awake_since = now
        self._looked = now
        for child in [child for child in self.children if child.alive]:
            slot = self._slot(child)
            sign_s = int(slot[layout.HEARTBEAT_NS]) / 1e9
            begun = sign_s > child.started_at and slot[layout.PHASE] != layout.STARTING
            patience_s = self.patience_s if begun else max(START_UP_S, self.patience_s)
            silent_s = now - max(self._awake_since, child.started_at, sign_s)
            if silent_s > patience_s:
                child.cause = f"no sign of life for {silent_s:.0f} s in {self._phase(child)}"
                child.kill(signal.SIGKILL)

    def _recover(self) -> None:
        """Training has diverged: all stop, the parameters go back, all start again."""
        self.store.control[layout.WORKERS_STOP] = 1
        for child in (self.evaluator, *self.players):  # no other may publish the target meanwhile
            child.kill(signal.SIGKILL)
        self._end(self.children)
        roll_back(self.run_, allowed=not self.together)
        self.store.control[layout.WORKERS_STOP] = 0
        for child in self.children:
            child.restart_at = None if child.retired else 0.0

    # The loop

    def _turn(self) -> None:
        self._wait(self._tick())
        self._kill_hung()
        if has_diverged(self.store):
            self._recover()
        self._grant()
        if self.evaluator.retired:  # in its place
            self.store.keep_up()
        if not self._start_due() and self.board_due and self.run_.startup_s is not None:
            self.board_due = False
            self.run_.recorder.open_board()  # takes a quarter of a second; now all are at work
        self.run_.turn()

    def _tick(self) -> float:
        """None while one is to start, short while the speed is unknown, and near the end."""
        if any(child.due for child in self.children):
            return 0.0
        reporter = self.run_.reporter
        close = self.budget - self.store.steps < reporter.steps_per_second
        return SHORT_TICK_SECONDS if close or reporter.worker_speeds is None else TICK_SECONDS

    def _wait(self, seconds: float, bury: bool = True) -> None:
        """Sleep until something happens; read records, and bury the dead."""
        alive = [child for child in self.children if child.alive]
        sentinels = [child.process.sentinel for child in alive]
        pipes = [child.pipe for child in alive if not child.pipe.closed]
        ready = set(connection.wait([*sentinels, *pipes, self.signals.fd], seconds))
        if self.signals.fd in ready:
            os.read(self.signals.fd, 64)
        for child in alive:
            if child.pipe in ready:
                self._drain(child)
        dead = [child for child in alive if child.process.sentinel in ready]
        # Who was killed, a negative code, is why another could not go on.
        for child in sorted(dead, key=lambda child: child.process.exitcode):
            self._drain(child)
            self._on_child_death(child) if bury else child.reap()

    def _drain(self, child: Child) -> None:
        for record in child.records():
            self._handle(child, record)

    def _handle(self, child: Child, record: dict[str, Any]) -> None:
        kind = record.pop("kind", None)
        if kind == "failure":
            child.cause = record["cause"]
            if record["is_permanent"] and not child.incarnation and child.role != "player":
                raise UserError(f"{child.name} {child.cause}; make the environment the same twice")
        elif kind == "warning":
            self.run_.recorder.warn(record["text"])
        elif kind == "training":
            self.run_.reporter.add(record)
        elif kind == "evaluation":
            self.run_.add_evaluation(Evaluation(**record))
            self.store.control[layout.ACKNOWLEDGED] = record["sequence"]

    def _grant(self) -> None:
        """Hand out budget; none until the upkeep is in hands, or these have failed."""
        none = self.store.upkeep.shortest is None
        begun = self._slot(self.evaluator)[layout.HEARTBEAT_NS]
        if none or begun or self.evaluator.incarnation > 0:
            self._hand_out()

    def _hand_out(self) -> None:
        if self.together:  # who waits for each other gets the budget at once, in equal parts
            if not self.store.control[layout.SHARED_OUT]:
                actors = self.run_.run_spec.config.parallel.actors
                share(self.block["lease_limits"][:actors], self.budget - self.store.steps)
                self.store.control[layout.SHARED_OUT] = 1
            return
        counted = self.store.slots[: len(self.workers), layout.STEPS]
        budget = self.budget - int(self.store.slots[-1, layout.STEPS])
        speeds = self.run_.reporter.worker_speeds
        # Who has not been started would only keep steps from those who wait for some.
        idle = [w.index for w in self.workers if w.retired or w.incarnation < 0]
        grant(self.block["lease_limits"], counted, budget, self.rollout_steps, speeds, idle)

    # The end

    def _end(self, children: Iterable[Child]) -> None:
        """Let them leave; then SIGTERM, then SIGKILL, each after its grace time."""
        children = list(children)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for child in children:
                child.restart_at = None
                if number is not None:
                    child.kill(number)
            deadline = time.monotonic() + GRACE_SECONDS
            while any(c.alive for c in children) and time.monotonic() < deadline:
                self._wait(SHORT_TICK_SECONDS, bury=False)

    def _final_evaluation(self, order: int) -> None:
        """Have the final parameters evaluated; a second signal is not needed to leave early."""
        self.store.control[layout.EVALUATOR_ORDER] = order
        self.run_.reporter.begin_final()
        begun = time.monotonic()
        while not self.signals.received and self.run_.fresh_mean is None:
            if not self.evaluator.alive and self.evaluator.restart_at is None:
                return
            self._wait(SHORT_TICK_SECONDS)
            self._kill_hung()
            self._start_due()
            if time.monotonic() > begun + CALL_AFTER_S:  # the cores are free now
                self._call_players(self.run_.run_spec.most_players)
            self.run_.turn()

    def _abandon(self) -> None:
        self._signal_all()
        self.run_.abandon()

    def _signal_all(self, number: signal.Signals = signal.SIGKILL) -> None:
        for child in self.children:
            child.kill(number)

    def _event(self, event: str, child: Child, **extra: Any) -> None:
        self.run_.recorder.event(event, role=child.role, index=child.index, **extra)
