"""Who explores how much: proportions at every size, one clock, honest frequencies."""

import numpy as np
import pytest

from async_dqn.config import Config
from async_dqn.exploration import LADDER, anneal, epsilon_greedy, final_epsilons, ladder
from async_dqn.task import Task


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


def test_one_epsilon_for_all_unless_the_ladder_is_asked_for() -> None:
    np.testing.assert_allclose(final_epsilons("epsilon", 0.05, 3), [0.05] * 3)
    np.testing.assert_array_equal(final_epsilons("ladder", 0.05, 7), ladder(7))


@pytest.mark.parametrize("exploration", ["ladder", "epsilon"])
def test_epsilons_at_a_global_step_are_the_same_at_every_number_of_workers(
    exploration: str,
) -> None:
    def epsilons(workers: int, step: int) -> np.ndarray:
        settings = {"workers": workers, "envs_per_worker": 32 // workers}
        config = Config.from_flat({**settings, "exploration": exploration, "epsilon_steps": 1000})
        task = Task(config, None, None, None)
        finals = [task.final_epsilons(worker) for worker in range(workers)]
        return np.concatenate([anneal(part, 1.0, 1000, step) for part in finals])

    for step in (0, 1, 500, 999, 1000, 10**9):
        alone = epsilons(1, step)
        assert alone.shape == (32,)
        for workers in (2, 4, 8, 32):
            np.testing.assert_array_equal(epsilons(workers, step), alone)


def test_anneal_is_linear_from_start_to_finals_and_stays_there() -> None:
    finals = np.array([0.1, 0.5], np.float32)
    for step, expected in ((0, [1, 1]), (250, [0.775, 0.875]), (1000, finals), (5000, finals)):
        np.testing.assert_allclose(anneal(finals, 1.0, 1000, step), expected, rtol=1e-6)
    np.testing.assert_allclose(anneal(finals, 1.0, 0, 0), finals, rtol=1e-6)


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
