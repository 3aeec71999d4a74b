"""Peers of other libraries: fed and scored as our methods are, in run folders like ours."""

import csv
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from scripted_envs import NumberedEnv, register

from async_dqn.config.config import Config
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.peers import settings as published
from async_dqn.peers.__main__ import main
from async_dqn.peers.environment import training_env
from async_dqn.runs.recorder import RESULT_KEYS
from async_dqn.runs.writers import EVALUATIONS_HEADER, METRICS_HEADER
from async_dqn.workers.run_spec import CONFIRMATION, SCREENING, RunSpec

ROOT = Path(__file__).resolve().parent.parent
needs_sb3 = pytest.mark.skipif(
    importlib.util.find_spec("stable_baselines3") is None,
    reason='stable-baselines3 is not installed; pip install -e ".[peers]"',
)
needs_minatar = pytest.mark.skipif(
    importlib.util.find_spec("minatar") is None, reason="MinAtar is not installed"
)
needs_atari = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="ale-py is not installed"
)
# Steps are few: what it learns in them is not what these tests are about.
SHORT = ("--workers=1", "--quiet", "--steps=1400", "--eval-every=500", "--eval-episodes=12")


def train(folder: Path, name: str, *options: str) -> Path:
    """A run in this process that must end well; its folder."""
    arguments = ["sb3-dqn", *SHORT, f"--runs-dir={folder}", f"--run-name={name}", *options]
    assert main(arguments) == 0
    (run,) = folder.glob(f"*/{name}")
    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def make_task(env: Any, **settings: Any) -> RunSpec:
    config = Config.from_flat({"eval_episodes": 12, **settings})
    spec = EnvSpec(env, max_episode_steps=settings.get("max_episode_steps"))
    info = make.probe(spec)
    return RunSpec(config, spec, info, architecture.choose(config, info))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 1400 steps of CartPole, seed 0."""
    return train(tmp_path_factory.mktemp("runs"), "first")


@needs_sb3
def test_a_run_folder_like_ours(run) -> None:
    config, result = read(run / "config.json"), read(run / "result.json")
    assert Config.from_dict(config["settings"]).evaluation.eval_every == 500
    assert set(config["settings"]) == {"environment", "parallel", "evaluation", "run"}
    peer = config["peer"]
    assert peer["name"] == "sb3-dqn" and peer["library"].startswith("stable-baselines3 ")
    assert peer["settings"]["train_freq"] == 256 and peer["settings"]["learning_rate"] == 2.3e-3
    assert "not counted" in peer["protocol"]
    assert "stable-baselines3" in config["versions"] and "git_revision" in config

    assert tuple(result) == RESULT_KEYS
    assert (result["status"], result["steps"], result["frames"]) == ("budget reached", 1400, 1400)
    # 1000 random steps; then 128 updates after each whole 256 steps from 1024 on; none after the
    # part of a rollout with which the budget ends.
    assert result["updates"] == 2 * 128
    assert result["seconds_to_threshold"] is None and result["steps_to_threshold"] is None
    assert 0 < result["startup_s"] <= result["wall_s"] and result["cpu_s"] > 0

    scores = rows(run / "evaluations.csv")
    assert tuple(scores[0]) == EVALUATIONS_HEADER
    assert [int(row["step"]) for row in scores] == [500, 1000, 1400]
    assert float(scores[-1]["mean"]) == pytest.approx(result["final_mean"], rel=1e-5)
    assert int(scores[-1]["episodes"]) == 12
    assert result["best_mean"] == pytest.approx(max(float(row["mean"]) for row in scores), rel=1e-5)
    times = [float(row["wall_s"]) for row in scores]
    assert times == sorted(times)

    last = rows(run / "metrics.csv")[-1]
    assert tuple(last) == METRICS_HEADER and int(last["step"]) == 1400
    # rl-zoo: from 1 to 0.04 in 0.16 of 50,000 steps, not of our 1400.
    assert float(last["rollout/exploration_rate"]) == pytest.approx(
        1 - 0.96 * 1400 / 8000, abs=2e-4
    )
    assert 8 < float(last["rollout/ep_rew_mean"]) < 100 and float(last["train/loss"]) > 0
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["start", "evaluation", "evaluation", "evaluation", "stop"]
    assert list(run.glob("events.out.tfevents.*"))


@needs_sb3
def test_equal_seeds_give_equal_runs(run, tmp_path) -> None:
    def scores(folder: Path) -> list[tuple[str, ...]]:
        columns = ("step", "episodes", "mean", "std", "min", "max")
        return [tuple(row[name] for name in columns) for row in rows(folder / "evaluations.csv")]

    assert scores(train(tmp_path, "again")) == scores(run)
    assert scores(train(tmp_path, "other", "--seed=1")) != scores(run)


@needs_sb3
def test_the_threshold_ends_the_run(tmp_path) -> None:
    run = train(tmp_path, "easy", "--stop-at-return=5")
    result, scores = read(run / "result.json"), rows(run / "evaluations.csv")
    assert (result["status"], result["steps"]) == ("threshold reached", 500)
    assert result["steps_to_threshold"] == 500
    assert result["seconds_to_threshold"] == pytest.approx(float(scores[0]["wall_s"]), abs=1e-3)
    assert len(scores) == 1 and int(scores[0]["episodes"]) == 12  # confirmed, not the screening
    assert result["final_mean"] == result["best_mean"] >= 5


@needs_sb3
def test_scores_are_those_of_episodes_played_by_hand(tmp_path) -> None:
    """The first scores, against SB3's own `predict` in plain environments of the same seeds."""
    from async_dqn.peers.sb3 import PeerEvaluator, build

    run_spec = make_task(CartPoleEnv, max_episode_steps=60, stop_at_return=0.0)
    model = build(run_spec, published.BY_ID["CartPole-v1"])
    evaluation = None
    running = PeerEvaluator(run_spec, model).evaluate()
    try:
        while True:
            next(running)
    except StopIteration as stop:
        evaluation = stop.value

    def by_hand(seed: int) -> float:
        env = gymnasium.wrappers.TimeLimit(CartPoleEnv(), 60)
        observation, _ = env.reset(seed=seed % 2**31)
        score, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(int(action))
            score, over = score + reward, terminated or truncated
        return score

    expected = [by_hand(seed) for seed in run_spec.seeds(12, CONFIRMATION)]
    assert evaluation.confirmed and evaluation.episodes == 12
    assert (evaluation.mean, evaluation.std) == pytest.approx((np.mean(expected), np.std(expected)))
    assert (evaluation.min, evaluation.max) == (min(expected), max(expected))
    assert evaluation.std > 0
    assert run_spec.seeds(12, CONFIRMATION)[:10] != run_spec.seeds(10, SCREENING)


