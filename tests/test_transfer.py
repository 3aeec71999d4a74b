"""`--init-from`: a new run begins with the parameters of another one, as far as they fit."""

import numpy as np
import pytest
from test_serial import last, train

from async_dqn import cli
from async_dqn.config.config import UserError
from async_dqn.config.presets import resolve
from async_dqn.runs import checkpoint

FEW = {"steps": 600, "eval_every": 10_000, "checkpoint_every": 300, "lr": 1e-9}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A run of CartPole whose observations are normalised."""
    return train(tmp_path_factory.mktemp("origin"), steps=1_500, normalize_observations=True)


def best(outcome):
    return checkpoint.load(checkpoint.resolve(outcome.run, best=True)).tensors["model"]


def test_a_run_begins_with_the_best_parameters_of_another(origin, tmp_path) -> None:
    begun = train(tmp_path, **FEW, normalize_observations=True, init_from=str(origin.run), seed=9)
    for name, tensor in last(begun).tensors["model"].items():
        if not name.startswith("torso.0"):  # the running moments go on
            np.testing.assert_allclose(tensor, best(origin)[name], atol=1e-5)
    seen = [
        last(run).tensors["moments"]["inputs"].view(np.float64)[:, 0, 0].sum()
        for run in (origin, begun)
    ]
    assert seen[1] == pytest.approx(seen[0] + 600, abs=30)


def test_another_number_of_actions_takes_all_but_the_head_and_says_so(origin, tmp_path, capsys):
    options = {"env": "Scripted/Cue-v0", "import_modules": ("scripted_ids",), "quiet": False}
    with pytest.raises(UserError, match="no parameter"):
        train(tmp_path, **FEW, **options, hidden=(7,), init_from=str(origin.run))
    options = {"env": "Acrobot-v1", "normalize_observations": True, "quiet": False}
    begun = train(tmp_path, **FEW, **options, init_from=str(origin.run))
    said = capsys.readouterr().out.replace("\n", " ")
    said = " ".join(said.split())
    assert "begins with" in said and "anew: head.q.weight [3, 32] (there [2, 32])" in said
    taken = [
        name
        for name, tensor in last(begun).tensors["model"].items()
        if tensor.shape == best(origin).get(name, np.zeros(0)).shape
    ]
    assert taken and not any(name.startswith("head") for name in taken)


def test_a_frozen_torso_stays_as_it_was_while_the_head_learns(origin, tmp_path) -> None:
    options = {"init_from": str(origin.run), "freeze": "torso", "lr": 0.01, "steps": 1_000}
    begun = train(tmp_path, normalize_observations=True, **options)
    for name, tensor in last(begun).tensors["model"].items():
        if name.startswith("torso.0"):
            continue
        same = np.array_equal(tensor, best(origin)[name])
        assert same == (not name.startswith("head.")), name


def test_freezing_what_begins_anew_is_refused_before_anything_is_written(origin, tmp_path) -> None:
    options = {"env": "Acrobot-v1", "normalize_observations": True, "freeze": "torso"}
    with pytest.raises(UserError, match="would keep random parameters"):
        train(tmp_path, **FEW, **options, init_from=str(origin.run))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_what_is_no_run_is_refused(path, tmp_path, capsys) -> None:
    words = ["--init-from", str(tmp_path / path), "--runs-dir", str(tmp_path / "runs")]
    assert cli.main(words) == 2
    assert "no checkpoint" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_resumed_run_does_not_begin_again(origin, tmp_path) -> None:
    with pytest.raises(UserError, match="begins a new run"):
        resolve({"resume": str(origin.run), "init_from": str(origin.run)})
    begun = train(
        tmp_path, **(FEW | {"lr": 0.01}), normalize_observations=True, init_from=str(origin.run)
    )
    before = last(begun).tensors["model"]["head.q.weight"].copy()
    again = train(tmp_path, resume=str(begun.run), steps=600)
    np.testing.assert_array_equal(last(again).tensors["model"]["head.q.weight"], before)
