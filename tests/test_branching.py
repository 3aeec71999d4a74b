"""One head for each component of an action: what it says, how it explores, what it learns."""

import functools
import json
import re

import gymnasium
import numpy as np
import pytest
import torch
from exact_mdps import MDP, MDPEnv, distance, optimal_q
from gymnasium import spaces
from scripted_envs import MatchEnv, SpacesEnv

from async_dqn import AsyncDQN, QLearning, Traits
from async_dqn.algorithms.actions import FLAT, Branched
from async_dqn.algorithms.rollout import Rollout
from async_dqn.algorithms.rollout_passes import squared_loss
from async_dqn.config.config import UserError
from async_dqn.config.rules import NOT_BRANCHING
from async_dqn.envs.make import EnvSpec, make_vector
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork
from async_dqn.peers import settings as peer_settings
from runs import refused

SIZES = [(3, 2, 4), (3, 3), (1, 5), (4,)]
MDP_SIZES = (3, 2)
each_size = pytest.mark.parametrize("sizes", SIZES)


def table_of(q_values: np.ndarray, sizes) -> np.ndarray:
    """The values [..., A] of all combinations, by definition."""
    groups = np.split(q_values, np.cumsum(sizes)[:-1], axis=-1)
    combinations = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), 1)
    values = [[group[..., k] for group, k in zip(groups, one)] for one in combinations]
    return np.stack([np.mean(one, axis=0) for one in values], axis=-1)


@each_size
def test_best_maximum_and_taken_are_those_of_the_table_of_all_combinations(sizes) -> None:
    rng, actions = np.random.default_rng(0), Branched(sizes)
    q_values = rng.normal(size=(7, 5, sum(sizes))).astype(np.float32)
    table = table_of(q_values, sizes)
    assert np.array_equal(actions.best(q_values), table.argmax(-1))
    np.testing.assert_allclose(actions.maximum(q_values), table.max(-1), rtol=1e-6)
    rows, numbers = q_values.reshape(35, -1), rng.integers(np.prod(sizes), size=35)
    taken = table.reshape(35, -1)[np.arange(35), numbers]
    np.testing.assert_allclose(actions.taken(rows, numbers), taken, rtol=1e-5)


def test_as_many_components_as_64_bits_hold() -> None:
    actions, rng = Branched((2,) * 62), np.random.default_rng(0)
    q_values = rng.normal(size=(6, 124)).astype(np.float32)
    kwargs = {"observation_space": spaces.Box(-1, 1, (2,)), "action_space": spaces.MultiBinary(62)}
    batch = make_vector(EnvSpec(SpacesEnv, kwargs), 1, training=True)
    batch.reset([0])
    for number in actions.best(q_values):
        batch.step(np.array([number]))
    wanted = q_values.reshape(6, 62, 2).argmax(2)
    assert np.array_equal(batch.vector.envs[0].unwrapped.taken, wanted)
    taken = actions.taken(q_values, actions.best(q_values))
    np.testing.assert_allclose(taken, actions.maximum(q_values), rtol=1e-5)


# The network and the loss


def network(sizes, dueling: bool, seed: int = 0) -> QNetwork:
    torch.manual_seed(seed)
    shape = {"network": "mlp", "observation_shape": (3,), "hidden": (16,), "layer_norm": True}
    net = QNetwork(
        Architecture(**shape, scale=1.0, num_actions=24, dueling=dueling, branches=sizes)
    )
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.normal_()
    return net


def rollout_of(sizes, length: int = 4, count: int = 3) -> Rollout:
    rng = np.random.default_rng(1)
    none = np.zeros(0, np.int64)
    return Rollout(
        obs=rng.normal(size=(length + 1, count, 3)).astype(np.float32),
        actions=rng.integers(np.prod(sizes), size=(length + 1, count)),
        greedy=None,
        q_values=None,
        rewards=rng.normal(size=(length, count)).astype(np.float32),
        discounts=np.full((length, count), 0.9, np.float32),
        ends=np.zeros((length, count), bool),
        weights=rng.random((length, count), np.float32),
        final_rows=none,
        final_obs=np.zeros((0, 3), np.float32),
    )


