"""Simulated workers: the serial mode's learners on a virtual clock, to foretell many cores.

A discrete-event simulation that really learns: every pull, step, push and copy of the target
network happens in the order of its virtual time, on the one shared block. What lies between is
computed at once and takes the time that was measured on this machine (`clock` has the model).
So does an evaluation, on cores of its own: the score counts when it would be there.
"""

import heapq
from collections import deque
from dataclasses import asdict

import numpy as np
import torch

from async_dqn.algorithms.rollout import Rollout
from async_dqn.config.scaling import evaluation_processes
from async_dqn.evaluation.evaluator import Evaluator
from async_dqn.parameters.layout import STEPS
from async_dqn.parameters.store import ParameterStore
from async_dqn.runs.durable import replace_json
from async_dqn.runs.progress import print_line
from async_dqn.runs.reporter import REPORT_SECONDS
from async_dqn.runs.run import Run
from async_dqn.training.calibration import measure
from async_dqn.training.clock import MODEL, MemoryBus, Times, VirtualClock, spread
from async_dqn.training.serial import SerialTrainer
from async_dqn.workers.learner import Learner
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import RunSpec

# What happens at a virtual moment; at the same moment in this order, then by worker.
SCORE, STEP, READY, PUSH, TARGET, PULL = range(6)
NO_WORKER = -1  # the evaluator
JITTER, LOSSES = 1000, 1001  # branches of the run's seed, far from those of `run_spec`
LINE = 16  # floats that are lost together


class SimulatedLearner(Learner):
    """A learner whose vector steps are counted later, when virtual time has come to them."""

    def __init__(self, run_spec: RunSpec, store, index: int):
        super().__init__(run_spec, store, index)
        self.uncounted: deque[int] = deque()  # transitions of each vector step
        self.has_gradient = False

    def begin(self, budget: int) -> None:
        """Pull, collect at most `budget` steps and compute the first gradient."""
        self._running = self.update_steps(budget)
        self.resume_update()

    def resume_update(self) -> bool:
        """Push; then pull and compute the next gradient, or say False: the rollout is used up."""
        self.has_gradient = False
        return next(self._running, False) is None

    def _record(self, count: int) -> None:
        super()._record(0)
        self.uncounted.append(count)

    def _gradient(self, rollout: Rollout):
        self.has_gradient = True
        return super()._gradient(rollout)


class LossyStore(ParameterStore):
    """A store in which others that push at the same time overwrite a part of a push."""

    lost = 0.0  # share of the next push

    def attach(self, generator: np.random.Generator) -> None:
        """Draw what is lost from `generator`."""
        self._generator = generator
        shared = self.state if len(self.states) == 1 else []
        self._lines = [vector.view(-1, LINE) for vector in (self.theta, *shared)]

    def push(self, *arguments, **options) -> int:
        """As any store's, but that some cache lines keep what they held."""
        if not self.lost:
            return super().push(*arguments, **options)
        size = len(self._lines[0])
        count = self._generator.binomial(size, self.lost)
        lost = torch.from_numpy(self._generator.choice(size, count, replace=False))
        kept = [lines[lost] for lines in self._lines]
        staleness = super().push(*arguments, **options)
        for lines, before in zip(self._lines, kept):
            lines[lost] = before
        return staleness


class SimulatedEvaluator(Evaluator):
    """An evaluator whose shares are those of virtual CPU time."""

    clock: VirtualClock
    cpu_spent_s = 0.0

    @property
    def all_cpu_spent_s(self) -> float:
        return self.run_spec.config.parallel.workers * self.clock.now + self.cpu_spent_s


