"""Environments: every way to vectorise gives the same story, and every refusal one clear line."""

import importlib.util
import json
import pickle
import re
import subprocess
import sys
from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
import scripted_envs
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation, NormalizeObservation, NormalizeReward
from scripted_envs import NumberedEnv, SpacesEnv

from async_dqn.config.config import UserError
from async_dqn.envs.loop_env import LoopVectorEnv
from async_dqn.envs.make import (
    EnvBatch,
    EnvInfo,
    EnvSpec,
    check_env_id,
    make_vector,
    preload_modules,
    probe,
)

IMPORTS = ("scripted_ids",)
SCRIPT = {
    "lengths": (3, 1, 4, 2),
    "ends": ("terminated", "truncated", "truncated"),
    "rewards": (0.5, -2.0, 3.0),
}
MINATAR_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")


def transitions(batch: EnvBatch, steps: int) -> list[list[tuple]]:
    """Per environment: (observation, reward, true successor, terminated, truncated, ended)."""
    obs = batch.reset(range(10, 10 + batch.num_envs)).copy()
    tapes: list[list[tuple]] = [[] for _ in obs]
    for _ in range(steps):
        step = batch.step(np.zeros(batch.num_envs, np.int64))
        successors = step.obs.copy()
        successors[step.final_rows] = step.final_obs
        for row in np.flatnonzero(~step.dummy):
            flags = (step.terminated[row], step.truncated[row], step.ended[row])
            outcome = (step.rewards[row], tuple(successors[row]), *flags)
            tapes[row].append((tuple(obs[row]), *outcome))
        obs = step.obs.copy()
    return tapes


def numbered(env_id: str, **kwargs: object) -> EnvBatch:
    return make_vector(EnvSpec(env_id, {**SCRIPT, **kwargs}, IMPORTS, 3), 3, training=True)


@pytest.mark.parametrize("kind", ["NextStep", "SameStep", "Dense"])
def test_every_way_to_vectorise_gives_the_same_transitions(kind: str) -> None:
    loop, vector = numbered("Scripted/Numbered-v0"), numbered(f"Scripted/Numbered{kind}-v0")
    assert isinstance(loop.vector, LoopVectorEnv) and not isinstance(vector.vector, LoopVectorEnv)
    assert vector.next_step == (kind == "NextStep") and not loop.next_step
    expected, tapes = transitions(loop, 20), transitions(vector, 30)
    tag = lambda tape: [(obs[1:], reward, successor[1:], *f) for obs, reward, successor, *f in tape]  # noqa: E731
    for one, other in zip(expected, tapes, strict=True):
        assert tag(one) == tag(other)[:20]


@pytest.mark.parametrize("kind", ["", "NextStep", "SameStep", "Dense"])
def test_no_transition_links_two_episodes(kind: str) -> None:
    for tape in transitions(numbered(f"Scripted/Numbered{kind}-v0"), 25):
        for obs, _, successor, *_ in tape:
            assert successor[1] == obs[1] and successor[2] == obs[2] + 1


def test_an_environment_that_reuses_its_array_keeps_its_final_observations() -> None:
    fresh, reused = (numbered("Scripted/Numbered-v0", reuse=reuse) for reuse in (False, True))
    assert transitions(fresh, 20) == transitions(reused, 20)


