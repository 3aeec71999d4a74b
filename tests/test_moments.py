"""Running moments of observations and rewards: what they are, and that all parts of a run agree."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_serial import last, train

from async_dqn import AsyncDQN
from async_dqn.config.presets import resolve
from async_dqn.networks.layers import Chain, Linear, Normalize
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.layout import sections
from async_dqn.parameters.moments import DiscountedSums, Moments, RunMoments, merged
from async_dqn.training import training
from runs import refused

BOTH = {"normalize_observations": True, "scale_rewards": True}


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_workers_sums_together_are_the_plain_two_pass_figures(offset) -> None:
    random = np.random.default_rng(0)
    values = (random.normal(3.0, 0.5, (1000, 4)) + offset).astype(np.float32)
    rows = np.zeros((4, 3, 4))
    for k, part in enumerate(np.array_split(values, 7)):
        Moments(rows, k % 3).add(part)
    count, mean, squares = merged(rows)
    assert count.tolist() == [1000] * 4
    np.testing.assert_allclose(mean, values.mean(0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(squares / count, values.var(0, dtype=np.float64), rtol=1e-9)


@pytest.mark.parametrize("workers", [3, 5])
def test_restored_moments_count_all_that_was_seen(workers) -> None:
    before = np.zeros((4, 3, 2))
    for worker in range(3):
        Moments(before, worker).add(np.random.default_rng(worker).normal(worker, 1, (50, 2)))
    after = np.zeros((workers + 1, 3, 2))
    Moments(after, workers).restore(before)
    np.testing.assert_allclose(merged(after), merged(before), rtol=1e-12)


def test_discounted_sums_begin_anew_with_an_episode() -> None:
    sums = DiscountedSums(2, 0.5)
    rewards = np.array([[1, 1], [1, 1], [1, 1]], np.float32)
    ends = np.array([[False, True], [False, False], [False, False]])
    assert sums.after(rewards, ends).tolist() == [[1, 1], [1.5, 1], [1.75, 1.5]]
    assert sums.after(rewards[:1], ends[:1]).tolist() == [[1.875, 1.75]]


def test_only_the_window_of_the_inputs_is_written() -> None:
    block = SharedBlock(sections(2, 16, 2, moments=(3, 0)))
    moments = RunMoments(block, 0)
    moments.inputs.add(np.array([[0, 2, 4], [2, 6, 4]], np.float32))
    theta = torch.full((16,), 7.0)
    for start in (0, 5, 10):  # as workers of sync mode, each its part
        moments.publish(theta[start : start + 5], start)
    assert theta[:3].tolist() == [1, 4, 4]
    torch.testing.assert_close(theta[3:6], torch.tensor([1.0, 0.5, 1e4]))
    assert theta[6:].tolist() == [7] * 10


def test_normalised_inputs_have_a_limit_and_learn_like_any_layer() -> None:
    layer, dense = Normalize([2]), Linear(2, 1)
    layer.mean.data, layer.factor.data = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 100.0])
    x = torch.tensor([[2.0, -5.0]])
    assert layer(x).tolist() == [[2.0, -10.0]]
    chain = Chain.of([layer, dense])
    assert chain is not None
    torch.testing.assert_close(chain.forward(x), dense(layer(x)))
    chain.backward(torch.ones(1, 1))
    assert dense.weight.grad.tolist() == [[2.0, -10.0]]
    assert layer.mean.grad is None and layer.factor.grad is None


class Noting(gymnasium.Env):
    """Notes every observation that it gives; episodes of seven steps."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    seen: list = []  # noqa: RUF012

    def __init__(self, reward=1.0):
        self.reward = reward

    def _next(self):
        self.t += 1
        obs = self.np_random.normal([0, 50, -3], [1, 10, 0.01]).astype(np.float32)
        self.seen.append(obs)
        return obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = -1
        return self._next(), {}

    def step(self, action):
        obs = self._next()
        return obs, self.reward * (1 + action), self.t == 7, False, {}


QUICK = {"mode": "serial", "workers": 2, "envs_per_worker": 2, "steps": 400, "quiet": True}
QUICK |= {"eval_every": 1000, "eval_episodes": 2, "hidden": (8,)}


def test_the_agent_holds_the_figures_of_what_was_seen(tmp_path) -> None:
    Noting.seen.clear()
    agent = AsyncDQN(Noting, runs_dir=str(tmp_path), **QUICK, normalize_observations=True)
    agent.learn()
    seen = np.array(Noting.seen)
    net = agent.network.net
    np.testing.assert_allclose(net.torso[0].mean.detach(), seen.mean(0), rtol=0.05, atol=0.1)
    np.testing.assert_allclose(1 / net.torso[0].factor.detach(), seen.std(0), rtol=0.1)
    again = AsyncDQN.load(agent.run, Noting)
    np.testing.assert_array_equal(again.q_values(seen[:5]), agent.q_values(seen[:5]))


