"""The replay shard against a plain list of what happened.

Observations are numbered (environment, serial number within it), so that a sampled segment tells
where it comes from and every row of it can be looked up.
"""

import dataclasses
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy

from async_dqn.algorithms.rollout import Rollout
from async_dqn.replay.shard import PRIORITY_FLOOR, ReplayShard, replay_bytes
from async_dqn.runs.checkpoint_format import encode

GAMMA = np.float32(0.9)
SHAPE = (3,)


class Step(NamedTuple):
    """One step of one environment; of a seam only the observation is true."""

    obs: tuple
    start: bool
    action: int = 0
    reward: float = 0.0
    discount: float = 0.0
    end: bool = False
    weight: float = 0.0
    successor: tuple | None = None  # None: what follows is not of the same episode (dummy, seam)
    seam: bool = False


class Tape:
    """Plays random episodes with both kinds of end; `history[b]` lists the steps of b."""

    def __init__(self, rng: np.random.Generator, num_envs: int, dtype: str, next_step: bool):
        self.rng, self.dtype, self.next_step = rng, dtype, next_step
        self.history: list[list[Step]] = [[] for _ in range(num_envs)]
        self.serials = [0] * num_envs
        self.pending = [(self.number(b), True, self.action()) for b in range(num_envs)]
        self.dummy = [False] * num_envs

    def action(self) -> int:
        return int(self.rng.integers(4))

    def number(self, b: int) -> tuple:
        self.serials[b] += 1
        return (b, *divmod(self.serials[b], 256))

    def restart(self, shard: ReplayShard) -> None:
        """New episodes everywhere; the pending observation is the last of the old ones."""
        shard.cut()
        for b, (obs, start, _) in enumerate(self.pending):
            if self.history[b] and not self.history[b][-1].seam:
                self.history[b].append(Step(obs, start, seam=True))
            self.pending[b] = self.number(b), True, self.action()
            self.dummy[b] = False

    def rollout(self, length: int) -> Rollout:
        columns = [[self.play(b) for _ in range(length)] for b in range(len(self.history))]
        rows = [list(row) for row in zip(*columns)]
        finals = [
            (t * len(columns) + b, step.successor)
            for t, row in enumerate(rows)
            for b, step in enumerate(row)
            if step.end and not self.next_step
        ]

        def array(name: str, dtype: str) -> np.ndarray:
            return np.array([[getattr(step, name) for step in row] for row in rows], dtype)

        obs, starts, actions = zip(*self.pending)
        return Rollout(
            obs=np.concatenate([array("obs", self.dtype), np.array([obs], self.dtype)]),
            actions=np.concatenate([array("action", "int64"), [actions]]),
            greedy=np.ones((length + 1, len(columns)), bool),
            q_values=np.zeros((length + 1, len(columns), 4), np.float32),
            rewards=array("reward", "float32"),
            discounts=array("discount", "float32"),
            ends=array("end", "bool"),
            weights=array("weight", "float32"),
            final_rows=np.array([row for row, _ in finals], np.int64),
            final_obs=np.array([obs for _, obs in finals], self.dtype).reshape(-1, *SHAPE),
            starts=np.concatenate([array("start", "bool"), [starts]]),
        )

    def play(self, b: int) -> Step:
        obs, start, action = self.pending[b]
        following, over = self.number(b), False
        if self.dummy[b]:
            step = Step(obs, False, action, 0.0, GAMMA)
        else:
            kind = self.rng.choice(["", "terminated", "truncated"], p=[0.7, 0.15, 0.15])
            over = kind != ""
            discount = GAMMA if kind != "terminated" else 0.0
            weight = float(self.rng.random() < 0.95)  # the surplus of a budget: true, but weight 0
            reward = np.float32(self.rng.normal())
            step = Step(obs, start, action, reward, discount, over, weight, following)
        first = self.dummy[b]
        self.dummy[b] = over and self.next_step
        if over and not self.next_step:
            following, first = self.number(b), True
        self.pending[b] = following, first, self.action()
        self.history[b].append(step)
        return step


