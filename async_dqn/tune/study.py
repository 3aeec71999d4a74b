"""The search: draws points, runs them, stops those that fall behind, runs the best again.

All of it is in one folder: `study.db` (Optuna's, in SQLite), `runs/`, `logs/`, and at the end
`best.toml` and `report.html`. An interrupted search goes on from there.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from async_dqn.config.config import Config, UserError
from async_dqn.config.options import parse_train
from async_dqn.config.presets import resolve
from async_dqn.processes.signals import StopSignals
from async_dqn.report.results import quantity
from async_dqn.runs.folder import env_folder
from async_dqn.runs.progress import print_line
from async_dqn.tune.space import Point, as_arguments, drawn, nearest
from async_dqn.tune.trial import Attempt, Worth

FORMAT = 1
NAME = "async_dqn"
LOOK_S = 0.25
BEFORE_STOPPING = 5, 2  # trials, and parts of a trial, before any is stopped
FINALISTS, FINAL_SEEDS = 3, 2  # points that are run again, and how often
FINAL_SEED = 1_000_000  # the first of those, from the run's own on
SEARCHING = 0.75  # share of the time; the rest is for the finalists
UNFIT = 100  # points in a row that the rules between settings refuse
CONFIRMED = "confirmed"  # attribute of the study: values of finalists by their trials


@dataclass(frozen=True)
class Plan:
    """What is searched: `words` are the options of all trials, `given` the settings they name.

    `config` are the settings where nothing is searched, `vectors` says that there are no images.
    """

    out: Path
    words: tuple[str, ...]
    given: frozenset[str]
    config: Config
    vectors: bool
    worth: Worth
    trials: int
    minutes: float
    jobs: int

    @property
    def env(self) -> str:
        """What is played."""
        return self.config.environment.env

    def folder(self, name: str) -> Path:
        """Of the run of this name."""
        return self.out / "runs" / env_folder(self.env) / name

    def fixed(self) -> dict[str, Any]:
        """What one session after the other must agree on."""
        worth = [self.worth.threshold, self.worth.steps, self.worth.seconds]
        workers = self.config.parallel.workers
        return {"format": FORMAT, "env": self.env, "worth": worth, "workers": workers} | {
            "options": " ".join(self.words)
        }


def point_of(plan: Plan, trial: FrozenTrial) -> Point:
    """What a trial tried."""
    fixed = optuna.trial.FixedTrial(trial.params)
    return drawn(fixed, plan.given, plan.worth.steps, plan.vectors)


def opened(plan: Plan) -> optuna.Study:
    """The study in its folder, new or as it was left.

    Raises UserError for one of another plan, and what is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = plan.out / "study.db"
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=plan.config.run.seed),
            pruner=optuna.pruners.MedianPruner(*BEFORE_STOPPING),
        )
    except Exception as error:  # of the database
        raise UserError(f"{path} cannot be used ({error}); choose another --out") from error
    known = study.user_attrs.get("plan")
    if known is None:
        study.set_user_attr("plan", plan.fixed())
        return study
    for name, now in plan.fixed().items():
        if known.get(name) != now:
            raise UserError(
                f"{plan.out} holds a search with {name} {known.get(name)}, now {now}; choose "
                "another --out"
            )
    return study


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that say something, those stopped early too."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, the best first."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return sorted(complete, key=lambda trial: -trial.value)


def winner(study: optuna.Study) -> FrozenTrial | None:
    """The best on seeds that chose nothing; without such runs, the best trial; None without one."""
    trials = {str(trial.number): trial for trial in ranked(study)}
    confirmed = study.user_attrs.get(CONFIRMED, {})
    if confirmed:
        best = max(confirmed, key=lambda number: statistics.mean(confirmed[number]))
        return trials[best]
    return next(iter(trials.values()), None)


