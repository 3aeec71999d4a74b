"""The evaluator: synchronises the target network and scores snapshots of the global parameters.

Both jobs are steps of generators, so that a target boundary is never missed because of a long
evaluation. Ten screening episodes, or half of `--eval-episodes` if that is less; if they reach the
threshold or beat the best score so far, the full number on other seeds decides (`sequential`).
"""

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict

import numpy as np
import torch

from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.evaluation.seats import Played, Seats
from async_dqn.evaluation.sequential import falls_short
from async_dqn.parameters import layout
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes.child_side import RecordPipe, in_child
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import ProcessArgs, RunSpec

# An evaluation starts only while the evaluator's CPU time is below this share of the run's: half of
# it and a second at first, as starting a short run has its cost too. While a threshold is wanted,
# which ends the run the sooner the oftener one looks, a mere best score is confirmed only below a
# third of that.
CPU_SHARE, CPU_SHARE_TO_THRESHOLD = 0.02, 0.1
CPU_SECONDS, SHORT_CPU_SECONDS = 1.0, 60.0
LATE_S = 30.0  # an evaluation is put off so long before it is told


class Evaluator:
    """Decides what a snapshot is worth."""

    def __init__(self, run_spec: RunSpec, store: ParameterStore, best: float | None):
        self.run_spec, self.store = run_spec, store
        self.network = FlatNetwork(run_spec.network(), gradient=False)
        seats = Seats(store) if len(store.block["seats"]) else None
        self.crew = Crew(EpisodeRunner(run_spec, self.network, alive=store.beat), seats)
        self.best = -math.inf if best is None else best
        self._slots = store.slots[run_spec.config.parallel.workers : -1]  # of all who evaluate

    def close(self) -> None:
        """Free the environments."""
        self.crew.player.close()

    def evaluate(
        self, final: bool = False, fresh: bool = False
    ) -> Generator[int, None, Evaluation | None]:
        """Snapshot theta and score it, one vector step per `next`; maybe on `fresh` seeds.

        Yields how many environments were stepped. None if theta is not finite, or the environments
        break down all the time.
        """
        self.store.slot[layout.FINISHED] = 0
        if not self.store.publish_snapshot():
            return None
        stamp = self.store.snapshot.read(self.network.vector)
        assert stamp is not None  # this process alone publishes
        self.crew.player.fresh = fresh
        self.crew.begin(self.crew.player.screening if final else 0, stamp[0], hurry=final)
        try:
            return (yield from self._score(stamp, final))
        finally:
            self.crew.end()

    def _score(
        self, stamp: tuple[int, int], final: bool
    ) -> Generator[int, None, Evaluation | None]:
        """Screen and confirm the snapshot; the latter only if it is the `final` one."""
        player, screening, goal = self.crew.player, None, -math.inf
        if not final:
            before = self.cpu_spent_s
            yield from self.crew.play(player.screening)
            screened = self.crew.results(0, player.screening)
            if not screened:
                return None
            screening, cost_s = _summary(stamp, screened), self.cpu_spent_s - before
            if not self.run_spec.info.batched:  # there the others have been playing beside them
                cost_s *= player.confirming / len(screened)
            goal = self._goal
            too_dear = cost_s > self.cpu_budget_s  # there would be no other look for long
            if screening.mean < goal or (too_dear and screening.mean < self.threshold):
                return screening
        for stepped in self._confirm(goal):
            if final:
                self.store.slot[layout.FINISHED] = self.crew.finished
            yield stepped
        confirmed = self.crew.results(player.screening, player.total)
        if len(confirmed) < player.confirming:
            return screening
        score = _summary(stamp, confirmed, confirmed=True, final=final, fresh=player.fresh)
        self.best = max(self.best, score.mean)
        return score

    @property
    def _goal(self) -> float:
        """Below this a confirmation is of no use: the threshold, or the best score so far."""
        hunts_best = self.threshold == math.inf or self.within_budget(1 / 3)
        return min(self.best, self.threshold) if hunts_best else self.threshold

    @property
    def threshold(self) -> float:
        """`--stop-at-return`; infinite without."""
        threshold = self.run_spec.config.evaluation.stop_at_return
        return math.inf if threshold is None else threshold

    @property
    def cpu_spent_s(self) -> float:
        """CPU seconds of all evaluations, in all processes; starting those is none.

        0 in serial mode: what is played there must follow from the seed, not from a clock.
        """
        spent = self._slots[:, layout.CPU_NS] - self._slots[:, layout.STARTUP_NS]
        return float(spent.sum()) / 1e9

    @property
    def all_cpu_spent_s(self) -> float:
        """CPU seconds of all children."""
        return self.store.total(layout.CPU_NS) / 1e9

    @property
    def cpu_budget_s(self) -> float:
        """CPU seconds that evaluations may have taken by now."""
        total = self.all_cpu_spent_s
        if self.threshold < math.inf:
            return CPU_SHARE_TO_THRESHOLD * total + CPU_SECONDS
        return max(CPU_SHARE / 2 * total + CPU_SECONDS, CPU_SHARE * (total - SHORT_CPU_SECONDS))

    def within_budget(self, part: float = 1.0) -> bool:
        """Whether evaluations took less than `part` of the CPU time they may take."""
        return self.cpu_spent_s <= part * self.cpu_budget_s

    def reaches_threshold(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation ends the run."""
        return evaluation.confirmed and evaluation.mean >= self.threshold

    def _confirm(self, goal: float) -> Generator[int, None, None]:
        """Play the confirming episodes; stop when their mean will be below the goal."""
        first, known = self.crew.player.screening, 0
        for stepped in self.crew.play(self.crew.player.total):
            prefix = self.crew.prefix(first)
            if len(prefix) > known:
                known, returns = len(prefix), [played.score for played in prefix]
                if falls_short(returns, self.crew.player.confirming, goal):
                    return
            yield stepped


def _summary(
    stamp: tuple[int, int], played: Sequence[Played], confirmed: bool = False, **flags: bool
) -> Evaluation:
    values, lengths = np.array([(one.score, one.length) for one in played]).T
    return Evaluation(
        step=stamp[1],
        sequence=stamp[0],
        episodes=len(values),
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        mean_length=float(lengths.mean()),
        confirmed=confirmed,
        **flags,
    )


def run_evaluator(start: ProcessArgs, best: float | None) -> None:
    """Entry point of the evaluator process; `best` is the best confirmed score so far."""
    with in_child(start.title, start.parent, start.log, start.pipe) as pipe:
        start.run_spec.seed_globals(start.index, start.incarnation)
        loop = EvaluatorLoop(start, pipe, best)
        with contextlib.closing(loop.evaluator):
            loop.run()


class EvaluatorLoop:
    """One vector step of an evaluation at a time, with a look at the target boundary between."""

    def __init__(self, start: ProcessArgs, pipe: RecordPipe, best: float | None):
        torch.set_num_threads(1)
        config, self.pipe = start.run_spec.config, pipe
        self.store = start.run_spec.plain_store(start.block, start.index)
        self.slot = self.store.slot
        self.store.enter(start.incarnation)
        self.evaluator = Evaluator(start.run_spec, self.store, best)
        self.slot[layout.PLAYING] = 0
        self.slot[layout.STARTUP_NS] += time.process_time_ns()
        self.eval_every = config.evaluation.eval_every
        self.budget = config.run.steps
        # What the one before could not finish is due again.
        unfinished = int(self.store.snapshot.sequence > self.store.control[layout.ACKNOWLEDGED])
        self.evaluated = self.store.steps // self.eval_every - unfinished
        self.unacknowledged = 0
        self._due_from: float | None = None  # since when an evaluation is put off
        self._told = False
        self.decided = False  # a score ended the run: no further snapshot
        self._rate_from = (time.monotonic(), self.store.steps)

    def run(self) -> None:
        """Work until the trainer orders to finish (one last evaluation) or to quit."""
        running: Generator[int, None, Evaluation | None] | None = None
        order = layout.RUN
        while order == layout.RUN or (order != layout.QUIT and running is not None):
            self._beat()
            synced = self.store.keep_up()
            if synced and running is None:
                self.slot[layout.LAST_PROGRESS_STEP] = self.store.steps
            if running is None and self._due():
                running = self.evaluator.evaluate()
            if running is None:
                self.slot[layout.PHASE] = layout.WAITING
                time.sleep(self._pause())
            else:
                self.slot[layout.PHASE] = layout.EVALUATING
                running = self._advance(running)
            order = self._order
        if order == layout.AFRESH or (order == layout.FINISH and not self.decided):
            running = self.evaluator.evaluate(final=True, fresh=bool(order == layout.AFRESH))
            while running is not None and self._order != layout.QUIT:
                self._beat()
                running = self._advance(running)

    @property
    def _order(self) -> int:
        return self.store.control[layout.EVALUATOR_ORDER]

    def _beat(self) -> None:
        self.store.beat()
        self.store.count_cpu()

    def _due(self) -> bool:
        """A boundary passed, the last score was saved, and the CPU share allows it."""
        if self.decided or self.store.control[layout.ACKNOWLEDGED] < self.unacknowledged:
            return False
        step = self.store.steps
        quotient = step // self.eval_every
        if quotient <= self.evaluated or step >= self.budget:  # the end has its own evaluation
            return False
        if not self.evaluator.within_budget():
            self._tell_if_late()
            return False
        self.evaluated, self._due_from = quotient, None
        return True

    def _tell_if_late(self) -> None:
        """Say, once, why an evaluation has been due for long, and what changes that."""
        now = time.monotonic()
        self._due_from = self._due_from or now
        if self._told or now < self._due_from + LATE_S:
            return
        wanted, spent = self.evaluator.threshold < math.inf, self.evaluator.cpu_spent_s
        share = f"{CPU_SHARE_TO_THRESHOLD if wanted else CPU_SHARE:.0%} of the run's CPU time"
        more = "" if wanted else f"; --stop-at-return allows {CPU_SHARE_TO_THRESHOLD:.0%}"
        text = (
            f"the evaluation due at step {(self.evaluated + 1) * self.eval_every:,} is put off: "
            f"evaluations may take {share} and took {spent:.0f} s so far; a larger --eval-every "
            f"is kept, fewer --eval-episodes cost less{more}"
        )
        self._told = self.pipe.send({"kind": "warning", "text": text})

    def _advance(self, running: Generator[int, None, Evaluation | None]):
        """Take one step; send the result when there is one."""
        try:
            if not next(running):  # only others are playing
                time.sleep(0.001)
            return running
        except StopIteration as stop:
            score = stop.value
            if score is not None:
                self.unacknowledged = score.sequence
                self.decided = self.evaluator.reaches_threshold(score)
                while not self.pipe.send({"kind": "evaluation", **asdict(score)}):
                    time.sleep(0.01)
                self.slot[layout.LAST_PROGRESS_STEP] = self.store.steps
            return None

    def _pause(self) -> float:
        """At most half the estimated time to the next target boundary, 0.5 to 20 ms."""
        now, step = time.monotonic(), self.store.steps
        then, before = self._rate_from
        if now - then > 1.0:
            self._rate_from = (now, step)
        every = self.store.upkeep.shortest
        if every is None or step == before:
            return 0.01
        left = every - step % every
        return min(0.02, max(0.0005, 0.5 * left * (now - then) / (step - before)))
