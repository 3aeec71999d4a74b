"""The collector on scripted environments, the expected tape written out."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import NumberedEnv
from torch import nn

from async_dqn.algorithms.q_learning import QLearning
from async_dqn.algorithms.rollout import Rollout
from async_dqn.config.config import AlgorithmConfig
from async_dqn.envs.batch import EnvBatch
from async_dqn.envs.loop_batch import LoopBatch
from async_dqn.envs.loop_env import LoopVectorEnv
from async_dqn.envs.spaces import observation_layout
from async_dqn.envs.spec import EnvInfo
from async_dqn.networks.network import QOutput
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.optimizers import SharedRMSProp
from async_dqn.parameters.store import ParameterStore
from async_dqn.workers.collector import EPISODES_KEPT, Collector

GAMMA, SCALE = 0.5, 10.0
SETTINGS = AlgorithmConfig(gamma=GAMMA, reward_scale=SCALE)
REWARDS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
INFO = EnvInfo("vector", (3,), "float32", 1.0, None, None, 2, 1, 1000)
# Environment 0 terminates after 2 steps, environment 1 is truncated after 3.
PAIR = (((2,), ("terminated",)), ((3,), ("truncated",)))
MODES = ("same-step", "next-step", "loop")


class Parity(nn.Module):
    """Prefers action (episode + step) % 2: what it will do can be written down."""

    def initial_state(self, count: int) -> None:
        return None

    def forward(self, obs: torch.Tensor, state=None) -> tuple[QOutput, None]:
        preferred = (obs[:, 1] + obs[:, 2]).long() % 2
        return QOutput(nn.functional.one_hot(preferred, 2).float()), state


def make_batch(mode: str, scripts=PAIR) -> EnvBatch:
    def make(lengths, ends):
        return lambda: NumberedEnv(lengths=lengths, ends=ends, rewards=REWARDS)

    makers = [make(*script) for script in scripts]
    if mode == "loop":
        envs = [make() for make in makers]
        layout = observation_layout(envs[0].observation_space)
        return LoopBatch(LoopVectorEnv(envs, layout, limit=1000), INFO)
    resets = AutoresetMode.NEXT_STEP if mode == "next-step" else AutoresetMode.SAME_STEP
    return EnvBatch(SyncVectorEnv(makers, autoreset_mode=resets), INFO)


def make_collector(batch: EnvBatch, net: nn.Module, length: int) -> Collector:
    collector = Collector(batch, QLearning(0.0), net, length, SETTINGS, 2)
    epsilon = np.zeros(batch.num_envs, np.float32)
    collector.reset(range(batch.num_envs), epsilon, np.random.default_rng(0))
    return collector


def collect(collector: Collector, budget: int = 10**9, record=lambda count: None) -> Rollout:
    return collector.collect(np.zeros(collector.envs.num_envs, np.float32), budget, record)


def numbers(obs: np.ndarray) -> list:
    """(episode, step) of every observation, without the seed tag; [T, B] as nested lists."""
    return [[tuple(pair) for pair in row] for row in obs[..., 1:].astype(int).tolist()]


def check(rollout: Rollout, environment: int, **tape: list) -> None:
    """Compare one environment's column with the tape written out."""
    column = {name: getattr(rollout, name)[:, environment] for name in tape if name != "obs"}
    assert [row[environment] for row in numbers(rollout.obs)] == tape["obs"]
    for name, values in column.items():
        assert values.astype(float).tolist() == pytest.approx(tape[name]), name


def check_finals(rollout: Rollout, finals: dict[tuple[int, int], tuple[int, int]]) -> None:
    """`finals` maps (t, b) to the true last observation of the episode that ended there."""
    rows = [divmod(int(row), rollout.rewards.shape[1]) for row in rollout.final_rows]
    assert dict(zip(rows, numbers(rollout.final_obs[None])[0], strict=True)) == finals


@pytest.mark.parametrize("mode", ["same-step", "loop"])
def test_same_step_tape_over_two_rollouts(mode: str) -> None:
    counts: list[int] = []
    collector = make_collector(make_batch(mode), Parity(), 4)
    first = collect(collector, record=counts.append)
    check(
        first,
        0,
        obs=[(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)],
        actions=[0, 1, 1, 0, 0],
        rewards=[10, 20, 10, 20],
        discounts=[0.5, 0, 0.5, 0],
        ends=[0, 1, 0, 1],
        weights=[1, 1, 1, 1],
        greedy=[1, 1, 1, 1, 1],
    )
    check(
        first,
        1,
        obs=[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)],
        actions=[0, 1, 0, 1, 0],
        rewards=[10, 20, 30, 10],
        discounts=[0.5, 0.5, 0.5, 0.5],
        ends=[0, 0, 1, 0],
        weights=[1, 1, 1, 1],
    )
    check_finals(first, {(1, 0): (0, 2), (2, 1): (0, 3), (3, 0): (1, 2)})
    assert numbers(first.next_obs()) == [
        [(0, 1), (0, 1)],
        [(0, 2), (0, 2)],
        [(1, 1), (0, 3)],
        [(1, 2), (1, 1)],
    ]
    second = collect(collector, record=counts.append)  # goes on where the first one ended
    check(
        second,
        0,
        obs=[(2, 0), (2, 1), (3, 0), (3, 1), (4, 0)],
        actions=[0, 1, 1, 0, 0],
        rewards=[10, 20, 10, 20],
        discounts=[0.5, 0, 0.5, 0],
        ends=[0, 1, 0, 1],
        weights=[1, 1, 1, 1],
    )
    check(
        second,
        1,
        obs=[(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)],
        actions=[0, 1, 0, 1, 0],
        rewards=[20, 30, 10, 20],
        discounts=[0.5, 0.5, 0.5, 0.5],
        ends=[0, 1, 0, 0],
        weights=[1, 1, 1, 1],
    )
    check_finals(second, {(1, 0): (2, 2), (1, 1): (1, 3), (3, 0): (3, 2)})
    assert counts == [2] * 8
    assert list(collector.finished) == [(3, 2), (6, 3), (3, 2), (3, 2), (6, 3), (3, 2)]
    assert collector.take_episode_count() == 6 and collector.take_episode_count() == 0