@pytest.mark.parametrize("dueling", [False, True])
@each_size
def test_the_gradient_in_closed_form_is_that_of_autograd(sizes, dueling) -> None:
    net, rollout = network(sizes, dueling), rollout_of(sizes)
    targets = np.random.default_rng(2).normal(size=rollout.rewards.shape).astype(np.float32)
    learned = squared_loss(net, rollout, targets, Branched(sizes))
    learned.backward()
    closed = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    groups = net(torch.from_numpy(rollout.obs[:-1].reshape(-1, 3)))[0].q_values.split(sizes, 1)
    indices = np.unravel_index(rollout.actions[:-1].ravel(), sizes)
    rows = torch.arange(12)
    chosen = torch.stack([group[rows, torch.from_numpy(k)] for group, k in zip(groups, indices)])
    weights = torch.from_numpy(rollout.weights.ravel())
    errors = chosen.mean(0) - torch.from_numpy(targets.ravel())
    loss = (weights * 0.5 * errors.square()).sum() / weights.sum()
    loss.backward()
    assert learned.loss == pytest.approx(loss.item(), rel=1e-5)
    assert learned.q_mean == pytest.approx(chosen.mean().item(), rel=1e-4)
    np.testing.assert_allclose(learned.errors, errors.abs().detach(), atol=1e-5)
    for ours, theirs in zip(closed, net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-5)


@each_size
def test_a_dueling_head_has_one_state_value_and_advantages_without_a_mean(sizes) -> None:
    net, obs = network(sizes, dueling=True), torch.randn(5, 3)
    output = net(obs)[0].q_values
    assert output.shape == (5, sum(sizes))
    means = torch.stack([group.mean(1) for group in output.split(sizes, 1)], 1)
    value = net.head.value(net._features(obs))
    torch.testing.assert_close(means, value.expand(5, len(sizes)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"double": True}, {"watkins": True}])
@each_size
def test_targets_are_those_of_a_flat_network_over_all_combinations(sizes, settings) -> None:
    """One that has the table's values: acting, target network, and what was not seen (replay)."""

    class Table(torch.nn.Module):
        noisy = False

        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, obs, state=None):
            output, state = self.net(obs, state)
            values = table_of(output.q_values.numpy(), sizes)
            return output._replace(q_values=torch.from_numpy(values)), state

    nets = [network(sizes, False, seed) for seed in (0, 1)]
    flat, branched = (
        QLearning(0.7, actions=actions, **settings) for actions in (FLAT, Branched(sizes))
    )
    tables, rollout = [Table(net) for net in nets], rollout_of(sizes)
    expected = flat.targets(*tables, rollout)
    np.testing.assert_allclose(branched.targets(*nets, rollout), expected, rtol=1e-4, atol=1e-5)


# Exploring


def explored(sizes, epsilon: float, count: int = 60_000):
    q_values = np.random.default_rng(0).normal(size=sum(sizes)).astype(np.float32)
    rows, strength = np.tile(q_values, (count, 1)), np.full(count, epsilon, np.float32)
    actions = Branched(sizes)
    numbers, greedy = actions.explore(rows, strength, np.random.default_rng(1))
    best = actions.best(q_values[None])[0]
    assert np.array_equal(greedy, numbers == best)
    deviates = np.stack(np.unravel_index(numbers, sizes), 1) != np.unravel_index(best, sizes)
    return numbers, greedy, deviates


def test_epsilon_is_the_probability_that_a_step_explores_however_many_components() -> None:
    for sizes in ((100,), (100,) * 3, (100,) * 9):
        greedy = explored(sizes, 0.2)[1]
        assert greedy.mean() == pytest.approx(0.8, abs=0.01)  # nearly every draw is another value


def test_components_explore_on_their_own_and_mostly_one_at_a_time() -> None:
    _, _, deviates = explored((5,) * 6, 0.1)
    some = deviates.sum(1)[deviates.any(1)]
    assert (some == 1).mean() > 0.9 and some.max() > 1
    assert np.ptp(deviates.mean(0)) < 0.2 * deviates.mean()


