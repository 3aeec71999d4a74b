"""The Python API, as a user would call it."""

import functools
import json
import os
import subprocess
import sys
from csv import DictReader

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from scripted_envs import ChainEnv

from async_dqn import AsyncDQN
from async_dqn.config.config import UserError
from runs import ROOT

SMALL = {"workers": 1, "envs_per_worker": 4, "hidden": (32,), "eval_episodes": 10}
SERIAL = {**SMALL, "mode": "serial"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> AsyncDQN:
    folder = str(tmp_path_factory.mktemp("api"))
    agent = AsyncDQN("CartPole-v1", **SERIAL, eval_every=1000, runs_dir=folder)
    return agent.learn(total_steps=4000)


def test_learn_goes_on_where_it_ended(tmp_path):
    reports = []
    agent = AsyncDQN("CartPole-v1", **SMALL, runs_dir=str(tmp_path))
    assert agent.learn(2000) is agent
    assert agent.learn(5000, callback=reports.append) is agent
    assert reports[-1]["step"] == 5000
    assert json.loads((agent.run / "result.json").read_text())["steps"] == 5000
    assert len(list(tmp_path.glob("*/*"))) == 1


@pytest.mark.parametrize("mode", ["async", "serial"])
def test_every_evaluation_reaches_every_callback_once(tmp_path, mode):
    settings = SMALL | {"eval_every": 500, "runs_dir": str(tmp_path), "mode": mode}
    one, other = [], []
    agent = AsyncDQN("CartPole-v1", **settings).learn(3000, callback=[one.append, other.append])
    with (agent.run / "evaluations.csv").open(newline="") as file:
        written = [
            (float(r["step"]), float(r["mean"]), float(r["episodes"])) for r in DictReader(file)
        ]
    scores = [report for report in one if "eval/mean_reward" in report]
    assert one == other and len(written) >= 2
    names = ("step", "eval/mean_reward", "eval/episodes")
    assert [tuple(float(report[name]) for name in names) for report in scores] == written


def test_a_callback_can_end_a_run_at_a_score_and_what_is_none_is_refused(tmp_path):
    def stop(report):
        return "eval/mean_reward" not in report

    settings = SERIAL | {"eval_every": 500, "runs_dir": str(tmp_path)}
    agent = AsyncDQN("CartPole-v1", **settings).learn(100_000, callback=(stop, print))
    assert json.loads((agent.run / "result.json").read_text())["steps"] < 2000
    with pytest.raises(UserError, match=r"a function of a report, or a list .*\(got dict\)"):
        AsyncDQN("CartPole-v1", **settings).learn(100, callback=[{}])
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_predict_is_greedy_for_one_observation_and_for_a_batch(agent):
    observation, _ = gymnasium.make("CartPole-v1").reset(seed=0)
    batch = np.stack([observation, -observation, 3 * observation])
    q_values = agent.q_values(batch)
    assert q_values.shape == (3, 2) and q_values.dtype == np.float32
    actions, state = agent.predict(batch)
    np.testing.assert_array_equal(actions, q_values.argmax(1))
    single, _ = agent.predict(observation)
    assert isinstance(single, int) and single == actions[0] and state is None
    explored = {agent.predict(observation, deterministic=False, epsilon=1.0)[0] for _ in range(50)}
    assert explored == {0, 1}
    with pytest.raises(UserError, match="expected"):
        agent.predict(np.zeros(7))
    with pytest.raises(UserError, match="not finite"):
        agent.predict(np.array([0, np.nan, 0, 0]))


def test_a_run_of_ones_own_environment_is_evaluated_with_its_module(tmp_path):
    """Each in a process of its own: nothing is registered there."""
    run = tmp_path / "Scripted-Chain-v0" / "own"
    own = ("--import", "scripted_ids", "--env", "Scripted/Chain-v0", "--run-name", "own", "--quiet")
    small = ("--mode", "serial", "--workers", "1", "--steps", "300", "--eval-episodes", "2")

    def launch(*arguments: str) -> subprocess.CompletedProcess:
        variables = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    assert launch(*own, *small, "--runs-dir", str(tmp_path)).returncode == 0
    refused = launch("evaluate", str(run), "--episodes", "3")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.endswith("; the run was trained with --import scripted_ids\n")
    done = launch("evaluate", str(run), "--episodes", "3", "--import", "scripted_ids")
    assert done.returncode == 0 and done.stdout.startswith("mean return ")


def test_a_saved_agent_goes_on_learning_in_a_run_of_its_own(tmp_path):
    settings = SERIAL | {"runs_dir": str(tmp_path / "runs"), "run_name": "first"}
    AsyncDQN("CartPole-v1", **settings).learn(2000).save(tmp_path / "agent")
    loaded = AsyncDQN.load(tmp_path / "agent")
    before = loaded.q_values(np.ones((1, 4)))
    loaded.learn(4000)
    assert not np.array_equal(loaded.q_values(np.ones((1, 4))), before)
    assert len(list((tmp_path / "runs").glob("*/*"))) == 2 and loaded.run.name != "first"
    assert json.loads((loaded.run / "result.json").read_text())["steps"] == 4000
    assert loaded.learn(4500).run == loaded.run, "and goes on there"


def test_an_agent_is_loaded_into_the_environment_that_is_named(agent, tmp_path):
    agent.save(tmp_path / "agent")
    loaded = AsyncDQN.load(tmp_path / "agent", env="CartPole-v0")
    assert loaded.run_spec.spec.name == "CartPole-v0"
    assert loaded.evaluate(3)[0] <= 200  # where CartPole-v1 goes on to 500
    with pytest.raises(UserError, match="does not match"):
        AsyncDQN.load(tmp_path / "agent", env="Acrobot-v1")
    loaded.run = agent.run
    with pytest.raises(UserError, match="env CartPole-v1 vs CartPole-v0"):
        loaded.learn(8000)


def test_a_saved_agent_loads_with_the_same_q_values(agent, tmp_path):
    agent.save(tmp_path / "agent")
    loaded = AsyncDQN.load(tmp_path / "agent")
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.q_values(observations), agent.q_values(observations))
    with pytest.raises(UserError, match="exists"):
        agent.save(tmp_path / "agent")


