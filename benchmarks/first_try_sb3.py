"""One run of Stable-Baselines3's DQN or PPO with its defaults, for `benchmarks.first_try`.

    python -m benchmarks.first_try_sb3 ppo CartPole-v1 100 475 result.json [options of launch.py]

Policies are those that SB3's documentation names for a kind of observation; a Discrete action space
is made as ours is made (bins, numbered vectors), for DQN only. The result is written after every
evaluation, as the run may be ended from outside.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from async_dqn.envs.make import make_env
from async_dqn.envs.spec import EnvSpec, registered_spec

EVALUATED = 20_000  # steps between evaluations
SCREENING = 10


class UntilSolved(BaseCallback):
    """Evaluates now and then, first on ten episodes, then on `episodes`; stops when solved."""

    def __init__(self, env: gymnasium.Env, wanted: float, episodes: int, report: Path):
        super().__init__()
        self.env, self.wanted, self.episodes, self.report = env, wanted, episodes, report
        self.best, self.solved = None, False

    def _on_step(self) -> bool:
        if self.num_timesteps % EVALUATED:
            return True
        score, _ = evaluate_policy(self.model, self.env, SCREENING)
        if score >= self.wanted and self.episodes > SCREENING:
            score, _ = evaluate_policy(self.model, self.env, self.episodes)
        self.best = score if self.best is None else max(self.best, score)
        self.solved = bool(score >= self.wanted)
        self.write()
        return not self.solved

    def write(self) -> None:
        """What is known so far."""
        result = {"solved": self.solved, "best": self.best, "steps": self.num_timesteps}
        self.report.write_text(json.dumps(result))


def main(argv: Sequence[str] | None = None) -> None:
    """Train until solved or the steps are over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=("dqn", "ppo"))
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("wanted", type=float)
    parser.add_argument("report", type=Path)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    parser.add_argument("--steps", type=int, default=100_000_000)
    parser.add_argument("--eval-episodes", type=int, default=100)
    chosen = parser.parse_args(argv)
    spec = EnvSpec(chosen.env, import_modules=tuple(chosen.modules))

    def make() -> gymnasium.Env:
        if chosen.method == "dqn" and not spec.is_atari:
            return Monitor(make_env(spec)[0])
        registered_spec(spec)
        return Monitor(gymnasium.make(chosen.env))

    env = make()
    space = env.observation_space
    image = isinstance(space, spaces.Box) and len(space.shape) == 3 and min(space.shape[:2]) >= 36
    policy = "CnnPolicy" if image else "MlpPolicy"
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    kind = DQN if chosen.method == "dqn" else PPO
    model = kind(policy, env, seed=chosen.seed, device="cpu")
    model.learn(
        chosen.steps, UntilSolved(make(), chosen.wanted, chosen.eval_episodes, chosen.report)
    )


if __name__ == "__main__":
    sys.exit(main())
