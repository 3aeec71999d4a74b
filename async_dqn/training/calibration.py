"""What the parts of a worker's loop cost on this machine, for simulated workers.

A learner with a network and a block of its own works for two seconds; the run sees nothing of it.
Medians over blocks of updates, so that a moment in which the machine did something else is no cost.
"""

import time
import timeit
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np

from async_dqn.algorithms.rollout import Rollout
from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.training.clock import LOST_VALUES, Times
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import RunSpec

WARM_UP_S, MEASURE_S = 0.5, 1.5
LEAST_UPDATES, BLOCKS = 10, 20
FEW, MANY, PLAYED_STEPS = 2, 100, 50  # episodes at most; vector steps that are timed
COPIES, COPIED_BYTES = 5, 64_000_000  # more than caches hold
NORMAL_QUARTILES = 1.349  # between the quartiles of a normal distribution, in standard deviations


class TimedLearner(Learner):
    """A learner that notes what its parts cost: seconds by the names of `Times` in `spent`."""

    def restart(self) -> None:
        """Begin to note, with nothing noted."""
        self.spent: dict[str, list[float]] = defaultdict(list)
        self._since, self._vector_steps = time.perf_counter(), 0

    def update(self, budget: int) -> None:
        """As any learner's; each part lasts from the end of the part before it."""
        begun = self._since = time.perf_counter()
        for _ in self.update_steps(budget):
            self._end_of("gradient_s")
        self.spent["update_s"].append(time.perf_counter() - begun)

    def _end_of(self, part: str, count: int = 1) -> None:
        now = time.perf_counter()
        self.spent[part].append((now - self._since) / count)
        self._since = now

    def _pull(self) -> None:
        super()._pull()
        self._end_of("pull_s")

    def _record(self, count: int) -> None:
        super()._record(count)
        self._vector_steps += 1

    def _batches(self, rollout: Rollout, step: int) -> Iterator[Rollout | None]:
        self._end_of("step_s", self._vector_steps)
        self._vector_steps = 0
        return super()._batches(rollout, step)

    def _push(self, step, learned) -> None:
        super()._push(step, learned)
        self._end_of("push_s")


def measure(run_spec: RunSpec, seconds: float = MEASURE_S) -> Times:
    """Time one learner of `run_spec` for `seconds` after a warm-up, and this machine's memory."""
    # Where there is replay, what counts is an update that draws from it.
    run_spec = replace(run_spec, config=run_spec.config.with_settings({"replay_start": 1}))
    store, network = run_spec.alone()
    learner = TimedLearner(run_spec, store, 0)
    with closing(learner):
        learner.restart()
        learner.reset(0)
        for period in (min(WARM_UP_S, seconds), seconds):
            learner.restart()
            end = time.monotonic() + period
            while time.monotonic() < end or len(learner.spent["update_s"]) < LEAST_UPDATES:
                learner.update(run_spec.config.run.steps)
                learner.clear()
    play_s, play_row_s = _playing(run_spec, network)
    updates = learner.spent.pop("update_s")
    low, middle, high = np.quantile(updates, (0.25, 0.5, 0.75))
    return Times(
        **{part: typical(spent) for part, spent in learner.spent.items()},
        variation=float((high - low) / NORMAL_QUARTILES / middle),
        bandwidth=copy_bandwidth(),
        play_s=play_s,
        play_row_s=play_row_s,
        lost_values=LOST_VALUES,
    )


def _playing(run_spec: RunSpec, network: FlatNetwork) -> tuple[float, float]:
    """Seconds of one step of any number of evaluation environments, and of each of them."""
    means = []
    for episodes in FEW, MANY:
        crew = Crew(EpisodeRunner(run_spec, network, episodes))
        crew.begin(crew.player.screening)
        steps = islice(crew.play(crew.player.total), PLAYED_STEPS)
        rows, ends = zip(*((stepped, time.perf_counter()) for stepped in steps))
        means.append((np.mean(rows[1:]), typical(np.diff(ends))))
    (few, low), (many, high) = means
    each = max(0.0, (high - low) / (many - few))
    return max(0.0, low - few * each), each


def typical(seconds: Sequence[float]) -> float:
    """The median of the means of blocks: rare but regular costs count, a burst does not."""
    blocks = np.array_split(seconds, min(BLOCKS, len(seconds)))
    return float(np.median([block.mean() for block in blocks]))


def copy_bandwidth() -> float:
    """Bytes per second that one core reads and writes while it copies a large array."""
    source, copy = np.ones((2, COPIED_BYTES // 8))
    spent = timeit.repeat(lambda: np.copyto(copy, source), number=1, repeat=COPIES)
    return 2 * COPIED_BYTES / float(np.median(spent))
