"""What a learner makes of rollouts and draws: their number, random shifts, an annealed horizon."""

import copy

import numpy as np
import pytest
from scripted_envs import ChainEnv
from test_learner import Bench

from async_dqn.algorithms.horizon import Horizon
from async_dqn.algorithms.rollout import Rollout
from async_dqn.config.config import Config, UserError
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.replay.shifts import shift_images

REPLAY = {"replay": "uniform", "replay_start": 1, "batch_size": 8}


def learned_from(bench: Bench) -> list[tuple[Rollout, float]]:
    """The batches of the losses to come, and the lambda of each."""
    seen, gradient = [], bench.learner._gradient

    def keep(rollout):
        seen.append((copy.deepcopy(rollout), bench.learner.algorithm.lam))
        return gradient(rollout)

    bench.learner._gradient = keep
    return seen


@pytest.mark.parametrize("wanted", [0.5, 2.0, 7.3])
def test_so_many_samples_are_drawn_for_each_step(wanted) -> None:
    """Whatever the batch: here one of 8 segments of 4 steps, from rollouts of 8 steps."""
    bench = Bench(**REPLAY, algorithm="n-step-q", samples_per_step=wanted)
    for _ in range(5):
        bench.update()  # until the replay has segments
    seen = learned_from(bench)
    for _ in range(50):
        bench.update()
    sampled = sum(rollout.rewards.size for rollout, _ in seen)
    assert sampled == pytest.approx(wanted * 50 * 8, abs=8 * 4)


def test_a_horizon_grows_by_the_same_factor_in_every_step() -> None:
    horizon = Horizon(100, (0.99, 0.0), (0.97, 0.997))
    assert horizon.at(0) == pytest.approx((0.99, 0.97))
    assert horizon.at(50) == pytest.approx((1 - 0.1, 1 - (0.03 * 0.003) ** 0.5))
    assert horizon.at(100) == horizon.at(10_000) == pytest.approx((0.0, 0.997))
    assert Horizon(100, (1.0, 0.5), (0.9, 1.0)).at(50) == pytest.approx((0.75, 0.95))


@pytest.mark.parametrize("settings", [{}, REPLAY], ids=["rollouts", "replay"])
def test_a_learner_learns_with_the_horizon_of_its_step(settings) -> None:
    annealed = {"lam": 0.5, "lam_start": 0.9, "gamma": 0.99, "gamma_start": 0.9}
    bench = Bench(**settings, **annealed, algorithm="q-lambda", horizon_steps=400)
    seen = learned_from(bench)
    horizon = Horizon(400, (0.9, 0.5), (0.9, 0.99))
    steps = []
    for _ in range(60):
        step, before = bench.store.steps, len(seen)
        bench.update()
        steps += [step] * (len(seen) - before)
    assert len(seen) > 50 and steps[0] < 50 and steps[-1] > 400
    for step, (rollout, lam) in zip(steps, seen, strict=True):
        expected = horizon.at(step)
        assert lam == pytest.approx(expected[0])
        discounts = rollout.discounts[rollout.discounts > 0]
        assert discounts == pytest.approx(expected[1])


def images(rng: np.random.Generator) -> Rollout:
    """Three steps of two segments of images of five by six."""
    obs = rng.integers(0, 255, (4, 2, 3, 5, 6)).astype(np.uint8)
    finals = rng.integers(0, 255, (2, 3, 5, 6)).astype(np.uint8)
    zeros = np.zeros((3, 2), np.float32)
    flags = np.zeros((3, 2), bool)
    rows = np.array([1, 4])  # step 0 of segment 1, step 2 of segment 0
    actions = np.zeros((4, 2), np.int64)
    return Rollout(obs, actions, None, None, zeros, zeros, flags, zeros, rows, finals)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Pixel by pixel; what comes in from outside is the nearest pixel inside."""
    height, width = image.shape[-2:]
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source = min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)
            result[..., y, x] = image[(..., *source)]
    return result


def test_a_shift_moves_all_images_of_a_segment_alike_and_repeats_the_edge() -> None:
    rng = np.random.default_rng(0)
    before, after = images(rng), images(np.random.default_rng(0))
    drawn = set()
    for _ in range(40):
        after.obs, after.final_obs = before.obs.copy(), before.final_obs.copy()
        shift_images(after, 2, rng)
        for segment in range(2):
            fits = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if np.array_equal(after.obs[:, segment], moved(before.obs[:, segment], down, right))
            ]
            assert len(fits) == 1
            drawn.add(fits[0])
            final = {1: 0, 0: 1}[segment]
            assert np.array_equal(after.final_obs[final], moved(before.final_obs[final], *fits[0]))
    assert len(drawn) > 20


@pytest.mark.parametrize(("pixels", "unmoved"), [(0, 1.0), (3, 1 / 49)])
def test_what_is_drawn_from_replay_is_shifted_and_what_is_stored_is_not(pixels, unmoved) -> None:
    settings = {**REPLAY, "algorithm": "n-step-q", "random_shift": pixels}
    bench = Bench("MinAtar/Breakout-v1", **settings)
    seen = learned_from(bench)
    for _ in range(40):
        bench.update()
    known = {image.tobytes() for image in bench.learner.shard.state()["obs"]}
    drawn = [image.tobytes() for rollout, _ in seen for image in rollout.obs[0]]
    assert np.mean([image in known for image in drawn]) == pytest.approx(unmoved, abs=0.05)


def test_shifts_of_what_is_no_image_are_refused() -> None:
    config = Config.from_flat({**REPLAY, "random_shift": 4})
    with pytest.raises(UserError, match="moves images"):
        architecture.choose(config, make.probe(EnvSpec(ChainEnv)))