def test_ends_and_time_limit_are_told_apart() -> None:
    tape = transitions(numbered("Scripted/Numbered-v0"), 9)[0]
    # lengths 3, 1, 4 (cut at 3), 2; the first ends at its own length and at the limit together
    assert [row[3] for row in tape] == [0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert [row[4] for row in tape] == [0, 0, 1, 1, 0, 0, 1, 0, 0]
    assert [row[5] for row in tape] == [0, 0, 1, 1, 0, 0, 1, 0, 1]


def test_scores_and_lengths_need_no_infos() -> None:
    batch = make_vector(EnvSpec(NumberedEnv, {"lengths": (7,)}), 2, training=True)
    batch.reset([1, 2])
    steps = [batch.step(np.zeros(2, np.int64)) for _ in range(70)]
    assert sum(int(step.ended[0]) for step in steps) == 10
    assert sum(step.scores for step in steps).tolist() == [70, 70]


@pytest.mark.parametrize(
    "env_id",
    ["CartPole-v1", "LunarLander-v3", "FrozenLake-v1", "MinAtar/Asterix-v1", "ALE/Pong-v5"],
)
def test_documented_types(env_id: str) -> None:
    skip_without(env_id)
    batch = make_vector(EnvSpec(env_id), 3, training=True)
    info, obs = batch.info, batch.reset([5, 6, 7])
    step = batch.step(np.zeros(3, np.int64))
    for array in (obs, step.obs):
        assert array.dtype == info.dtype and array.shape == (3, *info.observation_shape)
    assert step.final_obs.dtype == info.dtype
    assert step.final_obs.shape == (0, *info.observation_shape)
    types = [step.rewards, step.scores, step.terminated, step.truncated, step.ended, step.dummy]
    assert [a.dtype for a in types] == [np.float32, np.float64] + [np.bool_] * 4
    assert {a.shape for a in types} == {(3,)} and step.final_rows.dtype == np.int64
    assert EnvInfo(**json.loads(json.dumps(asdict(info)))).num_actions == info.num_actions
    batch.close()
    batch.close()


def skip_without(env_id: str) -> None:
    for prefix, module in (("ALE/", "ale_py"), ("MinAtar/", "minatar"), ("Lunar", "Box2D")):
        if env_id.startswith(prefix):
            pytest.importorskip(module)


def test_cartpole_uses_its_vector_environment_with_the_requested_limit() -> None:
    batch = make_vector(EnvSpec("CartPole-v1", max_episode_steps=5), 4, training=True)
    assert batch.next_step and not isinstance(batch.vector, LoopVectorEnv)
    assert batch.info.max_episode_steps == 5
    batch.reset(range(4))
    steps = [batch.step(np.array([0, 1, 0, 1]) ^ (k % 2)) for k in range(7)]
    assert [bool(step.truncated.all()) for step in steps] == [False] * 4 + [True, False, False]
    assert [bool(step.dummy.all()) for step in steps] == [False] * 5 + [True, False]
    assert make_vector(EnvSpec("CartPole-v1"), 1, True).info.max_episode_steps == 500


def test_a_loop_stands_for_a_vector_entry_point_where_environments_are_few() -> None:
    few, many = (make_vector(EnvSpec("CartPole-v1"), count, True) for count in (2, 3))
    assert few.info == many.info and few.info.batched
    assert many.next_step and not few.next_step
    obs = many.reset([1, 2, 3])
    few.reset([1, 2])
    for env, state in zip(few.vector.envs, many.vector.state.T):
        env.unwrapped.state = state
    for _ in range(5):  # the same physics
        obs, one = many.step(np.array([0, 1, 1])).obs, few.step(np.array([0, 1])).obs
        np.testing.assert_allclose(one, obs[:2], rtol=1e-5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "MinAtar/Breakout-v1"])
def test_each_environment_has_a_seed_of_its_own(env_id: str) -> None:
    skip_without(env_id)
    seeds = [2**62 + 977 * k for k in range(12)]
    firsts = [
        trajectory(make_vector(EnvSpec(env_id), 4, True), seeds[4 * worker : 4 * worker + 4])
        for worker in range(3)
    ]
    rows = np.concatenate(firsts)
    assert len({row.tobytes() for row in rows}) == len(rows)
    again = trajectory(make_vector(EnvSpec(env_id), 4, True), seeds[:4])
    assert np.array_equal(again, firsts[0])


def trajectory(batch: EnvBatch, seeds: list[int], steps: int = 30) -> np.ndarray:
    """All observations of `steps` fixed actions, [B, everything]."""
    obs = [batch.reset(seeds).copy()]
    for k in range(steps):
        actions = np.full(batch.num_envs, k % batch.info.num_actions)
        obs.append(batch.step(actions).obs.copy())
    return np.stack(obs, 1).reshape(batch.num_envs, -1)


def test_seeds_must_match_the_number_of_environments() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3"):
        numbered("Scripted/Numbered-v0").reset([1, 2])


PLACE = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Discrete(2)
NESTED = spaces.Dict(
    inner=spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2])]),
    place=spaces.Box(-1, 1, (2, 2), np.float64),
    keys=spaces.MultiBinary(2),
)


def flattened_by_hand(observation: dict) -> np.ndarray:
    """Parts one after the other, in the order of the space."""
    number, pair = observation["inner"]
    one_hot = [*np.eye(3)[number - 1], *np.eye(2)[pair[0]], *np.eye(2)[pair[1]]]
    return np.array([*one_hot, *observation["place"].ravel(), *observation["keys"]], "float32")


