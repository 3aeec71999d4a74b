"""The command line: `async-dqn [train|evaluate|watch|list|...] ...`, see `COMMANDS`.

Nothing heavy is imported before the arguments are known to be good: `--help` and mistakes
answer at once, and training starts its fork server before it imports torch itself.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

from async_dqn.config import presets
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.fields import did_you_mean, one_line
from async_dqn.config.options import (
    AUTO,
    Parser,
    agent_parser,
    parse_train,
    parse_value,
    run_command,
    train_parser,
)
from async_dqn.processes.signals import leaving_at_once
from async_dqn.processes.spawn import THREAD_VARIABLES

TABLES = ("presets", "algorithms", "networks", "runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default `sys.argv[1:]`) and return its exit code."""
    # The workers are the parallelism; set before anything reads them, and for the children.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    return run_command(_dispatch, argv)


def _say(text: str, end: str = "\n") -> None:
    """Print now; that the reader has left (`| head`) is no error."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # What is still buffered would fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"cannot write to standard output: {error.strerror}") from None


def _dispatch(argv: list[str]) -> int:
    command, rest = "train", argv
    if argv and not argv[0].startswith("-"):
        command, *rest = argv
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or f"; choose {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}{hint}")
    try:
        run = COMMANDS[command]
        return (resolve_name(run) if isinstance(run, str) else run)(rest)
    except SystemExit as done:  # argparse, after --help
        if done.code:
            raise
        _say("", end="")
        return 0


@leaving_at_once()
def train(argv: Sequence[str]) -> int:
    """Train with the settings in `argv`; see `--help`."""
    given = parse_train(argv)
    if given.pop("version", False):
        from async_dqn import __version__

        _say(f"async_dqn {__version__}")
        return 0
    sources = given.pop("config", None), given.pop("preset", None)
    is_printed = given.pop("print_config", False)
    auto = given.get("workers") == AUTO
    if auto:
        del given["workers"]
    config, explicit = presets.resolve(given, *sources)
    if is_printed and (auto or config.run.resume):
        raise UserError("--print-config goes with neither --workers auto nor --resume; drop one")
    if is_printed and config.environment.defaults == "fixed":
        _say(presets.to_toml(config))
        return 0
    from async_dqn.envs import make  # imports gymnasium: only now

    if is_printed:
        from async_dqn.training.look import looked_at

        spec = make.EnvSpec.of(config.environment)
        _say(presets.to_toml(looked_at(spec, config, explicit)[1]))
        return 0
    make.check_env_id(config.environment.env, config.environment.import_modules)
    if auto:
        from async_dqn.bench.scaling import best_workers

        given["workers"] = best_workers(given, sources)
        config, explicit = presets.resolve(given, *sources)
    from async_dqn.training import training

    outcome = training.train(config, explicit)
    if outcome.error:
        print(f"error: {one_line(outcome.error)}", file=sys.stderr)
    return outcome.exit_code


def evaluate(argv: Sequence[str]) -> int:
    """Print the greedy score of a run folder's best checkpoint, or of one checkpoint."""
    parser = agent_parser("async-dqn evaluate", evaluate.__doc__)
    parser.add_argument("--episodes", metavar="N", default="100", help="(default: 100)")
    parser.add_argument("--seed", metavar="N", help="(default: the run's; same episodes as best)")
    given = parser.parse(argv)
    episodes = parse_value(SETTINGS["eval_episodes"], given["episodes"], "--episodes")
    seed = parse_value(SETTINGS["seed"], given["seed"]) if "seed" in given else None
    from async_dqn.api import AsyncDQN

    agent = AsyncDQN.load(given["run"], import_modules=given["import"], which=given["load"])
    mean, std = agent.evaluate(episodes=episodes, seed=seed)
    score = f"mean return {mean:.2f}, standard deviation {std:.2f}, {episodes} episodes"
    rules = agent.config.environment.protocol
    _say(", ".join([score, agent.playing, *([rules] if rules else [])]))
    return 0


