"""Exported agents: a file decides as the agent does, whatever it sees and does, without torch."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from scripted_envs import SpacesEnv
from test_masks import ACTIONS, MaskedEnv
from test_parts import MIXED, WITH_FLOATS, Codes, Missions
from test_serial import train
from torch import nn

from async_dqn import AsyncDQN, cli
from async_dqn.config.config import UserError
from async_dqn.deploy import files, trial
from async_dqn.deploy.policy import Policy
from async_dqn.play import Player, main

SMALL = {"network": "auto", "hidden": (16,)}
BOX = spaces.Box(-2, 2, (3,), np.float64)
SEEN = {
    "vector of doubles": BOX,
    "bytes": spaces.Box(0, 255, (2, 3), np.uint8),
    "states": spaces.Discrete(5, start=-2),
    "several states": spaces.MultiDiscrete([2, 3], start=[1, 0]),
    "flags": spaces.MultiBinary(4),
    "text": spaces.Text(30),
    "tuple": spaces.Tuple([spaces.Discrete(3), BOX, spaces.MultiBinary(2)]),
    "image first": spaces.Box(0, 255, (3, 20, 24), np.uint8),
    "image last": spaces.Box(0, 1, (20, 24, 3), np.float32),
    "large image": spaces.Box(0, 255, (210, 163, 3), np.uint8),
    "large grey image": spaces.Box(0, 255, (150, 130), np.uint8),
    "large floats": spaces.Box(0, 255, (3, 100, 98), np.float32),
    "mixed": MIXED,
    "mixed with floats": WITH_FLOATS,
    "missions": spaces.Dict(mission=Missions(), image=spaces.Box(0, 255, (7, 7, 3), np.uint8)),
    "keys that clash": spaces.Dict({"a": spaces.Dict({"b": BOX}), "a/b": spaces.Discrete(3)}),
}
DONE = {
    "vector": spaces.MultiDiscrete([2, 3], start=[4, 1]),
    "flags": spaces.MultiBinary((2, 1)),
    "bins": spaces.Box(-2, 3, (2,), np.float32),
}


def agent(env, /, **settings) -> AsyncDQN:
    """One with random parameters."""
    made = AsyncDQN(env, **SMALL | settings)
    torch.manual_seed(0)
    made.network.vector.normal_(0, 0.2)
    return made


def decides_alike(made: AsyncDQN, path: Path, count: int = 60, within: float = 1e-4) -> Player:
    """Both on random observations; returns the file's."""
    made.export(path)
    player = Player(path)
    made._space.seed(1)
    env, state, other = made.make_env(), None, None
    for _ in range(count):
        seen = made._space.sample()
        mask = None
        if made.run_spec.info.masks in ("info", "method"):
            seen, mask = seen["observation"], seen["action_mask"]
            mask[0] = 1
        elif made.run_spec.info.masks:
            seen["action_mask"][0] = 1
        ours, theirs = made.decide(seen, state, mask), player.decide(seen, other, mask)
        state, other = ours.state, theirs.state
        np.testing.assert_allclose(theirs.q_values, ours.q_values, rtol=within, atol=within)
        np.testing.assert_array_equal(theirs.action, ours.action)
        assert np.asarray(theirs.action).dtype == np.asarray(ours.action).dtype
        assert env.action_space.contains(theirs.action)
    return player


@pytest.mark.parametrize("space", SEEN.values(), ids=SEEN)
def test_it_sees_what_the_agent_sees(space, tmp_path) -> None:
    made = agent(functools.partial(SpacesEnv, space, spaces.Discrete(4)))
    decides_alike(made, tmp_path / "agent.onnx")


def test_codes_become_one_hots_inside(tmp_path) -> None:
    made = agent(functools.partial(Codes, part=True))
    assert any(part.codes for part in made.run_spec.architecture.parts)
    decides_alike(made, tmp_path / "agent.onnx")


@pytest.mark.parametrize("branching", ["off", "on"])
@pytest.mark.parametrize("space", DONE.values(), ids=DONE)
def test_it_gives_the_environments_own_actions(space, branching, tmp_path) -> None:
    env = functools.partial(SpacesEnv, BOX, space)
    decides_alike(agent(env, branching=branching, action_bins=3), tmp_path / "agent.onnx")


def test_actions_that_are_numbers_begin_where_they_do(tmp_path) -> None:
    env = functools.partial(SpacesEnv, BOX, spaces.Discrete(3, start=-1))
    decides_alike(agent(env), tmp_path / "agent.onnx")


