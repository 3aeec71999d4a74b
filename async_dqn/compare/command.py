"""`compare`: several methods on one environment, one run after another, then a report.

Methods take turns within a seed, so that a machine that slows down slows all alike. What is
finished is kept: the same command goes on where it stopped, and may add methods and seeds.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from async_dqn.compare.methods import SHARED, Contender, contenders
from async_dqn.compare.runner import job_of, make_all
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.options import Parser, parse_value
from async_dqn.config.presets import resolve
from async_dqn.report.command import check_plotting, machine, write
from async_dqn.report.results import PLAN, read_plan
from async_dqn.runs.durable import replace_json
from async_dqn.runs.folder import LOCK, env_folder, hold
from async_dqn.runs.versions import versions

DEFAULT_METHODS = "async-n-step-q,sync-n-step-q,dqn,pqn"


def compare(argv: Sequence[str]) -> int:
    """Run several methods on several seeds, one run at a time, and report; goes on where it
    stopped."""
    given = _parse(argv)
    check_plotting()
    plan, methods = _plan(given, argv)
    out = Path(given.get("out") or f"runs/compare-{env_folder(plan['plan']['env'])}")
    with _held(out):
        plan = _merged(out, plan)
        replace_json(out / PLAN, plan)
        env = plan["plan"]["env"]
        jobs = [job_of(out, env, method, seed) for seed in plan["seeds"] for method in methods]
        print(f"{len(jobs)} runs, one after another; results in {out}", flush=True)
        code = make_all(jobs, plan["failures"], lambda: replace_json(out / PLAN, plan))
        if code:
            return code
        print(f"report  {write(out, [out])}", flush=True)
    return 1 if any(job.name in plan["failures"] for job in jobs) else 0


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    parser = parser_of("async-dqn compare", compare.__doc__)
    parser.add_argument(
        "--methods",
        metavar="NAME,NAME,...",
        help="<mode>-<algorithm>, a preset for any environment, or sb3-dqn; further options after "
        f'a colon: "pqn:--lam 0.8", "sb3-dqn:--steps 100_000" (default: {DEFAULT_METHODS})',
    )
    return parser.parse(argv)


def parser_of(prog: str, about: str | None) -> Parser:
    """The options of every comparison; those of `compare` but for the methods."""
    parser = Parser(prog=prog, description=about)
    parser.add_argument("--env", metavar="ID", help="(default: CartPole-v1)")
    parser.add_argument("--seeds", metavar="N", help="seeds 0 to N - 1 of each (default: 5)")
    parser.add_argument("--workers", metavar="N", help="of each (default: the usable cores)")
    preset = "(default: as the environment's preset)"
    parser.add_argument("--stop-at-return", metavar="R", help="the threshold (default: none)")
    parser.add_argument("--steps", metavar="N", help=f"budget of each run {preset}")
    parser.add_argument("--eval-every", metavar="N", help=preset)
    parser.add_argument("--eval-episodes", metavar="N", help=preset)
    parser.add_argument("--out", metavar="DIR", help="(default: runs/compare-<environment>)")
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        help="a further option of every run (of peers: about the environment only); repeatable",
    )
    return parser


def _plan(given: Mapping[str, Any], argv: Sequence[str]) -> tuple[dict[str, Any], list[Contender]]:
    """What is to be run, as it is stored, and its methods; raises UserError."""
    settings = {
        name: parse_value(SETTINGS[name], given[name])
        for name in ("env", "workers", *SHARED)
        if name in given
    }
    count = parse_value(SETTINGS["workers"], given.get("seeds", "5"), "--seeds")
    extra = [f"--{word}" for word in given.get("set", [])]
    base, _ = resolve(settings)
    from async_dqn.envs import make  # imports gymnasium: only now

    env = base.environment.env
    modules = [word.partition("=")[2] for word in extra if word.startswith("--import=")]
    make.check_env_id(env, modules)
    shared = {name: base.by_name()[name] for name in ("env", *SHARED)}
    labels = [label.strip() for label in given.get("methods", DEFAULT_METHODS).split(",")]
    methods = contenders(labels, shared, base.parallel.workers, extra)
    installed = {name: version for name, version in versions().items() if version is not None}
    plan = {
        "plan": {**shared, "workers": base.parallel.workers, "set": extra, "versions": installed},
        "methods": {method.label: method.command for method in methods},
        "seeds": list(range(count)),
        "failures": {},
        "command": shlex.join(["python", "launch.py", "compare", *argv]),
        "machine": machine(),
        "begun": str(date.today()),
    }
    return plan, methods


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make `out` and hold it: two comparisons at a time would share the cores."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        lock = hold(out / LOCK)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    if lock is None:
        raise UserError(f"{out} is in use by another compare; wait for it or stop it")
    with lock:
        yield


def _merged(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """`plan`, going on with what `out` holds; raises UserError unless it only adds to that."""
    old = read_plan(out)
    if old is None:
        return plan
    # As JSON gives it back.
    new = json.loads(json.dumps(plan))
    differ = [
        f"{key} {old['plan'].get(key)}, now {value}"
        for key, value in new["plan"].items()
        if old["plan"].get(key) != value
    ]
    for label, command in old["methods"].items():
        if label not in new["methods"]:
            differ.append(f"method {label}, now without")
        elif command != new["methods"][label] and not differ:
            differ.append(f"other settings of {label}")
    if len(old["seeds"]) > len(new["seeds"]):
        differ.append(f"{len(old['seeds'])} seeds, now {len(new['seeds'])}")
    if differ:
        raise UserError(f"{out} holds another comparison ({'; '.join(differ)}); use another --out")
    return new | {"failures": old["failures"], "begun": old.get("begun")}
