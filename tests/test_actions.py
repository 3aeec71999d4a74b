"""Actions as numbers: every own action once, the numbers' meaning stored with the model."""

import functools
import itertools
import json
from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from scripted_envs import SpacesEnv

from async_dqn import AsyncDQN
from async_dqn.config.config import Config, UserError
from async_dqn.config.options import parse_train
from async_dqn.envs.make import EnvInfo, EnvSpec, make_vector, probe
from async_dqn.runs import checkpoint
from async_dqn.training import training

PLACE = spaces.Box(-1, 1, (3,), np.float32)
PLANE = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 6], np.float32))
JOINTS = spaces.MultiDiscrete([3, 2], start=[0, 5])
WHOLE = spaces.Box(np.array([-1, 3], np.int64), np.array([1, 4], np.int64), dtype=np.int64)
SERIAL = {"mode": "serial", "defaults": "fixed", "workers": 1, "envs_per_worker": 4}
SERIAL |= {"hidden": (8,), "eval_episodes": 2}


def spec(
    actions: spaces.Space, bins: int | tuple = 5, observations: spaces.Space = PLACE
) -> EnvSpec:
    kwargs = {"observation_space": observations, "action_space": actions}
    return EnvSpec(SpacesEnv, kwargs, action_bins=bins)


def taken(asked: EnvSpec) -> list[np.ndarray]:
    """What the environment receives for 0, 1, ..., A-1."""
    batch = make_vector(asked, 1, training=True)
    batch.reset([0])
    for number in range(batch.info.num_actions):
        batch.step(np.array([number]))
    return batch.vector.envs[0].unwrapped.taken


@pytest.mark.parametrize(
    ("space", "vectors"),
    [
        (spaces.MultiDiscrete([3, 1, 4]), itertools.product(range(3), range(1), range(4))),
        (JOINTS, itertools.product(range(3), (5, 6))),
        (spaces.MultiDiscrete([[2, 3], [1, 2]]), itertools.product((0, 1), range(3), (0,), (0, 1))),
        (spaces.MultiBinary(3), itertools.product((0, 1), repeat=3)),
        (spaces.MultiBinary((2, 2)), itertools.product((0, 1), repeat=4)),
        (spaces.Box(0, 1, (1,), np.int64), itertools.product((0, 1))),
        (spaces.Box(-2, 1, (2,), np.int32), itertools.product(range(-2, 2), repeat=2)),
        (spaces.Box(250, 255, (1,), np.uint8), itertools.product(range(250, 256))),
        (spaces.Box(0, 1, (2,), np.bool_), itertools.product((0, 1), repeat=2)),
    ],
)
def test_every_vector_is_reached_exactly_once(space: spaces.Space, vectors) -> None:
    received = taken(spec(space))
    assert all(space.contains(vector) for vector in received)
    assert [tuple(vector.ravel().tolist()) for vector in received] == list(vectors)


def test_bins_cover_the_box_from_corner_to_corner() -> None:
    received = taken(spec(PLANE, bins=3))
    assert all(PLANE.contains(action) for action in received)
    centres = itertools.product((-2 / 3, 0, 2 / 3), (1, 3, 5))
    assert np.allclose(received, list(centres), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "bins"), [("5", 5), ("1e1", 10), ("3,5,3", (3, 5, 3)), ("3, 5", "--action-bins must")]
)
def test_bins_are_one_number_or_a_list_and_stored_as_such(text, bins) -> None:
    if isinstance(bins, str):
        with pytest.raises(UserError, match=bins):
            parse_train(["--action-bins", text])
        return
    given = parse_train(["--action-bins", text])
    config = Config.from_flat(given)
    assert config.environment.action_bins == bins == EnvSpec.of(config.environment).action_bins
    stored = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert stored.environment.action_bins == bins


def test_bins_of_each_dimension() -> None:
    received = taken(spec(PLANE, bins=(2, 3)))
    assert np.allclose(received, list(itertools.product((-0.5, 0.5), (1, 3, 5))), atol=1e-6)
    assert probe(spec(PLANE, bins=(2, 3))).actions["sizes"] == [2, 3]


@pytest.mark.parametrize("space", [PLANE, JOINTS, spaces.MultiBinary((2, 2)), WHOLE])
def test_the_mapping_says_what_the_numbers_mean(space: spaces.Space) -> None:
    info = probe(spec(space, bins=4))
    assert EnvInfo(**json.loads(json.dumps(asdict(info)))).actions == info.actions
    mapping = info.actions
    assert mapping["shape"] == list(space.shape) and mapping["dtype"] == str(space.dtype)
    for number, action in enumerate(taken(spec(space, bins=4))):
        indices = np.array(np.unravel_index(number, mapping["sizes"]))
        if mapping["kind"] == "bins":
            low, high = np.array(mapping["low"]), np.array(mapping["high"])
            meant = low + (indices + 0.5) * (high - low) / mapping["sizes"]
        else:
            meant = indices + mapping["start"]
        assert np.allclose(action.ravel(), meant)


def test_pendulum_and_plain_actions() -> None:
    info = probe(EnvSpec("Pendulum-v1"))
    assert (info.num_actions, info.actions["low"], info.actions["high"]) == (5, [-2.0], [2.0])
    assert probe(EnvSpec("Pendulum-v1", action_bins=11)).num_actions == 11
    assert probe(EnvSpec("CartPole-v1", action_bins=11)).actions is None