VARIANTS = {
    "recurrent": {"recurrent": True, "algorithm": "a3c"},
    "dueling": {"dueling": True},
    "categorical": {"distributional": "categorical"},
    "quantile": {"distributional": "quantile", "dueling": True},
    "noisy": {"exploration": "noisy", "noisy": True},
    "a3c": {"algorithm": "a3c"},
    "scaled": {"input_scaling": True},
    "normalized": {"normalize_observations": True, "input_scaling": False},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_network_has_its_file(settings, tmp_path) -> None:
    player = decides_alike(agent("MountainCar-v0", **settings), tmp_path / "agent.onnx")
    assert bool(player.about["state"]) == settings.get("recurrent", False)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "a3c"}], ids=["q", "a3c"])
@pytest.mark.parametrize("source", ["info", "observation", "method"])
def test_no_illegal_action_is_chosen(source, settings, tmp_path) -> None:
    made = agent(functools.partial(MaskedEnv, source, str(tmp_path)), **settings)
    decides_alike(made, tmp_path / "agent.onnx")
    player, short = Player(tmp_path / "agent.onnx"), np.ones(ACTIONS - 1)
    with pytest.raises(UserError, match="action_mask has shape"):
        if source == "observation":
            player.predict({"state": 0, "action_mask": short})
        player.predict(0, mask=short)


def test_a_batch_is_decided_at_once(tmp_path) -> None:
    made = agent("LunarLander-v3")
    made.export(tmp_path / "agent.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "agent.onnx")
    seen = np.random.default_rng(0).normal(size=(17, 8)).astype(np.float32)
    actions, q_values = session.run(["action", "q_values"], {"observation": seen})
    np.testing.assert_array_equal(actions, made.predict(seen)[0])
    np.testing.assert_allclose(q_values, made.q_values(seen), atol=1e-5)


@pytest.mark.parametrize("env", ["MinAtar/Breakout-v1", "ALE/Pong-v5"])
def test_games(env, tmp_path) -> None:
    made = AsyncDQN(env)
    lines = made.export(tmp_path / "agent.onnx")
    assert lines[-1].startswith("checked      1,000 observations: the same actions")


def test_the_file_of_torch_needs_nothing_but_torch(tmp_path) -> None:
    made = agent("CartPole-v1")
    made.export(tmp_path / "agent.pt2")
    module = torch.export.load(tmp_path / "agent.pt2").module()
    seen = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    actions, q_values = module(torch.from_numpy(seen))
    np.testing.assert_array_equal(actions, made.predict(seen)[0])
    np.testing.assert_allclose(q_values, made.q_values(seen), atol=1e-6)


def test_bytes_for_weights_make_a_file_smaller(tmp_path) -> None:
    made = agent("LunarLander-v3", hidden=(128, 128))
    made.export(tmp_path / "whole.onnx")
    said = made.export(tmp_path / "bytes.onnx", int8=True)
    whole, small = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "bytes"))
    assert small < 0.4 * whole and "Q-values within" in said[-1]
    choice = Player(tmp_path / "bytes.onnx").decide(np.zeros(8))
    np.testing.assert_allclose(choice.q_values, made.q_values(np.zeros(8))[0], atol=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run of CartPole."""
    return train(tmp_path_factory.mktemp("runs"), steps=2_500).run


def test_export_and_play_from_the_command_line(run, tmp_path, capsys) -> None:
    out = tmp_path / "agent.onnx"
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"file         {out}, " in said and "inputs       observation float32 [N, 4]" in said
    assert main([str(out), "--episodes", "3", "--seed", "5"]) == 0
    *episodes, whole = capsys.readouterr().out.splitlines()
    learned, returns = AsyncDQN.load(run), []
    for seed in (5, 6, 7):
        env, score, ended = learned.make_env(), 0.0, False
        observation, _ = env.reset(seed=seed)
        while not ended:
            action, _ = learned.predict(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            score, ended = score + reward, terminated or truncated
        returns.append(score)
    assert [line.split()[3] for line in episodes] == [f"{score:g}," for score in returns]
    assert whole.startswith(f"mean return {np.mean(returns):.2f}, ") and "us a decision" in whole
    assert list(tmp_path.iterdir()) == [out]


def test_a_player_needs_neither_torch_nor_gymnasium(run, tmp_path) -> None:
    out = tmp_path / "agent.onnx"
    AsyncDQN.load(run).export(out)
    code = (
        "import sys; "
        "sys.modules.update(dict.fromkeys(['torch', 'gymnasium', 'safetensors', 'rich'])); "
        "from async_dqn.play import Player; "
        f"print(Player({str(out)!r}).predict([0.0, 0.1, 0.2, 0.3])[0])"
    )
    played = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert played.stdout.strip() in ("0", "1"), played.stderr


class Untraceable(nn.Module):
    """Decides by values, which no file can follow."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(shape[0], 8)

    def forward(self, seen):
        features = self.layer(seen)
        return features if features.sum().item() > 0 else -features


def test_a_network_that_has_no_file_is_refused(tmp_path) -> None:
    made = AsyncDQN("CartPole-v1", network=Untraceable)
    with pytest.raises(UserError, match="cannot be written as ONNX: "):
        made.export(tmp_path / "agent.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_decides_otherwise_is_not_written(tmp_path, monkeypatch) -> None:
    made = agent("CartPole-v1")
    whole = Policy.forward
    monkeypatch.setattr(Policy, "forward", lambda self, *seen: whole(self, seen[0] * 1.01))
    with pytest.raises(UserError, match="does not decide like the agent .*nothing was written"):
        made.export(tmp_path / "agent.onnx")
    assert not list(tmp_path.iterdir())


def test_ties_are_told_from_other_choices() -> None:
    values = np.array([1.0, 1.0 + 1e-6, 0.0], np.float32)
    assert trial._is_tie(values, values[[1, 0, 2]], [3], 1e-5)
    assert not trial._is_tie(values, values[[2, 0, 1]], [3], 1e-5)
    assert not trial._is_tie(values, values[[1, 2, 0]], [2, 1], 1e-7)
    assert trial._difference(values, np.where(values > 0, values, -np.inf))[0] == np.inf


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "agent.bin"], "--out must end in .onnx or .pt2"),
        (["--out", "nowhere/agent.onnx"], "nowhere is not a folder"),
        (["--out", "agent.pt2", "--int8"], "--int8 is for .onnx files"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_what_cannot_be_written_is_refused(
    run, words, reason, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run), *words]) == 2
    said = capsys.readouterr()
    assert reason in said.err and not said.out and not list(tmp_path.iterdir())


