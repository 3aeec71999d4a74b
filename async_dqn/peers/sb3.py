"""Stable-Baselines3's DQN, learning by itself while we watch the clock and score its network.

SB3 calls us after every step. At each multiple of `--eval-every` training waits, with the clocks
stopped, for our evaluator.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from async_dqn.envs.batch import SEED_LIMIT
from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.evaluation.evaluator import Evaluator
from async_dqn.networks.heads import QOutput
from async_dqn.parameters.layout import SLOT_WORDS
from async_dqn.peers.environment import training_env
from async_dqn.peers.settings import PeerSettings
from async_dqn.processes.signals import StopSignals
from async_dqn.runs.recorder import Recorder
from async_dqn.runs.reporter import REPORT_SECONDS
from async_dqn.runs.run import DONE, STOPPED, THRESHOLD
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import TRAINING, RunSpec


class MinAtarNetwork(BaseFeaturesExtractor):
    """16 3x3 filters and a dense layer of 128, ReLU after each (Young & Tian 2019)."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=128)
        channels, height, width = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), 128),
            nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """[N, channels, height, width] to [N, 128]."""
        return self.layers(observations)


CLASSES = {"MinAtarNetwork": MinAtarNetwork, "RMSprop": torch.optim.RMSprop}


def build(run_spec: RunSpec, settings: PeerSettings) -> DQN:
    """SB3's agent on one environment of its own; its seeds are never those of evaluations."""
    config, keywords = run_spec.config, dict(settings.dqn)
    keywords["policy_kwargs"] = {
        name: CLASSES[value] if name.endswith("_class") else value
        for name, value in keywords["policy_kwargs"].items()
    }
    return DQN(
        settings.policy,
        DummyVecEnv([lambda: training_env(run_spec.spec, run_spec.info)]),
        exploration_fraction=settings.exploration_fraction(config.run.steps),
        seed=run_spec.seeds(1, TRAINING)[0] % SEED_LIMIT,
        device="cpu",
        **keywords,
    )


class FrozenModel:
    """The model as our evaluator wants it: network, snapshot and step count in one.

    Nothing needs to be copied, as training waits while the network is scored.
    """

    vector = None

    def __init__(self, model: DQN) -> None:
        self.model, self.sequence = model, 0
        self.net = self.snapshot = self
        self.slot = np.zeros(SLOT_WORDS, np.int64)

    def __call__(self, obs: torch.Tensor, state: None) -> tuple[QOutput, None]:
        """Q-values [N, A] of raw observations [N, ...]."""
        return QOutput(self.model.q_net(obs)), None

    def initial_state(self, count: int) -> None:
        """SB3's DQN has no memory."""

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.model.num_timesteps

    def publish_snapshot(self) -> bool:
        """Whether the network is finite, and so worth scoring."""
        finite = all(part.isfinite().all() for part in self.model.q_net.state_dict().values())
        self.sequence += finite
        return finite

    def read(self, into: None) -> tuple[int, int]:
        """(sequence, step) of what is scored."""
        return self.sequence, self.steps


class PeerEvaluator(Evaluator):
    """Our evaluator on a peer's network: the same episodes, seeds and decisions."""

    cpu_spent_s, cpu_budget_s = 0.0, math.inf  # evaluations are not on the peer's clocks

    def __init__(self, run_spec: RunSpec, model: DQN) -> None:
        self.run_spec, self.store = run_spec, FrozenModel(model)
        self.network = self.store
        self.crew = Crew(EpisodeRunner(run_spec, self.network))
        self.best = -math.inf


class TrainingClock:
    """Wall-clock and CPU seconds since the process started, without those while stopped."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._left_out = recorder, np.zeros(2)

    def read(self) -> list[float]:
        """Wall seconds, CPU seconds."""
        session = self._recorder.session_s, self._recorder.session_cpu_s
        return np.subtract(session, self._left_out).tolist()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside takes no time."""
        before = self.read()
        try:
            yield
        finally:
            self._left_out += np.subtract(self.read(), before)