def test_at_epsilon_1_all_combinations_are_as_likely_at_0_only_the_best() -> None:
    numbers, _, _ = explored((3, 2, 4), 1.0)
    counts = np.bincount(numbers, minlength=24)
    assert len(counts) == 24 and abs(counts / counts.mean() - 1).max() < 0.1
    assert explored((3, 2, 4), 0.0)[1].all()


# Learning


def additive_mdp(seed: int = 20, states: int = 4) -> MDP:
    """Rewards and transitions are means over components, and so are the optimal values, exactly."""
    rng = np.random.default_rng(seed)
    moves = [rng.dirichlet(np.ones(states), (states, size)) for size in MDP_SIZES]
    gains = [rng.uniform(-1.5, 0.5, (states, size)) for size in MDP_SIZES]
    pairs = [np.unravel_index(a, MDP_SIZES) for a in range(np.prod(MDP_SIZES))]
    mean = [
        [np.mean([part[:, k] for part, k in zip(parts, pair)], axis=0) for pair in pairs]
        for parts in (moves, gains)
    ]
    transitions, rewards = np.stack(mean[0], 1), np.stack(mean[1], 1)
    terminal, start = np.zeros(states, bool), np.full(states, 1 / states)
    rewards = np.repeat(rewards[:, :, None], states, axis=2)
    return MDP(transitions, rewards, terminal, start, gamma=0.8, limit=47)


class ComponentsEnv(MDPEnv):
    """The MDP, its actions in two components."""

    def __init__(self, mdp: MDP):
        super().__init__(mdp)
        self.action_space = spaces.MultiDiscrete(MDP_SIZES)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(int(np.ravel_multi_index(action, MDP_SIZES)))


def test_the_optimal_values_of_the_mdp_are_means_over_components() -> None:
    best = optimal_q(additive_mdp()).reshape(-1, *MDP_SIZES)
    parts = best.mean(2, keepdims=True) + best.mean(1, keepdims=True)
    np.testing.assert_allclose(best, parts - best.mean((1, 2), keepdims=True), atol=1e-8)


ONE_STEP = {"algorithm": "one-step-q"}
REPLAY = {**ONE_STEP, "batch_size": 80, "replay_capacity": 20_000}
METHODS = {
    "one-step": ONE_STEP,
    "double": {**ONE_STEP, "double": True},
    "dueling": {**ONE_STEP, "dueling": True},
    "watkins": {"algorithm": "q-lambda", "trace": "watkins"},
    "uniform": {**REPLAY, "replay": "uniform"},
    "prioritized": {**REPLAY, "replay": "prioritized"},
}


@pytest.mark.parametrize(
    ("method", "mode"),
    [(method, "serial") for method in METHODS] + [("watkins", "async"), ("prioritized", "async")],
)
def test_values_converge_to_the_optimal_ones(method, mode, tmp_path) -> None:
    mdp = additive_mdp()
    settings = {"mode": mode, "workers": 1 if mode == "serial" else 2, "envs": 32}
    settings |= {"network": "linear", "layer_norm": False, "branching": "on"}
    settings |= {"gamma": mdp.gamma, "lr": 0.01, "max_grad_norm": 1e6, "target_sync_steps": 1000}
    settings |= {"epsilon_start": 0.8, "epsilon_final": 0.8, "steps": 60_000}
    settings |= {"eval_every": 10**9, "eval_episodes": 1, "runs_dir": str(tmp_path)}
    settings |= {"defaults": "fixed", **METHODS[method]}
    agent = AsyncDQN(functools.partial(ComponentsEnv, mdp), **settings).learn()
    q_values = table_of(agent.q_values(np.arange(4)), MDP_SIZES)
    assert distance(mdp, q_values, optimal_q(mdp)) < 0.08
    own, _ = agent.predict(np.arange(4))
    assert np.array_equal(own.T, np.unravel_index(optimal_q(mdp).argmax(1), MDP_SIZES))