def test_a_missing_package_is_named(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"needs no_such_package; pip install .*\[export\]"):
        AsyncDQN.load(run).export(tmp_path / "agent.onnx")


@pytest.mark.parametrize("known", [None, {"format": 0}])
def test_other_files_are_refused_by_players(known, run, tmp_path) -> None:
    path = tmp_path / "agent.onnx"
    with pytest.raises(UserError, match="cannot be played"):
        path.write_bytes(b"no model")
        Player(path)
    AsyncDQN.load(run).export(path)
    model = onnx.load(path)
    del model.metadata_props[:]
    if known is not None:
        model.metadata_props.add(key="async_dqn", value=json.dumps(known))
    onnx.save(model, path)
    with pytest.raises(UserError, match="not from this version's export"):
        Player(path)


def test_an_agent_of_a_class_is_played_where_its_environment_is_named(tmp_path, capsys) -> None:
    path = tmp_path / "agent.onnx"
    agent(functools.partial(SpacesEnv, BOX, spaces.Discrete(2))).export(path)
    with pytest.raises(UserError, match="it learned SpacesEnv, a class; give --env ID"):
        main([str(path)])
    with pytest.raises(UserError, match="observation has shape"):
        main([str(path), "--env", "CartPole-v1"])


def test_observations_that_do_not_fit_are_refused(tmp_path) -> None:
    parts = {"said": spaces.Text(9), "at": BOX, "in": spaces.Discrete(3, start=1)}
    parts |= {"seen": spaces.Box(0, 255, (2,), np.uint8), "lit": spaces.MultiBinary(2)}
    path, space = tmp_path / "agent.onnx", spaces.Dict(parts)
    agent(functools.partial(SpacesEnv, space, spaces.Discrete(2))).export(path)
    player = Player(path)
    fits = {"said": "go", "at": [0, 0, 0], "in": 3, "seen": [0, 255], "lit": [0, 1]}
    player.predict(fits)
    with pytest.raises(UserError, match=r"no \['"):
        player.predict(np.zeros(3))
    for changed, reason in [
        ({"said": 3}, "observation/said is a int, no text"),
        ({"at": [0, 0]}, r"observation/at has shape \(2,\), expected \(3,\)"),
        ({"at": [0, np.nan, 0]}, "not finite"),
        ({"in": 0}, "observation/in 0 is none of its states"),
        ({"in": 1.5}, "no int64"),
        ({"seen": [0, 256]}, "no uint8"),
        ({"lit": [0, 2]}, "none of its states"),
    ]:
        with pytest.raises(UserError, match=reason):
            player.predict(fits | changed)
