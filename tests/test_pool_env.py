"""EnvPool's environments against gymnasium's and ale-py's, action by action."""

import gymnasium
import numpy as np
import pytest

from async_dqn import cli
from async_dqn.config.config import UserError
from async_dqn.envs.make import EnvSpec, make_vector, probe

pytest.importorskip("envpool")


def batches(env: str, count: int = 1, **given):
    """EnvPool's version in training, and gymnasium's."""
    return (
        make_vector(EnvSpec(env, backend=backend, **given), count, training=True)
        for backend in ("envpool", "gymnasium")
    )


@pytest.mark.parametrize(("env", "limit"), [("CartPole-v1", 15), ("MountainCar-v0", 30)])
def test_classic_control_goes_where_gymnasiums_goes(env, limit):
    pool, _ = batches(env, 2, max_episode_steps=limit)
    observations = pool.reset([3, 4])
    actions = np.random.default_rng(0).integers(0, pool.info.num_actions, (200, 2))
    model = gymnasium.make(env, max_episode_steps=limit)
    model.reset()
    model.unwrapped.state = tuple(observations[0].astype(float))
    ends = set()
    for both in actions:
        step = pool.step(both)
        if step.dummy[0]:
            assert not (step.ended[0] or step.scores[0])
            model.reset()
            model.unwrapped.state = tuple(step.obs[0].astype(float))
            continue
        obs, reward, terminated, truncated, _ = model.step(int(both[0]))
        assert step.obs[0] == pytest.approx(obs, abs=1e-4), "the true last one at an end, too"
        assert (step.scores[0], step.ended[0]) == (reward, terminated or truncated)
        # What ends by itself in the step of its limit is cut in EnvPool.
        assert (step.terminated[0], step.truncated[0]) == (terminated and not truncated, truncated)
        ends |= {"terminated"} if terminated else {"truncated"} if truncated else set()
    assert ends == ({"terminated", "truncated"} if env == "CartPole-v1" else {"truncated"})


@pytest.mark.parametrize(
    ("game", "ends"), [("Breakout", True), ("Breakout", False), ("Pong", True)]
)
def test_atari_plays_the_game_of_ale_py(game, ends):
    pytest.importorskip("ale_py")
    # No random number is left: one no-op, no sticky actions.
    fixed = {"noop_max": 1, "repeat_action_probability": 0.0}
    given = {"max_episode_steps": 200, "clip_rewards": ends, "life_loss_ends": ends}
    pool, own = batches(f"ALE/{game}-v5", kwargs=fixed, **given)
    pool.reset([1])
    own.reset([1])
    lives = since = 0
    for action in np.random.default_rng(2).integers(0, own.info.num_actions, (900, 1)):
        step, model = pool.step(action), own.step(action)
        for part in ("rewards", "scores", "terminated", "truncated", "ended"):
            assert getattr(step, part) == getattr(model, part), part
        last = model.final_obs if model.ended else model.obs
        since += 1
        if since > 3:  # before, frames of the stack are from before the start
            # At a time limit ale-py leaves the last frame unpooled.
            assert (step.obs != last).sum() <= (50 if model.truncated else 0)
        lives += bool(step.terminated and not step.ended)
        if model.ended:
            since = 0
            assert pool.step(action).dummy.all()
    assert (lives > 0) == (ends and game == "Breakout")


def test_seeds_say_what_is_played():
    pool, _ = batches("LunarLander-v3", 2)
    first, again, other = (pool.reset(seeds) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert (first == again).all() and (first != other).any()
    assert (first[0] != first[1]).any()


def test_what_gymnasium_says_of_the_environment_holds():
    pytest.importorskip("Box2D")
    assert probe(EnvSpec("LunarLander-v3", backend="envpool")) == probe(EnvSpec("LunarLander-v3"))
    spec = EnvSpec("LunarLander-v3", backend="envpool")
    assert (
        make_vector(spec, 1, training=False).vector.metadata["autoreset_mode"].name == "SAME_STEP"
    )


@pytest.mark.parametrize(
    ("env", "given", "message"),
    [
        ("Blackjack-v1", {}, "EnvPool's Blackjack-v1 has observations"),
        ("phys2d/Nope-v0", {}, "no environment 'phys2d/Nope-v0'"),
        ("MinAtar/Breakout-v1", {}, "EnvPool has no MinAtar/Breakout-v1; drop --env-backend"),
        ("LunarLander-v3", {"kwargs": {"gravity": -9.0}}, "unexpected keyword argument 'gravity'"),
        (
            lambda: gymnasium.make("CartPole-v1"),
            {},
            "EnvPool has no .*lambda.*; drop --env-backend",
        ),
    ],
)
def test_what_envpool_does_not_have_is_refused(env, given, message):
    if isinstance(env, str) and env.startswith("MinAtar"):
        pytest.importorskip("minatar")
    with pytest.raises(UserError, match=message):
        probe(EnvSpec(env, backend="envpool", **given))


def test_workers_learn_in_envpool_and_are_judged_in_gymnasium(tmp_path):
    size = ("--steps", "3000", "--workers", "2", "--oversubscribe", "--eval-every", "1000")
    where = ("--runs-dir", str(tmp_path), "--quiet")
    assert cli.main(["train", "--env-backend", "envpool", *size, *where]) == 0
