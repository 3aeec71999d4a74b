"""The periodic report: what the workers did since the last one, as one row of metrics."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from async_dqn.config.fields import UserError
from async_dqn.parameters.layout import ENV_ERRORS, FINISHED, SKIPPED, STEPS
from async_dqn.parameters.store import ParameterStore
from async_dqn.runs.recorder import Recorder
from async_dqn.runs.writers import info_tag
from async_dqn.workers.records import Evaluation, Statistics
from async_dqn.workers.run_spec import RunSpec

REPORT_SECONDS = 1.0
EPISODES = 100  # in the means of training returns and lengths

Callback = Callable[[Mapping[str, float]], bool | None]


class Reporter:
    """Gathers the workers' records and turns them into metrics.csv, TensorBoard and progress."""

    def __init__(
        self,
        run_spec: RunSpec,
        store: ParameterStore,
        recorder: Recorder,
        callback: Callback | None,
    ):
        self.run_spec, self.store = run_spec, store
        self.recorder, self.callback = recorder, callback
        self.steps_per_second = 0.0
        self.worker_speeds: list[float] | None = None  # steps/s, None before the first steps
        self.stop_wanted = False  # by the callback
        self.interval_s = REPORT_SECONDS
        self._statistics = Statistics()
        self._info: dict[str, tuple[float, int]] = {}  # sum and count by key, since the last report
        self._episodes: deque[tuple[float, int]] = deque(maxlen=EPISODES)
        self._last = (recorder.session_s, *self._counts())
        self._reported_step = self.store.steps
        self._exploration = run_spec.exploration
        self._faults_before = store.total(ENV_ERRORS)
        self._fault = ""
        self.final_from: float | None = None  # when the final evaluation began, while it goes on

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in what one worker did: sums over its updates, finished episodes, a fault."""
        self._episodes.extend(map(tuple, record["episodes"]))
        for key, (total, count) in record["info"].items():
            before = self._info.get(key, (0.0, 0))
            self._info[key] = before[0] + total, before[1] + count
        self._statistics.merge(record)
        if record["fault"] and not self._fault:
            self._fault = record["fault"]
            count = self.store.total(ENV_ERRORS) - self._faults_before
            self.recorder.warn(
                f"an environment failed by step {self.store.steps:,} ({self._fault}); built anew, "
                f"its episode forgotten (count {count}; later ones are only counted)"
            )

    def due(self) -> bool:
        """Whether a second has passed since the last report (less where workers are simulated)."""
        return self.recorder.session_s - self._last[0] >= self.interval_s

    def report(self, cpu_s: float, restarts: int, retired: int) -> None:
        """Write one row over the time since the last one; never two rows for one step."""
        then, old_steps, old_updates, old_workers = self._last
        now, steps, updates, workers = self._last = (self.recorder.session_s, *self._counts())
        seconds = max(now - then, 1e-9)
        self.steps_per_second = (steps - old_steps) / seconds
        if steps > self._reported_step:
            self._reported_step = steps
            tags = self._tags(steps, (updates - old_updates) / seconds)
            tags |= {"async/restarts": restarts, "async/retired_workers": retired}
            speeds = [(new - old) / seconds for new, old in zip(workers, old_workers)]
            self.recorder.report(steps, self.recorder.wall_s, cpu_s, tags, speeds)
            self.worker_speeds = speeds
            self._tell({"step": steps, **tags})
        self.progress()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Give the callback a score that was just recorded."""
        counts = {"eval/episodes": evaluation.episodes, "eval/confirmed": evaluation.confirmed}
        self._tell({"step": evaluation.step, **self.recorder.scores, **counts})

    def _tell(self, report: Mapping[str, float]) -> None:
        if self.callback is not None and not self.stop_wanted:
            self.stop_wanted = self.callback(report) is False

    def begin_final(self) -> None:
        """From now on the progress is that of the final evaluation."""
        self.final_from = self.recorder.session_s

    def progress(self) -> None:
        """Show how far the run is now."""
        config, playing = self.run_spec.config, None
        if self.final_from is not None:
            seconds = self.recorder.session_s - self.final_from
            playing = self.store.total(FINISHED), config.evaluation.eval_episodes, seconds
        self.recorder.progress(self.store.steps, config.run.steps, self.steps_per_second, playing)

    def _counts(self) -> tuple[int, int, list[int]]:
        workers = self.store.slots[: self.run_spec.config.parallel.workers, STEPS]
        return self.store.steps, self.store.updates, workers.tolist()

    def _tags(self, steps: int, updates_per_second: float) -> dict[str, float]:
        statistics, self._statistics = self._statistics, Statistics()
        tags = {
            "rollout/exploration_rate": float(self._exploration.at(steps).mean()),
            "time/fps": self.steps_per_second,
            "time/updates_per_second": updates_per_second,
            "train/learning_rate": self.run_spec.learning_rate(steps)
            * self.store.learning_rate_multiplier,
            "async/skipped_updates": self.store.total(SKIPPED),
            "async/env_errors": self.store.total(ENV_ERRORS),
            **statistics.means(),
            **{info_tag(key): total / count for key, (total, count) in self._info.items()},
        }
        self._info = {}
        if self.run_spec.config.optimizer.target_sync_steps is not None:
            tags["async/target_lag_steps"] = steps - self.store.target.step
        if self._episodes:
            scores, lengths = np.mean(self._episodes, axis=0).tolist()
            tags |= {"rollout/ep_rew_mean": scores, "rollout/ep_len_mean": lengths}
        return tags


def as_one(callback: Callback | Sequence[Callback] | None) -> Callback | None:
    """One callback that calls all; UserError for what cannot be called."""
    if callback is None:
        return None
    every = list(callback) if isinstance(callback, list | tuple) else [callback]
    for one in every:
        if not callable(one):
            raise UserError(
                "callback must be a function of a report, or a list of them (got "
                f"{type(one).__name__})"
            )

    def called(report: Mapping[str, float]) -> bool:
        answers = [one(report) for one in every]
        return not any(answer is False for answer in answers)

    return called