@pytest.mark.parametrize(
    ("space", "bins", "message"),
    [
        (spaces.Box(-1, np.inf, (2,)), 5, r"^SpacesEnv has Box\(2,\) actions without finite "),
        (spaces.Box(-3.4e38, 3.4e38, (2,)), 5, "without finite bounds; give its action space a"),
        (spaces.Box(-1, 1, (62,)), 3, "more combinations of actions than .*; lower --action-bins$"),
        (spaces.Box(-1, 1, (900,)), 2, "numbers of 64 bits can count; use fewer action dimensions"),
        (spaces.MultiDiscrete([2**32] * 2), 5, "64 bits can count; use fewer action components$"),
        (spaces.MultiBinary(63), 5, "SpacesEnv has more combinations of actions than numbers of"),
        (PLANE, (3, 5, 3), "^--action-bins lists 3 dimensions, the actions of SpacesEnv have 2; l"),
        (JOINTS, (3, 5), r"^--action-bins lists dimensions, and SpacesEnv has Multi.* drop it$"),
        (spaces.Tuple([]), 5, r"needs a Discrete action space; SpacesEnv has Tuple\(\.\.\.\): ch"),
        (spaces.Dict({}), 5, "Discrete, MultiDiscrete, MultiBinary or Box actions$"),
    ],
)
def test_refusals(space: spaces.Space, bins: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as said:
        probe(spec(space, bins))
    assert "\n" not in str(said.value)


def learned(actions: spaces.Space, folder, observations: spaces.Space = PLACE) -> tuple:
    """A factory, and an agent that learned on it for a few steps with three bins."""
    kwargs = {"observation_space": observations, "action_space": actions}
    env = functools.partial(SpacesEnv, **kwargs)
    settings = {**SERIAL, "action_bins": 3, "max_episode_steps": 20, "runs_dir": str(folder)}
    return env, AsyncDQN(env, **settings).learn(200)


@pytest.mark.parametrize("space", [PLANE, JOINTS, spaces.Discrete(4, start=5)])
def test_the_mapping_survives_save_and_load(space: spaces.Space, tmp_path) -> None:
    env, agent = learned(space, tmp_path / "runs")
    agent.save(tmp_path / "agent")
    stored = checkpoint.load(tmp_path / "agent").state["env_info"]["actions"]
    loaded = AsyncDQN.load(tmp_path / "agent", env=env)
    assert stored == agent.run_spec.info.actions == loaded.run_spec.info.actions
    assert loaded.config.environment.action_bins == 3
    batch = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    actions, _ = loaded.predict(batch)
    assert np.array_equal(actions, agent.predict(batch)[0])
    table, best = np.array(taken(spec(space, bins=3))), agent.q_values(batch).argmax(axis=1)
    assert np.array_equal(actions, table[best]) and len(set(best)) > 1
    single, _ = loaded.predict(batch[0])
    assert np.array_equal(single, actions[0]) and space.contains(single)


def test_an_environment_whose_actions_mean_something_else_is_refused(tmp_path) -> None:
    _, agent = learned(PLANE, tmp_path)
    wider = spaces.Box(2 * PLANE.low, 2 * PLANE.high)  # as many actions, other ones
    other = functools.partial(SpacesEnv, observation_space=PLACE, action_space=wider)
    with pytest.raises(UserError, match="checkpoint does not match: its actions mean"):
        AsyncDQN.load(agent.run, env=other)


def test_a_run_goes_on_with_its_own_bins_only(tmp_path) -> None:
    env, agent = learned(PLANE, tmp_path)
    config = agent.config.with_settings({"resume": str(agent.run), "action_bins": 7, "quiet": True})
    explicit = frozenset({"environment.action_bins"})
    with pytest.raises(UserError, match="action_bins 3 vs 7; start a new run or drop --action-b"):
        training.train(config, explicit, env)


def test_predict_takes_the_environments_own_observations(tmp_path) -> None:
    space = spaces.Dict(
        lamp=spaces.Discrete(3),
        pose=spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)]),
    )
    _, agent = learned(spaces.Discrete(2), tmp_path, space)
    space.seed(0)
    observations = [space.sample() for _ in range(6)]
    by_hand = [agent.predict(observation)[0] for observation in observations]
    batch = {
        "lamp": np.array([one["lamp"] for one in observations]),
        "pose": tuple(np.stack([one["pose"][k] for one in observations]) for k in (0, 1)),
    }
    together, _ = agent.predict(batch)
    assert together.tolist() == by_hand and all(isinstance(one, int) for one in by_hand)
    rows = np.stack([agent.q_values(one)[0] for one in observations])
    assert np.allclose(agent.q_values(batch), rows, atol=1e-6) and len(np.unique(rows)) > 2
    for wrong in ({"lamp": 1}, {**batch, "lamp": np.zeros(5, int)}, np.zeros(3)):
        with pytest.raises(UserError, match="observation"):
            agent.predict(wrong)


def test_predicted_actions_fit_the_environment(tmp_path) -> None:
    agent = AsyncDQN("Pendulum-v1", **SERIAL, runs_dir=str(tmp_path), max_episode_steps=20)
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation)
    assert env.action_space.contains(action)
    env.step(action)