@needs_sb3
@needs_minatar
def test_minatar_in_sb3_is_what_the_evaluator_shows_the_network() -> None:
    from stable_baselines3.common.preprocessing import preprocess_obs

    from async_dqn.peers.sb3 import FrozenModel, build

    run_spec = make_task("MinAtar/Seaquest-v1", max_episode_steps=40)
    model = build(run_spec, published.choose(run_spec.spec, run_spec.info))
    env, batch = (
        training_env(run_spec.spec, run_spec.info),
        make.make_vector(run_spec.spec, 1, training=True),
    )
    ours, (theirs, _) = batch.reset([7])[0], env.reset(seed=7)
    actions, ends = np.random.default_rng(0).integers(0, run_spec.info.num_actions, 90), 0
    for action in actions:
        np.testing.assert_array_equal(theirs, ours)
        assert env.observation_space.contains(theirs) and theirs.shape == (10, 10, 10)
        q_values = FrozenModel(model)(torch.from_numpy(theirs[None]), None)[0].q_values
        assert int(q_values.argmax()) == int(model.predict(theirs, deterministic=True)[0])
        step = batch.step(np.array([action]))
        theirs, reward, terminated, truncated, infos = env.step(action)
        assert (reward, terminated, truncated) == (
            step.rewards[0],
            step.terminated[0],
            step.truncated[0],
        )
        ours = step.obs[0]
        if step.ended[0]:
            np.testing.assert_array_equal(theirs, step.final_obs[0])
            assert infos["episode"]["l"] <= 40
            theirs, _ = env.reset()
            ends += 1
    assert ends >= 2
    flags = preprocess_obs(torch.ones(1, 10, 10, 10), model.observation_space)
    assert flags.max() == 1  # not divided by 255, as SB3 does with pixels
    network = model.q_net.features_extractor.layers
    assert sum(parameter.numel() for parameter in network.parameters()) == 1456 + 131_200
    assert isinstance(model.policy.optimizer, torch.optim.RMSprop)