def add(shard: ReplayShard, rollout: Rollout) -> None:
    """Add, then overwrite all arrays, as the next rollout of a collector does."""
    shard.add(rollout)
    for field in dataclasses.fields(rollout):
        array = getattr(rollout, field.name)
        if array is not None:
            array[...] = 77


def memory(shard: ReplayShard) -> int:
    """Bytes, which grow by one observation per stored episode end."""
    arrays = (*shard._fields.values(), *shard._finals.values(), *shard._tree._levels)
    return sum(array.nbytes for array in arrays)


def make(
    capacity: int = 60,
    num_envs: int = 3,
    length: int = 2,
    batch_size: int = 16,
    alpha: float | None = None,
    dtype: str = "float32",
) -> ReplayShard:
    return ReplayShard(capacity, num_envs, length, batch_size, alpha, SHAPE, dtype)


def filled(
    alpha: float | None, steps: int = 70, **settings: int
) -> tuple[ReplayShard, Tape, np.random.Generator]:
    """A shard whose ring has been overwritten more than once, its tape, and a generator."""
    rng = np.random.default_rng(5)
    shard = make(alpha=alpha, **settings)
    tape = Tape(rng, shard.num_envs, "float32", next_step=False)
    for _ in range(steps // 5):
        add(shard, tape.rollout(5))
    return shard, tape, rng


def legal_starts(tape: Tape, rows: int, length: int) -> set[tuple]:
    """Observations of the legal starts by the definition, looked up in the plain lists."""
    starts = set()
    for steps in tape.history:
        for t in range(max(0, len(steps) - rows), len(steps) - length + 1):
            segment = steps[t : t + length]
            if segment[0].weight > 0 and not any(step.seam for step in segment):
                starts.add(segment[0].obs)
    return starts


def check_segment(tape: Tape, sample: Rollout, column: int) -> None:
    """Compare column `column` of a sample, row by row, with what happened."""
    obs = [tuple(row) for row in sample.obs[:, column].astype(int).tolist()]
    steps = tape.history[obs[0][0]]
    first = next(t for t, step in enumerate(steps) if step.obs == obs[0])
    after = [*steps, Step(*tape.pending[obs[0][0]][:2])]
    for k in range(len(sample.rewards)):
        step, following = after[first + k], after[first + k + 1]
        assert not step.seam
        assert (obs[k], obs[k + 1]) == (step.obs, following.obs)
        assert sample.starts[k, column] == step.start
        assert sample.starts[k + 1, column] == following.start
        assert sample.actions[k, column] == step.action
        assert sample.rewards[k, column] == np.float32(step.reward)
        assert sample.discounts[k, column] == np.float32(step.discount)
        assert sample.weights[k, column] == step.weight
        silent = k + 1 < len(sample.rewards) and following.weight == 0
        assert sample.ends[k, column] == (step.end or silent)
        if step.successor is not None:
            assert tuple(sample.next_obs()[k, column].astype(int).tolist()) == step.successor


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize(
    ("rows", "num_envs", "length", "dtype"),
    [(2, 1, 1, "uint8"), (6, 3, 5, "float32"), (9, 2, 3, "uint8"), (30, 3, 4, "float32")],
)
def test_every_segment_is_what_happened_and_every_legal_start_is_drawn(
    rows: int, num_envs: int, length: int, dtype: str, next_step: bool
) -> None:
    rng = np.random.default_rng(rows + next_step)
    # The steps that do not fill a row of all environments are no row.
    shard = make(rows * num_envs + num_envs - 1, num_envs, length, 32, None, dtype)
    tape = Tape(rng, num_envs, dtype, next_step)
    drawn = 0
    for _ in range(60):
        if rng.random() < 0.15:
            tape.restart(shard)
        if rng.random() < 0.05:
            tape.restart(shard)  # twice is no more than once
        else:
            add(shard, tape.rollout(int(rng.integers(1, 9))))  # some longer than the ring
        legal = legal_starts(tape, rows, length)
        assert shard.size == min(rows, len(tape.history[0])) * num_envs
        assert shard.ready() == bool(legal)
        if not legal:
            continue
        seen = set()
        for _ in range(40):
            sample = shard.sample(rng, 1.0)
            assert sample.obs.dtype == dtype and sample.obs.shape == (length + 1, 32, *SHAPE)
            assert sample.rewards.shape == (length, 32) and sample.actions.dtype == np.int64
            assert sample.greedy is None and sample.q_values is None
            seen |= {tuple(obs) for obs in sample.obs[0].astype(int).tolist()}
        for column in range(32):
            check_segment(tape, sample, column)
        assert seen == legal
        drawn += 1
    assert drawn > 20


@pytest.mark.parametrize("terminated", [True, False])
def test_the_true_final_observation_stays_until_its_step_is_overwritten(terminated: bool) -> None:
    """Both kinds of end, before and after the ring has gone round; no final outlives its step."""
    shard = make(capacity=6, num_envs=1, length=1, batch_size=32)
    rng = np.random.default_rng(0)
    for step in range(40):
        end = step % 2 == 0
        rollout = Rollout(
            obs=np.full((2, 1, *SHAPE), step, np.float32),
            actions=np.zeros((2, 1), np.int64),
            greedy=None,
            q_values=None,
            rewards=np.zeros((1, 1), np.float32),
            discounts=np.full((1, 1), 0.0 if end and terminated else GAMMA, np.float32),
            ends=np.full((1, 1), end),
            weights=np.ones((1, 1), np.float32),
            final_rows=np.zeros(int(end), np.int64),
            final_obs=np.full((int(end), *SHAPE), 1000 + step, np.float32),
            starts=np.zeros((2, 1), bool),
        )
        rollout.obs[1] += 1
        shard.add(rollout)
        sample = shard.sample(rng, 1.0)
        now, following = sample.obs[0, :, 0], sample.next_obs()[0, :, 0]
        ended = now % 2 == 0
        np.testing.assert_array_equal(following, np.where(ended, 1000 + now, now + 1))
        np.testing.assert_array_equal(sample.ends[0], ended)
        assert set(now) == set(range(max(0, step - 5), step + 1))
        in_ring = sum(t % 2 == 0 for t in range(max(0, step - 5), step + 1))
        assert memory(shard) - memory(make(6, 1, 1)) == in_ring * 12


def count_starts(shard: ReplayShard, rng: np.random.Generator, batches: int) -> dict[tuple, int]:
    counts: dict[tuple, int] = {}
    for _ in range(batches):
        for obs in map(tuple, shard.sample(rng, 1.0).obs[0].astype(int).tolist()):
            counts[obs] = counts.get(obs, 0) + 1
    return counts


def assert_frequencies(counts: dict[tuple, int], probabilities: dict[tuple, float]) -> None:
    """Each count within 4.5 standard deviations, all together within those of chi-square."""
    draws = sum(counts.values())
    assert set(counts) <= set(probabilities)
    expected = np.array([draws * p for p in probabilities.values()])
    found = np.array([counts.get(obs, 0) for obs in probabilities])
    assert (np.abs(found - expected) < 4.5 * np.sqrt(expected)).all()
    freedom = len(expected) - 1
    assert ((found - expected) ** 2 / expected).sum() < freedom + 4.5 * np.sqrt(2 * freedom)


def test_uniform_draws_are_uniform_and_weigh_1() -> None:
    shard, tape, rng = filled(None)
    legal = legal_starts(tape, 20, 2)
    assert 40 < len(legal) < 57  # not those of weight 0
    for _ in range(5):
        sample = shard.sample(rng, 0.7)
        assert set(sample.weights[0]) == {1.0} and set(np.unique(sample.weights)) <= {0.0, 1.0}
        shard.update_priorities(rng.random(16).astype(np.float32))  # says nothing here
    assert_frequencies(count_starts(shard, rng, 2000), dict.fromkeys(legal, 1 / len(legal)))


def error_of(obs: np.ndarray) -> np.ndarray:
    """A made-up error of the starts [batch]: 0 to 12."""
    return ((obs[:, 0] * 7 + obs[:, 2]) % 13).astype(np.float32)


def learn_errors(shard: ReplayShard, rng: np.random.Generator, batches: int) -> None:
    for _ in range(batches):
        errors = error_of(shard.sample(rng, 1.0).obs[0])
        shard.update_priorities(errors * rng.choice([-1, 1]))  # the absolute value counts


def test_prioritised_draws_and_weights_follow_the_formulas() -> None:
    alpha, beta = 0.3, 0.6  # errors of 0 have a priority of 0.016: they are drawn as well
    shard, tape, rng = filled(alpha)
    legal = sorted(legal_starts(tape, 20, 2))
    learn_errors(shard, rng, 4000)
    errors = error_of(np.array(legal, float))
    assert (errors == 0).sum() > 1 and errors.max() == 12
    priorities = (errors.astype(float) + PRIORITY_FLOOR) ** alpha
    shares = priorities / priorities.sum()
    probabilities = dict(zip(legal, shares))
    assert_frequencies(count_starts(shard, rng, 3000), probabilities)
    for _ in range(20):
        sample = shard.sample(rng, beta)
        starts = map(tuple, sample.obs[0].astype(int).tolist())
        wanted = np.array([(len(legal) * probabilities[obs]) ** -beta for obs in starts])
        wanted /= wanted.max()
        np.testing.assert_allclose(sample.weights[0], wanted, rtol=1e-5)
        later = sample.weights[1]  # the whole segment has its start's weight, where it teaches
        np.testing.assert_allclose(later[later > 0], wanted[later > 0], rtol=1e-5)


def test_exponent_0_is_uniform_replay() -> None:
    (one, _, rng), (two, _, same) = filled(None), filled(0.0)
    for _ in range(20):
        first, second = one.sample(rng, 0.5), two.sample(same, 0.5)
        np.testing.assert_array_equal(first.obs, second.obs)
        np.testing.assert_array_equal(first.weights, second.weights)
        two.update_priorities(error_of(second.obs[0]))


def test_new_starts_enter_with_the_highest_priority_so_far() -> None:
    shard = make(capacity=60, num_envs=1, length=2, batch_size=4, alpha=0.5)
    tape = Tape(np.random.default_rng(9), 1, "float32", next_step=False)
    rng = np.random.default_rng(0)

    def new_masses() -> list[float]:
        """Priorities of the starts that the next rollout makes legal, without repetition."""
        before = np.zeros(61, np.float32)
        old = shard.state()["priorities"]
        before[: len(old)] = old
        add(shard, tape.rollout(9))
        after = shard.state()["priorities"]
        return sorted(set(after[(after > 0) & (before[: len(after)] == 0)].tolist()))

    assert new_masses() == [1.0]
    for errors, highest in (
        ([0.04, 0.04, 0.04, 0.04], 1.0),  # smaller errors do not lower it
        ([9.0, 0.04, 0.04, 0.04], 3.0),
        ([0.25, 4.0, 0.25, 0.25], 3.0),
        ([0.25, 0.25, 0.25, 16.0], 4.0),
    ):
        shard.sample(rng, 1.0)
        shard.update_priorities(np.array(errors, np.float32))
        assert new_masses() == [pytest.approx(highest)]


def test_an_error_that_is_not_finite_changes_nothing() -> None:
    shard, _, rng = filled(0.6)
    shard.sample(rng, 1.0)
    before = {name: array.copy() for name, array in shard.state().items()}
    shard.update_priorities(np.array([np.nan, np.inf] * 8, np.float32))
    for name, array in shard.state().items():
        np.testing.assert_array_equal(array, before[name])


def stored(shard: ReplayShard) -> dict[str, np.ndarray]:
    """The state as it comes back from a checkpoint file."""
    files = encode(7, {"replay": shard.state()}, {})
    return safetensors.numpy.load(files["replay.safetensors"])


@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize("steps", [0, 5, 15, 70])
def test_a_restored_shard_goes_on_bit_for_bit(alpha: float | None, steps: int) -> None:
    one, tape, _ = filled(alpha, steps)
    generators = [np.random.default_rng(1) for _ in range(2)]
    if one.ready():
        learn_errors(one, generators[1], 7)
    if steps == 15:
        tape.restart(one)
    two = make(alpha=alpha)
    add(two, Tape(np.random.default_rng(2), 3, "float32", False).rollout(31))  # is forgotten
    two.restore(stored(one))
    generators = [np.random.default_rng(1) for _ in range(2)]
    for round in range(12):
        if round % 4 == 2:
            tape.restart(one)
            two.cut()
        rollout = tape.rollout(5)
        two.add(rollout)
        add(one, rollout)
        samples = [shard.sample(rng, 0.5) for shard, rng in zip((one, two), generators)]
        for field in dataclasses.fields(Rollout):
            pair = [getattr(sample, field.name) for sample in samples]
            np.testing.assert_array_equal(*pair)
        for shard in (one, two):
            shard.update_priorities(error_of(samples[0].obs[0]))
        assert one.size == two.size and memory(one) == memory(two)
    for column in range(16):
        # Weights are those of the start, which the plain list does not know.
        samples[1].weights[:] = samples[1].weights > 0
        check_segment(tape, samples[1], column)


@pytest.mark.parametrize(
    "settings",
    [{"capacity": 63}, {"num_envs": 2}, {"length": 3}, {"dtype": "uint8"}],
)
def test_a_state_of_other_settings_is_refused(settings: dict) -> None:
    for steps in (10, 70):
        shard, _, _ = filled(0.6, steps)
        with pytest.raises(ValueError, match="replay"):
            make(**{"alpha": 0.6, **settings}).restore(stored(shard))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("obs", lambda array: array[:, :2]),
        ("obs", lambda array: array[:-3]),
        ("rewards", lambda array: array[:-1]),
        ("ends", lambda array: array.astype(np.int64)),
        ("actions", None),
        ("priorities", lambda array: -array),
        ("priorities", lambda array: array[:-3]),
        ("max_priority", lambda array: array[:0]),
        ("max_priority", lambda array: -array),
        ("final_index", lambda array: array + 1000),
        ("final_index", lambda array: array[:-1]),
        ("position", lambda array: array[:-1]),
        ("position", lambda array: array - np.eye(6, dtype=int)[3] * 99),
        ("position", lambda array: array + np.eye(6, dtype=int)[4] * 99),
        ("position", lambda array: array + np.eye(6, dtype=int)[5]),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name: str, change) -> None:
    shard, _, rng = filled(0.6)
    arrays = stored(shard)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    before = stored(shard)
    with pytest.raises(ValueError, match="replay"):
        shard.restore(arrays)
    for key, array in shard.state().items():
        np.testing.assert_array_equal(array, before[key])
    shard.sample(rng, 1.0)


