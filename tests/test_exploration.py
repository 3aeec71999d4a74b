"""Who explores how much: proportions at every size, one clock, honest frequencies."""

import numpy as np
import pytest

from async_dqn.algorithms.exploration import (
    BOLTZMANN,
    EPSILON_GREEDY,
    LADDER,
    Persistence,
    Schedule,
    apex_ladder,
    epsilon_greedy,
    ladder,
    schedule,
)
from async_dqn.config.config import Config
from async_dqn.envs.spec import EnvInfo
from async_dqn.networks import architecture
from async_dqn.workers.run_spec import RunSpec

INFO = EnvInfo("vector", (4,), "float32", 1.0, None, None, 2, 1, 100)


def test_ladder_is_within_one_environment_of_its_proportions_for_1_to_64() -> None:
    for count in range(1, 65):
        epsilons = ladder(count)
        assert epsilons.shape == (count,) and epsilons.dtype == np.float32
        assert set(epsilons) <= {np.float32(epsilon) for epsilon, _ in LADDER}
        for epsilon, share in LADDER:
            assert abs(np.sum(epsilons == np.float32(epsilon)) - share * count) < 1


def test_ladder_has_the_papers_values() -> None:
    values, counts = np.unique(ladder(10), return_counts=True)
    np.testing.assert_allclose(values, [0.01, 0.1, 0.5])
    assert counts.tolist() == [3, 4, 3]


def test_ladder_is_interleaved_so_that_every_worker_gets_the_mix() -> None:
    for count in (10, 32, 64):
        epsilons = ladder(count)
        for end in range(1, count + 1):
            for epsilon, share in LADDER:
                assert abs(np.sum(epsilons[:end] == np.float32(epsilon)) - share * end) <= 1


def test_apex_ladder_is_the_papers_formula() -> None:
    for count in range(2, 65):
        expected = [0.4 ** (1 + 7 * i / (count - 1)) for i in range(count)]
        np.testing.assert_allclose(apex_ladder(count), expected, rtol=1e-5)
    np.testing.assert_allclose(apex_ladder(1), [0.4])


@pytest.mark.parametrize(
    ("settings", "start", "finals"),
    [
        ({"exploration": "epsilon", "epsilon_final": 0.2}, 1.0, [0.2] * 7),
        ({"exploration": "ladder", "epsilon_start": 0.7}, 0.7, ladder(7)),
        ({"exploration": "apex"}, 1.0, apex_ladder(7)),
        ({"exploration": "boltzmann", "temperature_start": 3.0}, 3.0, [0.01] * 7),
        ({"exploration": "noisy", "noisy": True}, 1.0, [0.0] * 7),
    ],
)
def test_each_exploration_has_its_schedule(settings, start, finals) -> None:
    made = schedule(Config.from_flat(settings).exploration, 7)
    assert made.start == start
    np.testing.assert_allclose(made.finals, finals, rtol=1e-6)


@pytest.mark.parametrize("exploration", ["ladder", "apex", "epsilon", "boltzmann"])
def test_epsilons_at_a_global_step_are_the_same_at_every_number_of_workers(
    exploration: str,
) -> None:
    def epsilons(workers: int, step: int) -> np.ndarray:
        count = 32 // workers
        settings = {"workers": workers, "envs_per_worker": count, "epsilon_steps": 1000}
        run_spec = RunSpec(
            Config.from_flat({**settings, "exploration": exploration}), None, INFO, None
        )
        parts = [run_spec.exploration.of(worker, count).at(step) for worker in range(workers)]
        return np.concatenate(parts)

    for step in (0, 1, 500, 999, 1000, 10**9):
        alone = epsilons(1, step)
        assert alone.shape == (32,)
        for workers in (2, 4, 8, 32):
            np.testing.assert_array_equal(epsilons(workers, step), alone)


def test_a3c_explores_by_its_policy_alone() -> None:
    run_spec = RunSpec(Config.from_flat({"algorithm": "a3c", "workers": 1}), None, INFO, None)
    assert not run_spec.exploration.at(0).any()


def test_schedule_is_linear_from_start_to_finals_and_stays_there() -> None:
    finals = np.array([0.1, 0.5], np.float32)
    made = Schedule(1.0, finals, 1000)
    for step, expected in ((0, [1, 1]), (250, [0.775, 0.875]), (1000, finals), (5000, finals)):
        np.testing.assert_allclose(made.at(step), expected, rtol=1e-6)