MATCHING = {"defaults": "fixed", "mode": "serial", "workers": 1, "envs": 16, "gamma": 0.0}
MATCHING |= {"hidden": (64,), "lr": 3e-3, "epsilon_steps": 10_000, "eval_every": 10**9}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"replay": "uniform", "double": True},
        {"noisy": True, "dueling": True},
        {"algorithm": "q-lambda", "trace": "watkins", "persistence": 2.0},
    ],
)
def test_more_combinations_than_can_be_listed_are_learned(settings, tmp_path) -> None:
    """59,049 of them; random actions get a return of 3.3."""
    agent = AsyncDQN(MatchEnv, **MATCHING, steps=40_000, runs_dir=str(tmp_path), **settings)
    agent.learn()
    assert agent.evaluate(20)[0] > 8
    wanted = np.random.default_rng(0).integers(0, 3, (50, 10))
    actions, _ = agent.predict((wanted - 1).astype(np.float32))
    assert (actions == wanted).mean() > 0.8
    assert agent.q_values(np.zeros(10, np.float32)).shape == (1, 30)


def test_recurrent_networks_and_averaged_targets_learn_too(tmp_path) -> None:
    """Of 81 combinations; random actions get a return of 3.3."""
    settings = {"recurrent": True, "target": "average", "branching": "on", "steps": 30_000}
    env = functools.partial(MatchEnv, 4)
    agent = AsyncDQN(env, **MATCHING, **settings, runs_dir=str(tmp_path)).learn()
    assert agent.q_values(np.zeros(4, np.float32)).shape == (1, 12)
    assert agent.evaluate(20)[0] > 6


def test_saved_loaded_resumed_and_evaluated(tmp_path, capsys) -> None:
    settings = {**MATCHING, "eval_episodes": 4, "runs_dir": str(tmp_path / "runs")}
    agent = AsyncDQN(MatchEnv, **settings).learn(2_000, progress_bar=True)
    assert "actions      10 dimensions of 3 values, one head each\n" in capsys.readouterr().out
    stored = json.loads((agent.run / "config.json").read_text())
    assert stored["environment"]["num_actions"] == 3**10
    agent.save(tmp_path / "agent")
    loaded = AsyncDQN.load(tmp_path / "agent", env=MatchEnv)
    env = MatchEnv()
    batch = np.random.default_rng(0).uniform(-1, 1, (8, 10)).astype(np.float32)
    actions, _ = loaded.predict(batch)
    assert np.array_equal(actions, agent.predict(batch)[0])
    assert np.array_equal(actions, agent.q_values(batch).reshape(8, 10, 3).argmax(2))
    for deterministic in (True, False):
        single, _ = loaded.predict(batch[0], deterministic=deterministic)
        assert env.action_space.contains(single)
    assert loaded.predict(batch[:0])[0].shape == (0, 10)
    assert loaded.evaluate(3) == agent.evaluate(3)
    agent.learn(4_000)
    assert json.loads((agent.run / "result.json").read_text())["steps"] == 4_000


def test_workers_and_evaluator_as_processes(tmp_path) -> None:
    settings = {**MATCHING, "mode": "async", "workers": 2, "runs_dir": str(tmp_path)}
    agent = AsyncDQN(MatchEnv, **settings, replay="prioritized").learn(30_000)
    assert agent.evaluate(20)[0] > 5


def test_what_fits_stays_flat_unless_asked_for() -> None:
    env = functools.partial(MatchEnv, 2)
    for branching, outputs in (("auto", 9), ("off", 9), ("on", 6)):
        agent = AsyncDQN(env, **MATCHING, branching=branching)
        assert agent.q_values(np.zeros(2, np.float32)).shape == (1, outputs)
        assert (agent.run_spec.actions is FLAT) == (branching != "on")