class PeerRun(BaseCallback):
    """One run of an SB3 agent; `run()` trains, and leaves a result at the end."""

    def __init__(
        self, run_spec: RunSpec, model: DQN, recorder: Recorder, signals: StopSignals
    ) -> None:
        super().__init__()
        self.run_spec, self.recorder, self.signals = run_spec, recorder, signals
        self.clock = TrainingClock(recorder)
        self.evaluator = PeerEvaluator(run_spec, model)
        self.agent = model
        self.updates = 0
        self.startup_s: float | None = None
        self.final: Evaluation | None = None
        self.threshold_at: tuple[float, int] | None = None  # (seconds, step)
        self._last = (self.clock.read()[0], 0, 0)  # of the last report: seconds, steps, updates
        model.policy.optimizer.register_step_post_hook(self._updated)

    def run(self) -> None:
        """Train until the budget, the threshold or a signal ends it."""
        # SB3's own logging is off; its last values stay readable.
        self.agent.learn(self.run_spec.config.run.steps, callback=self, log_interval=None)
        if not self.threshold_at and self.signals.received is None:
            self._evaluate(final=True)
        reached = THRESHOLD if self.threshold_at else DONE
        status = STOPPED if self.signals.received is not None else reached
        self._report()
        wall_s, cpu_s = self.clock.read()
        seconds, step = self.threshold_at or (None, None)
        self.recorder.event("stop", cause=status)
        self.recorder.result(
            {
                "status": status,
                "steps": self.agent.num_timesteps,
                "frames": self.agent.num_timesteps * self.run_spec.info.frames_per_step,
                "wall_s": wall_s,
                "startup_s": self.startup_s,
                "cpu_s": cpu_s,
                "updates": self.updates,
                "final_mean": self.final and self.final.mean,
                "best_mean": self.evaluator.best,
                "restarts": 0,
                "seconds_to_threshold": seconds,
                "steps_to_threshold": step,
            }
        )

    def _on_step(self) -> bool:
        """Called by SB3 after each step; False ends training."""
        config, step = self.run_spec.config, self.num_timesteps
        if step % config.evaluation.eval_every == 0 and step < config.run.steps:
            self._evaluate()
        if self.clock.read()[0] - self._last[0] >= REPORT_SECONDS:
            self._report()
        # Where the budget ends within one of SB3's rollouts, SB3 would go on to the rollout's end.
        beyond = step >= config.run.steps and config.run.steps % self.agent.train_freq.frequency
        return not (beyond or self.threshold_at or self.signals.received is not None)

    def _evaluate(self, final: bool = False) -> None:
        evaluation = None  # stays so where the network is not finite, or a signal comes
        with self.clock.stopped():
            running = self.evaluator.evaluate(final)
            try:
                while self.signals.received is None:
                    next(running)
            except StopIteration as stop:
                evaluation = stop.value
        if evaluation is None:
            return
        wall_s, cpu_s = self.clock.read()
        self.recorder.evaluation(evaluation, wall_s, cpu_s)
        if self.evaluator.reaches_threshold(evaluation):
            self.threshold_at, self.final = (wall_s, evaluation.step), evaluation
        elif final:
            self.final = evaluation

    def _updated(self, *_: Any) -> None:
        self.updates += 1
        if self.startup_s is None:
            self.startup_s = self.clock.read()[0]

    def _report(self) -> None:
        """One row over the time since the last one; never two rows for one step."""
        then, old_steps, old_updates = self._last
        wall_s, cpu_s = self.clock.read()
        step, seconds = self.agent.num_timesteps, max(wall_s - then, 1e-9)
        if step == old_steps:
            return
        self._last = (wall_s, step, self.updates)
        fps = (step - old_steps) / seconds
        tags = {
            "rollout/exploration_rate": self.agent.exploration_rate,
            "time/fps": fps,
            "time/updates_per_second": (self.updates - old_updates) / seconds,
            "train/loss": self.agent.logger.name_to_value.get("train/loss"),
            "train/learning_rate": self.agent.policy.optimizer.param_groups[0]["lr"],
        }
        episodes = [(episode["r"], episode["l"]) for episode in self.agent.ep_info_buffer or ()]
        if episodes:
            tags["rollout/ep_rew_mean"], tags["rollout/ep_len_mean"] = np.mean(episodes, axis=0)
        self.recorder.report(step, wall_s, cpu_s, tags)
        self.recorder.progress(step, self.run_spec.config.run.steps, fps)