@pytest.mark.parametrize(("policy", "strength"), [(EPSILON_GREEDY, 0.3), (BOLTZMANN, 0.7)])
def test_a_policy_draws_with_the_probabilities_it_states(policy, strength) -> None:
    draws = 60_000
    q_values = np.tile(np.array([0.0, 1.0, 0.4], np.float32), (draws, 1))
    strengths = np.full(draws, strength, np.float32)
    actions, greedy = policy.act(q_values, strengths, np.random.default_rng(0))
    stated = policy.probabilities(q_values[:1], strengths[:1])[0]
    assert stated.sum() == pytest.approx(1) and stated.dtype == np.float32
    np.testing.assert_allclose(np.bincount(actions) / draws, stated, atol=0.01)
    np.testing.assert_array_equal(greedy, actions == 1)


def test_boltzmann_is_softmax_at_the_temperature_and_greedy_when_cold() -> None:
    q_values = np.array([[1.0, 3.0], [100.0, 99.0]], np.float32)
    strengths = np.array([2.0, 0.01], np.float32)
    stated = BOLTZMANN.probabilities(q_values, strengths)
    np.testing.assert_allclose(stated[0], [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-5)
    np.testing.assert_allclose(stated[1], [1.0, 0.0], atol=1e-6)


def test_epsilon_greedy_takes_each_action_as_often_as_it_should() -> None:
    draws, epsilon = 60_000, 0.3
    q_values = np.tile(np.array([0.0, 2.0, 1.0], np.float32), (draws, 1))
    epsilons = np.full(draws, epsilon, np.float32)
    actions, greedy = epsilon_greedy(q_values, epsilons, np.random.default_rng(0))
    frequencies = np.bincount(actions, minlength=3) / draws
    expected = [epsilon / 3, 1 - epsilon + epsilon / 3, epsilon / 3]
    np.testing.assert_allclose(frequencies, expected, atol=0.01)
    # An exploratory draw of the best action is greedy: it cuts no trace.
    np.testing.assert_array_equal(greedy, actions == 1)


def test_epsilon_greedy_follows_each_environments_own_epsilon() -> None:
    q_values = np.tile(np.array([1.0, 0.0], np.float32), (4000, 1))
    epsilons = np.where(np.arange(4000) < 2000, 0.0, 1.0).astype(np.float32)
    actions, greedy = epsilon_greedy(q_values, epsilons, np.random.default_rng(0))
    assert not actions[:2000].any() and greedy[:2000].all()
    assert 900 < actions[2000:].sum() < 1100


def test_epsilon_greedy_is_the_same_for_the_same_generator_state() -> None:
    q_values = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    epsilons = np.full(50, 0.5, np.float32)
    first, second = (
        epsilon_greedy(q_values, epsilons, np.random.default_rng(7))[0] for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("exponent", [2.0, 3.0])
def test_random_actions_last_as_long_as_the_zeta_distribution_says(exponent) -> None:
    random, persistence = np.random.default_rng(0), Persistence(exponent, 500)
    runs, before, length = [], None, np.zeros(500, int)
    values = np.zeros((500, 1000), np.float32)
    for _ in range(400):  # every choice is random, of so many that two are hardly ever alike
        choice = random.integers(1000, size=500), np.zeros(500, bool)
        actions, greedy = persistence.prolong(choice, values, np.zeros(500, bool), random)
        assert not greedy.any()
        again = actions == before
        runs += length[~again].tolist() if before is not None else []
        length = np.where(again, length + 1, 1)
        before = actions
    runs = np.array(runs)
    for n in (1, 2, 3):
        expected = n**-exponent / {2.0: 1.6449, 3.0: 1.2021}[exponent]
        assert (runs == n).mean() == pytest.approx(expected, rel=0.08)


def test_a_random_action_ends_with_its_episode_and_greedy_ones_are_left_alone() -> None:
    persistence, random = Persistence(1.01, 2), np.random.default_rng(0)  # lasts long
    none, values = np.zeros(2, bool), np.zeros((2, 9), np.float32)
    first = np.array([3, 4])
    persistence.prolong((first, np.array([False, True])), values, none, random)
    actions, greedy = persistence.prolong((np.array([7, 8]), ~none), values, none, random)
    assert actions.tolist() == [3, 8] and greedy.tolist() == [False, True]
    actions, greedy = persistence.prolong((np.array([7, 8]), ~none), values, ~none, random)
    assert actions.tolist() == [7, 8] and greedy.all()


def test_a_random_action_ends_where_it_is_no_longer_legal() -> None:
    persistence, random = Persistence(1.01, 2), np.random.default_rng(0)  # lasts long
    none, values = np.zeros(2, bool), np.zeros((2, 9), np.float32)
    persistence.prolong((np.array([3, 4]), none), values, none, random)
    values[1, 4] = architecture.ILLEGAL
    actions, greedy = persistence.prolong((np.array([7, 8]), ~none), values, none, random)
    assert actions.tolist() == [3, 8] and greedy.tolist() == [False, True]