class TestSpaces:
    """Observations and actions in the one form the networks know."""

    @pytest.mark.parametrize(
        ("space", "kind", "shape", "dtype", "scale"),
        [
            (spaces.Box(0, 255, (20, 30, 3), np.uint8), "image", (3, 20, 30), "uint8", 1 / 255),
            (spaces.Box(0, 255, (4, 20, 30), np.uint8), "image", (4, 20, 30), "uint8", 1 / 255),
            (spaces.Box(0, 255, (20, 30), np.uint8), "image", (1, 20, 30), "uint8", 1 / 255),
            (spaces.Box(0, 1, (10, 10, 10), np.bool_), "image", (10, 10, 10), "uint8", 1),
            (spaces.Box(0, 1, (9, 9, 3), np.float64), "image", (3, 9, 9), "float32", 1),
            (spaces.Box(0, 255, (128,), np.uint8), "vector", (128,), "uint8", 1 / 255),
            (spaces.Box(-1, 1, (3, 4), np.float64), "vector", (12,), "float32", 1),
            (spaces.Box(-1, 1, (), np.float32), "vector", (1,), "float32", 1),
            (spaces.MultiBinary(6), "vector", (6,), "float32", 1),
            (spaces.Discrete(5, start=3), "vector", (5,), "float32", 1),
            (spaces.MultiDiscrete([2, 3]), "vector", (5,), "float32", 1),
            (spaces.Tuple([ACTIONS, spaces.MultiBinary(3)]), "vector", (5,), "float32", 1),
            (spaces.Dict(a=spaces.Box(0, 255, (9,), np.uint8)), "vector", (9,), "uint8", 1 / 255),
        ],
    )
    def test_layout(
        self, space: spaces.Space, kind: str, shape: tuple, dtype: str, scale: float
    ) -> None:
        info = probe(EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS}))
        assert (info.kind, info.observation_shape, info.dtype) == (kind, shape, dtype)
        assert info.scale == pytest.approx(scale)

    @pytest.mark.parametrize(
        ("space", "convert"),
        [
            (spaces.Box(0, 255, (20, 30, 3), np.uint8), lambda x: x.transpose(2, 0, 1)),
            (spaces.Box(0, 255, (4, 20, 30), np.uint8), lambda x: x),
            (spaces.Box(0, 255, (20, 30), np.uint8), lambda x: x[None]),
            (spaces.Box(-1, 1, (3, 4), np.float64), lambda x: x.ravel()),
            (spaces.Discrete(5, start=3), lambda x: np.eye(5)[x - 3]),
            (
                spaces.MultiDiscrete([2, 3], start=[0, 4]),
                lambda x: [*np.eye(2)[x[0]], *np.eye(3)[x[1] - 4]],
            ),
            (NESTED, flattened_by_hand),
        ],
    )
    def test_observations_arrive_in_the_layout(self, space: spaces.Space, convert) -> None:
        spec = EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS})
        batch = make_vector(spec, 3, training=True)
        batch.reset([1, 2, 3])
        obs = batch.step(np.zeros(3, np.int64)).obs
        for row, env in zip(obs, batch.vector.envs, strict=True):
            assert np.array_equal(row, np.asarray(convert(env.last), batch.info.dtype))

    def test_actions_start_at_zero_for_the_caller(self) -> None:
        actions = spaces.Discrete(4, start=5)
        kwargs = {"observation_space": spaces.Discrete(3), "action_space": actions}
        batch = make_vector(EnvSpec(SpacesEnv, kwargs), 2, training=True)
        batch.reset([0, 1])
        batch.step(np.array([0, 3]))
        assert batch.info.num_actions == 4
        assert [env.taken for env in batch.vector.envs] == [[5], [8]]

    def test_bounds_only_where_all_are_finite(self) -> None:
        assert probe(EnvSpec("MountainCar-v0")).high == pytest.approx((0.6, 0.07))
        assert probe(EnvSpec("CartPole-v1")).low is None
        wide = spaces.Box(-3e38, 3e38, (2,), np.float32)
        assert (
            probe(EnvSpec(SpacesEnv, {"observation_space": wide, "action_space": ACTIONS})).low
            is None
        )

    @pytest.mark.parametrize(
        ("space", "text"),
        [
            (spaces.Dict(a=spaces.Dict(b=spaces.Box(0, 1, (0,)))), r".* holds Box.*\['a'\]\['b'\]"),
            (spaces.Tuple([spaces.Discrete(4097)]), r".* holds Discrete\(4097\) at \[0\]"),
            (spaces.MultiDiscrete([2048, 2049]), "MultiDiscrete"),
            (spaces.Box(0, 1, (0,)), r"Box\(0,\)"),
            (spaces.Box(0, 1, (2, 2, 2, 2, 2)), r"Box\(2, 2, 2, 2, 2\)"),
            (spaces.Discrete(4097), r"Discrete\(4097\)"),
        ],
    )
    def test_unsupported_observations(self, space: spaces.Space, text: str) -> None:
        with pytest.raises(UserError, match=f"observation space {text}.* is not supported; wrap"):
            probe(EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS}))

    @pytest.mark.parametrize(
        ("space", "text"),
        [
            (spaces.Sequence(spaces.Discrete(2)), "Sequence.*: its length changes.*padded"),
            (spaces.Graph(spaces.Box(0, 1, (2,)), None), "Graph.*nodes and edges.*padded"),
            (spaces.OneOf([ACTIONS, ACTIONS]), "OneOf.*wrap the environment in FlattenObs"),
            (spaces.Dict(a=spaces.Sequence(ACTIONS)), r"holds Sequence.*\['a'\].*length changes"),
        ],
    )
    def test_spaces_without_one_size_are_refused_with_the_reason(self, space, text: str) -> None:
        with pytest.raises(UserError, match=text) as said:
            probe(EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS}))
        assert "\n" not in str(said.value)

    @pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Tuple([])])
    def test_empty_observations_are_refused(self, space: spaces.Space) -> None:
        with pytest.raises(UserError, match="is empty; give it a Box"):
            probe(EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS}))

    def test_blackjack_is_three_one_hot_vectors(self) -> None:
        batch = make_vector(EnvSpec("Blackjack-v1"), 4, training=True)
        obs = batch.reset(range(4))
        assert obs.shape == (4, 32 + 11 + 2) and (obs.sum(axis=1) == 3).all()

    def test_a_wrong_shape_is_not_broadcast(self) -> None:
        spec = EnvSpec("Scripted/Faulty-v0", {"fault": "wrong-shape", "at_step": 2}, IMPORTS)
        batch = make_vector(spec, 1, training=True)
        batch.reset([0])
        assert not batch.step(np.zeros(1, np.int64)).faulty.any()
        assert batch.step(np.zeros(1, np.int64)).faulty.all()
        assert "shape (1,), expected (5,)" in str(batch.fault)

    def test_floats_in_a_space_of_bytes_are_refused(self) -> None:
        with pytest.raises(UserError, match="float64 observations, its space says uint8"):
            probe(EnvSpec(LyingEnv))