class SimulationTrainer(SerialTrainer):
    """Runs one training run of `--simulate-workers` workers; `run()` returns the exit code."""

    learner_kind, store_kind, evaluator_kind = SimulatedLearner, LossyStore, SimulatedEvaluator

    def __init__(self, run: Run):
        torch.set_num_threads(1)
        parallel, optimizer = run.run_spec.config.parallel, run.run_spec.optimizer()
        given = parallel.simulate_times
        self.times = Times.read(given) if given is not None else measure(run.run_spec)
        super().__init__(run)
        self.clock: VirtualClock = run.recorder.clock
        self.memory = MemoryBus(self.times.bandwidth)
        self.pull_bytes = 4 * len(run.store.theta)
        vectors = 1 + optimizer.rows * optimizer.shared  # each is read and written
        self.push_bytes = 2 * self.pull_bytes * vectors
        self.events: list[tuple[float, int, int]] = []
        self.taken = 0  # of the budget, counted or not yet
        self.sync_is_coming = False
        self.pushing: dict[int, int] = {}  # worker: how many others push meanwhile
        self.evaluated = 0  # the last boundary, in units of --eval-every
        self.score: Evaluation | None = None  # that is coming
        self.is_evaluating = False
        self.evaluator.clock = self.clock
        self.evaluating_s = 0.0  # what an evaluation takes
        batched, workers = run.run_spec.info.batched, parallel.workers
        self.evaluating_processes = 1 if batched else evaluation_processes(workers, workers)
        self._jitter = run.run_spec.generator(JITTER)
        losses = run.run_spec.generator(LOSSES)
        for learner in self.learners:
            learner.store.attach(losses)
        self.clock.now += parallel.simulate_startup
        learning = (self._count, self._ready, self._push, self._publish, self._pull)
        self._handlers = (self._end_evaluation, *learning)
        # As many rows for as many steps as one real worker would write.
        run.reporter.interval_s = REPORT_SECONDS / parallel.workers

    def run(self) -> int:
        """Train until the budget, the threshold or a signal ends it."""
        self._write_model()
        return super().run()

    def _write_model(self) -> None:
        parallel, recorder = self.run_.run_spec.config.parallel, self.run_.recorder
        model = {
            "workers": parallel.workers,
            "model": MODEL,
            "pull_bytes": self.pull_bytes,
            "push_bytes": self.push_bytes,
            "times": asdict(self.times),
        }
        recorder.drops.attempt(replace_json, self.run_.folder.path / "simulation.json", model)
        if not self.run_.run_spec.config.run.quiet:
            times = ", ".join(f"{name}={value:.3g}" for name, value in model["times"].items())
            said = f"{parallel.workers} workers, all seconds are simulated: {times}"
            print_line(f"simulated    {said}")

    # The loop

    def _reset(self) -> None:
        super()._reset()
        for worker in range(len(self.learners)):
            self._plan(self.clock.now, PULL, worker)

    def _over(self) -> bool:
        # A copy of the target network that would come after the last push is of no use.
        coming = (kind != TARGET or moment <= self.clock.now for moment, kind, _ in self.events)
        return self._broken_off() or self.run_.patience_over or not any(coming)

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
        learner = self.learners[worker]
        learner.slot[STEPS] += learner.uncounted.popleft()
        if self.store.due and not self.sync_is_coming:
            self.sync_is_coming = True
            self._plan(self.clock.now + self.times.target_delay_s, TARGET, NO_WORKER)
        self._look()

    def _ready(self, worker: int) -> None:
        """The gradient is there: its transfer begins."""
        moment = self.clock.now
        if self.learners[worker].has_gradient:
            moment = self.memory.transfer(moment, self.times.push_s, self.push_bytes)
            for other in self.pushing:
                self.pushing[other] += 1
            self.pushing[worker] = len(self.pushing)
        self._plan(moment, PUSH, worker)

    def _push(self, worker: int) -> None:
        learner = self.learners[worker]
        others = self.pushing.pop(worker, 0)
        share = min(1.0, self.times.lost_values / len(self.store.theta))
        learner.store.lost = 1 - (1 - share) ** others
        if learner.resume_update():  # another update on the same rollout
            self._spend(worker)
        else:
            self._plan(self.clock.now, PULL, worker)
        self.run_.reporter.add(learner.record())
        learner.clear()
        self.run_.turn()

    def _publish(self, worker: int) -> None:
        self.sync_is_coming = False
        self.store.keep_up()

    # The evaluator

    def _look(self) -> None:
        """Begin an evaluation if one is due, and the last one is done and paid for."""
        steps = self.store.steps
        due = steps // self.eval_every > self.evaluated and steps < self.budget
        if due and not self.is_evaluating and self.evaluator.within_budget():
            self.evaluated = steps // self.eval_every
            self.is_evaluating, self.score = True, self._scored()
            self._plan(self.clock.now + self.evaluating_s, SCORE, NO_WORKER)

    def _end_evaluation(self, worker: int) -> None:
        self.is_evaluating = False
        if self.score is not None:
            self.run_.add_evaluation(self.score)
        self._look()

    def _scored(self, final: bool = False) -> Evaluation | None:
        self.evaluating_s = 0.0
        evaluation = super()._scored(final)
        if final and not self.run_.reached:  # else the simulated run is over
            self.clock.now += self.evaluating_s
        return evaluation

    def _played(self, stepped: int, final: bool) -> None:
        cost_s = self.times.play_s + stepped * self.times.play_row_s
        self.evaluator.cpu_spent_s += cost_s
        self.evaluating_s += cost_s / self.evaluating_processes
        super()._played(stepped, final)
