"""`Rollout`: T steps of B environments, the one data type that flows to the losses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Rollout:
    """T steps of B environments, time-major.

    The arrays belong to the collector and are overwritten by its next rollout. Weight 0 marks
    what must not teach: the dummy step of NEXT_STEP environments and the surplus at the end of
    the budget. The last row of `obs`, `actions`, `greedy` and `q_values` is pending: chosen, not
    yet taken.

    From replay, B counts segments and the arrays are copies; nothing was seen while acting, so
    `greedy`, `q_values`, `epsilon` and `state` are None.
    """

    obs: NDArray  # [T+1, B, ...] as the environment gives them
    actions: NDArray[np.int64]  # [T+1, B]
    greedy: NDArray[np.bool_] | None  # [T+1, B] the action was the acting network's best
    q_values: NDArray[np.float32] | None  # [T+1, B, A] as seen while acting
    rewards: NDArray[np.float32]  # [T, B]
    discounts: NDArray[np.float32]  # [T, B] gamma, or 0 where the step terminated
    ends: NDArray[np.bool_]  # [T, B] terminated or truncated
    weights: NDArray[np.float32]  # [T, B]
    final_rows: NDArray[np.int64]  # [K] flat indices t * B + b whose successor is in final_obs
    final_obs: NDArray  # [K, ...] the last observation of the episode that ended there
    state: tuple | None = None  # (h, c), torch [B, H] each: recurrent state before row 0
    starts: NDArray[np.bool_] | None = None  # [T+1, B] first observation of an episode
    epsilon: NDArray[np.float32] | None = None  # [B] exploration in force
    targets: NDArray[np.float32] | None = None  # [T, B], where they hold for all passes

    def next_obs(self, rows: NDArray[np.int64] | None = None) -> NDArray:
        """The TRUE successors [K, ...] of the steps `rows` [K], flat indices t * B + b, as a copy.

        That is the final observation where the next row holds a reset. Without `rows` of all steps,
        [T, B, ...].
        """
        if rows is None:
            every = np.arange(self.rewards.size)
            return self.next_obs(every).reshape(self.obs[1:].shape)
        successors = flat(self.obs[1:])[rows]
        if self.final_rows.size:
            place = np.full(self.rewards.size, -1)
            place[self.final_rows] = np.arange(len(self.final_rows))
            finals = place[rows]
            ended = finals >= 0
            successors[ended] = self.final_obs[finals[ended]]
        return successors

    def columns(self, index: NDArray[np.int64]) -> "Rollout":
        """The environments `index` [b] alone, as copies; without Q-values where targets are there.

        `take`, because what [:, index] gives is not contiguous: its flat form would be a copy.
        """
        every = np.full(self.rewards.shape[1], -1)
        every[index] = np.arange(len(index))
        times, where = np.divmod(self.final_rows, len(every))
        kept = every[where] >= 0
        arrays = {name: getattr(self, name) for name in BY_TIME}
        if self.targets is not None:
            arrays["q_values"] = None
        return Rollout(
            **{
                n: None if array is None else array.take(index, axis=1)
                for n, array in arrays.items()
            },
            final_rows=times[kept] * len(index) + every[where[kept]],
            final_obs=self.final_obs[kept],
            state=None if self.state is None else tuple(part[index] for part in self.state),
            epsilon=None if self.epsilon is None else self.epsilon[index],
        )


# The fields with axes [time, environment, ...].
BY_TIME = (
    "obs",
    "actions",
    "greedy",
    "q_values",
    "rewards",
    "discounts",
    "ends",
    "weights",
    "starts",
    "targets",
)


def flat(array: NDArray) -> NDArray:
    """Merge the two leading axes [T, B, ...] -> [T * B, ...] without a copy."""
    return array.reshape(-1, *array.shape[2:])
