"""Experience replay, the shard of one worker: a ring of time steps (Lin 1992; Mnih et al. 2015).

Single time steps are stored, each observation once. A sample is a batch of segments, returned as
a `Rollout` whose columns are segments instead of environments; so the targets are recomputed by
the same recursion as without replay, and segments of one step are Nature DQN's transitions.
Segments are drawn in proportion to the priority of their start (Schaul et al. 2016, section 3.3);
uniform replay is the case in which all priorities stay 1.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from async_dqn.algorithms.rollout import Rollout
from async_dqn.replay.sum_tree import SumTree, tree_bytes

PRIORITY_FLOOR = 1e-6  # keeps steps of error 0 in the draw
STEP_FIELDS = {
    "actions": "int64",
    "rewards": "float32",
    "discounts": "float32",
    "ends": "bool",
    "weights": "float32",
    "starts": "bool",
}


class ReplayShard:
    """The last `capacity` steps of one worker's `num_envs` environments, of which it samples.

    Step t of environment b has the flat index `(t % slots) * num_envs + b`, the leaf of the sum
    tree too. The slot at the head holds the pending observation, the successor of the newest
    steps, and nothing else yet. Only legal starts have mass: steps of weight > 0 whose `length`
    successors are stored, all from one run of consecutive rollouts.

    `capacity` is in steps, num_envs of which make one time step of the ring; `length` is that of
    a segment, in steps; `alpha` the exponent of the priorities, None for uniform sampling.
    Observations are of `shape` and `dtype`. Raises ValueError where the ring cannot hold a
    segment and one time step more.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        length: int,
        batch_size: int,
        alpha: float | None,
        shape: tuple[int, ...],
        dtype: str,
    ):
        rows, least = capacity // num_envs, least_capacity(num_envs, length)
        if capacity < least:
            raise ValueError(
                f"a replay of {capacity} steps is {rows} time steps of {num_envs} environments; "
                f"segments of {length} steps need at least {least} steps"
            )
        self.num_envs, self.length = num_envs, length
        self.batch_size, self.alpha = batch_size, alpha
        self._slots = rows + 1  # one for the pending observation
        count = self._slots * num_envs
        fields = {name: np.zeros(count, field) for name, field in STEP_FIELDS.items()}
        self._fields = {"obs": np.zeros((count, *shape), dtype), **fields}
        self._finals: dict[int, NDArray] = {}  # true last observations by flat index
        self._tree = SumTree(count)
        self._max_priority = np.float32(1.0)
        self._head = 0  # time of the pending observation
        self._opened = 0  # steps before this time are legal starts, or never will be
        self._pending = False
        self._drawn = np.zeros(0, np.int64)
        self._columns = np.arange(num_envs)

    @property
    def size(self) -> int:
        """Steps stored, over the environments of this worker."""
        return min(self._head, self._slots - 1) * self.num_envs

    def ready(self, least: int = 0) -> bool:
        """Whether there is anything to sample, and so many steps or all that it can hold."""
        full = self._head >= self._slots - 1
        return self._tree.total > 0 and (full or self.size >= least)

    def add(self, rollout: Rollout) -> None:
        """Append the next rollout of the collector; it must go on where the last one stopped.

        A rollout that does not (new episodes were started) must be announced with `cut`.
        """
        pending = self._fields["obs"][self._flat(self._head)]
        assert not self._pending or np.array_equal(pending, rollout.obs[0]), (
            "the rollout does not continue the last one: call cut() where episodes are restarted"
        )
        steps = len(rollout.rewards)
        most = self._slots - 1  # a rollout longer than the ring passes through it piece by piece
        for first in range(0, steps, most):
            self._append(rollout, first, min(steps, first + most))
        self._pending = True

    def cut(self) -> None:
        """All environments start new episodes: no segment will run on from here.

        The pending observation stays, as the successor of the steps before it.
        """
        if self._pending:
            self._head += 1
            self._opened = self._head
            self._pending = False
            self._drop(self._flat(self._head))

    def sample(self, generator: np.random.Generator, beta: float) -> Rollout:
        """Draw a batch of segments, with replacement, as a `Rollout` [length, batch_size].

        One start from each of batch_size equal parts of the mass (Schaul et al. 2016, appendix
        B.2.1). Weights are those stored times (N P(start))^-beta / its maximum over the batch
        (section 3.4). The last row of actions means nothing. Requires `ready`.
        """
        assert self.ready(), "no segment is stored yet"
        parts = np.arange(self.batch_size) + generator.random(self.batch_size)
        self._drawn = self._tree.find(parts * (self._tree.total / self.batch_size))
        rows = np.arange(self.length + 1)[:, None] * self.num_envs
        index = (self._drawn + rows) % len(self._tree.masses)
        fields = {name: array[index] for name, array in self._fields.items()}
        steps = {name: fields[name][:-1] for name in ("rewards", "discounts", "ends", "weights")}
        # The return must not run through a step that does not teach, whatever came before it.
        steps["ends"][:-1] |= steps["weights"][1:] == 0
        masses = self._tree.masses[self._drawn]
        steps["weights"] *= (masses / masses.min()) ** np.float32(-beta)
        final_rows, final_obs = self._final_observations(index[:-1], steps["ends"])
        return Rollout(
            obs=fields["obs"],
            actions=fields["actions"],
            greedy=None,
            q_values=None,
            **steps,
            final_rows=final_rows,
            final_obs=final_obs,
            starts=fields["starts"],
        )

    def update_priorities(self, errors: NDArray[np.float32]) -> None:
        """Give the starts drawn last the priority (|error| + 1e-6)^alpha; `errors` is [batch].

        Does nothing in uniform replay. A start whose error is not finite keeps its priority.
        """
        if self.alpha is None:
            return
        assert len(errors) == len(self._drawn), "errors belong to the starts drawn since add()"
        known = np.isfinite(errors)
        priorities = (np.abs(errors[known]) + np.float32(PRIORITY_FLOOR)) ** np.float32(self.alpha)
        self._tree.update(self._drawn[known], priorities)
        self._max_priority = max(self._max_priority, priorities.max(initial=0.0))

    def state(self) -> dict[str, NDArray]:
        """All that `restore` needs, as float32, int64 and uint8; views: write before the next add.

        A restored shard draws what this one would, bit for bit.
        """
        used = self._used
        keys = sorted(self._finals)
        finals = [self._finals[key] for key in keys]
        obs = self._fields["obs"]
        return {
            **{name: _plain(array[:used]) for name, array in self._fields.items()},
            "priorities": self._tree.masses[:used],
            "max_priority": np.array([self._max_priority], np.float32),
            "final_index": np.array(keys, np.int64),
            "final_obs": np.stack(finals) if finals else obs[:0],
            "position": np.array(self._position(), np.int64),
        }

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        """Take over (copy) what `state` of a shard with the same settings gave.

        Raises ValueError, and changes nothing, where names, types, shapes or sizes do not fit.
        """
        self.check_state(arrays)
        *_, self._head, self._opened, self._pending = arrays["position"].tolist()
        for name, array in self._fields.items():
            array[: self._used] = arrays[name]
        self._tree.load(arrays["priorities"])
        self._max_priority = arrays["max_priority"][0]
        finals = zip(arrays["final_index"].tolist(), arrays["final_obs"])
        self._finals = {index: obs.copy() for index, obs in finals}
        self._drawn = self._drawn[:0]

    @property
    def _used(self) -> int:
        """Flat indices from here on were never written."""
        return min(self._head + 1, self._slots) * self.num_envs

    def _position(self) -> list[int]:
        layout = [self._slots, self.num_envs, self.length]
        return [*layout, self._head, self._opened, int(self._pending)]

    def _flat(self, times: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Flat indices [..., B] of all environments at `times` [...]."""
        return np.asarray(times % self._slots)[..., None] * self.num_envs + self._columns

    def _append(self, rollout: Rollout, first: int, last: int) -> None:
        """Store rows `first` to `last` - 1 and the observation after them."""
        index = self._flat(self._head + np.arange(last - first + 1))
        self._drop(index[1:])
        for name, array in self._fields.items():
            rows = getattr(rollout, name)[first : last + 1]
            array[index[: len(rows)]] = rows
        offset = first * self.num_envs
        for row, obs in zip((rollout.final_rows - offset).tolist(), rollout.final_obs):
            if 0 <= row < (last - first) * self.num_envs:
                self._finals[int(index.reshape(-1)[row])] = obs.copy()
        self._head += last - first
        self._open()

    def _drop(self, index: NDArray[np.int64]) -> None:
        """Forget the steps at flat indices about to be overwritten."""
        index = index.reshape(-1)
        for key in index[self._fields["ends"][index]].tolist():
            self._finals.pop(key, None)
        self._tree.update(index, np.zeros(len(index), np.float32))
        self._drawn = self._drawn[:0]  # one of them may be gone

    def _open(self) -> None:
        """Make legal starts of the steps that now have `length` successors."""
        oldest, end = self._head - self._slots + 1, self._head - self.length + 1
        index = self._flat(np.arange(max(self._opened, oldest), end)).reshape(-1)
        self._tree.update(index, self._max_priority * (self._fields["weights"][index] > 0))
        self._opened = max(self._opened, end)

    def _final_observations(
        self, index: NDArray[np.int64], ends: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray]:
        """`final_rows` [K] and `final_obs` [K, ...] of steps with flat `index` [n, batch]."""
        rows = np.flatnonzero(ends)
        keys = index.reshape(-1)[rows].tolist()
        found = [(row, self._finals[key]) for row, key in zip(rows, keys) if key in self._finals]
        if not found:
            return rows[:0], self._fields["obs"][:0]
        stored, finals = zip(*found)
        return np.array(stored), np.stack(finals)

    def check_state(self, arrays: Mapping[str, NDArray]) -> None:
        """Raise ValueError where `arrays` is not the state of a shard like this one."""
        own = self.state()
        if set(arrays) != set(own):
            raise ValueError("replay: not the arrays of a shard")
        for name, array in arrays.items():
            if array.dtype != own[name].dtype or array.shape[1:] != own[name].shape[1:]:
                raise ValueError(f"replay: {name} of {array.dtype} {array.shape} does not fit")
        position = arrays["position"].tolist()
        if len(position) != 6 or position[:3] != self._position()[:3]:
            raise ValueError("replay: saved with another capacity, batch or segment length")
        head, opened, pending = position[3:]
        used = min(head + 1, self._slots) * self.num_envs
        index, priorities = arrays["final_index"], arrays["priorities"]
        lengths = dict.fromkeys([*self._fields, "priorities"], used)
        lengths |= {"max_priority": 1, "final_obs": len(index)}
        if (
            any(len(arrays[name]) != length for name, length in lengths.items())
            or not 0 <= opened <= head
            or pending not in (0, 1)
            or ((index < 0) | (index >= used)).any()
            or not (np.isfinite(priorities) & (priorities >= 0)).all()
            or not (arrays["max_priority"] > 0).all()
        ):
            raise ValueError("replay: the arrays contradict each other")


def least_capacity(num_envs: int, length: int) -> int:
    """Steps of the smallest shard: one segment, and one time step more."""
    return (length + 1) * num_envs


def segment_length(one_step: bool, rollout_length: int) -> int:
    """Steps of a segment: what the algorithm's return reads, at most a rollout."""
    return 1 if one_step else rollout_length


def replay_bytes(capacity: int, num_envs: int, shape: tuple[int, ...], dtype: str) -> int:
    """What a `ReplayShard` takes before any episode has ended, without building it."""
    count = (capacity // num_envs + 1) * num_envs
    step = sum(np.dtype(field).itemsize for field in STEP_FIELDS.values())
    return count * (math.prod(shape) * np.dtype(dtype).itemsize + step) + tree_bytes(count)


def _plain(array: NDArray) -> NDArray:
    """Booleans as uint8, which a checkpoint takes."""
    return array.view(np.uint8) if array.dtype == np.bool_ else array