def test_next_step_tape_over_two_rollouts() -> None:
    """The observation at an end is the true successor; the step after it is a dummy."""
    counts: list[int] = []
    collector = make_collector(make_batch("next-step"), Parity(), 4)
    first = collect(collector, record=counts.append)
    check(
        first,
        0,
        obs=[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)],
        actions=[0, 1, 0, 1, 0],
        rewards=[10, 20, 0, 10],
        discounts=[0.5, 0, 0.5, 0.5],
        ends=[0, 1, 0, 0],
        weights=[1, 1, 0, 1],
    )
    check(
        first,
        1,
        obs=[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)],
        actions=[0, 1, 0, 1, 1],
        rewards=[10, 20, 30, 0],
        discounts=[0.5, 0.5, 0.5, 0.5],
        ends=[0, 0, 1, 0],
        weights=[1, 1, 1, 0],
    )
    second = collect(collector, record=counts.append)
    check(
        second,
        0,
        obs=[(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)],
        actions=[0, 1, 0, 1, 0],
        rewards=[20, 0, 10, 20],
        discounts=[0, 0.5, 0.5, 0],
        ends=[1, 0, 0, 1],
        weights=[1, 0, 1, 1],
    )
    check(
        second,
        1,
        obs=[(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)],
        actions=[1, 0, 1, 0, 0],
        rewards=[10, 20, 30, 0],
        discounts=[0.5, 0.5, 0.5, 0.5],
        ends=[0, 0, 1, 0],
        weights=[1, 1, 1, 0],
    )
    for rollout in (first, second):
        check_finals(rollout, {})
        np.testing.assert_array_equal(rollout.next_obs(), rollout.obs[1:])
    assert counts == [2, 2, 1, 1, 2, 1, 2, 1]
    assert list(collector.finished) == [(3, 2), (6, 3), (3, 2), (6, 3), (3, 2)]


@pytest.mark.parametrize("mode", MODES)
def test_no_transition_of_weight_1_links_two_episodes(mode: str) -> None:
    collector = make_collector(make_batch(mode), Parity(), 5)
    seen = set()
    for _ in range(20):
        rollout = collect(collector)
        before, after = numbers(rollout.obs[:-1]), numbers(rollout.next_obs())
        for t, b in np.argwhere(rollout.weights > 0):
            (episode, step), successor = before[t][b], after[t][b]
            assert successor == (episode, step + 1)
            length = PAIR[b][0][0]
            assert rollout.ends[t, b] == (step + 1 == length)
            assert rollout.rewards[t, b] == SCALE * REWARDS[step]
            seen.add((int(b), episode, step))
    for b, ((length,), _) in enumerate(PAIR):  # ... and none is missing
        steps = sorted((episode, step) for env, episode, step in seen if env == b)
        assert steps == [divmod(k, length) for k in range(len(steps))]
        assert len(steps) > 50


def test_actions_reach_the_environment_as_recorded_pending_ones_included() -> None:
    batch = make_batch("loop")
    collector = make_collector(batch, Parity(), 4)
    recorded = [collect(collector).actions[:-1].copy() for _ in range(3)]
    taken = np.transpose([env.taken for env in batch.vector.envs])
    np.testing.assert_array_equal(taken, np.concatenate(recorded))


def test_the_pending_action_keeps_its_q_values_and_greedy_flag() -> None:
    batch = make_batch("loop")
    collector = Collector(batch, QLearning(0.0), Parity(), 3, SETTINGS, 2)
    epsilon = np.ones(2, np.float32)
    collector.reset([0, 1], epsilon, np.random.default_rng(3))
    pending = None
    for _ in range(6):
        rollout = collector.collect(epsilon, 100, lambda count: None)
        for name in ("obs", "actions", "greedy", "q_values"):
            rows = getattr(rollout, name)
            if pending is not None:
                np.testing.assert_array_equal(rows[0], pending[name])
        np.testing.assert_array_equal(rollout.greedy, rollout.actions == rollout.q_values.argmax(2))
        names = ("obs", "actions", "greedy", "q_values")
        pending = {name: getattr(rollout, name)[-1].copy() for name in names}