def test_a_box_learns_by_one_head_for_each_dimension() -> None:
    space = spaces.Box(np.array([-1, 0, 2], np.float32), np.array([1, 6, 3], np.float32))
    env = functools.partial(
        SpacesEnv, observation_space=spaces.Box(-1, 1, (2,)), action_space=space
    )
    agent = AsyncDQN(env, **MATCHING, action_bins=[40, 3, 50])
    q_values = agent.q_values(np.ones((5, 2), np.float32))
    actions, _ = agent.predict(np.ones((5, 2), np.float32))
    best = np.stack([part.argmax(1) for part in np.split(q_values, [40, 43], 1)], 1)
    centres = space.low + (best + 0.5) * (space.high - space.low) / [40, 3, 50]
    np.testing.assert_allclose(actions, centres, rtol=1e-5)
    assert all(space.contains(action) for action in actions)


# Refusals


class Declared(QLearning):
    """Of the user's, without its own traits for components."""

    traits = Traits(variants=frozenset({"double"}))


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (0, {"algorithm": "a3c"}),
        (0, {"algorithm": "one-step-sarsa"}),
        (0, {"algorithm": Declared(0.0)}),
        (1, {"munchausen": True}),
        (2, {"distributional": "quantile"}),
        (3, {"value_rescaling": True}),
        (4, {"exploration": "boltzmann"}),
        (5, {"mode": "sync", "workers": 2, "model_parallel": True}),
    ],
)
def test_what_needs_whole_actions_is_refused(row, settings) -> None:
    base = {"defaults": "fixed", "env": MatchEnv}
    reason = NOT_BRANCHING[row].reason
    assert "\n" not in reason and "; " in reason
    with pytest.raises(UserError, match=f"^{re.escape(reason)}$"):
        AsyncDQN(**base, **settings)
    AsyncDQN(functools.partial(MatchEnv, 2), defaults="fixed", **settings)


def test_an_own_algorithm_that_declares_branching_learns(tmp_path) -> None:
    class Own(QLearning):
        traits = Traits(variants=frozenset({"branching"}))

    settings = {**MATCHING, "lr": 0.01, "runs_dir": str(tmp_path)}
    agent = AsyncDQN(MatchEnv, algorithm=Own(0.0), **settings).learn(20_000)
    assert agent.evaluate(10)[0] > 6


@pytest.mark.parametrize(
    ("space", "branching", "message"),
    [
        (spaces.Discrete(5), "on", "--branching on is for actions of components, .* has none; dr"),
        (spaces.MultiBinary(13), "off", "has 8192 combinations .* drop --branching off$"),
        (spaces.Box(0, 5000, (1,), np.int64), "auto", "components have 5001 values together, m"),
        (spaces.Box(0, 3000, (2,), np.int64), "on", "6002 values together, more than 4096; use f"),
    ],
)
def test_refusals(space, branching, message) -> None:
    env = functools.partial(
        SpacesEnv, observation_space=spaces.Box(-1, 1, (2,)), action_space=space
    )
    with pytest.raises(UserError, match=message) as said:
        AsyncDQN(env, branching=branching)
    assert "\n" not in str(said.value)


def test_a_run_goes_on_with_its_own_heads_only(tmp_path, capsys) -> None:
    arguments = ("--import", "scripted_ids", "--env", "Scripted/Match-v0", "--mode", "serial")
    arguments += ("--workers", "1", "--steps", "400", "--eval-episodes", "2", "--quiet")
    arguments += ("--env-arg", "components=2", "--runs-dir", str(tmp_path))
    from async_dqn.cli import main

    assert main((*arguments, "--branching", "on")) == 0
    (run,) = tmp_path.glob("*/*/")
    said = refused(capsys, tmp_path, *arguments, "--resume", str(run), "--branching", "off")
    assert "branching on vs off; start a new run or drop --branching" in said


def test_sb3_is_refused_what_only_branching_can_serve() -> None:
    spec = EnvSpec(MatchEnv)
    batch = make_vector(spec, 1, training=True)
    with pytest.raises(UserError, match="sb3-dqn has an output for each .* 59049 of them"):
        peer_settings.choose(spec, batch.info)


def test_pendulum_has_one_head() -> None:
    agent = AsyncDQN("Pendulum-v1", branching="on", action_bins=7)
    observation, _ = gymnasium.make("Pendulum-v1").reset(seed=0)
    assert agent.q_values(observation).shape == (1, 7) and isinstance(
        agent.run_spec.actions, Branched
    )