def export(argv: Sequence[str]) -> int:
    """Write an agent as a file that decides by itself: .onnx, or .pt2 for torch.

    `python -m async_dqn.play FILE` plays an .onnx without torch.
    """
    parser = agent_parser("async-dqn export", export.__doc__)
    parser.add_argument("--out", metavar="FILE", required=True, help="an .onnx or a .pt2")
    parser.add_argument("--int8", action="store_true", help="weights in bytes (.onnx only)")
    given = parser.parse(argv)
    from async_dqn.api import AsyncDQN

    agent = AsyncDQN.load(given["run"], import_modules=given["import"], which=given["load"])
    _say("\n".join(agent.export(given["out"], "int8" in given)))
    return 0


def list_names(argv: Sequence[str]) -> int:
    """Print tables of presets, algorithms, networks and runs, or one of them."""
    parser = Parser(prog="async-dqn list", description=list_names.__doc__)
    parser.add_argument("what", nargs="?", metavar="|".join(TABLES), help="(default: all)")
    parser.add_argument("--runs-dir", metavar="DIR", default="runs", help="(default: runs)")
    given = parser.parse(argv)
    what = given.get("what")
    if what is not None and what not in TABLES:
        raise UserError(f"list needs one of {', '.join(TABLES)}{did_you_mean(what, TABLES)}")
    tables = []
    for name in TABLES if what is None else [what]:
        rows = _rows(name, Path(given["runs_dir"]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        tables.append("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
    _say("\n\n".join(tables))
    return 0


def _rows(table: str, runs_dir: Path) -> list[tuple[str, ...]]:
    if table == "runs":
        return _run_rows(runs_dir)
    if table == "presets":
        return _preset_rows()
    name = table.removesuffix("s")
    return [(name, "what it is"), *SETTINGS[name].choices.items()]


def _run_rows(runs_dir: Path) -> list[tuple[str, ...]]:
    from async_dqn.report.results import find_runs, quantity, read_run
    from async_dqn.runs.folder import is_locked
    from async_dqn.runs.progress import score

    rows: list[tuple[str, ...]] = [("run", "status", "steps", "last score")]
    for path in find_runs(runs_dir):
        try:
            run = read_run(path)
            found = one_line(run.status), quantity(run.totals["steps"]), score(run.final)
        except UserError:
            found = "damaged", "-", "-"
        status, *figures = found
        rows.append((one_line(str(path)), "running" if is_locked(path) else status, *figures))
    return rows


def _preset_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("preset", "environments", "algorithm", "steps")]
    for preset in map(presets.load, presets.names()):
        settings = preset.settings
        inherited = "as the environment's"
        steps = f"{settings['steps']:,}" if "steps" in settings else inherited
        envs = " ".join(preset.env) or "any, over its own"
        rows.append((preset.name, envs, settings.get("algorithm", inherited), steps))
    return rows


def completion(argv: Sequence[str]) -> int:
    """Print what completes `async-dqn` in a shell: commands, options of train and their choices."""
    parser = Parser(prog="async-dqn completion", description=completion.__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    shell = parser.parse(argv)["shell"]
    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion needs shtab; pip install -c constraints.txt -e '.[completion]'"
        ) from None
    whole = train_parser()
    whole.prog = "async-dqn"
    for action in whole._actions:
        if action.dest in SETTINGS and SETTINGS[action.dest].choices:
            action.choices = list(SETTINGS[action.dest].choices)
        if action.dest in ("config", "resume", "runs_dir", "simulate_times"):
            action.complete = shtab.FILE
    whole.add_argument("command", nargs="?", choices=list(COMMANDS))
    _say(shtab.complete(whole, shell))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int] | str] = {  # or where to import it from
    "train": train,
    "evaluate": evaluate,
    "list": list_names,
    "bench": "async_dqn.bench:run",
    "compare": "async_dqn.compare.command:compare",
    "report": "async_dqn.report.command:report",
    "export": export,
    "watch": "async_dqn.watch.command:watch",
    "track": "async_dqn.track.command:track",
    "doctor": "async_dqn.doctor.command:doctor",
    "distill": "async_dqn.distill.command:distill",
    "tune": "async_dqn.tune.command:tune",
    "completion": completion,
}