def test_a_rollout_that_does_not_continue_the_last_one_is_an_error() -> None:
    shard, tape, _ = filled(None)
    tape.rollout(3)  # never added
    with pytest.raises(AssertionError, match="cut"):
        shard.add(tape.rollout(3))


def test_errors_of_starts_that_may_be_overwritten_are_refused() -> None:
    shard, tape, rng = filled(0.6)
    shard.sample(rng, 1.0)
    add(shard, tape.rollout(5))
    with pytest.raises(AssertionError, match="since add"):
        shard.update_priorities(np.ones(16, np.float32))


def test_the_smallest_ring_holds_a_segment_and_one_row() -> None:
    for capacity in (0, 17):
        with pytest.raises(ValueError, match="at least 18 steps"):
            make(capacity=capacity, length=5)
    shard = make(capacity=18, length=5)
    tape = Tape(np.random.default_rng(3), 3, "float32", next_step=False)
    add(shard, tape.rollout(4))
    assert not shard.ready()
    with pytest.raises(AssertionError, match="no segment"):
        shard.sample(np.random.default_rng(0), 1.0)
    add(shard, tape.rollout(1))
    assert shard.ready() == bool(legal_starts(tape, 6, 5))


def test_memory_is_known_beforehand_and_images_stay_uint8() -> None:
    shape = (4, 84, 84)
    shard = ReplayShard(800, 8, 3, 32, 0.6, shape, "uint8")
    assert memory(shard) == replay_bytes(800, 8, shape, "uint8")
    image = 4 * 84 * 84
    assert 808 * image < memory(shard) < 808 * (image + 30)  # each once, one row is pending
    code = "import sys, async_dqn.replay.shard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
