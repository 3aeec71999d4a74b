"""One run of Stable-Baselines3's DQN or PPO with its defaults, for `benchmarks.first_try`.

    python -m benchmarks.first_try_sb3 ppo CartPole-v1 100 475 result.json [options of launch.py]

Policies are those that SB3's documentation names for a kind of observation; a Discrete action
space is made as ours is made (bins, numbered vectors), for DQN only; Atari is wrapped as SB3's
guide does. Its clock counts the CPU time of one thread, simulators in processes of their own
included, so that a run may have another beside it; with images half of it, as if two threads were
twice as fast as one. While it is scored the clock stands still. The result is written after every
evaluation.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from async_dqn.envs.make import make_env
from async_dqn.envs.spec import EnvSpec, registered_spec

EVALUATED = 20_000  # steps between evaluations
SCREENING = 10
BUDGET = 1_000_000  # steps, as ours; exploration of DQN falls in a tenth of them


class UntilSolved(BaseCallback):
    """Evaluates now and then, first on ten episodes, then on `episodes`; stops when solved.

    And when the clock has reached `limit_s`, after a last evaluation.
    """

    def __init__(self, env: VecEnv, chosen: argparse.Namespace, cores: int):
        super().__init__()
        self.env, self.chosen, self.cores = env, chosen, cores
        self.best, self.solved, self.scoring_s = None, False, 0.0
        self.over = False

    @property
    def clock_s(self) -> float:
        """Seconds since the start of the process, evaluations left out."""
        return session_cpu_s() / self.cores - self.scoring_s

    def _on_step(self) -> bool:
        late = self.num_timesteps % 100 == 0 and self.clock_s >= self.chosen.limit
        if self.num_timesteps % EVALUATED and not late:
            return True
        before = self.clock_s
        score, _ = evaluate_policy(self.model, self.env, SCREENING)
        if score >= self.chosen.wanted and self.chosen.eval_episodes > SCREENING:
            score, _ = evaluate_policy(self.model, self.env, self.chosen.eval_episodes)
        self.scoring_s += self.clock_s - before
        self.best = score if self.best is None else max(self.best, score)
        self.solved = bool(score >= self.chosen.wanted)
        self.over = self.solved or late
        self.write()
        return not self.over

    def write(self) -> None:
        """What is known so far."""
        result = {"solved": self.solved, "best": self.best, "steps": self.num_timesteps}
        self.chosen.report.write_text(json.dumps(result | {"seconds": self.clock_s}))


def session_cpu_s() -> float:
    """CPU seconds of all processes of this session, which only this program is in."""
    ticks, session = 0, str(os.getsid(0))
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if fields[3] == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> None:
    """Train until solved, or the steps or the time are over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=("dqn", "ppo"))
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("wanted", type=float)
    parser.add_argument("report", type=Path)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds")
    chosen = parser.parse_args(argv)
    if os.getsid(0) != os.getpid():
        os.setsid()
    torch.set_num_threads(1)
    env = made(chosen)
    space = env.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    image = any(len(part.shape or ()) == 3 and min(part.shape[:2]) >= 36 for part in parts)
    policy = "CnnPolicy" if image else "MlpPolicy"
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    kind = DQN if chosen.method == "dqn" else PPO
    model = kind(policy, env, seed=chosen.seed, device="cpu")
    callback = UntilSolved(made(chosen), chosen, 2 if image else 1)
    model.learn(chosen.steps or BUDGET, callback)
    while chosen.steps is None and not callback.over:  # on, without exploring anew
        model.learn(BUDGET, callback, reset_num_timesteps=False)


def made(chosen: argparse.Namespace) -> VecEnv:
    """One environment."""
    spec = EnvSpec(chosen.env, import_modules=tuple(chosen.modules))
    if spec.is_atari:  # frames are skipped by its wrapper
        arguments = {"frameskip": 1}
        atari = make_atari_env(chosen.env, seed=chosen.seed, env_kwargs=arguments)
        return VecFrameStack(atari, 4)

    def make() -> gymnasium.Env:
        if chosen.method == "dqn":
            return Monitor(make_env(spec)[0])
        registered_spec(spec)
        return Monitor(gymnasium.make(chosen.env))

    return DummyVecEnv([make])


if __name__ == "__main__":
    sys.exit(main())
