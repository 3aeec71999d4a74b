"""Exceptions, and rewards and observations that are not finite: the environment is built anew."""

import functools
import json

import numpy as np
import pytest
from gymnasium import spaces
from scripted_envs import NotFiniteEnv, SpacesEnv

from async_dqn import AsyncDQN
from async_dqn.config.config import UserError
from async_dqn.envs.make import EnvBatch, EnvSpec, Step, make_vector, probe

MODES = ("loop", "NextStep", "SameStep", "Dense")
FAULTS = (
    "nan-reward",
    "none-reward",
    "inf-observation",
    "wrong-shape",
    "raise",
    "two-rewards",
    "words",
)
TOGETHER = np.ones(3, bool)  # a vector environment is built anew as a whole
SECOND = np.array([False, True, False])  # the loop builds one environment anew


@pytest.fixture(autouse=True)
def _nothing_built() -> None:
    NotFiniteEnv.built.clear()


def broken(mode: str, faults: dict, lengths: tuple = (4,), **more) -> EnvBatch:
    """Three environments that follow the script, in the way `mode` says."""
    kwargs = {"faults": faults, "lengths": lengths, **more}
    env = NotFiniteEnv if mode == "loop" else f"Scripted/Numbered{mode}-v0"
    batch = make_vector(EnvSpec(env, kwargs, ("scripted_ids",), 100), 3, training=True)
    assert len(NotFiniteEnv.built) == 3
    return batch


def step(batch: EnvBatch) -> Step:
    """One step; nothing in it is anything but finite. Arrays are copies."""
    taken = Step(*(np.array(part) for part in batch.step(np.zeros(batch.num_envs, np.int64))))
    assert all(np.isfinite(part).all() for part in taken)
    return taken


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_faulty_row_is_a_dummy_that_starts_an_episode(mode: str, fault: str) -> None:
    batch = broken(mode, {1: (fault, 2)})
    first = batch.reset([10, 11, 12]).copy()
    assert not step(batch).faulty.any()
    rows = SECOND if mode == "loop" else TOGETHER
    bad = step(batch)
    assert (bad.faulty == rows).all() and (bad.dummy == rows).all() and batch.rebuilds == 1
    assert bad.rewards.tolist() == bad.scores.tolist() == (~rows).tolist()
    assert not (bad.terminated | bad.truncated | bad.ended).any() and not len(bad.final_rows)
    assert (bad.obs[rows, 1:] == 0).all() and (bad.obs[rows, 0] != first[rows, 0]).all()
    assert (bad.obs[~rows, 2] == 2).all()
    old, new = NotFiniteEnv.built[:3], NotFiniteEnv.built[3:]
    assert [env.closed for env in old] == rows.tolist() and len(new) == rows.sum()


@pytest.mark.parametrize("mode", MODES)
def test_after_a_fault_episodes_go_on_as_ever(mode: str) -> None:
    batch = broken(mode, {1: ("nan-reward", 6)})
    before = batch.reset([10, 11, 12]).copy()
    ended = np.zeros(3, int)
    for _ in range(30):
        after = step(batch)
        successors = after.obs.copy()
        successors[after.final_rows] = after.final_obs
        real = ~after.dummy
        assert (successors[real, :2] == before[real, :2]).all()
        assert (successors[real, 2] == before[real, 2] + 1).all()
        assert (after.ended[real] == (successors[real, 2] == 4)).all()
        ended += after.ended
        before = after.obs
    assert batch.rebuilds == 1 and (ended >= 4).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_that_was_cut_at_a_bad_observation_does_not_count(mode: str) -> None:
    batch = broken(mode, {1: ("inf-observation", 4)}, ends=("truncated",))
    batch.reset([10, 11, 12])
    taken = [step(batch) for _ in range(4)][-1]
    rows = SECOND if mode == "loop" else TOGETHER
    assert (taken.faulty == rows).all() and (taken.ended == ~rows).all()
    assert (taken.truncated == ~rows).all()
    assert "in the last step of an episode" in str(batch.fault)
    finals = np.flatnonzero(~rows) if mode == "loop" else []
    assert taken.final_rows.tolist() == list(finals) and (taken.final_obs[:, 2] == 4).all()
    assert (taken.obs[rows, 1:] == 0).all()
    assert not step(batch).dummy[rows].any()  # no reset is pending


@pytest.mark.parametrize("fault", ["inf-observation", "none-observation"])
@pytest.mark.parametrize("mode", MODES)
def test_a_termination_needs_no_last_observation(mode: str, fault: str) -> None:
    if fault == "none-observation" and mode != "loop":
        pytest.skip("gymnasium's own vector environments do not take it")
    batch = broken(mode, {1: (fault, 4)})
    batch.reset([10, 11, 12])
    taken = [step(batch) for _ in range(4)][-1]
    assert taken.terminated.all() and taken.ended.all() and (taken.rewards == 1).all()
    assert not batch.rebuilds and not taken.faulty.any()
    last = taken.obs if mode == "NextStep" else taken.final_obs
    assert not last[1].any() and (last[[0, 2], 2] == 4).all()
    assert (step(batch).obs[:, 2] == (0 if mode == "NextStep" else 1)).all()