@needs_atari
def test_a_lost_life_terminates_but_the_game_goes_on() -> None:
    run_spec = make_task("ALE/SpaceInvaders-v5")  # scores of 5 and more
    env = training_env(run_spec.spec, run_spec.info)
    batch = make.make_vector(run_spec.spec, 1, training=True)
    ours, (theirs, _) = batch.reset([3])[0], env.reset(seed=3)
    lost, over, score = 0, 0, 0.0
    for action in np.random.default_rng(0).integers(0, run_spec.info.num_actions, 700):
        np.testing.assert_array_equal(theirs, ours)
        step = batch.step(np.array([action]))
        theirs, reward, terminated, truncated, infos = env.step(action)
        assert (reward, terminated, truncated) == (
            step.rewards[0],
            step.terminated[0],
            step.truncated[0],
        )
        ours, score = step.obs[0].copy(), score + float(step.scores[0])
        lost += terminated and not step.ended[0]
        if step.ended[0]:
            np.testing.assert_array_equal(theirs, step.final_obs[0])
            assert infos["episode"]["r"] == score
            score, over = 0.0, over + 1
        else:
            assert "episode" not in infos
        if terminated or truncated:
            theirs, _ = env.reset()
    assert lost >= 2 and over >= 1


def test_single_environments_are_cut_and_their_observations_are_copies() -> None:
    spec = EnvSpec(NumberedEnv, {"lengths": (9,), "reuse": True}, max_episode_steps=4)
    env = training_env(spec, make.probe(spec))
    before, _ = env.reset(seed=5)
    for count in range(1, 5):
        after, reward, terminated, truncated, infos = env.step(np.int64(1))
        np.testing.assert_array_equal(before, [5, 0, count - 1])
        np.testing.assert_array_equal(after, [5, 0, count])
        assert (reward, terminated, truncated) == (1.0, False, count == 4)
        before = after
    assert infos == {"episode": {"r": 4.0, "l": 4}}
    np.testing.assert_array_equal(env.reset()[0], [5, 1, 0])


@needs_sb3
def test_a_cut_episode_is_no_end_for_sb3() -> None:
    from async_dqn.peers.sb3 import build

    run_spec = make_task("MountainCar-v0", max_episode_steps=6, steps=100)
    model = build(run_spec, published.BY_ID["MountainCar-v0"])
    model.learn(20, log_interval=None)
    memory = model.replay_buffer
    assert memory.dones[:12, 0].tolist() == ([0.0] * 5 + [1.0]) * 2
    assert memory.timeouts[:12, 0].tolist() == ([0.0] * 5 + [1.0]) * 2
    np.testing.assert_array_equal(memory.next_observations[:5], memory.observations[1:6])
    assert (memory.next_observations[5] != memory.observations[6]).any()  # the true last one


@needs_sb3
def test_evaluations_are_not_on_the_clock() -> None:
    from async_dqn.peers.sb3 import TrainingClock

    class Stopwatch:
        session_s, session_cpu_s = 10.0, 0.0

    stopwatch = Stopwatch()
    clock = TrainingClock(stopwatch)
    for _ in range(2):
        with clock.stopped():
            stopwatch.session_s += 100.0
            stopwatch.session_cpu_s += 1000.0
    stopwatch.session_s += 1.0
    wall_s, cpu_s = clock.read()
    assert wall_s == pytest.approx(11.0) and cpu_s < 1000.0