def test_the_best_checkpoint_scores_what_made_it_best(agent):
    best = AsyncDQN.load(agent.run / "checkpoints" / "best")
    result = json.loads((agent.run / "result.json").read_text())
    assert best.evaluate(episodes=10)[0] == result["best_mean"]
    assert agent.evaluate(episodes=10)[0] == result["best_mean"] and "best" in agent.playing
    loaded = AsyncDQN.load(agent.run, which="latest")
    assert loaded.evaluate(episodes=10)[0] == result["final_mean"] and "latest" in loaded.playing
    assert loaded.use("best").evaluate(episodes=10)[0] == result["best_mean"]
    with pytest.raises(UserError, match=r"best or latest \(got 'newest'\)"):
        loaded.use("newest")
    with pytest.raises(UserError, match=r"best or latest \(got 'newest'\)"):
        AsyncDQN.load(agent.run, which="newest")
    with pytest.raises(UserError, match="algoritm is none of algorithm, network"):
        AsyncDQN.load(agent.run, algoritm=None)


def test_in_a_callback_the_agent_is_that_of_the_running_run(tmp_path):
    observations, seen = np.ones((1, 4)), []

    def ask(report):
        seen.append((agent.run, agent.q_values(observations).tolist(), agent.evaluate(2)[0]))
        assert agent.predict(observations[0])[0] in (0, 1)

    settings = SERIAL | {"eval_every": 500, "runs_dir": str(tmp_path)}
    agent = AsyncDQN("CartPole-v1", **settings)
    untrained = agent.q_values(observations).tolist()
    agent.learn(3000, callback=ask)
    assert {run for run, *_ in seen} == {agent.run}
    assert seen[-1][1] != untrained and len(seen) > 3


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "ALE/Pong-v5"])
def test_the_environment_of_an_agent_can_be_played_and_shown(env):
    if env.startswith("ALE"):
        pytest.importorskip("ale_py")
    agent = AsyncDQN(env, **SMALL, max_episode_steps=12)
    played, frames = agent.make_env(render_mode="rgb_array"), []
    observation, _ = played.reset(seed=1)
    for _ in range(12):
        action, _ = agent.predict(observation)
        observation, *_, truncated, _ = played.step(action)
        frames.append(played.render())
    played.close()
    assert truncated and all(frame.shape[2] == 3 for frame in frames)
    assert any((frame != frames[0]).any() for frame in frames)
    assert agent.make_env().render() is None


