"""`watch`: an agent at play as a film, of a run that is over, or of one that still learns."""

import functools
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
from PIL import Image
from scripted_envs import SpacesEnv
from test_serial import train

from async_dqn import AsyncDQN, cli
from async_dqn.agent import Decision
from async_dqn.config.config import UserError
from async_dqn.watch.pictures import Panel
from async_dqn.watch.play import Stage

CHOSEN, BAR = (0xE0, 0x7B, 0x39), (0xB8, 0xC7, 0xD9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of CartPole."""
    return train(tmp_path_factory.mktemp("runs"), steps=2_500).run


def pictures(path) -> list[np.ndarray]:
    """Of a GIF."""
    with Image.open(path) as film:
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")))
        return frames


def test_a_film_has_a_picture_of_every_step_of_the_greedy_policy(run, tmp_path, capsys) -> None:
    out = tmp_path / "play.gif"
    assert cli.main(["watch", str(run), "--out", str(out), "--seed", "3"]) == 0
    agent = AsyncDQN.load(run)
    env, score, ended = agent.make_env(), 0.0, False
    observation, _ = env.reset(seed=3)
    while not ended:
        action, _ = agent.predict(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        score, ended = score + reward, terminated or truncated
    said = capsys.readouterr().out
    assert f"episode 1: return {score:g}, {score:g} steps" in said and f"film         {out}" in said
    frames = pictures(out)
    assert len(frames) == score + 1
    assert len({frame.tobytes() for frame in frames}) > 0.9 * len(frames)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("env", ["MinAtar/Breakout-v1", "ALE/Pong-v5"])
def test_games_are_shown_as_they_look(env) -> None:
    """Atari's screen in its colours, MinAtar's few cells in the size of a film."""
    stage = Stage(AsyncDQN(env))
    shots = list(stage.episode(seed=1, most=40))
    stage.close()
    assert [shot.step for shot in shots] == list(range(len(shots))) and 1 < len(shots) <= 41
    assert [shot.last for shot in shots] == [False] * (len(shots) - 1) + [True]
    picture = shots[-1].picture
    assert picture.shape[0] == 360 and picture.shape[1] > 360
    assert len(np.unique(picture[:, :200].reshape(-1, 3), axis=0)) > 3


def test_the_screen_is_that_of_the_game_the_agent_plays() -> None:
    """The two games are one: whatever the seed and the actions, sticky ones too."""
    agent = AsyncDQN("ALE/Breakout-v5", env_arg={"repeat_action_probability": 0.5})
    env, rng = agent.make_env(render_mode="rgb_array"), np.random.default_rng(0)
    for seed in (5, None):
        env.reset(seed=seed)
        for _ in range(300):
            observation, *_ = env.step(int(rng.integers(4)))
            grey = env.render().astype(float) @ (0.299, 0.587, 0.114)
            seen = observation[-1].astype(float)
            small = np.asarray(Image.fromarray(grey).resize(seen.shape[::-1], Image.Resampling.BOX))
            assert np.corrcoef(small.ravel(), seen.ravel())[0, 1] > 0.9
    assert env.get_action_meanings() == ["NOOP", "FIRE", "RIGHT", "LEFT"]


def test_the_panel_marks_the_choice_and_draws_values_to_scale() -> None:
    panel = Panel("Env-v0", None, ())
    frame = np.zeros((360, 40, 3), np.uint8)
    values = np.array([0.0, 10.0, 5.0, -np.inf], np.float32)
    picture = panel.draw(frame, Decision(1, 1, values, None), 7, 3.0)
    assert picture.shape == (360, 260, 3)

    def widths(colour) -> list[int]:
        rows = (picture == colour).all(axis=2).sum(axis=1)
        return rows[rows > 0].tolist()

    assert max(widths(CHOSEN)) == pytest.approx(200, abs=3)
    assert max(widths(BAR)) == pytest.approx(100, abs=3)


def test_the_choice_of_an_action_of_components_is_marked_in_each() -> None:
    panel = Panel("Env-v0", None, (2, 3))
    choice = Decision(np.array([1, 0]), 3, np.array([1, 2, 9, 8, 7], np.float32), None)
    rows = panel._rows(choice)
    assert [(name, chosen) for name, _, chosen in rows] == [
        ("0: 0", False),
        ("0: 1", True),
        ("1: 0", True),
        ("1: 1", False),
        ("1: 2", False),
    ]


def test_a_recurrent_agent_carries_its_state() -> None:
    agent = AsyncDQN("CartPole-v1", recurrent=True, algorithm="a3c", network="mlp")
    env = agent.make_env()
    observation, _ = env.reset(seed=0)
    _, state = agent.predict(observation)
    later, _ = agent.predict(observation, state)
    again = agent.decide(observation, state)
    assert int(again.action) == int(later)
    assert not np.allclose(again.q_values, agent.decide(observation).q_values)


def test_following_films_each_new_best_until_the_run_is_over(tmp_path, capsys) -> None:
    words = ["--steps", "40000", "--eval-every", "4000", "--workers", "1", "--quiet"]
    words += ["--runs-dir", str(tmp_path), "--run-name", "a"]
    folder = tmp_path / "CartPole-v1" / "a"
    with subprocess.Popen([sys.executable, "-m", "async_dqn", *words]) as training:
        while not (folder / "checkpoints").is_dir():
            assert training.poll() is None
            time.sleep(0.05)
        out = tmp_path / "b.gif"
        assert cli.main(["watch", str(folder), "--follow", "--out", str(out), "--steps", "30"]) == 0
    assert training.returncode == 0
    films = sorted(path.name for path in tmp_path.glob("b-step-*.gif"))
    best = (folder / "checkpoints" / "best").read_text().strip()
    assert f"b-{best}.gif" == films[-1]
    assert capsys.readouterr().out.count("film ") == len(films)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "play.avi"], "must end in .gif or .mp4"),
        (["--out", "nowhere/play.gif"], "is not a folder"),
        ([], "there is no display"),
        (["--episodes", "0", "--out", "a.gif"], "--episodes must be"),
        (["--follow", "--import", "x", "--bogus"], "unknown option --bogus"),
    ],
)
def test_what_cannot_be_shown_is_refused(run, words, reason, monkeypatch, capsys, tmp_path) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch", str(run), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Blind(gymnasium.Env):
    """Draws nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}


