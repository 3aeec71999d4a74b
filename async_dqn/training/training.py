"""From settings to a finished run: resume, checks, start-up order.

torch is imported only after everything that can be refused was checked, and after the fork
server was started, so that both import it at the same time.
"""

import contextlib
import resource
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from async_dqn.config.config import Config, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.extension import find, plain_name, traits_of
from async_dqn.config.fields import describe_error, is_foreign
from async_dqn.config.rules import check_combination
from async_dqn.envs import make
from async_dqn.envs.make import EnvInfo, EnvSpec
from async_dqn.envs.masks import SOURCES
from async_dqn.envs.spec import DEFAULT_MAX_EPISODE_STEPS
from async_dqn.networks import architecture
from async_dqn.processes import spawn
from async_dqn.processes.signals import time_limit
from async_dqn.replay.shard import least_capacity, segment_length
from async_dqn.runs import checkpoint
from async_dqn.runs.companions import Companions, check_services, commands_of
from async_dqn.runs.folder import RunFolder, check_new_run, env_folder
from async_dqn.runs.progress import print_line
from async_dqn.runs.recorder import Recorder
from async_dqn.runs.resume import resumed
from async_dqn.training.clock import Times, VirtualClock
from async_dqn.training.look import looked_at

if TYPE_CHECKING:
    from async_dqn.runs.reporter import Callback
    from async_dqn.runs.run import Run
    from async_dqn.runs.transfer import Transfer
    from async_dqn.workers.run_spec import RunSpec

COLUMNS, NO_BREAK = 100, "\N{NO-BREAK SPACE}"  # of what is said at the start
ALWAYS_SAID = {"env", "algorithm", "mode", "steps", "seed"}
SAID_BELOW = {"workers", "envs_per_worker", "runs_dir", "run_name"}
LEAST_ADDRESSES = 700 * 10**6  # bytes: what torch 2.13 for CPUs takes to be imported, and some
PROBE_S = 120.0  # for making an environment and a first step


@dataclass(frozen=True)
class Outcome:
    """How a session ended, where it wrote, and why it ended early (else "")."""

    exit_code: int
    run: Path
    error: str = ""


