"""Workers that know what their time goes into, for `bench phases`.

Every nanosecond of such a worker is charged to one phase: that of the innermost charged method
that runs, else "rest". The methods are replaced in the objects of one learner; the learner of
ordinary training has no clock to read.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from time import perf_counter_ns, process_time_ns
from typing import Any

from async_dqn.bench import throughput
from async_dqn.bench.command import Sources
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes.spawn import Child
from async_dqn.runs.run import Run
from async_dqn.training.supervisor import Supervisor
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import ProcessArgs, RunSpec
from async_dqn.workers.worker import run_worker

REST, STEPS, CPU = "rest", "steps", "_cpu"


class PhaseClock:
    """Nanoseconds by phase, of the clock and (with CPU after its name) of the process's CPU time.

    Phases may be nested: the outer one stands still meanwhile.
    """

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._phase, self._since, self._cpu_since = REST, perf_counter_ns(), process_time_ns()

    def enter(self, phase: str) -> str:
        """From now on it is `phase`; returns which it was."""
        # The CPU time first: where the kernel gives the core away at this call, it was due before.
        cpu, now, before = process_time_ns(), perf_counter_ns(), self._phase
        self.spent[before] += now - self._since
        self.spent[before + CPU] += cpu - self._cpu_since
        self._phase, self._since, self._cpu_since = phase, now, cpu
        return before

    def charge(self, owner: Any, name: str, phase: str) -> None:
        """From now on the method `name` of `owner`, if it has one, is `phase`."""
        method = getattr(owner, name, None)
        if method is None:
            return

        def charged(*arguments: Any, **keywords: Any) -> Any:
            before = self.enter(phase)
            try:
                return method(*arguments, **keywords)
            finally:
                self.enter(before)

        vars(owner)[name] = charged  # of a frozen object too


class PhasedLearner(Learner):
    """A learner whose records tell nanoseconds by phase, and steps, since it was made."""

    def __init__(self, run_spec: RunSpec, store: ParameterStore, index: int):
        super().__init__(run_spec, store, index)
        self.clock, self._taken = PhaseClock(), 0
        for owner, name, phase in self._charged():
            self.clock.charge(owner, name, phase)

    def _charged(self) -> Iterator[tuple[Any, str, str]]:
        yield self, "_pull", "pull"
        yield self.collector, "_act", "act"
        yield self.envs, "step", "step"
        yield self, "_gradient", "backward"  # what is left of it
        yield self.algorithm, "loss", "forward"
        for name in ("targets", "target_distributions"):
            yield self.algorithm, name, "target"
        yield self, "_push", "push"
        for name in ("idle", "wait"):
            yield self.store, name, "wait"
        for name in ("add", "sample", "update_priorities"):
            yield self.shard, name, "replay"

    def _record(self, count: int) -> None:
        super()._record(count)
        self._taken += count

    def record(self) -> dict[str, Any]:
        self.clock.enter(REST)  # up to this moment
        return super().record() | {"phases": {**self.clock.spent, STEPS: self._taken}}


def run_phased_worker(start: ProcessArgs) -> None:
    """Entry point of a worker with a phase clock."""
    run_worker(start, PhasedLearner)


class PhasedSupervisor(Supervisor):
    """A supervisor of such workers; what they tell while they warm up does not count."""

    worker_entry = staticmethod(run_phased_worker)

    def __init__(self, run: Run):
        super().__init__(run)
        self._told: dict[int, list[tuple[float, Mapping[str, int]]]] = defaultdict(list)

    def spent(self) -> Counter[str]:
        """Nanoseconds as of `PhaseClock`, and steps, of all workers together."""
        spent: Counter[str] = Counter()
        for told in self._told.values():
            warm = told[0][0] + throughput.WARM_UP_SECONDS
            spent.update(told[-1][1])
            spent.subtract([phases for when, phases in told if when <= warm][-1])
        return spent

    def _handle(self, child: Child, record: dict[str, Any]) -> None:
        if "phases" in record:
            self._told[child.index].append((time.monotonic(), record.pop("phases")))
        super()._handle(child, record)


def phased_run(
    settings: Mapping[str, Any], seconds: float, sources: Sources
) -> tuple[float, Counter[str]]:
    """Steps per second of a run with such workers, and what their time went into.

    That is in the form of `PhasedSupervisor.spent`; the arguments are those of `trainer_speed`.
    """
    made: list[PhasedSupervisor] = []

    def trainer(run: Run) -> PhasedSupervisor:
        made.append(PhasedSupervisor(run))
        return made[0]

    speed = throughput.trainer_speed(settings, seconds, sources, trainer)
    return speed.wall, made[0].spent()
