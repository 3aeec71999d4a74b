"""--wrap and --eval-wrap: wrappers of the user's around every copy of the environment."""

import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation
from test_serial import last, train

from async_dqn.config.fields import UserError
from async_dqn.envs.make import make_to_watch, make_vector, probe
from async_dqn.envs.spec import EnvSpec
from async_dqn.envs.wrap import parse
from runs import refused

STACK = "gymnasium.wrappers:FrameStackObservation stack_size=3"


class Bonus(gymnasium.RewardWrapper):
    """Adds to every reward."""

    def __init__(self, env, by=1.0):
        super().__init__(env)
        self.by = by

    def reward(self, reward):
        return reward + self.by


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    module = types.ModuleType("own_wrappers")
    module.Bonus, module.Nothing = Bonus, lambda env: None
    monkeypatch.setitem(sys.modules, "own_wrappers", module)


def test_keywords_are_values_of_toml_and_may_hold_spaces() -> None:
    text = 'nes:Joypad actions=[["right"], ["right", "A"]] skip=4 name=a b'
    wanted = {"actions": [["right"], ["right", "A"]], "skip": 4, "name": "a b"}
    assert parse(text) == ("nes:Joypad", wanted)


def test_wrappers_are_applied_in_order_in_training_and_evaluation() -> None:
    spec = EnvSpec("CartPole-v1", wrap=("own_wrappers:Bonus by=2", STACK))
    spec = EnvSpec(spec.env, wrap=spec.wrap, import_modules=("own_wrappers",))
    for training in (True, False):
        batch = make_vector(spec, 4, training)
        assert batch.reset(range(4)).shape == (4, 12)
        assert batch.step(np.zeros(4, np.int64)).scores.tolist() == [3.0] * 4
    env = make_to_watch(spec, None).env
    assert isinstance(env, FrameStackObservation) and isinstance(env.env, Bonus)


@pytest.mark.parametrize("evaluation", ["own_wrappers:Bonus by=5", "none"])
def test_evaluations_may_have_wrappers_of_their_own(evaluation) -> None:
    wraps = {"wrap": ("own_wrappers:Bonus by=2",), "eval_wrap": (evaluation,)}
    spec = EnvSpec("CartPole-v1", import_modules=("own_wrappers",), **wraps)
    assert probe(spec).num_actions == 2
    scores = []
    for training in (True, False):
        batch = make_vector(spec, 3, training)
        batch.reset(range(3))
        scores.append(batch.step(np.zeros(3, np.int64)).scores[0])
    assert scores == [3.0, 1.0 if evaluation == "none" else 6.0]


def test_a_run_learns_in_its_wrappers_and_resumes_in_them(tmp_path) -> None:
    options = {"wrap": ("own_wrappers:Bonus by=9",), "import_modules": ("own_wrappers",)}
    outcome = train(tmp_path, steps=1000, eval_every=400, **options)
    rows = (outcome.run / "evaluations.csv").read_text().splitlines()
    assert all(float(row.split(",")[4]) >= 80 for row in rows[1:])  # ten a step
    assert last(outcome).state["config"]["environment"]["wrap"] == ["own_wrappers:Bonus by=9"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--wrap", "FrameStack"), "is given as 'module:Class"),
        (("--wrap", "own_wrappers:Bonus"), "add --import own_wrappers if you trust it"),
        (("--wrap", "gymnasium.wrappers:NoSuch"), "has no NoSuch"),
        (("--wrap", STACK.replace("stack_size", "size")), "unexpected keyword"),
        (("--import", "own_wrappers", "--wrap", "own_wrappers:Nothing"), "made a NoneType"),
        (("--wrap", STACK, "--eval-wrap", "none"), "changes observation_shape"),
        (("--env", "ALE/Pong-v5", "--wrap", STACK), "for single environments"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(capsys, tmp_path, options, words) -> None:
    assert words in refused(capsys, tmp_path, *options)


def test_a_wrapper_with_statistics_is_warned_about(capsys) -> None:
    probe(EnvSpec("Pendulum-v1", wrap=("gymnasium.wrappers:NormalizeObservation",)))
    assert "use --normalize-observations" in capsys.readouterr().err
    probe(
        EnvSpec(
            "Pendulum-v1", wrap=("gymnasium.wrappers:RescaleAction min_action=-1 max_action=1",)
        )
    )
    assert not capsys.readouterr().err


def test_a_loaded_agent_needs_the_modules_of_its_wrappers(tmp_path) -> None:
    from async_dqn import AsyncDQN

    options = {"wrap": ("own_wrappers:Bonus by=9",), "import_modules": ("own_wrappers",)}
    outcome = train(tmp_path, steps=500, **options)
    with pytest.raises(UserError, match="own_wrappers"):
        AsyncDQN.load(outcome.run)
    assert AsyncDQN.load(outcome.run, import_modules=["own_wrappers"]).evaluate(2)[0] >= 80
