"""`Run`: the bookkeeping that every mode shares.

It owns the shared block and all that outlives a process: theta, counters, best score, reports,
checkpoints and the result. Only the trainer process has one.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork, flat_vector, named_tensors
from async_dqn.parameters.layout import (
    CPU_NS,
    ENV_ERRORS,
    EPISODES,
    RESET_STEP,
    SKIPPED,
    STEPS,
    UPDATES,
)
from async_dqn.parameters.moments import Moments
from async_dqn.processes.signals import write_stderr
from async_dqn.runs import checkpoint as checkpoints
from async_dqn.runs.checkpoint import Checkpoint, Tensors
from async_dqn.runs.checkpoint_format import TOTALS, target_stem
from async_dqn.runs.folder import RunFolder, cap_logs
from async_dqn.runs.recorder import Recorder
from async_dqn.runs.reporter import Callback, Reporter
from async_dqn.runs.resume import stored_config
from async_dqn.runs.transfer import Transfer
from async_dqn.runs.versions import versions
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import RunSpec

# Counters that cumulate over the sessions of a run, by their names in state.json.
WORDS = dict(zip(TOTALS, (STEPS, UPDATES, EPISODES, SKIPPED, ENV_ERRORS, CPU_NS), strict=True))
FRESH_SHARE = 0.1  # of a run's steps; those that are stepped as one batch cost far less
RETRY_SECONDS = 60.0  # after a checkpoint that could not be saved
DONE, THRESHOLD, STOPPED = "budget reached", "threshold reached", "stopped"
IN_VAIN = "no better score"  # for as long as --patience waits
Best = tuple[int, torch.Tensor, Evaluation]  # step, parameters, their score


class Run:
    """One training run: new, or resumed from `checkpoint`."""

    def __init__(
        self,
        run_spec: RunSpec,
        folder: RunFolder,
        recorder: Recorder,
        checkpoint: Checkpoint | None = None,
        callback: Callback | None = None,
        transfer: Transfer | None = None,
    ):
        torch.manual_seed(run_spec.config.run.seed)
        self.run_spec, self.folder, self.recorder = run_spec, folder, recorder
        self.network = FlatNetwork(run_spec.network(), gradient=False)
        self.block = SharedBlock(run_spec.sections(len(self.network.vector)))
        self.store = run_spec.plain_store(self.block, len(self.block["slots"]) - 1)
        self.block["multipliers"][:] = 1.0
        self.best: float | None = None
        self.final: Evaluation | None = None
        # Of the same, on episodes that selected nothing; with it the run is scored.
        self.fresh_mean: float | None = None
        self.reached: Evaluation | None = None
        self.threshold_at: tuple[float, int] | None = None  # (seconds, step)
        self.startup_s: float | None = None
        self.restarts = self.retired = 0
        self.cause: str | None = None  # of an early end
        self.rolled_back = False
        self._in_vain = 0  # evaluations in a row without a better score
        # A slow disk must not keep leases from the workers: one thread writes, in the order asked.
        self.writer = ThreadPoolExecutor(1, "checkpoints")
        self._saves: deque[tuple[Future, tuple[str], Evaluation | None]] = deque()
        self._save_at = math.inf  # when the live block is to be saved
        self.unsaved = ""  # why the last checkpoint was not
        self._unsaved_best: Best | None = None
        self.first_incarnation = 0
        self._refreshes_before = 0
        # Serial mode stores replay memory too; elsewhere it is the workers' own and starts empty.
        self.stored_replay = {} if checkpoint is None else checkpoint.tensors.get("replay", {})
        self.replay_arrays: Callable[[], dict[str, np.ndarray]] | None = None
        if checkpoint is None:
            if transfer is not None:
                transfer.fill(self.network, self.store.moments.inputs)
            self.store.theta.copy_(self.network.vector)
            self.store.begin(0)
        else:
            self._restore(checkpoint)
        self.each_second: Callable[[], None] = lambda: None
        self.begun_with = self.store.theta.clone(), self.store.steps  # parameters and their step
        self.reporter = Reporter(run_spec, self.store, recorder, callback)
        self._first_update = self.store.updates
        self._saved = self.store.steps // run_spec.config.run.checkpoint_every

    # What the loop of a mode calls

    def turn(self) -> None:
        """Whatever is due: a report, a checkpoint."""
        if self.startup_s is None and self.store.updates > self._first_update:
            self.startup_s = self.recorder.session_s
        if self.reporter.due():
            self.reporter.report(self.cpu_s, self.restarts, self.retired)
            cap_logs(self.folder.logs)
            self.each_second()
        self._settle()
        if self.checkpoint_due():
            self._save_at = 0.0
        if time.monotonic() >= self._save_at and not self._saves:
            self._save_at = math.inf
            self._save_best()
            self.checkpoint()

    def checkpoint_due(self) -> bool:
        """Whether the step count crossed a multiple of `--checkpoint-every`."""
        quotient = self.store.steps // self.run_spec.config.run.checkpoint_every
        due, self._saved = quotient > self._saved, quotient
        return due

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write down a score; keep the parameters that made it if they are the best."""
        wall_s = self.recorder.wall_s
        if evaluation.final:
            self.reporter.final_from = None
        self.reporter.progress()
        if evaluation.fresh:
            self.fresh_mean = evaluation.mean
            return
        self.recorder.evaluation(evaluation, wall_s, self.cpu_s)
        self.reporter.evaluated(evaluation)
        self._in_vain += 1
        if evaluation.final:
            self.final, self.fresh_mean = evaluation, evaluation.mean  # nothing was selected by it
        if not evaluation.confirmed:
            return
        snapshot = torch.zeros_like(self.network.vector)
        read = self.store.snapshot.read(snapshot)
        is_kept = read is not None and read[0] == evaluation.sequence
        if is_kept and (self.best is None or evaluation.mean >= self.best):
            if self.best is None or evaluation.mean > self.best:
                self._in_vain = 0
            self.best = evaluation.mean
            self._unsaved_best = evaluation.step, snapshot, evaluation
            self._save_best()
        threshold = self.run_spec.config.evaluation.stop_at_return
        if is_kept and threshold is not None and evaluation.mean >= threshold:
            self.threshold_at = self.threshold_at or (wall_s, evaluation.step)
            self.reached, self._decisive = evaluation, snapshot

    @property
    def patience_over(self) -> bool:
        """Whether evaluations have brought no better score for as long as the settings wait."""
        patience = self.run_spec.config.evaluation.patience
        return patience is not None and self._in_vain >= patience

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes of the run, over all its sessions."""
        return self.store.total(CPU_NS) / 1e9 + self.recorder.session_cpu_s

    def finish(self, status: str | None = None, cause: str | None = None) -> None:
        """After the workers stopped: final checkpoint, last report, result.json."""
        if self.reached is not None:
            self.take_decisive()
            self.final = self.reached
            status = status or THRESHOLD
        status, self.cause = status or (IN_VAIN if self.patience_over else DONE), cause
        self.reporter.report(self.cpu_s, self.restarts, self.retired)
        self._settle(wait=True)
        self.checkpoint()
        self._settle(wait=True)
        lost = self.unsaved
        self._save_best()
        self._settle(wait=True)
        self.unsaved = lost or self.unsaved
        self.recorder.event("stop", cause=cause or status)
        self.recorder.result(self._result(status))

    def take_decisive(self) -> None:
        """After the workers left: the run ends with the parameters that reached the threshold."""
        self.store.theta.copy_(self._decisive)
        if self.store.average.exists:
            self.store.average.publish(self._decisive, self.store.steps)

    @property
    def scores_afresh(self) -> bool:
        """Whether these are played once more: in at most a tenth of the run's steps."""
        if self.reached is None:
            return False
        steps = self.reached.episodes * self.reached.mean_length
        return self.run_spec.info.batched or steps <= FRESH_SHARE * self.store.steps

    def abandon(self) -> None:
        """Say what is left when the trainer leaves at once; in a signal handler."""
        write_stderr(f"error: stopped without saving; last checkpoint {self.last_checkpoint}")

    # Checkpoints

    @property
    def last_checkpoint(self) -> str:
        """Its name, for messages."""
        path = checkpoints.marked(self.folder.checkpoints, "latest")
        return path.name if path else "none"

    def checkpoint(self, best: Best | None = None) -> None:
        """Save the live block, or with `best` those parameters in place of theta.

        They are copied now and written by a thread; serial mode waits for it.
        """
        step, model, evaluation = best or (self.store.steps, None, None)
        marks = ("latest" if best is None else "best",)
        save = self.writer.submit(
            checkpoints.save,
            self.folder.checkpoints,
            step,
            self._tensors(model),
            self._state(step),
            marks,
            self.run_spec.config.run.keep_checkpoints,
        )
        self._saves.append((save, marks, evaluation))
        self._settle(wait=self.run_spec.config.parallel.mode == "serial")

    def _settle(self, wait: bool = False) -> None:
        """Take note of how saves ended: of those that have, or of all."""
        while self._saves and (wait or self._saves[0][0].done()):
            save, marks, evaluation = self._saves.popleft()
            try:
                path = save.result()
            except (OSError, ValueError) as error:  # a full disk, or parameters that are not finite
                self.unsaved = getattr(error, "strerror", None) or str(error)
                self._save_at = time.monotonic() + RETRY_SECONDS
                again = f"trying again in {RETRY_SECONDS:.0f} s"
                self.recorder.warn(f"checkpoint not saved ({self.unsaved}); {again}")
                continue
            self.unsaved = ""
            if self._unsaved_best is not None and self._unsaved_best[2] is evaluation:
                self._unsaved_best = None
            elif evaluation is not None:
                self._save_best()  # a better one came meanwhile
            score = {} if evaluation is None else {"mean": evaluation.mean}
            self.recorder.event("checkpoint", path=path.name, marks=marks, **score)

    def _save_best(self) -> None:
        """Save the best parameters if that is still to be done, as after a disk was full."""
        under_way = any(evaluation is not None for *_, evaluation in self._saves)
        if self._unsaved_best is not None and not under_way:
            self.checkpoint(self._unsaved_best)

    def _tensors(self, model: torch.Tensor | None) -> Tensors:
        net, size = self.network.net, len(self.network.vector)
        target = torch.zeros(self.run_spec.target_rule.networks * size)
        self.store.target.read(target)
        files = {
            "model": named_tensors(net, self.store.theta if model is None else model),
            **{target_stem(k): named_tensors(net, v) for k, v in enumerate(target.split(size))},
            "optimizer": {n: row.numpy().copy() for n, row in self._optimizer_rows().items()},
        }
        if self.store.average.exists:
            average = model
            if average is None:
                average = torch.zeros_like(self.store.theta)
                self.store.average.read(average)
            files["average"] = named_tensors(net, average)
        if moments := self._moments():
            files["moments"] = {k: m.rows.copy().view(np.int64) for k, m in moments.items()}
        if model is None and self.replay_arrays is not None:
            files["replay"] = self.replay_arrays()
        return files

    def _moments(self) -> dict[str, Moments]:
        """What there is of running moments, by name."""
        both = {"inputs": self.store.moments.inputs, "returns": self.store.moments.returns}
        return {name: moments for name, moments in both.items() if moments.rows.size}

    def _optimizer_rows(self, workers: int | None = None) -> dict[str, torch.Tensor]:
        """Views [P] of the optimiser's state by name: row_K, or worker_W.row_K if not shared.

        Of the first `workers` workers (default: all).
        """
        names = self.run_spec.state_names(workers or self.run_spec.config.parallel.workers)
        return dict(zip(names, self.store.states.flatten(0, 1)))

    def _state(self, step: int) -> dict[str, Any]:
        """All that a resumed run needs beside the tensors."""
        totals = {name: self.store.total(word) for name, word in WORDS.items()}
        totals |= {"steps": step, "cpu_ns": int(self.cpu_s * 1e9)}
        workers = self.run_spec.config.parallel.workers
        evaluating = float(self.store.slots[workers:-1, CPU_NS].sum())
        return {
            **totals,
            "target_step": self.store.target.step,
            "target_refreshes": self._refreshes_before + self.store.target.sequence,
            "overhead_cpu_s": evaluating / 1e9 + self.recorder.session_cpu_s,  # no worker's
            "restarts": self.restarts,
            "next_incarnation": self.first_incarnation + 1 + self.restarts,
            "wall_s": self.recorder.wall_s,
            "lr_multiplier": self.store.learning_rate_multiplier,
            "best_mean": self.best,
            "in_vain": self._in_vain,
            "threshold_at": self.threshold_at,
            "config": self.run_spec.config.to_dict(),
            "env_info": asdict(self.run_spec.info),
            "architecture": asdict(self.run_spec.architecture),
            "versions": versions(),
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint, which fits (`preflight`), into the block bit for bit."""
        net, state = self.network.net, checkpoint.state
        self.store.theta.copy_(flat_vector(net, checkpoint.tensors["model"]))
        # Workers keep their state by number. --workers may have changed: those that are new
        # start from 0, as at the start of a run; rows of those that are gone are dropped.
        stored = stored_config(checkpoint)
        for name, row in self._optimizer_rows(stored.parallel.workers).items():
            row.copy_(torch.from_numpy(checkpoint.tensors["optimizer"][name]))
        stems = [target_stem(k) for k in range(self.run_spec.target_rule.networks)]
        targets = [checkpoint.tensors[stem] for stem in stems if stem in checkpoint.tensors]
        targets += targets[-1:] * (len(stems) - len(targets))  # there were fewer
        kept = [flat_vector(net, target) for target in targets]
        self.store.target.publish(torch.cat(kept), state["target_step"])
        if self.store.average.exists:  # a run that had none goes on with its parameters
            average = checkpoint.tensors.get("average", checkpoint.tensors["model"])
            self.store.average.publish(flat_vector(net, average), state["step"])
        self.store.control[RESET_STEP] = state["step"]
        for name, moments in self._moments().items():
            moments.restore(checkpoint.tensors["moments"][name].view(np.float64))
        for name, word in WORDS.items():
            self.store.slot[word] = state[name]
        # A new learning rate holds as it is given.
        if stored.optimizer.lr == self.run_spec.config.optimizer.lr:
            self.block["multipliers"][0] = state.get("lr_multiplier", 1.0)
            self.rolled_back = self.store.learning_rate_multiplier < 1
        self.best, self._in_vain = state["best_mean"], state.get("in_vain", 0)
        self._refreshes_before = state["target_refreshes"] - 1  # the one just published again
        self.restarts = state["restarts"]
        self.first_incarnation = state["next_incarnation"]
        if state["threshold_at"] is not None:
            self.threshold_at = tuple(state["threshold_at"])

    def _result(self, status: str) -> dict[str, Any]:
        seconds, step = self.threshold_at or (None, None)
        steps = self.store.steps
        return {
            "status": status,
            "steps": steps,
            "frames": steps * self.run_spec.info.frames_per_step,
            "wall_s": self.recorder.wall_s,
            "startup_s": self.startup_s,
            "cpu_s": self.cpu_s,
            "updates": self.store.updates,
            "final_mean": None if self.final is None else self.final.mean,
            "best_mean": self.best,
            "fresh_mean": self.fresh_mean,
            "restarts": self.restarts,
            "seconds_to_threshold": seconds,
            "steps_to_threshold": step,
            "protocol": self.run_spec.config.environment.protocol or None,
            "env_errors": self.store.total(ENV_ERRORS),
            "retired_workers": self.retired,
        }
