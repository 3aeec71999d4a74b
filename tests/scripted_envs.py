"""Environments that follow a script, for the tests of the whole project.

All are picklable classes of this module. `register()` gives the registered ones their ids; nothing
is registered by the import alone (`scripted_ids` does that, for --import).
"""

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class NumberedEnv(gymnasium.Env):
    """Observations [seed tag, episode, step]; lengths, ends and rewards follow lists, in a cycle.

    `lengths[e]` is the length of episode e, `ends[e]` "terminated" or "truncated", `rewards[t]` the
    reward of step t of every episode. `reuse` returns one and the same array for ever.
    """

    def __init__(
        self,
        lengths: Sequence[int] = (3,),
        ends: Sequence[str] = ("terminated",),
        rewards: Sequence[float] = (1.0,),
        actions: int = 2,
        reuse: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.lengths, self.ends, self.rewards, self.reuse = lengths, ends, rewards, reuse
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(actions)
        self.taken: list[int] = []
        self._tag, self._episode, self._step = -1, -1, 0
        self._array = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self._tag, self._episode = seed, -1
        self._episode, self._step = self._episode + 1, 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.taken.append(action)
        reward = self.rewards[self._step % len(self.rewards)]
        self._step += 1
        over = self._step == self.lengths[self._episode % len(self.lengths)]
        end = self.ends[self._episode % len(self.ends)]
        terminated, truncated = over and end == "terminated", over and end == "truncated"
        return self._observe(), reward, terminated, truncated, {"step": self._step}

    def _observe(self) -> np.ndarray:
        if not self.reuse:
            self._array = np.zeros(3, np.float32)
        self._array[:] = self._tag, self._episode, self._step
        return self._array


class NotFiniteEnv(NumberedEnv):
    """Numbered, but instances named in `faults` raise or give what is not finite.

    `built` lists the instances of this class, so that those built anew can be told apart; `faults`
    maps an instance's place in it to (fault, k). Faults: "nan-reward", "none-reward",
    "two-rewards", "inf-observation", "none-observation", "wrong-shape", "words" and "raise" at step
    k of its life (from 1), "nan-reset" and "raise-reset" at its reset k (from 1), "nan-resets" at
    every reset. The key -1 stands for all that are not named.
    """

    built: ClassVar[list["NotFiniteEnv"]] = []

    def __init__(self, faults: Mapping[int, tuple[str, int]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fault, self._when = faults.get(len(self.built), faults.get(-1, ("", 0)))
        self._steps = self._resets = 0
        self.closed = False
        self.built.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        observation, info = super().reset(seed=seed)
        self._resets += 1
        if self._fault == "raise-reset" and self._resets == self._when:
            raise RuntimeError("scripted failure")
        once = self._fault == "nan-reset" and self._resets == self._when
        bad = once or self._fault == "nan-resets"
        return np.full_like(observation, np.nan) if bad else observation, info

    def step(self, action: int) -> tuple[np.ndarray, Any, bool, bool, dict]:
        observation, reward, *rest = super().step(action)
        self._steps += 1
        if self._steps == self._when:
            if self._fault == "raise":
                raise RuntimeError("scripted failure")
            if self._fault == "wrong-shape":
                observation = observation[:1]
            if self._fault == "inf-observation":
                observation[1] = np.inf
            if self._fault == "none-observation":
                observation = None
            if self._fault == "words":
                observation = np.array(["left", "right", "up"])
            rewards = {"nan-reward": np.nan, "none-reward": None, "two-rewards": np.ones(2)}
            reward = rewards.get(self._fault, reward)
        return observation, reward, *rest

    def close(self) -> None:
        self.closed = True


class DenseSyncVectorEnv(SyncVectorEnv):
    """SyncVectorEnv that lays `final_obs` out as ale-py does: dense, no mask, garbage elsewhere."""

    def step(self, actions: np.ndarray) -> tuple:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        dense = np.full_like(observations, -99)
        for row in np.flatnonzero(terminated | truncated):
            dense[row] = infos["final_obs"][row]
        return observations, rewards, terminated, truncated, {"final_obs": dense}


def numbered_vector(
    num_envs: int, autoreset: str, layout: str = "object", max_episode_steps: int = 0, **kwargs: Any
) -> SyncVectorEnv:
    """NumberedEnv as a vector environment of either autoreset mode and `final_obs` layout.

    With `faults` it is a NotFiniteEnv.
    """
    env_class = NotFiniteEnv if "faults" in kwargs else NumberedEnv

    def make() -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(env_class(**kwargs), max_episode_steps)

    kind = DenseSyncVectorEnv if layout == "dense" else SyncVectorEnv
    return kind([make] * num_envs, autoreset_mode=AutoresetMode(autoreset))


class ChainEnv(gymnasium.Env):
    """States 0..n-1 in a row; action 1 moves right, 0 left. The right end gives 1 and terminates.

    Observations are state numbers when `discrete`, else one-hot vectors.
    """

    def __init__(self, n: int = 5, discrete: bool = False) -> None:
        self.n, self.discrete = n, discrete
        self.observation_space = (
            spaces.Discrete(n) if discrete else spaces.Box(0, 1, (n,), np.float32)
        )
        self.action_space = spaces.Discrete(2)
        self._state = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._state = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self._state = min(max(self._state + (1 if action == 1 else -1), 0), self.n - 1)
        over = self._state == self.n - 1
        return self._observe(), float(over), over, False, {}

    def _observe(self) -> Any:
        return self._state if self.discrete else np.eye(self.n, dtype=np.float32)[self._state]


class TracedEnv(gymnasium.Env):
    """Leaves traces in `folder`: an `open-` file while it is not closed, and what it draws.

    Observations come from the global generators of Python, NumPy and torch; the first of each
    instance go into `drawn-` files, one for each process.
    """

    def __init__(self, folder: str) -> None:
        self.observation_space = spaces.Box(0, 1, (3,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.folder, self._drawn, self._step = Path(folder), False, 0
        _, name = tempfile.mkstemp(prefix="open-", dir=folder)
        self._open = Path(name)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step = 0
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        return self._draw(), 1.0, self._step == 20, False, {}

    def _draw(self) -> np.ndarray:
        import torch

        numbers = np.array([random.random(), np.random.random(), torch.rand(()).item()])
        if not self._drawn:
            self._drawn = True
            with open(self.folder / f"drawn-{os.getpid()}", "a") as file:
                file.write(f"{numbers.tolist()}\n")
        return numbers

    def close(self) -> None:
        self._open.unlink(missing_ok=True)


class CueEnv(gymnasium.Env):
    """The first observation alone tells who is right; scores spell the actions out in ternary.

    Episodes last 3 to 6 steps and end both ways. Observations: cue (first step only), step, noise.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._cue, self._length = self.np_random.normal(), int(self.np_random.integers(3, 7))
        self._step = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        reward = float(action * 3**self._step + self._cue)
        over, lost = self._step == self._length, bool(self._cue < 0)
        return self._observe(), reward, over and lost, over and not lost, {}

    def _observe(self) -> np.ndarray:
        cue = 3 * self._cue * (self._step == 0)
        return np.array([cue, self._step / 6, 0.1 * self.np_random.normal()], np.float32)


SIGNALS = {"kill": signal.SIGKILL, "abort": signal.SIGABRT, "bus": signal.SIGBUS}


class FaultyEnv(ChainEnv):
    """A chain in which something goes wrong at step `at_step` of this object's life (from 1).

    `fault`: "raise", "sleep" (for `seconds`), "sleep-in-c" (holding the interpreter's lock),
    "loop", "exit" (os._exit), "sys-exit", "segfault", "kill", "abort" and "bus" (signals to the own
    process), "nan" (observation), "bad-reward" (None), "wrong-shape". `every` repeats it at each
    multiple of at_step. Lengths, not ends, matter to faults: episodes of the chain go on. With
    `worker`, only the process of that worker has the fault. "build" is for processes whose title
    begins with `title`: the environment cannot be made there.
    """

    def __init__(
        self,
        fault: str = "raise",
        at_step: int = 1,
        every: bool = False,
        seconds: float = 3600.0,
        n: int = 5,
        worker: int | None = None,
        title: str = "",
    ) -> None:
        super().__init__(n)
        own_title = Path("/proc/self/cmdline").read_text()
        if fault == "build" and own_title.startswith(title):
            raise RuntimeError("scripted failure")
        self._spared = worker is not None and f"async-dqn worker {worker} " not in own_title
        self.fault, self.at_step, self.every, self.seconds = fault, at_step, every, seconds
        self._steps = 0

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        self._steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        due = self._steps % self.at_step == 0 if self.every else self._steps == self.at_step
        if due and not self._spared:
            observation, reward = self._fail(observation, reward)
        return observation, reward, terminated, truncated, info

    def _fail(self, observation: Any, reward: Any) -> tuple[Any, Any]:
        if self.fault == "raise":
            raise RuntimeError(f"scripted failure at step {self._steps}")
        if self.fault == "sleep":
            time.sleep(self.seconds)
        if self.fault == "sleep-in-c":
            ctypes.PyDLL(None).sleep(int(self.seconds))
        while self.fault == "loop":
            pass
        if self.fault == "exit":
            os._exit(0)
        if self.fault == "sys-exit":
            sys.exit(3)
        if self.fault == "segfault":
            ctypes.string_at(0)
        if self.fault in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.fault])
        if self.fault == "nan":
            observation = np.full_like(observation, np.nan)
        if self.fault == "wrong-shape":
            observation = observation[:1]
        return observation, None if self.fault == "bad-reward" else reward


class DyingEnv(FaultyEnv):
    """A chain that ends its process in every way of `kinds`, one after the other, one each time.

    That is at every `at_step`-th step, in training only; what was done is noted in `folder`.
    """

    def __init__(self, folder: str, kinds: str, at_step: int = 300) -> None:
        super().__init__("", at_step, every=True)
        self.folder, self.kinds = folder, kinds.split()
        self._spared = "async-dqn worker" not in Path("/proc/self/cmdline").read_text()

    def _fail(self, observation: Any, reward: Any) -> tuple[Any, Any]:
        for kind in self.kinds:
            with contextlib.suppress(FileExistsError):
                Path(self.folder, kind).touch(exist_ok=False)
                self.fault = kind
                return super()._fail(observation, reward)
        self.fault = ""
        return observation, reward


class HugeRewardEnv(ChainEnv):
    """A chain whose every `every`-th reward is finite but too large for a gradient.

    With `file`, only as long as the file does not hold the text `until`.
    """

    def __init__(self, every: int = 1, file: str | None = None, until: str = "") -> None:
        super().__init__()
        self.every, self.file, self.until, self._steps, self._over = every, file, until, 0, False

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, *rest = super().step(action)
        self._steps += 1
        if self.file is not None and not self._over:
            file = Path(self.file)
            self._over = file.exists() and self.until in file.read_text()
        huge = self._steps % self.every == 0 and not self._over
        return observation, 1e38 if huge else reward, *rest


class SpacesEnv(gymnasium.Env):
    """Random observations of any space, never an end; `taken` records the actions."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.last: Any = None
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.last = self.observation_space.sample()
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.taken.append(action)
        self.last = self.observation_space.sample()
        return self.last, 0.0, False, False, {}


class MatchEnv(gymnasium.Env):
    """Shows a value for each component of an action; the reward is the share that is met.

    Episodes last 10 steps; the best return is 10, that of random actions a third of it.
    """

    def __init__(self, components: int = 10) -> None:
        self.observation_space = spaces.Box(-1, 1, (components,), np.float32)
        self.action_space = spaces.MultiDiscrete([3] * components)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._steps = 0
        return self._shown(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        reward = float((action == self._wanted).mean())
        self._steps += 1
        return self._shown(), reward, self._steps == 10, False, {}

    def _shown(self) -> np.ndarray:
        self._wanted = self.np_random.integers(0, 3, self.action_space.shape)
        return (self._wanted - 1).astype(np.float32)


class OldGymEnv(ChainEnv):
    """The interface before Gymnasium: 4 values from step, and from reset the observation alone."""

    def __init__(self, old_reset: bool = True) -> None:
        super().__init__()
        self.old_reset = old_reset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed)
        return observation if self.old_reset else (observation, info)

    def step(self, action: int) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class SlowEnv(ChainEnv):
    """Its constructor sleeps, its resets and its steps; episodes last 10 steps."""

    def __init__(self, build: float = 0.0, reset: float = 0.0, step: float = 0.0) -> None:
        time.sleep(build)
        super().__init__()
        self._reset_s, self._step_s = reset, step

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        time.sleep(self._reset_s)
        self._steps = 0
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        time.sleep(self._step_s)
        self._steps += 1
        observation, reward, over, _, info = super().step(action)
        return observation, reward, over, self._steps == 10, info


class ChangingEnv(ChainEnv):
    """Another one in every process but the trainer's: there it has 7 states."""

    def __init__(self) -> None:
        title = Path("/proc/self/cmdline").read_text()
        super().__init__(7 if "async-dqn " in title else 5)


class UnrulyEnv(ChainEnv):
    """Building it prints, changes the folder, takes signals, and starts a program that stays.

    The pids of builder and program are appended to the file that the variable UNRULY names.
    """

    def __init__(self) -> None:
        super().__init__()
        print("noise", flush=True)
        os.write(2, b"noise")
        os.chdir("/")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        quiet = subprocess.DEVNULL
        program = subprocess.Popen(["sleep", "600"], stdin=quiet, stdout=quiet, stderr=quiet)
        with Path(os.environ["UNRULY"]).open("a") as file:
            file.write(f"{os.getpid()} {program.pid}\n")


class UnbuildableEnv(gymnasium.Env):
    """Its constructor raises."""

    def __init__(self) -> None:
        raise ValueError("no\ndisplay")


def hidden_velocity_cartpole(render_mode: str | None = None) -> gymnasium.Env:
    """CartPole-v1 that shows position and angle only: one observation is not enough."""
    env = gymnasium.make("CartPole-v1", render_mode=render_mode)
    space = env.observation_space
    seen = spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)
    return gymnasium.wrappers.TransformObservation(env, lambda obs: obs[[0, 2]], seen)


IDS: dict[str, dict[str, Any]] = {
    "Scripted/CartPoleHidden-v1": {
        "entry_point": "scripted_envs:hidden_velocity_cartpole",
        "max_episode_steps": 500,
    },
    "Scripted/Numbered-v0": {"entry_point": "scripted_envs:NumberedEnv"},
    "Scripted/Cue-v0": {"entry_point": "scripted_envs:CueEnv"},
    "Scripted/NotFinite-v0": {"entry_point": "scripted_envs:NotFiniteEnv"},
    "Scripted/Chain-v0": {"entry_point": "scripted_envs:ChainEnv", "max_episode_steps": 50},
    "Scripted/Traced-v0": {"entry_point": "scripted_envs:TracedEnv"},
    "Scripted/Faulty-v0": {"entry_point": "scripted_envs:FaultyEnv", "max_episode_steps": 50},
    "Scripted/Dying-v0": {"entry_point": "scripted_envs:DyingEnv", "max_episode_steps": 50},
    "Scripted/HugeReward-v0": {"entry_point": "scripted_envs:HugeRewardEnv"},
    "Scripted/Match-v0": {"entry_point": "scripted_envs:MatchEnv"},
    "Scripted/Slow-v0": {"entry_point": "scripted_envs:SlowEnv"},
    "Scripted/Changing-v0": {"entry_point": "scripted_envs:ChangingEnv"},
    "Scripted/OldGym-v0": {"entry_point": "scripted_envs:OldGymEnv"},
    "Scripted/Unruly-v0": {"entry_point": "scripted_envs:UnrulyEnv", "max_episode_steps": 50},
    "Scripted/Unbuildable-v0": {"entry_point": "scripted_envs:UnbuildableEnv"},
} | {
    f"Scripted/Numbered{name}-v0": {
        "entry_point": "scripted_envs:NumberedEnv",
        "vector_entry_point": "scripted_envs:numbered_vector",
        "kwargs": kwargs,
    }
    for name, kwargs in {
        "NextStep": {"autoreset": "NextStep"},
        "SameStep": {"autoreset": "SameStep"},
        "Dense": {"autoreset": "SameStep", "layout": "dense"},
    }.items()
}


def register() -> None:
    """Register the ids of this module in this process; safe to call again."""
    for env_id, arguments in IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, **arguments)
