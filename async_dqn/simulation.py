"""Simulated workers: the serial mode's learners on a virtual clock, to foretell many cores.

A discrete-event simulation that really learns: every pull, step, push and copy of the target
network happens in the order of its virtual time, on the one shared block. What lies between is
computed at once and takes the time that was measured on this machine (`clock` has the model).
Evaluations are a virtual core's own and take no time; start-up does not count.
"""

import heapq
import json
from collections import deque
from dataclasses import asdict

import torch

from async_dqn.calibration import measure
from async_dqn.clock import MODEL, SharedMemory, Times, VirtualClock, spread
from async_dqn.durable import replace_file
from async_dqn.learner import Learner
from async_dqn.parameters import STEPS
from async_dqn.reports import REPORT_SECONDS
from async_dqn.rollout import Rollout
from async_dqn.run import Run
from async_dqn.serial import SerialTrainer
from async_dqn.task import Task

# What happens at a virtual moment; at the same moment in this order, then by worker.
STEP, READY, PUSH, TARGET, PULL = range(5)
NOBODY = -1  # the keeper of the target network
JITTER = 1000  # a branch of the run's seed, far from those of `task`


class SimulatedLearner(Learner):
    """A learner whose vector steps are counted later, when virtual time has come to them."""

    def __init__(self, task: Task, store, index: int):
        super().__init__(task, store, index)
        self.uncounted: deque[int] = deque()  # transitions of each vector step
        self.has_gradient = False

    def begin(self, budget: int) -> None:
        """Pull, collect at most `budget` steps and compute the first gradient."""
        self._running = self.phases(budget)
        self.go_on()

    def go_on(self) -> bool:
        """Push; then pull and compute the next gradient, or say False: the rollout is used up."""
        self.has_gradient = False
        return next(self._running, False) is None

    def _record(self, count: int) -> None:
        super()._record(0)
        self.uncounted.append(count)

    def _gradient(self, rollout: Rollout):
        self.has_gradient = True
        return super()._gradient(rollout)


class SimulationTrainer(SerialTrainer):
    """Runs one training run of `--simulate-workers` workers; `run()` returns the exit code."""

    learner_kind = SimulatedLearner

    def __init__(self, run: Run):
        torch.set_num_threads(1)
        parallel, optimizer = run.task.config.parallel, run.task.optimizer()
        given = parallel.simulate_times
        self.times = Times.read(given) if given is not None else measure(run.task)
        super().__init__(run)
        self.clock: VirtualClock = run.recorder.clock
        self.memory = SharedMemory(self.times.bandwidth)
        self.pull_bytes = 4 * len(run.store.theta)
        vectors = 1 + optimizer.rows * optimizer.shared  # each is read and written
        self.push_bytes = 2 * self.pull_bytes * vectors
        self.events: list[tuple[float, int, int]] = []
        self.taken = 0  # of the budget, counted or not yet
        self.synced, self.sync_is_coming = 0, False
        self._jitter = run.task.generator(JITTER)
        self._handlers = (self._count, self._ready, self._push, self._publish, self._pull)
        # As many rows for as many steps as one real worker would write.
        run.reporter.interval_s = REPORT_SECONDS / parallel.workers

    def run(self) -> int:
        """Train until the budget, the threshold or a signal ends it."""
        self._write_model()
        return super().run()

    def _write_model(self) -> None:
        parallel, recorder = self.run_.task.config.parallel, self.run_.recorder
        model = {
            "workers": parallel.workers,
            "model": MODEL,
            "pull_bytes": self.pull_bytes,
            "push_bytes": self.push_bytes,
            "times": asdict(self.times),
        }
        path, text = self.run_.folder.path / "simulation.json", json.dumps(model, indent=2)
        recorder.drops.attempt(replace_file, path, f"{text}\n".encode())
        if not self.run_.task.config.run.quiet:
            times = ", ".join(f"{name}={value:.3g}" for name, value in asdict(self.times).items())
            print(
                f"simulated    {parallel.workers} workers, all seconds are simulated: {times}",
                flush=True,
            )

    # The loop

    def _reset(self) -> None:
        super()._reset()
        for worker in range(len(self.learners)):
            self._plan(0.0, PULL, worker)

    def _over(self) -> bool:
        # A copy of the target network that would come after the last push is of no use.
        coming = (kind != TARGET or moment <= self.clock.now for moment, kind, _ in self.events)
        return self._broken_off() or not any(coming)

    def _round(self) -> None:
        """One event."""
        self.clock.now, kind, worker = heapq.heappop(self.events)
        self._handlers[kind](worker)

    def _plan(self, moment: float, kind: int, worker: int) -> None:
        heapq.heappush(self.events, (moment, kind, worker))

    # What happens

    def _pull(self, worker: int) -> None:
        """Begin the next rollout, while there is budget for it."""
        learner, left = self.learners[worker], self.budget - self.taken
        if left > 0:
            learner.begin(left)
            self.taken += sum(learner.uncounted)
            self._spend(worker)

    def _spend(self, worker: int) -> None:
        """Plan when the work that was just computed counts: steps, then the gradient."""
        learner, times = self.learners[worker], self.times
        factor = spread(times.variation, self._jitter.standard_normal())
        moment = self.memory.transfer(self.clock.now, times.pull_s, self.pull_bytes)
        for _ in learner.uncounted:
            moment += factor * times.step_s
            self._plan(moment, STEP, worker)
        self._plan(moment + factor * times.gradient_s * learner.has_gradient, READY, worker)

    def _count(self, worker: int) -> None:
        """One vector step was taken; see what has come due."""
        learner, before = self.learners[worker], self.store.steps
        learner.slot[STEPS] += learner.uncounted.popleft()
        steps = self.store.steps
        if self.sync_steps and steps // self.sync_steps > self.synced and not self.sync_is_coming:
            self.sync_is_coming = True
            self._plan(self.clock.now + self.times.target_delay_s, TARGET, NOBODY)
        if before // self.eval_every < steps // self.eval_every and steps < self.budget:
            self._evaluate()

    def _ready(self, worker: int) -> None:
        """The gradient is there: its transfer begins."""
        moment = self.clock.now
        if self.learners[worker].has_gradient:
            moment = self.memory.transfer(moment, self.times.push_s, self.push_bytes)
        self._plan(moment, PUSH, worker)

    def _push(self, worker: int) -> None:
        learner = self.learners[worker]
        if learner.go_on():  # another update on the same rollout
            self._spend(worker)
        else:
            self._plan(self.clock.now, PULL, worker)
        self.run_.reporter.add(learner.record())
        learner.clear()
        self.run_.turn()

    def _publish(self, worker: int) -> None:
        steps = self.store.steps
        self.sync_is_coming = False
        if self.store.sync_target(steps):
            self.synced = steps // self.sync_steps