@needs_sb3
def test_published_settings_are_keywords_of_sb3_and_the_defaults_are_its_own() -> None:
    from stable_baselines3 import DQN

    keywords = inspect.signature(DQN).parameters
    everything = [*published.BY_ID.values(), published.FOR_ATARI, published.FOR_MINATAR]
    for settings in everything:
        assert set(settings.dqn) <= set(keywords)
    for name, value in published.FOR_ANY.dqn.items():
        if name != "policy_kwargs":
            assert keywords[name].default == value
    fraction = keywords["exploration_fraction"].default
    assert published.FOR_ANY.exploration_fraction(12345) == fraction


@needs_sb3
def test_a_failure_is_written_down(tmp_path, capsys) -> None:
    register()
    arguments = ["sb3-dqn", *SHORT, "--env=Scripted/Faulty-v0", "--env-arg=at_step=700"]
    assert main([*arguments, f"--runs-dir={tmp_path}", "--import=scripted_ids"]) == 1
    (run,) = tmp_path.glob("*/sb3-dqn-s0-1")
    assert read(run / "result.json")["status"] == "failed"
    assert "scripted failure at step 700" in (run / "logs" / "supervisor.log").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the run failed (tests/scripted_envs.py")
    assert read(run / "config.json")["peer"]["source"] == published.DEFAULTS


REFUSALS = [
    ("unknown peer 'sb3-dqm'; did you mean sb3-dqn?", ["sb3-dqm"]),
    ("unknown peer 'tianshou'; choose sb3-dqn", ["tianshou"]),
    ("name a peer; choose sb3-dqn", []),
    ("unknown option --lr", ["sb3-dqn", "--lr=1"]),
    (
        "--steps must be a whole number from 1 (got '10k'); write 10000 or 10_000",
        ["sb3-dqn", "--steps=10k"],
    ),
    ("no environment 'CartPol-v1'; close: CartPole-v1", ["sb3-dqn", "--env=CartPol-v1"]),
    ("the images of Images-v0", ["sb3-dqn", "--env=Images-v0"]),
]


@needs_sb3
@pytest.mark.parametrize(("words", "arguments"), REFUSALS)
def test_mistakes_are_one_line_and_nothing_is_written(words, arguments, tmp_path, capsys) -> None:
    if "Images-v0" not in gymnasium.registry:
        gymnasium.register("Images-v0", Images)
    more = [f"--runs-dir={tmp_path / 'runs'}"] if arguments else []
    assert main([*arguments, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not any(tmp_path.iterdir())


class Images(NumberedEnv):
    """Colours, as no peer has settings for."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)

    def _observe(self) -> np.ndarray:
        return np.zeros((32, 32, 3), np.uint8)


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # Python's way to hide a module
    assert main(["sb3-dqn", f"--runs-dir={tmp_path}"]) == 2
    wanted = 'error: sb3-dqn needs stable-baselines3; pip install -e ".[peers]"\n'
    assert capsys.readouterr().err == wanted
    assert not any(tmp_path.iterdir())


def test_the_package_is_a_program() -> None:
    command = [sys.executable, "-m", "async_dqn.peers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: name a peer; choose sb3-dqn\n")


@needs_sb3
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_result(tmp_path, capfd, number, code) -> None:
    run = tmp_path / "CartPole-v1" / "endless"

    def interrupt() -> None:
        while not (run / "evaluations.csv").exists() or not rows(run / "evaluations.csv"):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    more = ("--steps=1000000", f"--runs-dir={tmp_path}", "--run-name=endless")
    assert main(["sb3-dqn", *SHORT, *more]) == code and capfd.readouterr().err == ""
    result = read(run / "result.json")
    assert result["status"] == "stopped" and 500 <= result["steps"] < 1_000_000
    assert result["final_mean"] is None