def test_a_new_environment_has_its_full_time() -> None:
    spec = EnvSpec(
        NotFiniteEnv, {"faults": {0: ("nan-reward", 2)}, "lengths": (9,)}, max_episode_steps=3
    )
    batch = make_vector(spec, 1, training=True)
    batch.reset([0])
    assert [bool(step(batch).truncated[0]) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("fault", ["nan-reset", "raise-reset"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_first_observation_after_an_end(mode: str, fault: str) -> None:
    batch = broken(mode, {1: (fault, 2)}, lengths=(2,))
    batch.reset([10, 11, 12])
    taken = [step(batch) for _ in range(3)]
    at = 2 if mode == "NextStep" else 1  # the step in which the environment was reset
    assert [bool(one.faulty[1]) for one in taken] == [k == at for k in range(3)]
    assert batch.rebuilds == 1 and (taken[at].obs[1, 1:] == 0).all()
    assert taken[1].ended[1] == (mode == "NextStep")


@pytest.mark.parametrize("fault", ["nan-reset", "raise-reset"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_first_observation_at_reset(mode: str, fault: str) -> None:
    batch = broken(mode, {1: (fault, 1), 4: (fault, 1)})
    obs = batch.reset([10, 11, 12])
    assert np.isfinite(obs).all() and (obs[:, 1:] == 0).all()
    # Instance 4 is one of a whole new batch of three; in the loop, instance 3 is sound.
    assert batch.rebuilds == (1 if mode == "loop" else 2)
    assert obs[0, 0] == 10 or mode != "loop"


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_that_never_begins_well_is_given_up(mode: str) -> None:
    batch = broken(mode, {-1: ("nan-reset", 1)})
    with pytest.raises(RuntimeError, match="could not begin, 3 times in a row .* not finite"):
        batch.reset([10, 11, 12])


def test_an_environment_that_never_begins_well_is_refused() -> None:
    with pytest.raises(UserError, match="^cannot create env: .* not finite.*; correct its reset$"):
        probe(EnvSpec(NotFiniteEnv, {"faults": {-1: ("nan-resets", 1)}}))


@pytest.mark.parametrize("mode", MODES)
def test_the_seeds_of_new_environments_follow_from_the_old(mode: str) -> None:
    tapes = []
    for _ in range(2):
        NotFiniteEnv.built.clear()
        batch = broken(mode, {1: ("nan-reward", 3), 3: ("nan-reward", 3)})
        batch.reset([10, 11, 12])
        tapes.append(np.stack([step(batch).obs for _ in range(12)]))
    assert np.array_equal(*tapes) and batch.rebuilds == 2
    assert len(set(tapes[0][:, 1, 0])) == 3


def test_every_fault_is_counted() -> None:
    batch = broken("loop", {-1: ("nan-reward", 5), 0: ("inf-observation", 3)})
    batch.reset([10, 11, 12])
    faulty = sum(step(batch).faulty for _ in range(1000))
    assert faulty.tolist() == [200, 200, 200] and batch.rebuilds == 600


def test_huge_numbers_are_no_fault() -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    spec = EnvSpec(SpacesEnv, {"observation_space": space, "action_space": spaces.Discrete(2)})
    batch = make_vector(spec, 2, training=True)
    batch.reset([0, 1])
    batch.vector.envs[0].observation_space = spaces.Box(1e30, 1e31, (2,), np.float64)
    taken = step(batch)
    assert taken.obs.max() > 1e29 and not taken.faulty.any() and batch.rebuilds == 0
    batch.vector.envs[0].observation_space = spaces.Box(1e50, 1e51, (2,), np.float64)
    with np.errstate(over="ignore"):
        assert step(batch).faulty.tolist() == [True, False]  # infinite as float32


def test_training_survives_faults(tmp_path) -> None:
    # Instance 0 is the API's probe; the faults meet environments that train.
    faults = {k: (FAULTS[k % len(FAULTS)], 7) for k in range(3, 12)}
    env = functools.partial(NotFiniteEnv, faults=faults, lengths=(5,))
    settings = {"mode": "serial", "workers": 1, "envs_per_worker": 4, "eval_episodes": 2}
    agent = AsyncDQN(env, **settings, hidden=(8,), runs_dir=str(tmp_path)).learn(400)
    assert np.isfinite(agent.network.vector.numpy()).all()
    assert json.loads((agent.run / "result.json").read_text())["steps"] == 400
    assert sum(env.closed for env in NotFiniteEnv.built) >= 9