class Search:
    """One session of it."""

    def __init__(self, plan: Plan, signals: StopSignals):
        self.plan, self.signals, self.study = plan, signals, opened(plan)
        self._begun = time.monotonic()
        self._trials: dict[Attempt, Trial] = {}
        self._finals: dict[Attempt, FrozenTrial] = {}
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):  # of a killed session
            self._forget(trial)
        if not self.study.trials:
            self.study.enqueue_trial(nearest(plan.config, plan.given, plan.vectors))

    def run(self) -> None:
        """Until all is done, the time is used up, or a signal comes."""
        self._drive(self._begin, self._is_over, SEARCHING)
        for trial in self._trials.values():
            self._forget(trial)
        self._drive(self._begin_final, self._is_final_over, 1.0)

    def _drive(
        self,
        begin: Callable[[], Attempt | None],
        is_over: Callable[[Attempt], bool],
        share: float,
    ) -> None:
        """As many attempts as jobs at a time, new ones until that share of the time has passed."""
        running: list[Attempt] = []
        until = self._begun + 60 * self.plan.minutes * share
        try:
            while self.signals.received is None:
                if len(running) < self.plan.jobs and time.monotonic() < until:
                    if (attempt := begin()) is not None:
                        running.append(attempt)
                        continue
                if not running:
                    return
                time.sleep(LOOK_S)
                running = [attempt for attempt in running if not is_over(attempt)]
        finally:
            for attempt in running:
                attempt.stop()
            for attempt in running:
                attempt.wait()

    def _begin(self) -> Attempt | None:
        plan = self.plan
        if len(finished(self.study)) + len(self._trials) >= plan.trials:
            return None
        reason = ""
        for _ in range(UNFIT):
            trial = self.study.ask()
            point = drawn(trial, plan.given, plan.worth.steps, plan.vectors)
            try:
                check(plan, point)
            except UserError as error:
                reason = str(error)
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            attempt = self._attempt(f"trial-{trial.number}", point, trial.number)
            self._trials[attempt] = trial
            return attempt
        raise UserError(f"none of {UNFIT} points can be run ({reason}); give fewer options")

    def _attempt(self, name: str, point: Point, seed: int) -> Attempt:
        plan = self.plan
        words = [*plan.words, *as_arguments(point), "--seed", str(plan.config.run.seed + seed)]
        return Attempt(plan.folder(name), plan.out / "logs" / f"{name}.log", words, plan.worth)

    def _is_over(self, attempt: Attempt) -> bool:
        """Report how far a trial is, and stop it where others were better by then."""
        trial, over = self._trials[attempt], attempt.is_over()
        if attempt.news:
            trial.report(attempt.best, attempt.part)
            if not over and trial.should_prune():
                attempt.stop(behind=True)
        if not over:
            return False
        del self._trials[attempt]
        if attempt.behind:
            words = f"stopped at {quantity(attempt.best)}"
            self.study.tell(trial, state=TrialState.PRUNED)
        elif attempt.failure:
            words = f"failed: {attempt.failure}"
            trial.set_user_attr("failure", attempt.failure)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, attempt.value)
            words = self.plan.worth.in_words(attempt.value)
        number = f"[{len(finished(self.study))} of {self.plan.trials}]"
        print_line(f"{number} {words}: {' '.join(as_arguments(point_of(self.plan, trial)))}")
        return True

    def _forget(self, trial: Trial | FrozenTrial) -> None:
        """It was interrupted: its point comes again."""
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params)

    def _begin_final(self) -> Attempt | None:
        """One of the best points, on a seed that chose nothing."""
        confirmed = self.study.user_attrs.get(CONFIRMED, {})
        for k in range(FINAL_SEEDS):
            for trial in ranked(self.study)[:FINALISTS]:
                under_way = list(self._finals.values()).count(trial)
                if len(confirmed.get(str(trial.number), [])) + under_way == k:
                    name, point = f"final-{trial.number}-{k}", point_of(self.plan, trial)
                    attempt = self._attempt(name, point, FINAL_SEED + k)
                    self._finals[attempt] = trial
                    return attempt
        return None

    def _is_final_over(self, attempt: Attempt) -> bool:
        if not attempt.is_over():
            return False
        trial = self._finals.pop(attempt)
        confirmed = self.study.user_attrs.get(CONFIRMED, {})
        confirmed.setdefault(str(trial.number), []).append(attempt.value)
        self.study.set_user_attr(CONFIRMED, confirmed)
        words = self.plan.worth.in_words(attempt.value)
        print_line(f"trial {trial.number} on another seed: {words}")
        return True


def check(plan: Plan, point: Point) -> None:
    """Raise UserError where the rules between settings refuse a point."""
    given = parse_train([*plan.words, *as_arguments(point)])
    settings = {name: value for name, value in given.items() if name not in ("config", "preset")}
    resolve(settings, given.get("config"), given.get("preset"))
