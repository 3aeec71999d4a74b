"""Gradients that are not finite: dropped; back to good parameters once; the second time the end."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from async_dqn.config.presets import resolve
from async_dqn.parameters.optimizers import OPTIMIZERS
from async_dqn.parameters.store import ParameterStore
from async_dqn.runs import checkpoint
from async_dqn.runs.run import Run
from async_dqn.training import training
from async_dqn.training.divergence import roll_back
from runs import Here, Started

HUGE = ("--import", "scripted_ids", "--env", "Scripted/HugeReward-v0", "--steps", "20000")
HUGE += ("--envs-per-worker", "4", "--eval-every", "100000", "--eval-episodes", "2")
MODES = {"serial": ("--mode", "serial", "--workers", "1"), "async": ("--workers", "2")}


def parameters(trainer: Started) -> np.ndarray:
    """Of the newest checkpoint; loading it verifies it."""
    tensors = checkpoint.load(checkpoint.resolve(trainer.run)).tensors
    return np.concatenate(
        [array.ravel() for name in ("model", "target") for array in tensors[name].values()]
    )


def warnings(trainer: Started) -> list[str]:
    return [event["cause"] for event in trainer.events() if event["event"] == "warning"]


@pytest.mark.parametrize("mode", MODES)
def test_training_that_diverges_again_ends_with_a_good_checkpoint(tmp_path, mode) -> None:
    trainer = Here(tmp_path, *HUGE, *MODES[mode])
    code, _, err = trainer.finish()
    assert code == 1
    *first, last = err.splitlines()
    assert last.startswith("error: the run failed") and "training diverged at step" in last
    assert len(first) == 1 and "half the learning rate" in first[0]
    assert np.isfinite(parameters(trainer)).all()
    assert trainer.result()["status"] == "failed"


def test_synchronous_workers_stop_at_once(tmp_path) -> None:
    trainer = Here(tmp_path, *HUGE, "--mode", "sync", "--workers", "2")
    code, _, err = trainer.finish()
    assert code == 1 and err.count("\n") == 1 and "training diverged" in err


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on_from_good_parameters(tmp_path, mode) -> None:
    events = tmp_path / "Scripted-HugeReward-v0" / "mended" / "events.jsonl"
    arguments = ("--env-arg", f"file={str(events)!r}", "--env-arg", "until='half the learning'")
    trainer = Here(tmp_path, *HUGE, *MODES[mode], *arguments, "--run-name", "mended")
    code, _, err = trainer.finish()
    assert code == 0, err
    result = trainer.result()
    assert (result["status"], result["steps"]) == ("budget reached", 20_000)
    assert result["updates"] > 100 and np.isfinite(parameters(trainer)).all()
    assert sum("half the learning rate" in text for text in warnings(trainer)) == 1
    assert checkpoint.load(checkpoint.resolve(trainer.run)).state["lr_multiplier"] == 0.5


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [(0.5, {}, 0.0005), (0.5, {"lr": 0.004}, 0.004), (None, {}, 0.001)],
)
def test_a_resumed_run_keeps_the_lowered_learning_rate(tmp_path, stored, options, expected) -> None:
    settings = {"mode": "serial", "workers": 1, "steps": 200, "quiet": True, "lr": 0.001}
    settings |= {"lr_schedule": "constant", "eval_episodes": 2, "runs_dir": str(tmp_path)}
    run = training.train(*resolve(settings)).run
    found = checkpoint.load(checkpoint.resolve(run))
    state = {k: value for k, value in found.state.items() if k != "lr_multiplier"}
    state |= {} if stored is None else {"lr_multiplier": stored}
    checkpoint.save(run / "checkpoints", found.step, found.tensors, state)
    again = {"resume": str(run), "steps": 400, "quiet": True}
    training.train(*resolve(again | options))
    *_, last = csv.DictReader((run / "metrics.csv").open())
    assert float(last["train/learning_rate"]) == pytest.approx(expected)
    multiplier = checkpoint.load(checkpoint.resolve(run)).state["lr_multiplier"]
    assert multiplier == (0.5 if expected == 0.0005 else 1.0)


def rolled_back(folder: Path, optimizer: str, **resumed: Any) -> tuple[float, float, torch.Tensor]:
    """The longest steps of a parameter before a roll-back and after it, on the same gradients, and
    where it went back to."""
    steps = []

    class Trainer:
        def __init__(self, run: Run):
            self.run_ = run

        def run(self) -> int:
            run = self.run_
            store = ParameterStore(run.block, run.run_spec.optimizer(), 0)
            gradient = torch.randn(len(store.theta), generator=torch.Generator().manual_seed(0))
            for count in (200, 1):
                for _ in range(count):
                    before = store.theta.clone()
                    store.push(gradient, 0.01)
                steps.append((store.theta - before).abs().max().item())
                if count > 1:
                    roll_back(run)
                    goes_back_to.append(store.theta.clone())
            run.finish()
            return 0

    goes_back_to: list[torch.Tensor] = []
    settings = {"mode": "serial", "workers": 1, "quiet": True, "optimizer": optimizer, "steps": 300}
    settings |= {"algorithm": "q-lambda", "target_sync_steps": None, "runs_dir": str(folder)}
    settings |= {"eval_every": 10**6, "eval_episodes": 2}
    config, explicit = resolve(resumed or settings)
    training.train(config, explicit, trainer=Trainer)
    return (*steps, goes_back_to[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_after_a_roll_back_is_longer_than_half_of_one_before(tmp_path, optimizer) -> None:
    before, after, _ = rolled_back(tmp_path, optimizer)
    assert 0 < after <= 0.51 * before


def test_a_resumed_run_goes_back_to_what_it_began_with(tmp_path) -> None:
    """Without a target network, before its first evaluation."""
    settings = {"mode": "serial", "workers": 1, "quiet": True, "steps": 300, "eval_every": 10**6}
    settings |= {"algorithm": "q-lambda", "target_sync_steps": None, "eval_episodes": 2}
    run = training.train(*resolve(settings | {"runs_dir": str(tmp_path)})).run
    found = checkpoint.load(checkpoint.resolve(run))
    again = {"resume": str(run), "steps": 600, "quiet": True}
    *_, vector = rolled_back(tmp_path, "shared-adam", **again)
    learned = np.concatenate([array.ravel() for array in found.tensors["model"].values()])
    np.testing.assert_array_equal(np.sort(vector.numpy()[: len(learned)]), np.sort(learned))


def test_a_bad_gradient_now_and_then_is_only_dropped(tmp_path) -> None:
    trainer = Here(tmp_path, *HUGE, *MODES["async"], "--env-arg", "every=500")
    code, _, err = trainer.finish()
    assert (code, err) == (0, "")
    state = checkpoint.load(checkpoint.resolve(trainer.run)).state
    assert 8 <= state["skipped_updates"] <= 40  # a worker's 4 environments have theirs at once
    assert np.isfinite(parameters(trainer)).all()