@pytest.mark.parametrize(
    ("mode", "budget", "weights", "counts"),
    [
        ("loop", 1, [[1, 0]], [1]),
        ("loop", 5, [[1, 1], [1, 1], [1, 0]], [2, 2, 1]),
        ("loop", 6, [[1, 1], [1, 1], [1, 1]], [2, 2, 2]),
        # Step 2 is the dummy of environment 0, step 3 that of environment 1.
        ("next-step", 5, [[1, 1], [1, 1], [0, 1]], [2, 2, 1]),
        ("next-step", 6, [[1, 1], [1, 1], [0, 1], [1, 0]], [2, 2, 1, 1]),
        ("next-step", 7, [[1, 1], [1, 1], [0, 1], [1, 0]], [2, 2, 1, 1]),
    ],
)
def test_the_budget_is_met_exactly_and_the_surplus_teaches_nothing(
    mode: str, budget: int, weights: list, counts: list[int]
) -> None:
    recorded: list[int] = []
    rollout = collect(make_collector(make_batch(mode), Parity(), 4), budget, recorded.append)
    assert rollout.weights.tolist() == weights
    assert recorded == counts and sum(counts) <= budget
    rows = len(weights)
    for name in ("rewards", "discounts", "ends"):
        assert len(getattr(rollout, name)) == rows
    for name in ("obs", "actions", "greedy", "q_values"):
        assert len(getattr(rollout, name)) == rows + 1


def test_after_a_rollout_cut_by_the_budget_the_next_one_goes_on() -> None:
    collector = make_collector(make_batch("loop"), Parity(), 4)
    assert collect(collector, 2).obs.shape == (2, 2, 3)
    rollout = collect(collector)
    assert [row[1] for row in numbers(rollout.obs)] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1, 5])
def test_70_steps_of_episodes_of_length_7_are_exactly_10_episodes(mode: str, length: int) -> None:
    collector = make_collector(make_batch(mode, [((7,), ("terminated",))]), Parity(), length)
    steps = 0

    def record(count: int) -> None:
        nonlocal steps
        steps += count

    while steps < 70:
        collect(collector, 70 - steps, record)
    assert steps == 70
    assert list(collector.finished) == [(sum(REWARDS), 7)] * 10  # true scores, not the scaled ones
    assert collector.take_episode_count() == 10


def test_only_as_many_scores_are_kept_as_a_record_holds_but_all_are_counted() -> None:
    collector = make_collector(make_batch("loop", [((1,), ("terminated",))]), Parity(), 50)
    for _ in range(4):
        collect(collector)
    assert len(collector.finished) == EPISODES_KEPT
    assert collector.take_episode_count() == 200


def test_rewriting_the_shared_weights_in_mid_segment_changes_no_remaining_action() -> None:
    """T23: a segment belongs to the policy that was pulled for it."""

    def segments(disturb: bool) -> list[list]:
        torch.manual_seed(0)
        network = FlatNetwork(nn.Linear(3, 2))
        block = SharedBlock(layout.sections(1, len(network.vector), 1))
        store = ParameterStore(block, SharedRMSProp(), 0)
        store.theta.copy_(network.vector)
        collector = make_collector(make_batch("loop"), Outputs(network.net), 21)

        def overwrite(count: int) -> None:
            if disturb:
                store.theta.neg_()  # exchanges the two actions

        actions = []
        for _ in range(2):
            store.pull(network)
            actions.append(collect(collector, record=overwrite).actions[:-1].tolist())
        return actions

    undisturbed, disturbed = segments(False), segments(True)
    assert disturbed[0] == undisturbed[0]
    assert disturbed[1] != undisturbed[1]  # the next segment does pull the new weights


class Outputs(nn.Module):
    """A plain module as a Q-network."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def initial_state(self, count: int) -> None:
        return None

    def forward(self, obs: torch.Tensor, state=None) -> tuple[QOutput, None]:
        return QOutput(self.net(obs)), state


def test_reset_starts_new_episodes_and_forgets_running_scores() -> None:
    collector = make_collector(make_batch("loop", [((7,), ("terminated",))]), Parity(), 5)
    collect(collector)
    collector.reset([3], np.zeros(1, np.float32), np.random.default_rng(0))
    first = collect(collector)
    assert numbers(first.obs)[0] == [(0, 0)] and first.obs[0, 0, 0] == 3
    collect(collector)
    assert list(collector.finished) == [(sum(REWARDS), 7)]


def test_columns_of_a_rollout_are_those_environments_with_their_last_observations() -> None:
    rollout = collect(make_collector(make_batch("same-step"), Parity(), 7))
    assert rollout.final_rows.size > 1
    for index in ([1], [1, 0], [0, 1]):
        part = rollout.columns(np.array(index))
        for name in ("obs", "actions", "q_values", "rewards", "ends"):
            np.testing.assert_array_equal(getattr(part, name), getattr(rollout, name)[:, index])
        np.testing.assert_array_equal(part.next_obs(), rollout.next_obs()[:, index])
        np.testing.assert_array_equal(part.epsilon, rollout.epsilon[index])
