"""Random play before a run without a preset: the time of a step, and whether rewards are rare.

In a process of its own, which the environment may end or hang: then nothing is known.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
import numpy as np
from numpy.typing import NDArray

from async_dqn.config.config import Config
from async_dqn.config.defaults import by_environment
from async_dqn.envs import make
from async_dqn.envs.actions import own_actions
from async_dqn.envs.batch import EnvBatch
from async_dqn.envs.make import EnvInfo, EnvSpec
from async_dqn.envs.masks import legal_actions
from async_dqn.processes.child_side import ParentIdentity, die_with

PARTS, STEPS, SECONDS = 4, 250, 0.15  # whatever ends a part first
LEAST_STEPS = 200  # to tell rare rewards by
PATIENCE_S = 20.0


class Look(NamedTuple):
    """What random play showed."""

    step_s: float  # seconds of a step of one environment, its share of resets included
    rewards_rare: bool


def looked_at(
    spec: EnvSpec,
    config: Config,
    explicit: Collection[str],
    stored: Mapping[str, Any] | None = None,
) -> tuple[EnvInfo, Config, list[str]]:
    """What the environment shows, and the settings that follow from it, with the reasons.

    `stored` is as in `make.probe`. Raises UserError where that does.
    """
    info = make.probe(spec, stored)
    if config.environment.defaults == "fixed":
        return info, config, []
    seen = look(spec if info.masks is None else dataclasses.replace(spec, masks=info.masks))
    if seen is not None:
        info = dataclasses.replace(info, **seen._asdict())
    config, reasons = by_environment(config, explicit, info)
    return info, config, reasons if seen else [*reasons, "random play in another process failed"]


def look(spec: EnvSpec) -> Look | None:
    """Play in a process of its own for about half a second; None where that did not work."""
    try:
        return _look(cloudpickle.dumps(sys.path), cloudpickle.dumps((ParentIdentity.here(), spec)))
    except Exception:  # whatever cannot travel may raise what it likes
        return None


@functools.lru_cache(maxsize=16)  # an agent is made, and then learns
def _look(path: bytes, packed: bytes) -> Look:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    code = "import pickle, sys; sys.path = pickle.load(sys.stdin.buffer); "
    code += f"from {__name__} import main; main(*pickle.load(sys.stdin.buffer))"
    # In a session of its own: what the environment started ends with it.
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
    try:
        found, _ = child.communicate(path + packed, PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return Look(**json.loads(found))


def main(parent: ParentIdentity, spec: EnvSpec) -> None:
    """In the child: what the environment prints is not among what is found."""
    die_with(parent)
    found = os.dup(1)
    os.dup2(2, 1)
    batch = make.make_vector(spec, 1, training=True)
    os.write(found, json.dumps(play(batch)._asdict()).encode())


def play(batch: EnvBatch) -> Look:
    """Random legal actions in the one environment of `batch`.

    Rewards are rare where random play cannot tell actions apart: all were 0, or all the same and
    no episode came to its end. Of several times the shortest: on a busy machine others are too
    long.
    """
    obs, generator = batch.reset([0]), np.random.default_rng(0)
    seconds, rewards, ended, played = [], set(), False, 0
    for _ in range(PARTS):
        begun = time.perf_counter()
        for steps in range(1, STEPS + 1):
            step = batch.step(legal_actions(batch.info, obs, generator))
            obs, elapsed = step.obs, time.perf_counter() - begun
            rewards.add(float(step.scores[0]))
            ended |= bool(step.terminated[0])
            if elapsed > SECONDS:
                break
        seconds.append(elapsed / steps)
        played += steps
    alike = len(rewards) == 1 and (rewards == {0.0} or not ended)
    return Look(min(seconds), alike and played >= LEAST_STEPS)


def own_interface(
    spec: EnvSpec, info: EnvInfo
) -> tuple[gymnasium.Space, Callable[[NDArray[np.int64]], NDArray]]:
    """The environment's own observation space, and what gives its actions [N, ...] by number."""
    if spec.is_atari:
        images = gymnasium.spaces.Box(0, 255, info.observation_shape, np.uint8)
        return images, lambda numbers: numbers
    env, _ = make.make_env(spec)
    try:
        return env.observation_space, own_actions(env)
    finally:
        env.close()
