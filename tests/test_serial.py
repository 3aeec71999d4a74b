"""The serial mode: reproducible from the seed, and the same after a resume."""

import json
import re
import time

import numpy as np
import pytest

from async_dqn.config.presets import resolve
from async_dqn.runs import checkpoint
from async_dqn.training import training

SMALL = {
    "env": "CartPole-v1",
    "mode": "serial",
    "workers": 2,
    "envs_per_worker": 3,
    "target_sync_steps": 500,
    "eval_every": 1500,
    "eval_episodes": 10,
    "checkpoint_every": 1000,
    "quiet": True,
    "hidden": (32,),
}


def train(folder, callback=None, **changes):
    config, explicit = resolve({**SMALL, "runs_dir": str(folder), **changes})
    return training.train(config, explicit, callback=callback)


def last(outcome):
    return checkpoint.load(checkpoint.resolve(outcome.run))


def assert_same_tensors(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    for stem, tensors in one.tensors.items():
        for name, array in tensors.items():
            np.testing.assert_array_equal(array, other.tensors[stem][name], f"{stem}/{name}")


@pytest.mark.parametrize("algorithm", ["one-step-q", "n-step-q", "q-lambda"])
def test_the_same_run_twice_gives_identical_parameters(tmp_path, algorithm):
    runs = [last(train(tmp_path, steps=2500, algorithm=algorithm, seed=3)) for _ in range(2)]
    assert runs[0].step == 2500
    assert_same_tensors(*runs)


def test_another_seed_gives_other_parameters(tmp_path):
    one, other = (last(train(tmp_path, steps=1000, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(
        one.tensors["model"]["head.q.weight"], other.tensors["model"]["head.q.weight"]
    )


@pytest.mark.parametrize("envs", [1, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, envs):
    options = {"algorithm": "n-step-q", "envs_per_worker": envs, "lr_schedule": "linear"}
    options["eval_every"] = 700
    whole = train(tmp_path / "whole", steps=3000, **options)
    broken = train(tmp_path / "broken", steps=3000, **options)
    # Go back to the middle one, as after a kill between two checkpoints.
    middle = sorted((broken.run / "checkpoints").glob("step-*"))[1]
    assert checkpoint.load(middle).step < 3000
    again = training.train(*resolve({"resume": str(middle), "quiet": True}))
    assert again.run == broken.run
    assert last(again).step == 3000
    assert_same_tensors(last(whole), last(again))
    assert last(whole).state["best_mean"] == last(again).state["best_mean"]


def events(outcome) -> list[dict]:
    lines = (outcome.run / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scores(outcome) -> list[list[str]]:
    """The rows of evaluations.csv without its clocks."""
    rows = (outcome.run / "evaluations.csv").read_text().splitlines()
    return [row.split(",")[:1] + row.split(",")[3:] for row in rows]


def test_a_resumed_hunt_for_a_threshold_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "process_time_ns", lambda: 0)
    options = {"steps": 4000, "stop_at_return": 501, "eval_every": 500, "lr": 3e-3}
    options |= {"checkpoint_every": 700, "keep_checkpoints": 99, "target_sync_steps": 200}
    whole = train(tmp_path / "whole", **options)
    broken = train(tmp_path / "broken", **options)
    saved = [e for e in events(broken) if e["event"] == "checkpoint" and "latest" in e["marks"]]
    middle = broken.run / "checkpoints" / saved[0]["path"]
    assert last(broken).step > checkpoint.load(middle).step
    monkeypatch.setattr(time, "process_time_ns", lambda: 10**15)  # decisions must not follow it
    again = training.train(*resolve({"resume": str(middle), "quiet": True}))
    assert len(scores(whole)) > 7 and scores(again) == scores(whole)
    assert_same_tensors(last(whole), last(again))


@pytest.mark.parametrize("mode", ["serial", "async"])
def test_what_reached_a_threshold_is_scored_on_fresh_episodes(tmp_path, mode):
    options = {"mode": mode, "stop_at_return": 40, "eval_every": 500, "steps": 50_000}
    outcome = train(tmp_path, **options)
    result = json.loads((outcome.run / "result.json").read_text())
    assert result["status"] == "threshold reached" and 10 < result["fresh_mean"] <= 500
    assert result["fresh_mean"] != result["final_mean"] == float(scores(outcome)[-1][2])


@pytest.mark.parametrize("mode", ["serial", "async"])
def test_patience_ends_a_run_that_no_longer_gets_better(tmp_path, mode):
    """Nothing is learned, so that no score beats the first one but by luck."""
    options = {"mode": mode, "patience": 4, "eval_every": 300, "steps": 200_000, "lr": 1e-12}
    outcome = train(tmp_path, **options)
    result = json.loads((outcome.run / "result.json").read_text())
    assert result["status"] == "no better score" and outcome.exit_code == 0
    means = [float(row[2]) for row in scores(outcome)[1:]]
    assert result["steps"] < 100_000 and 4 < len(means)
    assert max(means[-4:]) <= max(means[:-4]) and result["final_mean"] is not None


@pytest.mark.parametrize("episodes", [2, 60])  # of four to ten steps each, after 500 steps
def test_fresh_episodes_are_not_played_where_they_would_take_long(tmp_path, episodes):
    options = {"env": "Scripted/Slow-v0", "import_modules": ("scripted_ids",), "steps": 5000}
    options |= {"stop_at_return": -1, "eval_every": 500, "eval_episodes": episodes}
    outcome = train(tmp_path, **options)
    result = json.loads((outcome.run / "result.json").read_text())
    assert result["status"] == "threshold reached" and result["steps"] < 600
    assert (result["fresh_mean"] is None) == (episodes == 60)


METHODS = {
    "uniform": {"replay": "uniform", "algorithm": "one-step-q"},
    "prioritized": {"replay": "prioritized", "double": True},
    "noisy": {"noisy": True, "exploration": "noisy"},
    "recurrent": {"recurrent": True, "algorithm": "q-lambda"},
    "sarsa": {"algorithm": "one-step-sarsa", "exploration": "boltzmann"},
    "a3c": {"algorithm": "a3c", "optimizer": "shared-rmsprop"},
    "rmsprop": {"optimizer": "rmsprop", "lr_schedule": "linear"},
    "momentum": {"optimizer": "momentum", "lr": 0.1, "distributional": "quantile", "atoms": 5},
    "scaled": {"normalize_observations": True, "scale_rewards": True},
}
REPLAY = {"replay_capacity": 600, "replay_start": 300, "batch_size": 16}  # it goes round


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_reproducible_and_resumes_bit_for_bit(tmp_path, method):
    options = METHODS[method] | (REPLAY if "replay" in METHODS[method] else {})
    options |= {"steps": 2000, "checkpoint_every": 700, "keep_checkpoints": 9}
    options |= {"eval_episodes": 2, "hidden": (16,), "envs_per_worker": 6}
    whole = train(tmp_path / "whole", **options)
    broken = train(tmp_path / "broken", **options)
    assert_same_tensors(last(whole), last(broken))
    assert ("replay" in last(whole).tensors) == ("replay" in options)
    first = min((broken.run / "checkpoints").glob("step-*"))
    start = checkpoint.load(first)
    assert start.step < 1000
    again = training.train(*resolve({"resume": str(first), "quiet": True}))
    assert again.run == broken.run and last(again).step == 2000
    assert_same_tensors(last(whole), last(again))
    assert any(
        not np.array_equal(array, start.tensors["model"][name])
        for name, array in last(again).tensors["model"].items()
    )


def test_a_resumed_run_does_not_warn_of_what_happened_in_an_earlier_session(tmp_path, capsys):
    environment = {"env": "Scripted/Faulty-v0", "import_modules": ("scripted_ids",)}
    fault = {"env_arg": {"fault": "raise", "at_step": 150}}  # of each of 6 environments
    outcome = train(tmp_path, steps=1000, **environment, **fault)
    assert capsys.readouterr().err.count("warning: an environment failed") == 1
    again = {"resume": str(outcome.run), "steps": 1100, "quiet": True}
    training.train(*resolve(again | {"import_modules": ("scripted_ids",)}))
    assert last(outcome).state["env_errors"] == 6
    assert "warning" not in capsys.readouterr().err


def test_a_callback_can_end_the_run(tmp_path):
    seen = []

    def stop(report):
        seen.append(report["step"])
        return False

    outcome = train(tmp_path, stop, steps=10_000_000)
    assert outcome.exit_code == 0
    assert len(seen) == 1
    assert last(outcome).step < 10_000_000


def test_the_target_is_refreshed_once_per_interval(tmp_path):
    outcome = train(tmp_path, steps=3000, target_sync_steps=1000, checkpoint_every=3000)
    # Published at step 0 and at each of the three boundaries; the last lies at the end.
    assert last(outcome).state["target_step"] == 3000
    assert last(outcome).state["target_refreshes"] == 4


@pytest.mark.parametrize("mode", ["serial", "async"])
def test_the_final_evaluation_tells_how_far_it_is(tmp_path, capsys, monkeypatch, mode):
    monkeypatch.setattr("async_dqn.runs.progress.PLAIN_SECONDS", 0.0)
    monkeypatch.setattr("async_dqn.runs.reporter.REPORT_SECONDS", 0.0)
    slow = {"env": "Scripted/Slow-v0", "import_modules": ("scripted_ids",)}
    slow |= {"env_arg": {"step": 0.0005}, "eval_episodes": 60, "mode": mode, "quiet": False}
    assert train(tmp_path, steps=60, **slow).exit_code == 0
    out = capsys.readouterr().out
    played = [int(done) for done in re.findall(r"final evaluation: (\d+) of 60 episodes", out)]
    assert played == sorted(played) and len({*played}) > 2 and played[0] < 30 < played[-1] <= 60
    assert re.search(r"evaluation \d\.\d", out.splitlines()[-2])


@pytest.mark.parametrize(("given", "told"), [({}, True), ({"max_episode_steps": 9}, False)])
def test_what_differs_and_a_limit_that_nobody_gave_are_told(tmp_path, capsys, given, told):
    scripted = {"env": "Scripted/Cue-v0", "import_modules": ("scripted_ids",), "quiet": False}
    train(tmp_path, steps=100, exploration="ladder", lr=1 / 700, **scripted, **given)
    said, _, _ = capsys.readouterr().out.partition("run folder")
    assert ("cut after 10,000 steps" in said) == told
    assert f"max_episode_steps={given.get('max_episode_steps', 10_000)}," in said
    assert "lr=0.00142857," in said and "seed=" in said and "network=auto" not in said
    assert not any(name in said for name in ("gamma", "hang_timeout", "epsilon_final"))
    lines = said.splitlines()
    assert len(lines) < 16 and max(map(len, lines)) <= 100