def train(
    config: Config,
    explicit: frozenset[str],
    factory: Callable[..., Any] | None = None,
    callback: "Callback | None" = None,
    in_own_process: bool = True,
    trainer: Callable[["Run"], Any] | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Train as the settings say.

    `explicit` are the dotted names of the settings the user gave (they override those of a
    resumed run); `factory` stands in for the environment id; `callback` gets every report and
    ends the run by returning False. The clocks count from the start of the process, unless the
    process does more than this run. `trainer` makes what drives the run (default: by mode).
    `objects` is code of the user's that settings name (`extension.bring`).

    Raises UserError, with nothing written, for whatever the user can mend.
    """
    _check_address_space()
    config, origin, notes = _settled(config, explicit)
    own = find(config.by_name(), objects, config.environment.import_modules)
    check_combination(config)  # by now the traits of all algorithms are known
    check_services(config)
    spec = EnvSpec.of(config.environment, factory)
    if _old_folder(config, spec, origin) is None:
        check_new_run(config.run.runs_dir, spec.name, config.run.run_name)
    if config.parallel.mode != "serial":
        spawn.preload(make.preload_modules(spec))
    info, config, reasons = _seen(spec, config, explicit, origin)
    _check_replay(config)
    run_spec = _run_spec(config, spec, info, own, origin)
    from async_dqn.runs.run import Run  # torch: late, as it is slow
    from async_dqn.runs.transfer import transfer_of

    transfer = None if origin is not None else transfer_of(run_spec)
    folder = _folder(config, spec, origin)
    with (
        folder,
        contextlib.closing(_recorder(folder, config, info, origin, in_own_process)) as recorder,
        Companions(folder.path, commands_of(config, folder.path), recorder.warn) as companions,
    ):
        _announce(run_spec, folder, notes, reasons, transfer)
        try:
            run = Run(run_spec, folder, recorder, origin, callback, transfer)
            recorder.start()
            companions.start()
            run.each_second = companions.look
            with run.writer:
                code = (trainer or trainer_of)(run).run()
        except UserError:
            folder.discard()
            raise
        except Exception as error:
            raise failed(folder, recorder, error) from error
    _check_saved(run, folder)
    saved = f"; checkpoint saved at step {run.store.steps:,}, --resume {folder} goes on"
    return Outcome(code, folder.path, f"{run.cause}{saved}" if code else "")


def _seen(
    spec: EnvSpec, config: Config, explicit: frozenset[str], origin: checkpoint.Checkpoint | None
) -> tuple[EnvInfo, Config, list[str]]:
    """`looked_at` within its time; an environment may change the working folder."""
    late = f"cannot create env: {spec.name} took more than {PROBE_S:g} s"
    with contextlib.chdir("."), time_limit(PROBE_S, late):
        stored = None if origin is None else origin.state.get("env_info")
        return looked_at(spec, config, explicit, stored)


def _run_spec(
    config: Config,
    spec: EnvSpec,
    info: EnvInfo,
    own: dict[str, Any],
    origin: checkpoint.Checkpoint | None,
) -> "RunSpec":
    """What the run is, once all is checked: the user's code, the machine, the checkpoint."""
    structure = architecture.choose(config, info)
    from async_dqn.runs.preflight import check_machine, check_tensors
    from async_dqn.workers.run_spec import RunSpec, as_found

    run_spec = RunSpec(config, spec, info, structure, own)
    if own:
        from async_dqn.training.trial import try_out

        with as_found():
            try_out(run_spec)
    check_machine(run_spec, Path(config.run.runs_dir) if origin is None else origin.path)
    if origin is not None:
        check_tensors(run_spec, origin)
    return run_spec


def _check_saved(run: "Run", folder: RunFolder) -> None:
    if run.unsaved:
        raise NotSaved(
            f"the last checkpoint was not saved ({run.unsaved}); make room, then --resume {folder} "
            "goes on from the one before"
        )


def _check_address_space() -> None:
    """Before torch is imported, which ends in other ways where it is too small."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        raise UserError(
            f"a process may use {limit / 1e6:.0f} MB of addresses here, torch alone needs "
            f"{LEAST_ADDRESSES / 1e6:.0f} MB; raise ulimit -v"
        )


def _settled(
    config: Config, explicit: frozenset[str]
) -> tuple[Config, checkpoint.Checkpoint | None, list[str]]:
    """The settings of a resumed or a simulated run, where it comes from, and what to say of it."""
    origin, notes = None, []
    if config.run.resume is not None:
        config, origin, notes = resumed(config, explicit)
    if config.parallel.simulate_workers is not None:
        config = _simulated(config, explicit, origin)
    return config, origin, notes


def _simulated(
    config: Config, explicit: frozenset[str], origin: checkpoint.Checkpoint | None
) -> Config:
    """The settings with the simulated workers in place of real ones; refuse what cannot be."""
    count, times = config.parallel.simulate_workers, config.parallel.simulate_times
    if origin is not None:
        raise UserError(
            "a simulated run cannot be resumed, what its workers were about is not stored; start a "
            "new one (--simulate-times takes the same times)"
        )
    if "parallel.workers" in explicit and config.parallel.workers != count:
        raise UserError("--simulate-workers takes the place of --workers; drop one")
    if times is not None:
        Times.read(times)
    return config.with_settings({"workers": count})


def _check_replay(config: Config) -> None:
    """Raise UserError if a shard cannot hold one segment."""
    parallel, capacity = config.parallel, config.replay.replay_capacity
    one_step = traits_of(config.algorithm.algorithm).one_step
    length = segment_length(one_step, parallel.rollout_length)
    least = parallel.workers * least_capacity(parallel.envs_per_worker, length)
    if config.replay.replay != "none" and capacity < least:
        raise UserError(
            f"--replay-capacity {capacity} is too small for {parallel.workers} workers of "
            f"{parallel.envs_per_worker} environments; give at least {least}"
        )


class NotSaved(UserError):
    """The run ended as it should, but for its last checkpoint."""

    exit_code = 75


class RunFailed(UserError):
    """The run itself failed, through no setting of the user's."""

    exit_code = 1


def failed(folder: RunFolder, recorder: Recorder, error: Exception) -> RunFailed:
    """Write down that the run failed, and return the error to raise, in one line."""
    log = folder.logs / "supervisor.log"
    log.write_text(traceback.format_exc())
    cause = describe_error(error)
    recorder.event("stop", cause=cause)
    recorder.result({"status": "failed", "wall_s": recorder.wall_s})
    return RunFailed(f"the run failed ({cause}); see {log}")


def trainer_of(run: "Run") -> Any:
    """What drives a run of its mode."""
    if run.run_spec.config.parallel.simulate_workers is not None:
        from async_dqn.training.simulation import SimulationTrainer

        return SimulationTrainer(run)
    if run.run_spec.config.parallel.mode == "serial":
        from async_dqn.training.serial import SerialTrainer

        return SerialTrainer(run)
    from async_dqn.training.supervisor import Supervisor

    return Supervisor(run)


def _recorder(
    folder: RunFolder,
    config: Config,
    info: EnvInfo,
    origin: checkpoint.Checkpoint | None,
    in_own_process: bool,
) -> Recorder:
    wall_s = 0.0 if origin is None else origin.state["wall_s"]
    step, console = 0 if origin is None else origin.step, not config.run.quiet
    clock = time.monotonic if config.parallel.simulate_workers is None else VirtualClock()
    return Recorder(folder, config, asdict(info), step, wall_s, console, in_own_process, clock)


def _announce(
    run_spec: "RunSpec",
    folder: RunFolder,
    notes: list[str],
    reasons: list[str],
    transfer: "Transfer | None",
) -> None:
    """Print the resolved settings and the `reasons` of defaults, who explores how much, and where
    the results go."""
    config, info = run_spec.config, run_spec.info
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if config.run.quiet:
        return
    _say("settings", *_settings(run_spec), "others as by default (all are in config.json)")
    if reasons:
        _say("defaults", *reasons)
    _say("workers", *_sharing(config))
    _say(*_exploration(run_spec))
    _say("observation", *info.observation.split(", "))
    if info.masks is not None:
        _say("actions", f"{info.num_actions}", f"masked by {SOURCES[info.masks]}")
    if branches := run_spec.architecture.branches:
        _say("actions", f"{_components(branches)}, one head each")
    elif info.actions is not None:
        _say("actions", f"{info.num_actions}, each one of {info.actions}")
    if config.environment.protocol:
        _say("protocol", *config.environment.protocol.split(", "))
    limit = info.max_episode_steps
    if run_spec.spec.max_episode_steps is None and limit == DEFAULT_MAX_EPISODE_STEPS:
        _say("episodes", f"cut after {limit:,} steps", "in scores too; or --max-episode-steps N")
    replay, parallel = config.replay, config.parallel
    if replay.replay != "none":
        size = f"{parallel.workers} shards of {replay.replay_capacity // parallel.workers} steps"
        memory = f"{run_spec.replay_bytes / 1e6:.0f} MB"
        _say("replay", size, f"{memory}; learning begins at step {replay.replay_start}")
    if transfer is not None:
        _say("begins with", *transfer.words)
    print_line(f"run folder   {folder}")


def _say(label: str, *items: str) -> None:
    """Print a list, wrapped between its items where they are not too long."""
    whole = ", ".join(item.replace(" ", NO_BREAK) for item in items)
    label, indent = f"{label:12} ", " " * 13
    lines = textwrap.fill(
        whole, COLUMNS, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False
    )
    print_line(lines.replace(NO_BREAK, " "))


def _settings(run_spec: "RunSpec") -> list[str]:
    """The settings that matter most, those that are not the defaults, and what holds for those
    that were left open."""
    config, defaults = run_spec.config, Config().by_name()
    limit, network = run_spec.info.max_episode_steps, run_spec.architecture.network
    now = config.by_name() | {"max_episode_steps": limit, "network": network}
    if config.parallel.mode != "serial":
        now["hang_timeout"] = config.parallel.patience_s
    return [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in now.items()
        if name in ALWAYS_SAID or (value != defaults[name] and name not in SAID_BELOW)
    ]


def _sharing(config: Config) -> list[str]:
    """What follows from the number of workers, beside what it is with few."""
    now, whole, parallel = config.by_name(), dict(config.whole), config.parallel
    few = whole.pop("workers", None)
    changed = [
        f"{name} {now[name]:.3g} (with {few} {value:.3g})"
        for name, value in whole.items()
        if name != "envs_per_worker" and now[name] != value
    ]
    cores = usable_cores()
    if parallel.mode != "serial" and parallel.workers > cores:
        plural = "s" * (cores > 1)
        changed.append(f"on {cores} core{plural}: expect no gain, --workers {cores} takes less CPU")
    return [f"{parallel.actors} of {parallel.envs_per_worker} environments each", *changed]


def _components(sizes: Sequence[int]) -> str:
    """How many components actions have, and of how many values."""
    values = sizes[:1] if len(set(sizes)) == 1 else sizes
    plural = "s" * (len(sizes) > 1)
    return f"{len(sizes)} dimension{plural} of {', '.join(map(str, values))} values"


def _exploration(run_spec: "RunSpec") -> list[str]:
    policy, strength = run_spec.config.exploration.exploration, run_spec.exploration
    if run_spec.traits.explores_itself:
        return ["exploration", "by the policy itself"]
    if is_foreign(policy):
        return ["exploration", f"by {policy}"]
    (finals, counts), count = np.unique(strength.finals, return_counts=True), len(strength.finals)
    mix = [f"{n} of {count} environments to {x:.3g}" for x, n in zip(finals, counts)]
    if len(finals) > 5:
        mix = [f"{count} environments to {finals[0]:.3g} ... {finals[-1]:.3g}"]
    name = "temperature" if policy == "boltzmann" else "epsilon"
    return [name, f"from {strength.start:g}: {mix[0]}", *mix[1:]]


def _old_folder(config: Config, spec: EnvSpec, origin: checkpoint.Checkpoint | None) -> Path | None:
    """The run folder to go on in; None where a new run begins, as from a copy of a checkpoint."""
    if origin is not None:
        checkpoints = origin.path.parent
        return checkpoints.parent if checkpoints.name == "checkpoints" else None
    if config.run.resume is None or config.run.run_name is None:
        return None
    # --resume auto found no checkpoint in the run of this name: it may have been killed early.
    path = Path(config.run.runs_dir, env_folder(spec.name), config.run.run_name)
    return path if (path / "checkpoints").is_dir() else None


def _folder(config: Config, spec: EnvSpec, origin: checkpoint.Checkpoint | None) -> RunFolder:
    path, run = _old_folder(config, spec, origin), config.run
    if path is None:
        return RunFolder.create(
            run.runs_dir, spec.name, run.run_name, plain_name(config.algorithm.algorithm), run.seed
        )
    folder = RunFolder.open(path)
    checkpoint.clean(folder.checkpoints)
    checkpoint.rewind(folder.checkpoints, 0 if origin is None else origin.step)
    return folder
