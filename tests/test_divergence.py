"""Gradients that are not finite: dropped; back to good parameters once; the second time the end."""

import csv

import numpy as np
import pytest

from async_dqn.config.presets import resolve
from async_dqn.runs import checkpoint
from async_dqn.training import training
from runs import Trainer

HUGE = ("--import", "scripted_ids", "--env", "Scripted/HugeReward-v0", "--steps", "100000")
HUGE += ("--envs-per-worker", "4", "--eval-every", "100000", "--eval-episodes", "2")
MODES = {"serial": ("--mode", "serial", "--workers", "1"), "async": ("--workers", "2")}


def parameters(trainer: Trainer) -> np.ndarray:
    """Of the newest checkpoint; loading it verifies it."""
    tensors = checkpoint.load(checkpoint.resolve(trainer.run)).tensors
    return np.concatenate(
        [array.ravel() for name in ("model", "target") for array in tensors[name].values()]
    )


def warnings(trainer: Trainer) -> list[str]:
    return [event["cause"] for event in trainer.events() if event["event"] == "warning"]


@pytest.mark.parametrize("mode", MODES)
def test_training_that_diverges_again_ends_with_a_good_checkpoint(tmp_path, mode) -> None:
    trainer = Trainer(tmp_path, *HUGE, *MODES[mode])
    code, _, err = trainer.finish()
    assert code == 1
    *first, last = err.splitlines()
    assert last.startswith("error: the run failed") and "training diverged at step" in last
    assert len(first) == 1 and "half the learning rate" in first[0]
    assert np.isfinite(parameters(trainer)).all()
    assert trainer.result()["status"] == "failed"


def test_synchronous_workers_stop_at_once(tmp_path) -> None:
    trainer = Trainer(tmp_path, *HUGE, "--mode", "sync", "--workers", "2")
    code, _, err = trainer.finish()
    assert code == 1 and err.count("\n") == 1 and "training diverged" in err


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on_from_good_parameters(tmp_path, mode) -> None:
    events = tmp_path / "Scripted-HugeReward-v0" / "mended" / "events.jsonl"
    arguments = ("--env-arg", f"file={str(events)!r}", "--env-arg", "until='half the learning'")
    trainer = Trainer(tmp_path, *HUGE, *MODES[mode], *arguments, "--run-name", "mended")
    code, _, err = trainer.finish()
    assert code == 0, err
    result = trainer.result()
    assert (result["status"], result["steps"]) == ("budget reached", 100_000)
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
    checkpoint.save(run / "checkpoints", found.step, found.tensors, state, replace=True)
    again = {"resume": str(run), "steps": 400, "quiet": True}
    training.train(*resolve(again | options))
    *_, last = csv.DictReader((run / "metrics.csv").open())
    assert float(last["train/learning_rate"]) == pytest.approx(expected)
    multiplier = checkpoint.load(checkpoint.resolve(run)).state["lr_multiplier"]
    assert multiplier == (0.5 if expected == 0.0005 else 1.0)


def test_a_bad_gradient_now_and_then_is_only_dropped(tmp_path) -> None:
    trainer = Trainer(tmp_path, *HUGE, *MODES["async"], "--env-arg", "every=1000")
    code, _, err = trainer.finish()
    assert (code, err) == (0, "")
    state = checkpoint.load(checkpoint.resolve(trainer.run)).state
    assert 20 <= state["skipped_updates"] <= 100  # a worker's 4 environments have theirs at once
    assert np.isfinite(parameters(trainer)).all()
