"""The serial mode: the same learners and evaluator in the calling process, taken in turn.

Bit-for-bit reproducible from the seed. Every checkpoint starts new episodes with seeds from
(seed, worker, step), whether the run is interrupted or not, so that a resumed run equals an
uninterrupted one.
"""

from collections.abc import Mapping

import numpy as np
import torch

from async_dqn.evaluation.evaluator import Evaluator
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes.child_side import keep_freed_memory
from async_dqn.processes.signals import STOPPING, StopSignals
from async_dqn.runs.checkpoint_format import of_worker
from async_dqn.runs.run import STOPPED, Run
from async_dqn.training.divergence import has_diverged, roll_back
from async_dqn.workers.learner import Learner
from async_dqn.workers.records import Evaluation


class SerialTrainer:
    """Runs one training run in this process; `run()` returns the exit code."""

    learner_kind, store_kind, evaluator_kind = Learner, ParameterStore, Evaluator

    def __init__(self, run: Run):
        self.run_, self.store = run, run.store
        config = run.run_spec.config
        self.budget = config.run.steps
        self.eval_every = config.evaluation.eval_every
        self.learners = [
            self.learner_kind(
                run.run_spec,
                self.store_kind(run.block, run.run_spec.optimizer(), w, run.run_spec.upkeep),
                w,
            )
            for w in range(config.parallel.workers)
        ]
        self.evaluator = self.evaluator_kind(run.run_spec, run.store, run.best)
        if self.learners[0].shard is not None:
            self._restore_replay(run.stored_replay)
            run.replay_arrays = self._replay_arrays

    def run(self) -> int:
        """Train until the budget, the threshold or a signal ends it."""
        try:
            return self._train()
        finally:
            for owner in (*self.learners, self.evaluator):
                owner.close()

    def _train(self) -> int:
        torch.set_num_threads(1)  # another number rounds sums differently
        keep_freed_memory()
        quiet = np.errstate(over="ignore", invalid="ignore")  # gradients are checked
        with quiet, StopSignals(self.run_.abandon, note=STOPPING) as self.signals:
            self.run_.recorder.open_board()
            self._reset()
            while not self._over():
                self._round()
                self.signals.arm()
                if has_diverged(self.store):
                    roll_back(self.run_)
            if self.signals.received is not None or self.run_.reporter.stop_wanted:
                self.run_.finish(STOPPED, cause=self.signals.words)
                return self.signals.exit_code
            if self.run_.reached:
                self.run_.take_decisive()
            if not self.run_.reached or self.run_.scores_afresh:
                self._evaluate(final=True)
            self.run_.finish()
            return 0

    def _over(self) -> bool:
        return self._broken_off() or self.run_.patience_over or self.store.steps >= self.budget

    def _broken_off(self) -> bool:
        return bool(self.signals.received or self.run_.reached or self.run_.reporter.stop_wanted)

    def _round(self) -> None:
        """One rollout of every worker, then what has come due."""
        before = self.store.steps
        for learner in self.learners:
            step = self.store.steps
            if step < self.budget and self.signals.received is None:
                learner.update(self.budget - step)
                self.store.keep_up()
                self.run_.reporter.add(learner.record())
                learner.clear()
        steps = self.store.steps
        if before // self.eval_every < steps // self.eval_every and steps < self.budget:
            self._evaluate()
        if self.run_.checkpoint_due():
            self.run_.checkpoint()
            self._reset()
        self.run_.turn()

    def _reset(self) -> None:
        for worker, learner in enumerate(self.learners):
            learner.reset(worker, self.store.steps)

    def _replay_arrays(self) -> dict[str, np.ndarray]:
        return {
            f"worker_{worker}.{name}": array
            for worker, learner in enumerate(self.learners)
            for name, array in learner.shard.state().items()
        }

    def _restore_replay(self, stored: Mapping[str, np.ndarray]) -> None:
        """Fill the shards from a checkpoint; a run without one starts with empty ones."""
        for worker, learner in enumerate(self.learners):
            own = of_worker(stored, worker)
            if own:
                learner.shard.restore(own)

    def _evaluate(self, final: bool = False) -> None:
        evaluation = self._scored(final)
        if evaluation is not None:
            self.run_.add_evaluation(evaluation)

    def _scored(self, final: bool = False) -> Evaluation | None:
        """What an evaluation of now comes to, without a pause."""
        if final:
            self.run_.reporter.begin_final()
        steps = self.evaluator.evaluate(final, fresh=self.run_.reached is not None)
        while True:
            try:
                self._played(next(steps), final)
            except StopIteration as stop:
                return stop.value

    def _played(self, stepped: int, final: bool) -> None:
        """An evaluation has stepped so many environments once."""
        if final:
            self.run_.turn()