def test_an_environment_that_draws_nothing_is_named() -> None:
    stage = Stage(AsyncDQN(Blind))
    with pytest.raises(UserError, match=r"Blind.* draws no pictures"):
        list(stage.episode(seed=0, most=1))


def test_a_run_is_filmed_while_it_trains(tmp_path) -> None:
    settings = {"steps": 9_000, "checkpoint_every": 3_000, "mode": "serial"}
    agent = train(tmp_path, **settings, video_every=3_000, max_episode_steps=40)
    films = sorted((agent.run / "videos").glob("*.gif"))
    last = f"step-{9_000:012}.gif"
    assert films[-1].name == last and len(pictures(films[-1])) > 1
    assert "film " in (agent.run / "logs" / "videos.log").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(agent.run / "videos"), size_guidance={"images": 0})
    shown.Reload()
    images = shown.Images("play")
    assert [image.step for image in images] == [int(path.stem[5:]) for path in films]
    assert images[-1].encoded_image_string == films[-1].read_bytes()


def test_what_cannot_be_filmed_does_no_harm(tmp_path, capsys) -> None:
    agent = AsyncDQN(
        functools.partial(
            SpacesEnv, gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)
        ),
        workers=1,
        mode="serial",
        envs_per_worker=2,
        eval_episodes=1,
        max_episode_steps=20,
        runs_dir=str(tmp_path),
        video_every=500,
    )
    agent.learn(1_000)
    said = capsys.readouterr().err
    assert "videos failed (" in said and "tries again" in said
    assert agent.num_timesteps == 1_000


def test_recording_wants_a_run_and_nothing_else(tmp_path, capsys) -> None:
    assert cli.main(["watch", str(tmp_path), "--record", "100"]) == 2
    assert "--record wants the folder of a run" in capsys.readouterr().err
    assert cli.main(["watch", str(tmp_path), "--record", "100", "--follow"]) == 2
    assert "--record goes without --follow" in capsys.readouterr().err
