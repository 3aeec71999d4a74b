"""Real asynchronous runs of the methods through the command line, to the end and evaluated."""

import re
from pathlib import Path

import pytest

from async_dqn.cli import main
from async_dqn.runs import checkpoint
from runs import Here

SMALL = ("--workers", "2", "--envs-per-worker", "4", "--hidden", "16", "--eval-episodes", "10")
METHODS = {
    "a3c": ("--algorithm", "a3c", "--optimizer", "shared-rmsprop", "--lr", "0.01"),
    "recurrent": ("--recurrent", "--algorithm", "q-lambda", "--optimizer", "rmsprop"),
    # Prioritized replay, noisy, categorical, double and dueling at once.
    "rainbow": ("--preset", "rainbow-async", "--env", "CartPole-v1", "--replay-start", "500"),
    "bins": (
        *("--env", "Pendulum-v1", "--action-bins", "3", "--algorithm", "one-step-sarsa"),
        *("--exploration", "boltzmann", "--value-rescaling"),
    ),
}
EVALUATED = ("recurrent", "rainbow")
WARNING = "an environment failed by step "


def train(folder: Path, *arguments: str) -> tuple[Here, str]:
    """A finished run and what it wrote to stderr."""
    trainer = Here(folder, *SMALL, "--quiet", *arguments)
    code, _, err = trainer.finish()
    assert code == 0, err
    return trainer, err


def evaluate(run: Path, episodes: int, capsys) -> float:
    """The mean that `evaluate` prints."""
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", str(episodes), "--load", "latest"]) == 0
    out, err = capsys.readouterr()
    said = r"mean return (-?[\d.]+), standard deviation [\d.]+, (\d+) episodes, step.*\n"
    match = re.fullmatch(said, out)
    assert match and int(match[2]) == episodes and not err
    return float(match[1])


@pytest.mark.parametrize(
    "method",
    METHODS,
)
def test_a_method_runs_to_its_budget_and_is_evaluated(method, tmp_path, capsys) -> None:
    trainer, err = train(tmp_path, "--steps", "3000", *METHODS[method])
    result = trainer.result()
    assert err == ""
    assert (result["status"], result["steps"], result["restarts"]) == ("budget reached", 3000, 0)
    assert result["updates"] >= 25
    assert not [e for e in trainer.events() if e["event"] in ("death", "warning")]
    state = checkpoint.load(checkpoint.resolve(trainer.run)).state
    assert (state["steps"], state["skipped_updates"], state["env_errors"]) == (3000, 0, 0)
    low, high = (-2000, 0) if method == "bins" else (8, 500)
    assert low <= result["final_mean"] <= high
    if method == "bins":
        assert state["architecture"]["num_actions"] == 3
        assert state["env_info"]["actions"] is not None
    if method in EVALUATED:  # the episodes of the final evaluation again
        assert evaluate(trainer.run, 10, capsys) == pytest.approx(result["final_mean"], abs=0.006)


def test_an_environment_that_gives_nan_costs_steps_and_one_warning(tmp_path) -> None:
    environment = ("--env", "Scripted/Faulty-v0", "--import", "scripted_ids")
    environment += ("--env-arg", "fault='nan'", "--env-arg", "at_step=37")
    # Few enough that one worker alone does not see the hundred failures that would end it.
    trainer, err = train(tmp_path, *environment, "--steps", "3500", "--lr", "0.01")
    assert err.count("\n") == 1 and err.startswith(f"warning: {WARNING}")
    events = trainer.events()
    causes = [event["cause"] for event in events if event["event"] == "warning"]
    assert len(causes) == 1 and causes[0].startswith(WARNING)
    assert not [event for event in events if event["event"] == "death"]
    result = trainer.result()
    assert (result["status"], result["steps"]) == ("budget reached", 3500)
    state = checkpoint.load(checkpoint.resolve(trainer.run)).state
    # Each of the 8 environments breaks in its 37th step, is built anew, and so on; but where that
    # step terminates the episode, nothing is lost, and it goes on for ever.
    assert 8 <= state["env_errors"] <= 3500 // 36
    assert state["skipped_updates"] == 0
    assert result["final_mean"] is not None
