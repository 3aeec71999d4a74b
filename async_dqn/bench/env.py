"""`bench env`: what the environments alone can do, the limit of any trainer on the same cores.

Each worker's environments are stepped as the worker has them, `EnvBatch` and all, in a process of
its own, with random actions drawn beforehand and no network. Episodes are as short as random
actions make them, so that an environment with costly resets looks slower than it will be later.
"""

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

import numpy as np

from async_dqn.bench.command import Speed, TimedOptions, present, save, spread
from async_dqn.config.config import Config, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.envs import make
from async_dqn.envs.masks import legal_actions
from async_dqn.envs.spec import EnvSpec
from async_dqn.processes import spawn
from async_dqn.processes.child_side import ParentIdentity, in_child, receive
from async_dqn.processes.spawn import Child

WARM_UP_S = 0.5
ACTIONS = 1000  # rows of random actions, used again and again
HEADER = (
    *("environment", "workers x environments", "steps/s per core, median (min to max)"),
    "steps per CPU second",
)


def run(argv: Sequence[str]) -> int:
    """Step the environments alone, with random actions, and print steps per second and core."""
    options = TimedOptions.parse("env", run.__doc__, argv)
    rows, results = [], []
    for env in options.env:
        config = options.config(env)
        workers, count = steppers(config), config.parallel.envs_per_worker
        cores = min(workers, usable_cores())
        speeds = [environment_speed(config, options.seconds) for _ in range(options.pairs)]
        figures = {
            "per_core": [speed.wall / cores for speed in speeds],
            "per_cpu_second": [speed.cpu for speed in speeds],
        }
        size = f"{workers} x {count}"
        rows.append((env, size, *(spread(each, ",.0f") for each in figures.values())))
        results.append({"env": env, "workers": workers, "environments": count, **figures})
    repetitions = f"{options.pairs} repetitions of {options.seconds:g} s"
    present(f"Environments alone, random actions, no network: {repetitions}", HEADER, rows)
    save(options.json, "env", results)
    return 0


def steppers(config: Config) -> int:
    """How many processes of a run step environments at the same time."""
    return 1 if config.parallel.mode == "serial" else config.parallel.actors


def environment_speed(config: Config, seconds: float) -> Speed:
    """The speed of all workers' environments together, measured for `seconds`.

    Raises UserError if the environment cannot be made or breaks.
    """
    spec = EnvSpec.of(config.environment)
    masks = make.probe(spec).masks
    spec = spec if masks is None else replace(spec, masks=masks)
    spawn.preload(make.preload_modules(spec))
    children = [Child("environments", index) for index in range(steppers(config))]
    with tempfile.TemporaryDirectory() as folder:
        common = seconds, ParentIdentity.here(), Path(folder, "log")
        try:
            for child in children:
                child.pipe, end = spawn.context().Pipe(duplex=False)
                child.start(step_alone, (config, spec, child.index, end, *common), end)
            speeds = [_speed(child) for child in children]
            return Speed(sum(s.wall for s in speeds), fmean(s.cpu for s in speeds))
        finally:
            for child in children:
                if child.alive:
                    child.kill(signal.SIGKILL)
                    child.reap()


def _speed(child: Child) -> Speed:
    record = receive(child.pipe) or {"cause": "its process died"}
    if "cause" in record:
        raise UserError(f"the environments could not be stepped: {record['cause']}")
    return Speed(**record["speed"])


def step_alone(
    config: Config,
    spec: EnvSpec,
    index: int,
    end: Connection,
    seconds: float,
    parent: ParentIdentity,
    log: Path,
) -> None:
    """Entry point of a process that steps one worker's environments and nothing else.

    It reports its speed and goes on until it is killed, so that none has the machine to itself
    while others still measure.
    """
    with in_child("async-dqn environments", parent, log, end) as pipe:
        count = config.parallel.envs_per_worker
        batch = make.make_vector(spec, count, training=True)
        taken = _steps(batch, np.random.default_rng((config.run.seed, index)))
        _count(taken, WARM_UP_S)
        pipe.send({"speed": _count(taken, seconds)._asdict()})
        while True:
            next(taken)


def _steps(batch: make.EnvBatch, generator: np.random.Generator) -> Iterator[int]:
    """Step for ever; how many transitions each vector step gave."""
    obs = batch.reset(generator.integers(2**31, size=batch.num_envs).tolist())
    actions = generator.integers(batch.info.num_actions, size=(ACTIONS, batch.num_envs))
    while batch.info.masks is not None:
        step = batch.step(legal_actions(batch.info, obs, generator))
        obs = step.obs
        yield batch.num_envs - int(np.count_nonzero(step.dummy))
    while True:
        for row in actions:
            yield batch.num_envs - int(np.count_nonzero(batch.step(row).dummy))


def _count(taken: Iterator[int], seconds: float) -> Speed:
    """Transitions within `seconds`, by how long it really took."""
    begun, cpu, steps, elapsed = time.perf_counter(), time.process_time(), 0, 0.0
    while elapsed < seconds:
        steps += next(taken)
        elapsed = time.perf_counter() - begun
    return Speed(steps / elapsed, steps / (time.process_time() - cpu))