class LyingEnv(SpacesEnv):
    """Says bytes, gives floats in 0..1, which would all be stored as 0."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(0, 255, (9, 9, 3), np.uint8), ACTIONS)

    def reset(self, *, seed=None, options=None):
        return np.full((9, 9, 3), 0.5), {}


class ScriptedObservations(SpacesEnv):
    """Gives these observations in turn, the first one at a reset."""

    def __init__(self, space: spaces.Space, observations: list) -> None:
        super().__init__(space, ACTIONS)
        self.observations = observations

    def reset(self, *, seed=None, options=None):
        self.given = 0
        return self.observations[0], {}

    def step(self, action):
        self.given += 1
        return self.observations[min(self.given, len(self.observations) - 1)], 0.0, False, False, {}


BYTES = spaces.Box(0, 255, (3,), np.uint8)
GOOD = np.zeros(3, np.uint8)
GRID = spaces.MultiDiscrete([5, 5])
PART = spaces.Dict({"grid": spaces.Discrete(3), "bytes": BYTES})
# A space, a sound observation of it, one that is not, and what is said of that.
NOT_IN_THE_SPACE = {
    "negative": (BYTES, GOOD, np.array([-1, 0, 0]), "holds -1, which is no byte"),
    "too large": (BYTES, GOOD, np.array([0, 256, 0], np.int16), "holds 256, which is no byte"),
    "not a number": (BYTES, GOOD, np.array([0, np.nan, 0]), "float64|holds nan"),
    "other part": (GRID, np.array([4, 0]), np.array([5, 0]), r"\[5 0\] is not in"),
    "wrapped around": (GRID, np.array([4, 0]), np.array([0, -1]), "is not in"),
    "state of a part": (
        *(PART, {"grid": 0, "bytes": GOOD}, {"grid": -1, "bytes": GOOD}),
        r"\['grid'\] -1 is not in",
    ),
    "bytes of a part": (
        *(PART, {"grid": 0, "bytes": GOOD}, {"grid": 0, "bytes": np.array([300, 0, 0])}),
        r"\['bytes'\].* is not in",
    ),
}


@pytest.mark.parametrize("case", NOT_IN_THE_SPACE)
class TestNothingIsCast:
    """Numbers that the space does not have are never stored as others."""

    def test_it_is_refused_when_the_environment_is_made(self, case: str) -> None:
        space, good, bad, message = NOT_IN_THE_SPACE[case]
        for observations in ([bad], [good, bad]):
            with pytest.raises(UserError, match=message):
                probe(EnvSpec(ScriptedObservations, {"space": space, "observations": observations}))

    def test_at_a_later_step_it_is_a_fault(self, case: str) -> None:
        space, good, bad, message = NOT_IN_THE_SPACE[case]
        kwargs = {"space": space, "observations": [good, good, bad]}
        batch = make_vector(EnvSpec(ScriptedObservations, kwargs), 1, training=True)
        batch.reset([0])
        assert not batch.step(np.zeros(1, np.int64)).faulty.any()
        assert batch.step(np.zeros(1, np.int64)).faulty.all()
        assert re.search(message, str(batch.fault))


def test_other_types_of_the_same_numbers_are_taken() -> None:
    kwargs = {"space": BYTES, "observations": [[1, 2, 255], np.array([3.0, 4.0, 5.0])]}
    batch = make_vector(EnvSpec(ScriptedObservations, kwargs), 1, training=True)
    assert batch.reset([0]).tolist() == [[1, 2, 255]]
    assert batch.step(np.zeros(1, np.int64)).obs.tolist() == [[3, 4, 5]]


class ArraysOnly(SpacesEnv):
    """Takes what `action_space.sample()` gives, and rewards in the shape it is told."""

    def __init__(self, reward) -> None:
        super().__init__(PLACE, ACTIONS)
        self.reward = reward

    def step(self, action):
        assert action.item() == 0 and isinstance(action, np.int64)
        return PLACE.sample(), self.reward, False, False, {}


@pytest.mark.parametrize("reward", [1, 1.0, [1.0], (1,), np.float32(1), np.ones(1), np.ones(())])
def test_actions_are_as_the_space_samples_them_and_rewards_of_one_number_are_taken(reward) -> None:
    batch = make_vector(EnvSpec(ArraysOnly, {"reward": reward}), 1, training=True)
    batch.reset([0])
    step = batch.step(np.zeros(1, np.int64))
    assert not step.faulty.any() and step.scores.tolist() == [1.0]


def test_two_rewards_are_named() -> None:
    with pytest.raises(UserError, match=r"reward \[1.0, 2.0\] is not one number"):
        probe(EnvSpec(ArraysOnly, {"reward": [1.0, 2.0]}))


class TestFactories:
    """Classes and factories instead of ids."""

    def test_limits(self) -> None:
        limited = EnvSpec(make_cartpole)
        assert probe(limited).max_episode_steps == 500 and limited.name == "make_cartpole"
        assert probe(EnvSpec(NumberedEnv)).max_episode_steps == 10_000
        assert probe(EnvSpec(NumberedEnv, max_episode_steps=2)).max_episode_steps == 2
        assert pickle.loads(pickle.dumps(limited)) == limited

    def test_kwargs_reach_the_factory(self) -> None:
        assert probe(EnvSpec(NumberedEnv, {"actions": 7})).num_actions == 7

    def test_not_an_environment(self) -> None:
        with pytest.raises(UserError, match=r"dict made a dict, not a gymnasium\.Env"):
            probe(EnvSpec(dict))


def make_cartpole() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1")


class TestRefusals:
    """One line that says what is wrong and what to do."""

    @pytest.mark.parametrize(
        ("env_id", "message"),
        [
            ("Nope-v1", r"no environment 'Nope-v1'; close: Hopper-v5"),
            ("cartpole-v1", r"no environment 'cartpole-v1'; close: CartPole-v1"),
            ("BreakoutNoFrameskip-v4", "did you mean ALE/Breakout-v5?"),
            ("Zzzzqqq", r"no environment 'Zzzzqqq'; Atari ids look like ALE/Pong-v5"),
            ("not an id!", r"no environment 'not an id!'"),
            ("CartPole-v99", r"^CartPole has versions v0, v1 \(asked v99\)$"),
            ("CartPole", r"^CartPole has versions v0, v1 \(asked none\)$"),
            ("LunarLander-v2", r"^LunarLander has versions v3 \(asked v2\)$"),
            ("evil:Foo-v0", r"^'evil:' would import a module; add --import evil if you trust it$"),
        ],
    )
    def test_unknown_ids(self, env_id: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            check_env_id(env_id, ())

    @pytest.mark.parametrize(
        ("env_id", "close"),
        [("ALE/Pnog-v5", "ALE/Pong-v5"), ("MinAtar/Brakeout-v1", "MinAtar/Breakout-v1")],
    )
    def test_unknown_games(self, env_id: str, close: str) -> None:
        skip_without(env_id)
        with pytest.raises(UserError, match=f"close: {close}"):
            check_env_id(env_id, ())

    @pytest.mark.parametrize(
        ("env_id", "missing", "message"),
        [
            (
                "ALE/Pong-v5",
                "ale_py",
                r'ALE/Pong-v5 needs ale-py; pip install -e "\.\[atari\]"',
            ),
            (
                "MinAtar/Breakout-v1",
                "minatar",
                r'needs MinAtar; pip install -e "\.\[minatar\]"',
            ),
            ("LunarLander-v3", "Box2D", r'needs Box2D; pip install -e "\.\[box2d\]"'),
            ("Hopper-v5", "mujoco", r'needs MuJoCo; pip install -e "\.\[mujoco\]"'),
        ],
    )
    def test_missing_packages(
        self, env_id: str, missing: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == missing else find(name)
        )
        with pytest.raises(UserError, match=message):
            check_env_id(env_id, ())

    def test_modules_are_imported_only_when_named(self) -> None:
        check_env_id("Scripted/Chain-v0", IMPORTS)
        check_env_id("scripted_ids:Scripted/Chain-v0", IMPORTS)
        with pytest.raises(UserError, match="cannot import no_such_module: ModuleNotFoundError"):
            check_env_id("CartPole-v1", ("no_such_module",))

    def test_constructor_raises(self) -> None:
        said = r"env: \S*scripted_envs.py:\d+: ValueError: no display$"
        with pytest.raises(UserError, match=said):
            probe(EnvSpec("Scripted/Unbuildable-v0", {}, IMPORTS))
        with pytest.raises(UserError, match=r"^cannot create env: TypeError: .*colour"):
            probe(EnvSpec("CartPole-v1", {"colour": 1}))

    @pytest.mark.parametrize("old_reset", [True, False])
    def test_old_gym(self, old_reset: bool) -> None:
        said = "no .observation, info. from reset" if old_reset else "4 values from step"
        with pytest.raises(UserError, match=f"env returns {said}"):
            probe(EnvSpec("Scripted/OldGym-v0", {"old_reset": old_reset}, IMPORTS))

    def test_checking_an_id_imports_neither_torch_nor_minatar(self) -> None:
        code = (
            "import sys; from async_dqn.envs.make import check_env_id;"
            "check_env_id('CartPole-v1', ());"
            "check_env_id('MinAtar/Breakout-v1', ()) if 'minatar' in sys.argv else None;"
            "sys.exit(any(name in sys.modules for name in ('torch', 'minatar', 'ale_py')))"
        )
        found = ["minatar"] if importlib.util.find_spec("minatar") else []
        assert subprocess.run([sys.executable, "-c", code, *found], check=False).returncode == 0


def test_wrappers_that_keep_statistics_are_warned_of_once(capsys) -> None:
    def wrapped(*wrappers) -> gymnasium.Env:
        env = gymnasium.make("MountainCar-v0")
        for wrapper in wrappers:
            env = wrapper(env)
        return env

    probe(EnvSpec(lambda: wrapped(NormalizeReward, FlattenObservation, NormalizeObservation)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: NormalizeObservation and NormalizeReward: every copy")
    probe(EnvSpec(lambda: wrapped(FlattenObservation)))
    assert capsys.readouterr().err == ""


def test_preloaded_modules_can_be_imported() -> None:
    assert preload_modules(EnvSpec("CartPole-v1")) == ["gymnasium.envs.classic_control.cartpole"]
    assert preload_modules(EnvSpec("LunarLander-v3")) == ["gymnasium.envs.box2d.lunar_lander"]
    for unknown in (NumberedEnv, "Scripted/Chain-v0"):
        assert preload_modules(EnvSpec(unknown)) == []
    for env_id in ("MinAtar/Breakout-v1", "ALE/Pong-v5"):
        assert preload_modules(EnvSpec(env_id))


class TestMinAtar:
    """Registration, channels, limits."""

    @pytest.mark.parametrize("game", MINATAR_GAMES)
    def test_the_channels_of_the_game_come_first(self, game: str) -> None:
        pytest.importorskip("minatar")
        batch = make_vector(EnvSpec(f"MinAtar/{game}-v1"), 2, training=True)
        batch.reset([0, 1])
        assert batch.info.observation_shape[1:] == (10, 10)
        assert (batch.info.dtype, batch.info.scale) == ("uint8", 1.0)
        for _ in range(20):
            obs = batch.step(np.zeros(2, np.int64)).obs
            for row, env in zip(obs, batch.vector.envs, strict=True):
                assert np.array_equal(row, env.unwrapped.game.state().transpose(2, 0, 1))

    def test_a_single_object_of_seaquest_is_in_its_own_channel(self) -> None:
        pytest.importorskip("minatar")
        batch = make_vector(EnvSpec("MinAtar/Seaquest-v1"), 1, training=True)
        obs = batch.reset([0])[0]
        game = batch.vector.envs[0].unwrapped.game.env
        channel = game.channels["sub_front"]
        assert obs[channel].sum() == 1 and obs[channel, game.sub_y, game.sub_x] == 1

    def test_episodes_are_cut(self) -> None:
        pytest.importorskip("minatar")
        assert probe(EnvSpec("MinAtar/Seaquest-v1")).max_episode_steps == 10_000
        batch = make_vector(EnvSpec("MinAtar/Seaquest-v1", max_episode_steps=40), 2, False)
        batch.reset([0, 1])
        steps = [batch.step(np.zeros(2, np.int64)) for _ in range(40)]
        assert steps[-1].truncated.any() and all(step.ended.any() == 0 for step in steps[:5])

    def test_arguments_reach_the_game(self) -> None:
        pytest.importorskip("minatar")
        spec = EnvSpec(
            "MinAtar/Breakout-v1", {"sticky_action_prob": 0.0, "difficulty_ramping": False}
        )
        batch = make_vector(spec, 1, training=True)
        assert batch.vector.envs[0].unwrapped.game.sticky_action_prob == 0.0


class TestAtari:
    """ale-py's vector environment: lives, scores, limits, seeds."""

    @pytest.fixture(autouse=True)
    def _needs_ale(self) -> None:
        pytest.importorskip("ale_py")

    def test_lost_lives_terminate_but_the_game_goes_on(self) -> None:
        batch = make_vector(EnvSpec("ALE/Breakout-v5"), 2, training=True)
        batch.reset([3, 4])
        rng, raw_step, seen = np.random.default_rng(0), batch.vector.step, []
        batch.vector.step = lambda actions: seen.append(raw_step(actions)) or seen[-1]
        lives, frames, games = [5, 5], [0, 0], 0
        for _ in range(1200):
            step = batch.step(rng.integers(4, size=2))
            infos = seen[-1][4]
            assert np.array_equal(step.final_rows, np.flatnonzero(step.ended))
            for row in range(2):
                if step.ended[row]:
                    assert step.terminated[row] and lives[row] == 1 and infos["lives"][row] == 5
                    games += 1
                else:
                    assert infos["lives"][row] == lives[row] - step.terminated[row]
                    assert infos["episode_frame_number"][row] > frames[row]
                lives[row] = infos["lives"][row]
                frames[row] = infos["episode_frame_number"][row]
        assert games >= 4

    def test_scores_are_true_and_rewards_clipped(self) -> None:
        spec = EnvSpec("ALE/MsPacman-v5", {"repeat_action_probability": 0.0})
        training, evaluation = make_vector(spec, 1, True), make_vector(spec, 1, False)
        assert np.array_equal(training.reset([5]), evaluation.reset([5]))
        rng = np.random.default_rng(1)
        total = clipped = games = 0
        for _ in range(500):
            actions = rng.integers(9, size=1)
            one, other = training.step(actions), evaluation.step(actions)
            assert one.scores == other.scores == other.rewards
            assert one.rewards == np.clip(one.scores, -1, 1)
            assert np.array_equal(one.obs, other.obs) and one.ended == other.ended
            assert other.ended == (other.terminated | other.truncated)
            total, clipped = total + one.scores[0], clipped + one.rewards[0]
            games += int(one.ended[0])
        assert total > clipped > 0 and games >= 1

    def test_machados_protocol_has_raw_rewards_and_whole_games(self) -> None:
        given = {"full_action_space": True, "repeat_action_probability": 0.25, "noop_max": 0}
        spec = EnvSpec(
            "ALE/MsPacman-v5",
            given,
            max_episode_steps=4500,
            clip_rewards=False,
            life_loss_ends=False,
        )
        batch = make_vector(spec, 1, training=True)
        batch.reset([5])
        assert (batch.info.num_actions, batch.info.max_episode_steps) == (18, 4500)
        rng, raw_step, seen = np.random.default_rng(1), batch.vector.step, []
        batch.vector.step = lambda actions: seen.append(raw_step(actions)) or seen[-1]
        rewards, games, lives = [], 0, set()
        for _ in range(800):
            step = batch.step(rng.integers(18, size=1))
            assert step.rewards == step.scores and step.terminated == step.ended
            rewards.append(float(step.rewards[0]))
            games += int(step.ended[0])
            lives |= {int(seen[-1][4]["lives"][0])}
        assert max(rewards) >= 10 and games and len(lives) >= 3

    def test_final_observations_are_the_true_last_frames(self) -> None:
        spec = EnvSpec("ALE/Pong-v5", {"repeat_action_probability": 0.0, "noop_max": 1}, (), 12)
        batch = make_vector(spec, 2, training=True)
        longer = make_vector(EnvSpec(spec.env, spec.kwargs, (), 30), 2, training=True)
        batch.reset([1, 2])
        longer.reset([1, 2])
        for _ in range(12):
            cut, whole = batch.step(np.array([2, 3])), longer.step(np.array([2, 3]))
        assert cut.truncated.all() and cut.ended.all() and cut.final_rows.tolist() == [0, 1]
        assert np.array_equal(cut.final_obs, whole.obs)
        assert not np.array_equal(cut.obs, whole.obs)

    def test_info_and_limits_in_steps(self) -> None:
        info = probe(EnvSpec("ALE/Pong-v5"))
        assert info.observation_shape == (4, 84, 84) and info.kind == "image"
        assert (info.max_episode_steps, info.frames_per_step, info.num_actions) == (27_000, 4, 6)
        full = probe(EnvSpec("ALE/Pong-v5", {"full_action_space": True}, (), 100))
        assert (full.num_actions, full.max_episode_steps) == (18, 100)

    def test_seeds_differ_after_random_noops(self) -> None:
        batch = make_vector(EnvSpec("ALE/Pong-v5"), 6, training=True)
        rows = trajectory(batch, [2**62 + 31 * k for k in range(6)], steps=25)
        assert len({row.tobytes() for row in rows}) == 6

    def test_settings_that_would_break_scores_are_refused(self) -> None:
        with pytest.raises(UserError, match="--env-arg episodic_life is set by async_dqn"):
            make_vector(EnvSpec("ALE/Pong-v5", {"episodic_life": True}), 1, training=True)
        with pytest.raises(UserError, match=r"cannot create env: TypeError: .*colour"):
            make_vector(EnvSpec("ALE/Pong-v5", {"colour": 1}), 1, training=True)


def test_registration_happens_in_every_process() -> None:
    pytest.importorskip("minatar")
    code = (
        "from async_dqn.envs.make import EnvSpec, probe;"
        "print(probe(EnvSpec('MinAtar/Breakout-v1')).num_actions)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_scripted_environments_are_registered_lazily() -> None:
    scripted_envs.register()
    scripted_envs.register()
    assert gymnasium.spec("Scripted/Chain-v0").max_episode_steps == 50


def test_the_loop_is_a_gymnasium_vector_environment() -> None:
    vector = numbered("Scripted/Numbered-v0").vector
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, _ = vector.reset(seed=[1, 2, 3])
    assert vector.observation_space.contains(observations)
    assert vector.action_space.contains(np.zeros(3, np.int64))
