"""Action masks: illegal actions are never taken, drawn or bootstrapped from, by any method.

The MDPs pay less than 0 for every step, so that the untrained value of an illegal action, about 0,
would be the highest there is: whoever forgets the mask anywhere learns other values.
"""

import functools
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from exact_mdps import MDP, MDPEnv
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from async_dqn import AsyncDQN
from async_dqn.algorithms import exploration
from async_dqn.config.config import Config, UserError
from async_dqn.envs.make import EnvSpec, make_vector, probe
from async_dqn.envs.masks import legal_actions
from async_dqn.networks.architecture import ILLEGAL, Architecture, choose
from async_dqn.networks.network import QNetwork

STATES, ACTIONS, GAMMA = 6, 4, 0.9
SOURCES = ("info", "observation", "method")
LEGAL = np.array(
    [[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], bool
)


def costly(seed: int = 5) -> MDP:
    """The last state ends the episode; there is nothing legal in it."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
    rewards = np.repeat(rng.uniform(-1, -0.2, (STATES, ACTIONS, 1)), STATES, axis=2)
    terminal = np.arange(STATES) == STATES - 1
    return MDP(transitions, rewards, terminal, ~terminal / (STATES - 1), gamma=GAMMA, limit=6)


class MaskedEnv(MDPEnv):
    """Plays an MDP and tells the legal actions; an illegal one leaves a file and raises.

    The mask of each step can be spoilt: `spoil(step, mask)` is given in its place.
    """

    def __init__(self, source: str, folder: str, mdp: MDP | None = None, spoil=None):
        super().__init__(costly() if mdp is None else mdp)
        self.source, self.folder = source, folder
        self.spoil = spoil or (lambda step, mask: mask)
        if source == "method":
            self.action_masks = self._mask
        if source == "observation":
            state, mask = self.observation_space, spaces.Box(0, 1, (ACTIONS,), np.int8)
            self.observation_space = spaces.Dict(action_mask=mask, state=state)

    def reset(self, **kwargs):
        return self._told(super().reset(**kwargs)[0])

    def step(self, action):
        if not LEGAL[self._state, action]:
            Path(self.folder, "illegal").touch()
            raise RuntimeError(f"illegal action {action} in state {self._state}")
        state, *outcome, _ = super().step(action)
        observation, info = self._told(state)
        return observation, *outcome, info

    def _mask(self):
        return self.spoil(self._time, LEGAL[self._state].astype(np.int8))

    def _told(self, state):
        if self.source == "observation":
            return {"action_mask": self._mask(), "state": state}, {}
        return state, {"action_mask": self._mask()} if self.source == "info" else {}


def factory(folder, source: str = "info", **kwargs):
    return functools.partial(MaskedEnv, source, str(folder), **kwargs)


def true_values(policy=lambda q: np.eye(ACTIONS)[np.where(LEGAL, q, -np.inf).argmax(1)]):
    """Q [S, A] of following `policy` of Q; by default the best of the legal actions."""
    mdp = costly()
    expected = (mdp.transitions * mdp.rewards).sum(2)
    q = np.zeros((STATES, ACTIONS))
    for _ in range(2000):
        value = (policy(q) * q).sum(1) * ~mdp.terminal
        q = expected + GAMMA * mdp.transitions @ value
    return q


def half_random(q):
    """Epsilon-greedy with 0.5, over the legal actions."""
    counts = np.maximum(LEGAL.sum(1, keepdims=True), 1)
    best = np.eye(ACTIONS)[np.where(LEGAL, q, -np.inf).argmax(1)]
    return 0.5 * LEGAL / counts + 0.5 * best


ONE_STEP = {"algorithm": "one-step-q"}
HALF = {"epsilon_start": 0.5, "epsilon_final": 0.5}
REPLAY = {**ONE_STEP, "batch_size": 80, "replay_capacity": 20_000}
VALUES = {
    "one-step": ONE_STEP,
    "double": {**ONE_STEP, "double": True},
    "dueling": {**ONE_STEP, "dueling": True},
    "no target network": {**ONE_STEP, "target_sync_steps": None},
    "averaged": {**ONE_STEP, "target": "average", "target_networks": 3},
    "watkins": {"algorithm": "q-lambda", "trace": "watkins"},
    "uniform": {**REPLAY, "replay": "uniform"},
    "prioritized, double": {**REPLAY, "replay": "prioritized", "double": True},
    "sarsa": {"algorithm": "one-step-sarsa"},
}
DISTRIBUTION = {"algorithm": "n-step-q", "distributional": "categorical"}
GREEDY = {
    "n-step": {"algorithm": "n-step-q", "epsilon_final": 0.02},
    "munchausen": {**ONE_STEP, "munchausen": True},
    "categorical": {**DISTRIBUTION, "v_min": -8.0, "v_max": 0.0},
    "quantile": {**DISTRIBUTION, "distributional": "quantile", "atoms": 11},
    "boltzmann": {**ONE_STEP, "exploration": "boltzmann", "temperature_final": 0.3},
    "rescaled": {**ONE_STEP, "value_rescaling": True},
    "noisy": {**ONE_STEP, "noisy": True},
    "recurrent": {**ONE_STEP, "recurrent": True, "network": "mlp", "hidden": (32,)},
    "a3c": {"algorithm": "a3c", "target_sync_steps": None},
}


def slow_unless(quick: bool, *values):
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


def trained(folder, source: str = "info", steps: int = 60_000, **settings) -> AsyncDQN:
    """An agent after a serial run on the MDP."""
    settings = {
        "defaults": "fixed",
        "mode": "serial",
        "workers": 2,
        "envs_per_worker": 16,
        "rollout_length": 5,
        "network": "linear",
        "layer_norm": False,
        "gamma": GAMMA,
        "lr": 0.01,
        "max_grad_norm": 1e6,
        "target_sync_steps": 1000,
        "steps": steps,
        "eval_every": 10**9,
        "eval_episodes": 20,
        "checkpoint_every": 10**9,
        "runs_dir": str(folder),
        **settings,
    }
    return AsyncDQN(factory(folder, source), **settings).learn()


def values(agent: AsyncDQN) -> np.ndarray:
    """Q [S, A] of the states in which one acts."""
    return agent.q_values(np.arange(STATES - 1), mask=LEGAL[:-1])


def check_values(q: np.ndarray, truth: np.ndarray) -> None:
    legal, truth = LEGAL[:-1], truth[:-1]
    assert np.isneginf(q[~legal]).all()
    assert np.abs(q - truth)[legal].max() < 0.05 * np.abs(truth).max()


def check_legal(agent: AsyncDQN, folder: Path) -> None:
    assert not (folder / "illegal").exists()
    states = np.repeat(np.arange(STATES - 1), 50)
    for deterministic in (True, False):
        actions, _ = agent.predict(
            states, deterministic=deterministic, epsilon=1.0, mask=LEGAL[states]
        )
        assert LEGAL[states, actions].all()
    assert json.loads((agent.run / "result.json").read_text())["env_errors"] == 0


def test_the_best_action_of_the_mdp_without_masks_is_often_illegal() -> None:
    free = true_values(lambda q: np.eye(ACTIONS)[q.argmax(1)])[:-1]
    assert (~LEGAL[np.arange(STATES - 1), free.argmax(1)]).sum() >= 2
    assert true_values()[:-1].max() < -0.5


@pytest.mark.parametrize(
    "method",
    [slow_unless(m in ("one-step", "uniform", "sarsa", "watkins"), m) for m in VALUES],
)
def test_values_are_those_of_legal_play(method: str, tmp_path: Path) -> None:
    agent = trained(tmp_path, **{**HALF, **VALUES[method]})
    truth = true_values(half_random) if method == "sarsa" else true_values()
    check_values(values(agent), truth)
    check_legal(agent, tmp_path)


@pytest.mark.parametrize(
    "method", [slow_unless(m in ("categorical", "a3c", "munchausen"), m) for m in GREEDY]
)
def test_the_greedy_policy_is_the_best_legal_one(method: str, tmp_path: Path) -> None:
    half = {} if method in ("n-step", "boltzmann", "noisy", "a3c") else HALF
    agent = trained(tmp_path, **half, **GREEDY[method])
    q, best = values(agent), true_values()[:-1]
    given_away = (
        np.where(LEGAL[:-1], best, -np.inf).max(1) - best[np.arange(STATES - 1), q.argmax(1)]
    )
    assert given_away.max() < 0.05 * np.abs(best).max()
    check_legal(agent, tmp_path)


@pytest.mark.parametrize(("source", "workers"), [("info", 2), slow_unless(False, "method", 1)])
def test_asynchronous_runs_too(source: str, workers: int, tmp_path: Path) -> None:
    agent = trained(tmp_path, source, 80_000, mode="async", workers=workers, **HALF, **ONE_STEP)
    check_values(values(agent), true_values())
    check_legal(agent, tmp_path)
    again = AsyncDQN.load(agent.run, env=factory(tmp_path, source))
    np.testing.assert_array_equal(values(again), values(agent))
    score, _ = again.evaluate(40)
    best = float(np.where(LEGAL, true_values(), -np.inf)[:-1].max(1).mean())
    assert abs(score - best) < 0.35 * abs(best)  # undiscounted, and cut after six steps


@pytest.mark.parametrize("source", SOURCES)
class TestSources:
    """Where masks come from."""

    def test_they_are_found_and_laid_into_the_row(self, source: str, tmp_path: Path) -> None:
        spec = EnvSpec(factory(tmp_path, source))
        info = probe(spec)
        assert info.masks == source and info.observation_shape == (STATES + ACTIONS,)
        assert [part.kind for part in info.parts] == ["vector", "mask"]
        assert "Discrete(6) one-hot -> 6 numbers" in info.observation
        batch = make_vector(EnvSpec(factory(tmp_path, source), masks=source), 3, training=True)
        obs, rng = batch.reset([1, 2, 3]), np.random.default_rng(0)
        for _ in range(100):
            states = obs[:, :STATES].argmax(1)
            assert (obs[:, :STATES].sum(1) == 1).all()
            np.testing.assert_array_equal(obs[:, STATES:], LEGAL[states])
            step = batch.step(legal_actions(info, obs, rng))
            assert not step.faulty.any()
            obs = step.obs
        assert not (tmp_path / "illegal").exists()

    def test_none_sees_nothing_of_them(self, source: str, tmp_path: Path) -> None:
        info = probe(EnvSpec(factory(tmp_path, source, mdp=None), masks="none"))
        width = STATES + ACTIONS * (source == "observation")  # then features like any other
        assert (info.masks, info.observation_shape) == (None, (width,))

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (lambda mask: np.zeros_like(mask), "leaves no legal action"),
            (lambda mask: mask[:-1], r"has shape \(3,\), expected \(4,\)"),
            (lambda mask: mask * 2, "holds more than 0 and 1"),
            (lambda mask: None, "missing"),
            (lambda mask: "all", "shape"),
        ],
    )
    def test_a_wrong_one_is_a_fault_never_an_illegal_action(
        self, source: str, wrong, words: str, tmp_path: Path
    ) -> None:
        spoil = lambda step, mask: wrong(mask) if step == 2 and mask.any() else mask  # noqa: E731
        spec = EnvSpec(factory(tmp_path, source, spoil=spoil), masks=source)
        batch = make_vector(spec, 8, training=True)
        obs, rng = batch.reset(range(8)), np.random.default_rng(0)
        faults = 0
        for _ in range(20):
            step = batch.step(legal_actions(batch.info, obs, rng))
            faults += np.count_nonzero(step.faulty)
            assert step.dummy[step.faulty].all()
            obs = step.obs
        assert faults > 5 and not (tmp_path / "illegal").exists()
        with pytest.raises(ValueError, match=words):
            raise batch.fault

    def test_one_that_is_wrong_at_once_is_refused(self, source: str, tmp_path: Path) -> None:
        spoil = lambda step, mask: mask * 0  # noqa: E731
        with pytest.raises(UserError, match="leaves no legal action"):
            probe(EnvSpec(factory(tmp_path, source, spoil=spoil)))

    def test_the_api_takes_raw_observations(self, source: str, tmp_path: Path) -> None:
        agent = AsyncDQN(factory(tmp_path, source), runs_dir=str(tmp_path))
        env = agent.make_env()
        observation, info = env.reset(seed=3)
        for _ in range(30):
            told = {"mask": info["action_mask"]} if source == "info" else {}
            told = {"mask": env.get_wrapper_attr("action_masks")()} if source == "method" else told
            action, _ = agent.predict(observation, deterministic=False, epsilon=1.0, **told)
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                observation, info = env.reset()
        if source == "observation":
            with pytest.raises(UserError, match="drop mask"):
                agent.predict(observation, mask=LEGAL[0])
        else:
            with pytest.raises(UserError, match="actions are masked; give mask="):
                agent.predict(observation)


class TestRefusals:
    """What masks do not fit is told in one line."""

    def test_actions_that_are_not_discrete(self, tmp_path: Path) -> None:
        class Vectors(MaskedEnv):
            def __init__(self):
                super().__init__("method", str(tmp_path))
                self.action_space = spaces.MultiDiscrete([2, 2])

        with pytest.raises(UserError, match=r"not Discrete.*--action-masks none"):
            probe(EnvSpec(Vectors))

    def test_a_part_of_another_length(self, tmp_path: Path) -> None:
        class Short(MaskedEnv):
            def __init__(self):
                super().__init__("observation", str(tmp_path))
                self.observation_space["action_mask"] = spaces.MultiBinary(3)

        with pytest.raises(UserError, match=r"MultiBinary\(3\) at 'action_mask' for 4 actions"):
            probe(EnvSpec(Short))

    @pytest.mark.parametrize("at", [0, 1])
    def test_infos_that_tell_only_sometimes(self, at: int, tmp_path: Path) -> None:
        class Sometimes(MaskedEnv):
            def _told(self, state):
                observation, info = super()._told(state)
                return observation, info if (self._time > 0) == at else {}

        spec = EnvSpec(functools.partial(Sometimes, "info", str(tmp_path)))
        if at:  # the first action may then be an illegal one, which raises
            spec = EnvSpec(functools.partial(Sometimes, "info", str(tmp_path), mdp=everywhere()))
        with pytest.raises(UserError, match="gives info.*not in"):
            probe(spec)

    def test_model_parallel(self, tmp_path: Path) -> None:
        info = probe(EnvSpec(factory(tmp_path)))
        two = Config.from_flat({"model_parallel": True, "mode": "sync", "workers": 2})
        with pytest.raises(UserError, match="--model-parallel knows no action masks"):
            choose(two, info)


def everywhere() -> MDP:
    """One state to start in, where action 0 is legal."""
    mdp = costly()
    return MDP(mdp.transitions, mdp.rewards, mdp.terminal, np.eye(STATES)[0], GAMMA, 6)


def test_a_vector_environment_with_masks_in_its_infos_is_stepped_one_by_one(tmp_path) -> None:
    class Wide(MaskedEnv):
        def __init__(self, **kwargs):
            super().__init__("info", str(tmp_path), everywhere())
            self.observation_space = spaces.Box(0, 9, (1,), np.float32)

        def _told(self, state):
            return np.array([state], np.float32), super()._told(state)[1]

    def vector(num_envs, **kwargs):
        return SyncVectorEnv([Wide] * num_envs)

    gymnasium.register("Masked/Vector-v0", vector_entry_point=vector, entry_point=Wide)
    spec = EnvSpec("Masked/Vector-v0")
    info = probe(spec)
    assert (info.masks, info.observation_shape, info.batched) == ("info", (1 + ACTIONS,), False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dueling": True},
        {"head": "categorical"},
        {"head": "quantile", "dueling": True},
        {"head": "actor-critic"},
        {"recurrent": True},
        {"layer_norm": False, "network": "linear"},
    ],
    ids=str,
)
class TestNetworks:
    """What the mask does to the output."""

    def pair(self, settings) -> tuple[QNetwork, QNetwork]:
        fields = {"network": "mlp", "layer_norm": True, "dueling": False, **settings}
        common = {"observation_shape": (3,), "scale": 0.5, "num_actions": 4, "hidden": (8,)}
        masked = QNetwork(Architecture(**common, **fields, masked=True))
        plain = QNetwork(Architecture(**common, **fields))
        with torch.no_grad():
            for parameter in masked.parameters():  # away from the small start
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        plain.load_state_dict(masked.state_dict())
        return masked, plain

    def test_legal_values_are_those_without_and_illegal_ones_the_lowest(self, settings) -> None:
        masked, plain = self.pair(settings)
        obs, legal = torch.randn(5, 3), torch.from_numpy(LEGAL[:5])
        output = masked(torch.cat([obs, legal.float()], 1))[0]
        expected = plain(obs)[0].q_values
        assert (output.q_values[~legal] <= ILLEGAL / 2).all()
        if settings.get("head") == "actor-critic":
            policy = expected.softmax(1) * legal
            policy = policy / policy.sum(1, keepdim=True)
            torch.testing.assert_close(output.q_values.softmax(1), policy)
            values = (policy * output.q_values.masked_fill(~legal, 0)).sum(1)
            mean = (expected.softmax(1) * expected).sum(1)  # the state value: no mask changes it
            torch.testing.assert_close(values, mean, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(output.q_values[legal], expected[legal])

    def test_gradients_are_finite_and_those_without_for_legal_actions(self, settings) -> None:
        masked, plain = self.pair(settings)
        obs, legal = torch.randn(5, 3), torch.from_numpy(LEGAL[:5])
        taken = legal.float().argmax(1, keepdim=True)
        passes = []
        for net, seen in ((masked, torch.cat([obs, legal.float()], 1)), (plain, obs)):
            q_values, backward = net.learning_pass(seen)
            gradient = torch.zeros_like(q_values).scatter_(1, taken, 1.0)
            backward(gradient)
            passes.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        assert passes[0].isfinite().all()
        if settings.get("head") != "actor-critic":
            torch.testing.assert_close(passes[0], passes[1])


class TestPolicies:
    """Exploration draws among the legal."""

    Q = np.where(LEGAL[:5], np.random.default_rng(2).normal(size=(5, ACTIONS)), ILLEGAL).astype(
        np.float32
    )

    @pytest.mark.parametrize("policy", [exploration.EPSILON_GREEDY, exploration.BOLTZMANN])
    @pytest.mark.parametrize("strength", [0.3, 1.0])
    def test_actions_have_the_probabilities_that_are_said(self, policy, strength) -> None:
        draws, rng = 40_000, np.random.default_rng(0)
        probabilities = policy.probabilities(self.Q, np.full(5, strength, np.float32))
        assert (probabilities[~LEGAL[:5]] == 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        many = np.repeat(self.Q, draws, axis=0)
        actions, greedy = policy.act(many, np.full(len(many), strength, np.float32), rng)
        assert (greedy == (actions == many.argmax(1))).all()
        counts = np.array([np.bincount(row, minlength=4) for row in actions.reshape(5, draws)])
        np.testing.assert_allclose(counts / draws, probabilities, atol=0.015)
        assert (counts[~LEGAL[:5]] == 0).all()

    def test_without_masks_every_draw_is_what_it_was(self) -> None:
        q_values = np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)
        epsilon = np.full(64, 0.4, np.float32)
        one, other = np.random.default_rng(3), np.random.default_rng(3)
        for _ in range(20):
            actions, _ = exploration.epsilon_greedy(q_values, epsilon, one)
            explore = other.random(64) < epsilon
            drawn = other.integers(5, size=64)
            np.testing.assert_array_equal(actions, np.where(explore, drawn, q_values.argmax(1)))


class Board(gymnasium.Env):
    """A 4 x 4 board to be filled; a cell that is taken must not be taken again."""

    observation_space = spaces.Dict(
        board=spaces.Box(0, 1, (4, 4, 2), np.uint8), action_mask=spaces.MultiBinary(16)
    )
    action_space = spaces.Discrete(16)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = np.zeros(16, bool)
        return self._seen(), {}

    def step(self, action):
        assert not self.taken[action]
        self.taken[action] = True
        return self._seen(), 1.0, bool(self.taken.all()), False, {}

    def _seen(self):
        board = np.stack([self.taken, ~self.taken], 1).reshape(4, 4, 2).astype(np.uint8)
        return {"board": board, "action_mask": ~self.taken}


@pytest.mark.parametrize("settings", [{}, {"replay": "uniform", "replay_start": 500}], ids=str)
def test_a_board_game_is_always_filled(settings: dict, tmp_path: Path) -> None:
    settings = {**settings, "workers": 1, "mode": "serial", "runs_dir": str(tmp_path)}
    agent = AsyncDQN(Board, steps=3_000, **settings).learn()
    assert agent.run_spec.architecture.network == "small-conv"
    assert agent.evaluate(10) == (16.0, 0.0)
    result = json.loads((agent.run / "result.json").read_text())
    assert result["env_errors"] == 0


@pytest.mark.parametrize(("masks", "width"), [("auto", 506), ("none", 500)])
def test_taxi_runs_with_and_without(masks: str, width: int, tmp_path: Path, capsys) -> None:
    settings = {"action_masks": masks, "workers": 1, "mode": "serial", "eval_episodes": 2}
    agent = AsyncDQN("Taxi-v4", steps=2_000, runs_dir=str(tmp_path), **settings)
    agent.learn(progress_bar=True)
    assert agent.run_spec.info.observation_shape == (width,)
    said = capsys.readouterr().out
    assert ("6, masked by info['action_mask']" in said) == (masks == "auto")
