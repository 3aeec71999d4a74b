"""`python -m async_dqn.peers NAME [options]`: the command line, the checks, and the run folder.

Exit codes and one-line errors are those of the main command.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from async_dqn.compare.methods import PEERS
from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.config.fields import did_you_mean, either
from async_dqn.config.options import Parser, argument, parse_value, run_command
from async_dqn.config.presets import resolve
from async_dqn.processes.spawn import THREAD_VARIABLES

PACKAGE = "stable-baselines3"
# The settings that a peer shares with our methods.
SHARED = (
    *("env", "env_arg", "import_modules", "wrap", "eval_wrap", "max_episode_steps", "action_bins"),
    *("workers", "eval_every", "eval_episodes", "stop_at_return"),
    *("steps", "seed", "runs_dir", "run_name", "quiet"),
)
PROTOCOL = (
    "scored by async_dqn's evaluator; evaluations are not counted in wall_s and cpu_s, which "
    "favours the peer; no checkpoints"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one peer (default `sys.argv[1:]`) and return the exit code."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    return run_command(_main, argv)


def _main(argv: list[str]) -> int:
    parser = _parser()
    if not argv or argv[0] in ("-h", "--help"):
        parser.parse(argv)
        raise UserError(f"name a peer; choose {either(PEERS)}")
    peer, *rest = argv
    if peer not in PEERS:
        hint = did_you_mean(peer, PEERS) or f"; choose {either(PEERS)}"
        raise UserError(f"unknown peer {peer!r}{hint}")
    texts = parser.parse(rest)
    config, _ = resolve({name: parse_value(SETTINGS[name], text) for name, text in texts.items()})
    if importlib.util.find_spec(PEERS[peer]) is None:
        raise UserError(f'{peer} needs {PACKAGE}; pip install -e ".[peers]"')
    return train(peer, config)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m async_dqn.peers",
        usage="python -m async_dqn.peers {" + ",".join(PEERS) + "} [options]",
        description="Train a program of another library with its published settings.",
    )
    for name in SHARED:
        keywords = argument(SETTINGS[name])
        if name == "workers":
            keywords |= {"metavar": "N", "help": "compute threads it may use"}
        parser.add_argument(SETTINGS[name].option, dest=name, **keywords)
    return parser


@dataclass(frozen=True)
class SharedConfig:
    """Of `Config` what holds for a peer too, in the form that the recorder writes."""

    config: Config
    peer: Mapping[str, Any]

    @property
    def run(self) -> Any:
        """The section."""
        return self.config.run

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Values by section."""
        whole, sections = self.config.to_dict(), {}
        for name in SHARED:
            section = SETTINGS[name].section
            sections.setdefault(section, {})[name] = whole[section][name]
        return sections

    def flat(self) -> dict[str, Any]:
        """Values by dotted name, the peer's own among them."""
        whole, shared = self.config.flat(), [SETTINGS[name].dotted for name in SHARED]
        own = {f"peer.{name}": value for name, value in self.peer["settings"].items()}
        return {dotted: whole[dotted] for dotted in shared} | own


def train(name: str, config: Config) -> int:
    """Train as the settings say; raises UserError, with nothing written, for users' mistakes."""
    from async_dqn.envs import make
    from async_dqn.envs.spec import EnvSpec
    from async_dqn.networks import architecture  # imports gymnasium: only now
    from async_dqn.peers import settings
    from async_dqn.runs.folder import RunFolder, check_new_run

    env, run = config.environment, config.run
    spec = EnvSpec.of(env)
    make.check_env_id(env.env, env.import_modules)
    check_new_run(run.runs_dir, spec.name, run.run_name)
    info = make.probe(spec)
    published = settings.choose(spec, info)
    network = architecture.choose(config.with_settings({"network": "auto"}), info)

    import torch

    from async_dqn.peers import sb3
    from async_dqn.processes.signals import StopSignals
    from async_dqn.runs.recorder import Recorder
    from async_dqn.training.training import failed
    from async_dqn.workers.run_spec import RunSpec

    threads = config.parallel.workers if published.threaded else 1
    torch.set_num_threads(threads)
    peer = describe(name, published, config, threads)
    run_spec = RunSpec(config, spec, info, network)
    with StopSignals(force=lambda: None) as signals:
        folder = RunFolder.create(run.runs_dir, spec.name, run.run_name, name, run.seed)
        shared = SharedConfig(config, peer)
        recorder = Recorder(folder, shared, asdict(info), console=not run.quiet)
        with folder, closing(recorder):
            if info.masks is not None:
                print("note: SB3's DQN knows no action masks", file=sys.stderr)
            _announce(peer, folder, run.quiet)
            recorder.start()
            recorder.drops.attempt(_add_peer, folder.path / "config.json", peer)
            recorder.open_board()
            try:
                sb3.PeerRun(run_spec, sb3.build(run_spec, published), recorder, signals).run()
            except Exception as error:
                raise failed(folder, recorder, error) from error
        return signals.exit_code


def describe(name: str, published: Any, config: Config, threads: int) -> dict[str, Any]:
    """What config.json says of a peer; `settings` are the library's own keywords."""
    fraction = published.exploration_fraction(config.run.steps)
    return {
        "name": name,
        "library": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "source": published.source,
        "settings": {
            "policy": published.policy,
            **published.dqn,
            "exploration_fraction": fraction,
        },
        "exploration_steps": round(fraction * config.run.steps),
        "threads": threads,
        "protocol": PROTOCOL,
    }


def _announce(peer: Mapping[str, Any], folder: Any, quiet: bool) -> None:
    if not quiet:
        own = ", ".join(f"{key}={value}" for key, value in peer["settings"].items())
        print(f"peer         {peer['name']}, {peer['library']}, {peer['source']}")
        print(f"settings     {own}, threads={peer['threads']}")
        print(f"run folder   {folder}", flush=True)


def _add_peer(path: Path, peer: Mapping[str, Any]) -> None:
    from async_dqn.runs.durable import replace_json

    config = json.loads(path.read_text())
    config["peer"] = peer
    config["versions"][PACKAGE] = metadata.version(PACKAGE)
    replace_json(path, config)


if __name__ == "__main__":
    sys.exit(main())