def test_a_run_stopped_by_its_threshold_ends_with_the_evaluated_parameters(tmp_path):
    settings = {**SERIAL, "eval_every": 500, "stop_at_return": 15.0}
    agent = AsyncDQN("CartPole-v1", **settings, runs_dir=str(tmp_path)).learn(50_000)
    result = json.loads((agent.run / "result.json").read_text())
    assert result["status"] == "threshold reached"
    assert result["seconds_to_threshold"] <= result["wall_s"]
    assert agent.evaluate(episodes=10)[0] == result["final_mean"] >= 15


@pytest.mark.parametrize("env", [CartPoleEnv, functools.partial(ChainEnv, n=4)])
def test_a_class_or_a_picklable_factory_trains_in_processes(env, tmp_path):
    agent = AsyncDQN(env, **SMALL, runs_dir=str(tmp_path), max_episode_steps=50).learn(1000)
    assert json.loads((agent.run / "result.json").read_text())["steps"] == 1000
    assert np.isfinite(agent.evaluate(episodes=5)[0])


def test_a_script_without_a_main_guard_is_told_so_at_once(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from async_dqn import AsyncDQN\n"
        f"AsyncDQN('CartPole-v1', workers=1, runs_dir={str(tmp_path)!r}).learn(1000)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert 'start the trainer under if __name__ == "__main__":' in done.stderr


def test_sb3_scores_our_agent_as_we_do(agent):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    env = agent.make_env()
    returns, lengths = evaluation.evaluate_policy(
        agent, env, n_eval_episodes=5, return_episode_rewards=True, warn=False
    )
    assert returns == lengths and len(returns) == 5  # CartPole gives 1 a step
    env.reset(seed=3)
    first = evaluation.evaluate_policy(agent, env, 3, return_episode_rewards=True, warn=False)
    env.reset(seed=3)
    assert evaluation.evaluate_policy(agent, env, 3, return_episode_rewards=True, warn=False) == (
        first
    )


def test_names_that_others_know(agent, tmp_path):
    assert agent.num_timesteps == 4000
    assert agent.observation_space.shape == (4,) and agent.action_space.n == 2
    fresh = AsyncDQN("Pendulum-v1", **SERIAL, runs_dir=str(tmp_path))
    assert fresh.num_timesteps == 0 and fresh.action_space.shape == (1,)
    fresh.learn(total_timesteps=1000)
    assert fresh.num_timesteps == 1000
    with pytest.raises(UserError, match="drop one"):
        fresh.learn(2000, total_timesteps=2000)
    action, _ = fresh.predict(fresh.observation_space.sample())
    assert fresh.action_space.contains(action)


def test_a_new_episode_forgets_the_state_of_the_last():
    recurrent = AsyncDQN("CartPole-v1", recurrent=True, algorithm="a3c", network="mlp", workers=1)
    seen = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    _, state = recurrent.predict(seen)
    _, both = recurrent.predict(seen, state)
    _, one = recurrent.predict(seen, state, episode_start=np.array([True, False]))
    assert np.allclose(one[0][0], state[0][0]) and np.allclose(one[0][1], both[0][1])
    _, single = recurrent.predict(seen[0], tuple(part[:1] for part in both), episode_start=True)
    assert np.allclose(single[0], state[0][0])
