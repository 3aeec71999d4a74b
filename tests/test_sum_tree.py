"""The sum tree against a plain array."""

import numpy as np
import pytest

from async_dqn.replay.sum_tree import FAN_OUT, SumTree, tree_bytes

SIZES = (1, 2, FAN_OUT - 1, FAN_OUT, FAN_OUT + 1, FAN_OUT**2, FAN_OUT**2 + 1, 5000)

each_size = pytest.mark.parametrize("size", SIZES)


def random_updates(size: int, rng: np.random.Generator, whole: bool) -> tuple[SumTree, np.ndarray]:
    """A tree after many updates, and the plain array of what it should hold."""
    tree, plain = SumTree(size), np.zeros(size, np.float32)
    for _ in range(30):
        leaves = rng.choice(size, min(size, int(rng.integers(1, 60))), replace=False)
        masses = rng.integers(0, 4, len(leaves)) if whole else 10 ** rng.uniform(-6, 6, len(leaves))
        masses = masses.astype(np.float32) * (rng.random(len(leaves)) < 0.7)
        tree.update(leaves, masses)
        plain[leaves] = masses
    tree.update(leaves[:1], np.ones(1, np.float32))  # never empty
    plain[leaves[0]] = 1
    return tree, plain


@each_size
def test_finds_what_a_search_in_the_cumulative_sum_finds(size: int) -> None:
    """Whole numbers, so that sums are exact: every point of every leaf, borders included."""
    rng = np.random.default_rng(size)
    tree, plain = random_updates(size, rng, whole=True)
    np.testing.assert_array_equal(tree.masses, plain)
    assert tree.total == plain.sum()
    points = np.arange(0, tree.total, 0.25)
    np.testing.assert_array_equal(
        tree.find(points), np.searchsorted(plain.cumsum(), points, side="right")
    )


@each_size
def test_rounding_never_leads_to_a_leaf_without_mass(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        tree, plain = random_updates(size, rng, whole=False)
        borders = plain.cumsum(dtype=np.float64)
        points = np.concatenate(
            [[0.0, tree.total, np.nextafter(tree.total, 0)], borders, np.nextafter(borders, 0)]
        )
        found = tree.find(np.concatenate([points, rng.random(500) * tree.total]))
        assert found.min() >= 0 and found.max() < size
        assert (plain[found] > 0).all()
        np.testing.assert_allclose(tree.total, plain.sum(dtype=np.float64), rtol=1e-12)


@each_size
def test_is_a_function_of_its_masses_alone(size: int) -> None:
    """Otherwise a restored tree would draw other leaves than the one that was saved."""
    rng = np.random.default_rng(size)
    tree, plain = random_updates(size, rng, whole=False)
    last = 1 + int(np.flatnonzero(plain)[-1])
    other, _ = random_updates(size, rng, whole=False)  # what it held before must not matter
    other.load(plain[:last])
    assert other.total == tree.total
    np.testing.assert_array_equal(other.masses, tree.masses)
    points = rng.random(1000) * tree.total
    np.testing.assert_array_equal(other.find(points), tree.find(points))
    for one, two in zip(tree._levels, other._levels):
        np.testing.assert_array_equal(one, two)


def test_of_a_repeated_leaf_the_last_mass_holds() -> None:
    tree = SumTree(40)
    tree.update(np.array([3, 30, 3, 3]), np.array([5, 1, 7, 2], np.float32))
    assert tree.total == 3
    assert tree.find(np.array([0.0, 1.9, 2.0])).tolist() == [3, 3, 30]


@each_size
def test_bytes_are_known_beforehand(size: int) -> None:
    assert tree_bytes(size) == sum(level.nbytes for level in SumTree(size)._levels)
