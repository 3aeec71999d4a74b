"""The only writer of a run folder, except for the bytes of its checkpoints.

Steps, wall and CPU seconds given to it are cumulative over resumes. A write that fails is dropped,
counted and warned of once; it never stops training (`BestEffort`).
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from async_dqn.config.config import Config
from async_dqn.runs.durable import replace_json
from async_dqn.runs.folder import RunFolder
from async_dqn.runs.progress import Status, display, print_line, print_warning, score
from async_dqn.runs.versions import git_revision, versions
from async_dqn.runs.writers import (
    EVALUATIONS_HEADER,
    METRICS_HEADER,
    BestEffort,
    Board,
    CsvTable,
    EventLog,
    finite,
    info_tag,
    plain,
)
from async_dqn.workers.records import Evaluation

RESULT_KEYS = (
    *("status", "steps", "frames", "wall_s", "startup_s", "cpu_s", "updates"),
    *("final_mean", "best_mean", "fresh_mean", "restarts"),
    *("seconds_to_threshold", "steps_to_threshold", "env_errors", "retired_workers", "protocol"),
)
HPARAMS = ("environment.env", "algorithm.algorithm", "parallel.workers", "run.seed")
NO_HPARAMS = ("run.runs_dir", "run.track", "run.run_name", "run.resume", "run.quiet")
HPARAM_RESULTS = ("final_mean", "best_mean", "seconds_to_threshold", "steps_to_threshold")
LONGEST_WAIT_S = 5.0  # for the disk, while importing


def process_start() -> float:
    """When this process started, on the monotonic clock; estimated where unknown."""
    now = time.monotonic()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The name (field 2) may hold spaces and brackets; the start is field 22, in clock ticks.
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        started_s = int(ticks) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
        # A container may count from another boot; and a process that a shell became (exec) is as
        # old as the shell, though Python has only just begun.
        if 0 <= age <= time.process_time() + LONGEST_WAIT_S:
            return now - age
    return now - time.process_time()


PROCESS_START = process_start()


class Recorder:
    """Writes config.json, the tables, events, TensorBoard and result.json; shows the progress."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        env_info: Mapping[str, Any],
        base_step: int = 0,
        base_wall_s: float = 0.0,
        console: bool = True,
        in_own_process: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the logs of a run that is new, or resumed at `base_step` after `base_wall_s`.

        What was logged after `base_step` is dropped, so that no step appears twice. The clocks of
        a session begin with its process, or now where the process does more than this run or
        `clock` is a virtual one; `console` shows progress on stdout.
        """
        self._folder, self._config, self._env_info = run.path, config, dict(env_info)
        self._base_step, self._base_wall_s = base_step, base_wall_s
        self._started = PROCESS_START if in_own_process and clock is time.monotonic else clock()
        self._cpu_started = 0.0 if in_own_process else time.process_time()
        self.clock, self._console, self._display = clock, console, display(False)
        self._board: Board | None = None
        self._status = Status(base_step, config.run.steps)
        self.scores: dict[str, float] = {}  # of the last evaluation, by tag
        self.drops = BestEffort(print_warning)
        self._events = EventLog(run.path / "events.jsonl", self.drops)
        self.event = self._events.write
        keys = config.flat().get("environment.log_info", ())  # peers do not have it
        header = (*METRICS_HEADER, *map(info_tag, keys))
        self._metrics = CsvTable(run.path / "metrics.csv", header, self.drops, base_step)
        self._evaluations = CsvTable(
            run.path / "evaluations.csv", EVALUATIONS_HEADER, self.drops, base_step
        )

    @property
    def session_s(self) -> float:
        """Wall-clock seconds of this session, start-up included."""
        return self.clock() - self._started

    @property
    def session_cpu_s(self) -> float:
        """CPU seconds of this process in this session, start-up included."""
        return time.process_time() - self._cpu_started

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds of the run, over all its sessions."""
        return self._base_wall_s + self.session_s

    def start(self) -> None:
        """Write config.json and the start event, and put up the progress display."""
        for leftover in self._folder.glob("*.tmp-*"):
            self.drops.attempt(leftover.unlink)
        # A result of an earlier session would pass for this one's, were this one killed.
        self.drops.attempt((self._folder / "result.json").unlink, True)
        made_with = {"versions": versions(), "git_revision": git_revision()}
        settings = {"settings": self._config.to_dict(), "environment": self._env_info}
        about = plain(settings | made_with)
        self.drops.attempt(replace_json, self._folder / "config.json", about)
        self.event("start", pid=os.getpid(), step=self._base_step)
        self._display = display(self._console)

    def open_board(self) -> Board | None:
        """Open TensorBoard's file: after the workers started, as the import takes its time.

        None where it cannot be opened; it is tried again at the next write.
        """
        if self._board is None:
            is_first = not any(self._folder.glob("events.out.*"))
            purge_step = None if is_first else self._base_step + 1
            self._board = self.drops.attempt(Board, self._folder, purge_step)
            if self._board is not None:
                settings = self._config.flat()
                self.drops.attempt(self._board.introduce, settings, self._base_step)
        return self._board

    def report(
        self,
        step: int,
        wall_s: float,
        cpu_s: float,
        tags: Mapping[str, float | None],
        worker_fps: Sequence[float] = (),
    ) -> None:
        """One row of metrics.csv and its points in TensorBoard; tags from `GLOBAL_TAGS`.

        The eval/ columns repeat the last evaluation; its own point was plotted when it came.
        """
        times = {"step": step, "wall_s": wall_s, "cpu_s": cpu_s}
        self._metrics.write({**tags, **self.scores, **times})
        workers = {f"async/worker_{k}/fps": fps for k, fps in enumerate(worker_fps)}
        self._plot(Board.scalars, {**tags, **workers}, step)
        self._status.training_return = finite(tags.get("rollout/ep_rew_mean"))

    def evaluation(self, scores: Evaluation, wall_s: float, cpu_s: float) -> None:
        """One row of evaluations.csv, its points at the step of the snapshot, and an event."""
        self._evaluations.write({**vars(scores), "wall_s": wall_s, "cpu_s": cpu_s})
        self.scores = {
            "eval/mean_reward": scores.mean,
            "eval/mean_ep_length": scores.mean_length,
        }
        self._plot(Board.scalars, self.scores, scores.step)
        self.event("evaluation", step=scores.step, episodes=scores.episodes, mean=scores.mean)
        self._status.step = max(self._status.step, scores.step)
        self._status.evaluation, self._status.playing = finite(scores.mean), None
        self._show(now=True)

    def progress(
        self, step: int, total: int, fps: float, playing: tuple[int, int, float] | None = None
    ) -> None:
        """Show global steps done, the budget, and global steps per second; see `Status`."""
        self._status.step, self._status.total = step, total
        self._status.fps, self._status.playing = fps, playing
        self._show()

    def warn(self, text: str) -> None:
        """Say it on stderr (above the bar, where there is one), in events.jsonl, in TensorBoard."""
        print_warning(text)
        self.event("warning", cause=text)
        self._plot(Board.text, "warnings", text, self._status.step)

    def result(self, result: Mapping[str, Any]) -> None:
        """Write result.json and the HPARAMS entry; keys from RESULT_KEYS, missing ones null.

        Called once, last: TensorBoard shows the entry with the points written before it.
        """
        unknown = set(result) - set(RESULT_KEYS)
        if unknown:
            raise KeyError(f"not a key of result.json: {sorted(unknown)}")
        whole = plain({key: result.get(key) for key in RESULT_KEYS})
        self.drops.attempt(replace_json, self._folder / "result.json", whole)
        if self._display is not None:
            self.drops.attempt(self._display.close)
            print_line(_closing_line(whole, self.clock is time.monotonic))
        results = {f"result/{name}": whole[name] for name in HPARAM_RESULTS}
        self._plot(Board.hparams, self._hparams(), results, whole["steps"] or 0)

    def _hparams(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and those that say what the run is."""
        default = Config().flat()
        return {
            name: value
            for name, value in self._config.flat().items()
            if name in HPARAMS or (value != default.get(name) and name not in NO_HPARAMS)
        }

    def close(self) -> None:
        """Take down the display and close every file. Idempotent, for every exit path."""
        for part in (self._display, self._events, self._metrics, self._evaluations, self._board):
            if part is not None:
                self.drops.attempt(part.close)

    def _plot(self, write: Callable[..., None], *what: Any) -> None:
        """Call a method of `Board`."""
        board = self.open_board()
        if board is not None:
            self.drops.attempt(write, board, *what)

    def _show(self, now: bool = False) -> None:
        if self._display is not None:
            self._status.elapsed_s = self.wall_s
            self._display.show(self._status, now)


def _closing_line(result: Mapping[str, Any], is_real: bool = True) -> str:
    """Such as "threshold reached after 4.1 s and 78,822 steps: final score 500.0, best 500.0"."""
    ended = (
        "{status} after {wall_s:.1f} s" if is_real else "{status} after {wall_s:.3g} simulated s"
    )
    steps = "" if result["steps"] is None else f" and {result['steps']:,} steps"
    final, best = result["final_mean"], result["best_mean"]
    scores = "final parameters not scored" if final is None else f"final score {score(final)}"
    scores += "" if best is None else f", best {score(best)}"
    return f"{ended.format_map(result)}{steps}: {scores}"
