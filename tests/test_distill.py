"""Small networks that decide like an agent."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scripted_envs import SpacesEnv
from test_export import agent
from test_masks import ACTIONS, MaskedEnv
from test_serial import train

from async_dqn import AsyncDQN, cli
from async_dqn.config.config import UserError
from async_dqn.distill.student import _q_values, student_of
from async_dqn.play import Player

BOX = spaces.Box(-1, 1, (3,), np.float32)


def same(teacher, student, count: int = 300) -> float:
    """The share of random observations on which both choose the same action."""
    teacher._space.seed(3)
    seen = np.stack([teacher._space.sample() for _ in range(count)])
    ours, theirs = teacher.predict(seen)[0], student.predict(seen)[0]
    return float(np.mean(np.asarray(ours == theirs).reshape(count, -1).all(axis=1)))


def teacher_of(env, **settings) -> AsyncDQN:
    """An agent with random parameters that takes every action now and then."""
    made = agent(env, **settings)
    for seed in range(100):
        made.network.vector.normal_(0, 0.4, generator=torch.Generator().manual_seed(seed))
        made._space.seed(3)
        actions = made.predict(np.stack([made._space.sample() for _ in range(200)]))[0]
        if np.unique(actions, axis=0, return_counts=True)[1].max() < 140:
            return made
    raise AssertionError("no such parameters")


@pytest.mark.parametrize(
    "settings",
    [{}, {"dueling": True}, {"distributional": "categorical"}, {"algorithm": "a3c"}],
    ids=["q", "dueling", "categorical", "a3c"],
)
def test_a_student_decides_like_its_teacher(settings) -> None:
    teacher = teacher_of(functools.partial(SpacesEnv, BOX, spaces.Discrete(3)), **settings)
    before = teacher.network.vector.clone()
    student = student_of(teacher, (32,), 4_000)
    assert student.run_spec.architecture.hidden == (32,) and same(teacher, student) > 0.93
    assert torch.equal(teacher.network.vector, before)
    untaught = student_of(teacher, (32,), 16)
    assert same(teacher, untaught) < same(teacher, student)


def test_each_component_of_an_action_is_taught() -> None:
    env = functools.partial(SpacesEnv, BOX, spaces.MultiDiscrete([3, 2]))
    teacher = teacher_of(env, branching="on")
    student = student_of(teacher, (32,), 4_000)
    assert same(teacher, student) > 0.88


def test_a_student_takes_legal_actions_only(tmp_path) -> None:
    teacher = agent(functools.partial(MaskedEnv, "info", str(tmp_path)))
    student = student_of(teacher, (8,), 400)
    for allowed in range(ACTIONS):
        mask = np.arange(ACTIONS) == allowed
        assert student.predict(0, mask=mask.astype(np.int8))[0] == allowed
    assert not (tmp_path / "illegal").exists()


def test_convolutions_get_narrower_and_normalisation_stays() -> None:
    image = spaces.Box(0, 255, (4, 40, 40), np.uint8)
    env = functools.partial(SpacesEnv, image, spaces.Discrete(3))
    teacher = AsyncDQN(env, network="nips", normalize_observations=True, layer_norm=False)
    teacher.network.vector.normal_(0, 0.05)
    student = student_of(teacher, (16,), 200)
    theirs, ours = (who.network.net.torso[0] for who in (teacher, student))
    assert torch.equal(theirs.mean, ours.mean) and torch.equal(theirs.factor, ours.factor)
    shapes = [tuple(p.shape) for p in student.network.net.parameters() if p.ndim == 4]
    assert shapes == [(8, 4, 8, 8), (16, 8, 4, 4)]
    rows = np.random.default_rng(0).integers(256, size=(5, 4, 40, 40)).astype(np.uint8)
    assert _q_values(student.network.net, rows).shape == (5, 3)


def test_from_the_command_line(tmp_path, capsys) -> None:
    run = train(tmp_path / "runs", steps=2_500).run
    out = tmp_path / "small.onnx"
    words = ["distill", str(run), "--out", str(out), "--hidden", "8", "--episodes", "3"]
    assert cli.main([*words, "--observations", "2000"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == "file size a decision mean return of the agent's".split()
    assert [row[:20].strip() for row in rows] == [
        *("agent", "agent, int8", "hidden 8", "hidden 8, int8"),
    ]
    assert rows[0].split()[-1] == "100%" and last == f"file         {out}"
    assert isinstance(Player(out).predict(np.zeros(4))[0], int)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"recurrent": True, "algorithm": "a3c"}, "has no memory"),
        ({"network": lambda shape: torch.nn.Flatten()}, "distill is for vectors and the networks"),
    ],
)
def test_what_cannot_be_distilled_is_refused(settings, reason) -> None:
    with pytest.raises(UserError, match=reason):
        student_of(AsyncDQN("CartPole-v1", **settings), (8,), 100)


def test_the_file_is_checked_before_the_work(tmp_path: Path, capsys) -> None:
    assert cli.main(["distill", "no-run", "--out", str(tmp_path / "small.pt2")]) == 2
    assert "--out must end in .onnx" in capsys.readouterr().err
