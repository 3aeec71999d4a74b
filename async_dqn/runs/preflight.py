"""What a run needs of the machine: refused before anything is written, not halfway."""

import math
import multiprocessing
import os
import platform
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from async_dqn.config.config import UserError
from async_dqn.config.cores import free_memory, free_tasks
from async_dqn.config.fields import show
from async_dqn.parameters.flat_network import check_named, flat_vector
from async_dqn.parameters.layout import padded_size
from async_dqn.processes import child_side
from async_dqn.replay.shard import segment_length
from async_dqn.runs.checkpoint_format import Checkpoint, of_worker
from async_dqn.runs.resume import stored_config
from async_dqn.workers.run_spec import RunSpec

ORDERED = {"x86_64", "amd64", "i686", "i386"}  # processors whose writes are seen in their order
LEAST_RECORD_BYTES = 4092  # of what a worker reports in one piece: PIPE_BUF of Linux
CHECKPOINTS = 3  # the last one, the best, and one that is being written
FILES, FILES_PER_CHILD = 30, 4
TASKS, TASKS_PER_CHILD = 4, 2  # processes and threads
# What a process of its own holds at its first update, beside what depends on the settings:
# 15 to 17 MB with CartPole, where that is little (benchmarks/results/startup.md).
WORKER_BYTES = 15 * 10**6
ATARI_BYTES = 60 * 10**6  # more: emulators, what compiled convolutions keep (Pong: 85 to 100 MB)


def check_machine(run_spec: RunSpec, folder: Path) -> None:
    """The device, open files, memory, and room where `folder` will be; raises UserError."""
    parallel = run_spec.config.parallel
    check_device(run_spec.config.run.device)
    size, replay = padded_size(run_spec.network()), run_spec.replay_bytes
    needed = sum(section.bytes for section in run_spec.sections(size)) + replay
    if parallel.mode != "serial":
        _check_platform(parallel.mode)
        _check_children(parallel.workers, run_spec.most_players)
        run_spec.packed()
        needed += (parallel.workers + run_spec.players) * _worker_bytes(run_spec, size)
    check_memory(needed)
    stored = replay if parallel.mode == "serial" else 0
    owners = 1 if run_spec.shared_state else parallel.workers
    targets = run_spec.target_rule.networks
    averages = int(run_spec.config.optimizer.average_steps is not None)
    # Parameters, target, optimiser, average.
    vectors = 1 + targets + owners * run_spec.optimizer().rows + averages
    _check_room(folder, CHECKPOINTS * (4 * size * vectors + stored))


def _check_platform(mode: str) -> None:
    # Synchronous workers publish a part and then the number of its round, without a fence: others
    # see them in that order on x86 only.
    processor = platform.machine()
    if mode == "sync" and processor.lower() not in ORDERED:
        raise UserError(
            f"--mode sync needs an x86 processor (this is {processor}); use --mode async"
        )
    if child_side.RECORD_BYTES < LEAST_RECORD_BYTES:
        raise UserError(
            "workers need pipes that take 4096 bytes in one piece (here "
            f"{child_side.RECORD_BYTES + 4}); use --mode serial"
        )


def check_device(name: str) -> None:
    """Raise UserError unless networks can compute on `name`: cpu, cuda or cuda:N."""
    if name == "cpu":
        return  # without looking for GPUs
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in gpus and not (name == "cuda" and gpus):
        found = ", ".join(["cpu", *gpus])
        raise UserError(f"device {show(name)} is not available (found: {found})")


def check_tensors(run_spec: RunSpec, found: Checkpoint) -> None:
    """Whether a run can go on from what the checkpoint holds; raises UserError."""
    net, tensors = run_spec.network(), found.tensors
    names = run_spec.state_names(stored_config(found).parallel.workers)
    shard = run_spec.replay_shard()
    try:
        flat_vector(net, tensors.get("model", {}))
        flat_vector(net, tensors.get("average", tensors.get("model", {})))
        for stem in {"target", *(stem for stem in tensors if stem.startswith("target"))}:
            flat_vector(net, tensors.get(stem, {}))
        rows = dict.fromkeys(names, (padded_size(net),))
        check_named(rows, tensors.get("optimizer", {}))
        _check_moments(run_spec, tensors.get("moments", {}))
        for worker in range(run_spec.config.parallel.workers):
            own = of_worker(tensors.get("replay", {}), worker)
            if own and shard is not None:
                shard.check_state(own)
    except ValueError as error:
        raise UserError(
            f"checkpoint does not match: {error}; start a new run without --resume"
        ) from None


def _check_moments(run_spec: RunSpec, stored: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where running moments are missing, misshapen, or no numbers."""
    columns = {"inputs": run_spec.normalized_inputs}
    columns["returns"] = int(run_spec.config.algorithm.scale_rewards)
    for name in [name for name in columns if columns[name]]:
        rows, wanted = stored.get(name), (3, columns[name])
        if rows is None or rows.dtype != np.int64 or rows.shape[1:] != wanted:
            raise ValueError(f"running moments of {name} are missing, or not of {wanted}")
        if not np.isfinite(rows.view(np.float64)).all():
            raise ValueError(f"running moments of {name} are not finite")


def _check_children(workers: int, players: int) -> None:
    """Whether the evaluator and these may be started."""
    if multiprocessing.current_process().daemon:
        raise UserError(
            "a process of multiprocessing.Pool may start no workers; use "
            "concurrent.futures.ProcessPoolExecutor, or mode serial"
        )
    children = workers + 1 + players
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    tasks = free_tasks()
    open_files, processes = FILES + FILES_PER_CHILD * children, TASKS + TASKS_PER_CHILD * children
    lack = ""
    if files != resource.RLIM_INFINITY and files < open_files:
        lack = f"open files (limit {files}, need {open_files}); raise ulimit -n"
    elif tasks is not None and tasks < processes:
        free = f"free {max(0, tasks)}, need {processes}"
        lack = f"processes ({free}); raise ulimit -u or pids.max,"
    if lack:
        raise UserError(f"cannot start {workers} workers: too many {lack} or lower --workers")


def _worker_bytes(run_spec: RunSpec, size: int) -> int:
    """What a worker needs at the least: its networks, its process, and what a pass of its batch
    keeps, of which the observations and two layers as large are counted (in float32).
    """
    config, parallel = run_spec.config, run_spec.config.parallel
    rows = -(-parallel.envs_per_worker * parallel.rollout_length // parallel.minibatches)
    if config.replay.replay != "none":
        length = segment_length(run_spec.traits.one_step, parallel.rollout_length)
        rows = config.replay.batch_size * length
    numbers = 3 * size + 3 * rows * math.prod(run_spec.info.observation_shape)
    return WORKER_BYTES + ATARI_BYTES * run_spec.spec.is_atari + 4 * numbers


def check_memory(needed: int) -> None:
    """Raise UserError where `needed` bytes are not free."""
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"cannot reserve {_mb(needed)} of memory (free {_mb(free)}); lower --workers or "
            "--replay-capacity, or choose a smaller network"
        )


def free_room(folder: Path) -> int:
    """Bytes free on the disk where `folder` is, or will be."""
    place = Path(os.path.abspath(folder))
    there = next(path for path in (place, *place.parents) if path.exists())
    return shutil.disk_usage(there).free


def _check_room(folder: Path, needed: int) -> None:
    free = free_room(folder)
    if needed > free:
        raise UserError(
            f"{folder} has {_mb(free)} free, needs {_mb(needed)}; make room or choose another "
            "--runs-dir"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
