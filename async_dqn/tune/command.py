"""`tune`: from an environment to settings for it, in so many minutes."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.options import Parser, parse_train, parse_value
from async_dqn.config.presets import resolve, to_toml
from async_dqn.processes.signals import StopSignals
from async_dqn.runs.durable import replace_file
from async_dqn.runs.folder import LOCK, env_folder, hold
from async_dqn.runs.progress import print_line

NOT_OF_TRIALS = ("resume", "run_name", "runs_dir", "version", "print_config", "track")
SHARE = 1 / 15  # of the minutes that a trial may take


def tune(argv: Sequence[str]) -> int:
    """Search settings for an environment with Optuna. Trials are runs; those that fall behind are
    stopped, and the best points run again on other seeds. With --stop-at-return the goal is to
    reach that score soon, else high scores early. The same command goes on where it was
    interrupted.
    """
    parser = Parser(
        prog="async-dqn tune",
        usage="async-dqn tune [options] [options of train]",
        description=tune.__doc__,
        epilog="Options of train hold for every trial; what they set is not searched.",
    )
    parser.add_argument("--trials", metavar="N", default="50", help="(default: 50)")
    parser.add_argument("--minutes", metavar="X", default="30", help="in all (default: 30)")
    parser.add_argument("--trial-minutes", metavar="X", help="of each at most (default: a 15th)")
    parser.add_argument("--jobs", metavar="N", default="1", help="at a time (default: 1)")
    parser.add_argument("--out", metavar="DIR", help="(default: runs/tune-<environment>)")
    own, words = parser.parse_known_args(list(argv))
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs optuna; pip install -c constraints.txt -e '.[tune]'")
    plan = _plan(vars(own), words)
    from async_dqn.tune.report import write
    from async_dqn.tune.study import Search, winner

    (plan.out / "logs").mkdir(parents=True, exist_ok=True)
    lock = hold(plan.out / LOCK)
    if lock is None:
        raise UserError(f"{plan.out} is in use by another search; wait for it or stop it")
    with lock, StopSignals(lambda: None) as signals:
        search = Search(plan, signals)
        search.run()
        if signals.received is not None:
            print_line(f"stopped; the same command goes on in {plan.out}")
            return signals.exit_code
        best = winner(search.study)
        if best is None:
            raise UserError(
                f"no trial came to an end that counts; see {plan.out / 'logs'}, or give more "
                "--trial-minutes"
            )
        config, _ = resolve(
            {"seed": plan.config.run.seed}, str(plan.folder(f"trial-{best.number}"))
        )
        replace_file(plan.out / "best.toml", f"{to_toml(config)}\n".encode())
        print_line(f"report       {write(plan, search.study)}")
        print_line(f"best         python launch.py --config {plan.out / 'best.toml'}")
    return 0


def _plan(own: Mapping[str, str], words: Sequence[str]) -> Any:
    """What is to be searched; raises UserError."""
    given = parse_train(words)
    for name in NOT_OF_TRIALS:
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} is not for trials; drop it")
    if given.get("workers") == "auto":
        raise UserError("--workers auto is not for trials; give a number")
    trials, jobs = (parse_value(SETTINGS["workers"], own[n], f"--{n}") for n in ("trials", "jobs"))
    minutes = parse_value(SETTINGS["lr"], own["minutes"], "--minutes")
    longest = minutes * SHARE
    if "trial_minutes" in own:
        longest = parse_value(SETTINGS["lr"], own["trial_minutes"], "--trial-minutes")
    if "workers" not in given:
        given["workers"] = max(1, usable_cores() // jobs)
        words = [*words, "--workers", str(given["workers"])]
    sources = given.pop("config", None), given.pop("preset", None)
    config, explicit = resolve(given, *sources)
    from async_dqn.envs import make
    from async_dqn.training.look import looked_at
    from async_dqn.tune.study import Plan
    from async_dqn.tune.trial import Worth

    make.check_env_id(config.environment.env, config.environment.import_modules)
    info, config, _ = looked_at(make.EnvSpec.of(config.environment), config, explicit)
    shapes = [info.observation_shape, *(part.shape for part in info.parts)]
    return Plan(
        Path(own.get("out") or f"runs/tune-{env_folder(config.environment.env)}"),
        tuple(words),
        frozenset(name.rpartition(".")[2] for name in explicit),
        config,
        all(len(shape) == 1 for shape in shapes),
        Worth(config.evaluation.stop_at_return, config.run.steps, 60 * longest),
        trials,
        minutes,
        jobs,
    )