class Pictures(Noting):
    """Gives pictures, alone or with a speed beside them."""

    seen: list = []  # noqa: RUF012

    def __init__(self, alone=False):
        super().__init__()
        self.alone, picture = alone, spaces.Box(0, 255, (3, 24, 24), np.uint8)
        parts = {"picture": picture, "speed": spaces.Box(-np.inf, np.inf, (2,), np.float32)}
        self.observation_space = picture if alone else spaces.Dict(parts)
        self.colours = np.random.default_rng(0).integers(0, 200, picture.shape)

    def _next(self):
        self.t += 1
        picture = (self.colours + self.np_random.integers(0, 50, self.colours.shape)).astype("u1")
        speed = self.np_random.normal([0, 1000], [1, 10]).astype(np.float32)
        self.seen.append(picture.ravel() if self.alone else [*picture.ravel(), *speed])
        return picture if self.alone else {"picture": picture, "speed": speed}


@pytest.mark.parametrize("alone", [False, True])
def test_every_pixel_has_a_mean_of_its_own_and_so_has_what_is_beside_it(tmp_path, alone) -> None:
    Pictures.seen.clear()
    options = {**QUICK, "env_arg": {"alone": alone}, "normalize_observations": True}
    agent = AsyncDQN(Pictures, runs_dir=str(tmp_path), **options)
    agent.learn()
    seen, first = np.array(Pictures.seen), agent.network.net.torso[0]
    assert first.mean.shape == ((3, 24, 24) if alone else (3 * 24 * 24 + 2,))
    # A quarter of the observations of 400 steps, or fewer: of images only some are looked at.
    np.testing.assert_allclose(first.mean.detach().flatten(), seen.mean(0), atol=10)
    np.testing.assert_allclose(1 / first.factor.detach().flatten(), seen.std(0), rtol=0.5)
    again = AsyncDQN.load(agent.run, Pictures)
    obs = Pictures(alone).reset(seed=1)[0]
    np.testing.assert_array_equal(again.q_values(obs), agent.q_values(obs))


def test_parameters_follow_what_was_seen_in_steps_that_a_resumed_run_takes_too() -> None:
    rows = np.zeros((3, 3, 1))
    one, other = Moments(rows, 0), Moments(rows, 1)
    assert not one.has_news
    one.add(np.ones((1000, 1)))
    assert one.has_news
    other.add(np.ones((1, 1)))
    assert not other.has_news
    other.add(np.ones((50, 1)))
    assert other.has_news
    resumed = Moments(np.zeros((3, 3, 1)), 0)
    resumed.restore(rows)
    answers = set()
    for _ in range(20):
        for moments in (resumed, one):
            moments.add(np.ones((2, 1)))
        assert resumed.has_news == one.has_news
        answers.add(bool(one.has_news))
    assert answers == {True, False}


def test_scaled_rewards_teach_the_same_whatever_their_unit(tmp_path) -> None:
    models = []
    for reward in (1.0, 1000.0):
        agent = AsyncDQN(
            Noting, runs_dir=str(tmp_path), **QUICK, env_arg={"reward": reward}, scale_rewards=True
        )
        agent.learn()
        models.append(torch.cat([p.flatten() for p in agent.network.net.parameters()]))
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
    assert models[0].abs().max() > 0


@pytest.mark.parametrize("workers", [2, 3])
def test_a_run_resumes_with_its_moments(tmp_path, workers) -> None:
    done = last(train(tmp_path, steps=600, **BOTH))
    before = {k: merged(rows.view(np.float64)) for k, rows in done.tensors["moments"].items()}
    again = {"resume": str(done.path), "steps": 1200, "workers": workers, "quiet": True}
    resumed = last(training.train(*resolve(again)))
    for name, rows in resumed.tensors["moments"].items():
        assert len(rows) == workers + 1
        counted = merged(rows.view(np.float64))[0, 0]
        assert before[name][0, 0] == pytest.approx(600, abs=60)
        assert counted == pytest.approx(before[name][0, 0] + 600, abs=60)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--normalize-observations", "--input-scaling"), "both scale vectors"),
        (
            ("--env", "MinAtar/Breakout-v1", "--normalize-observations", "--image-codes", "3"),
            "this image consists of codes",
        ),
    ],
)
def test_what_cannot_be_normalised_is_refused(capsys, tmp_path, options, words) -> None:
    assert words in refused(capsys, tmp_path, *options)
