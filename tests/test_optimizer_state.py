"""Whose the optimiser's state is, shared or a worker's own, over deaths, resumes, more workers."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from async_dqn.config.config import UserError
from async_dqn.config.presets import resolve
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.optimizers import OPTIMIZERS, Momentum
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes import spawn
from async_dqn.runs import checkpoint
from async_dqn.training import training

SIZE = 16
OWN = [name for name, kind in OPTIMIZERS.items() if not kind.shared]
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def new_block(name: str, workers: int) -> SharedBlock:
    kind = OPTIMIZERS[name]
    block = SharedBlock(layout.sections(workers, SIZE, kind.rows, kind.shared))
    block["multipliers"][:] = 1.0
    return block


def stores(block: SharedBlock, name: str) -> list[ParameterStore]:
    """Of every slot: the workers', the evaluator's, the trainer's."""
    return [ParameterStore(block, OPTIMIZERS[name](), s) for s in range(len(block["slots"]))]


@each_optimizer
def test_a_push_changes_the_state_of_all_workers_if_shared_and_of_its_own_otherwise(name) -> None:
    block = new_block(name, workers=3)
    one = stores(block, name)[1]
    one.push(torch.ones(SIZE), 0.01)
    owners = 1 if OPTIMIZERS[name].shared else 3
    assert block["optimizer"].shape == (owners, OPTIMIZERS[name].rows, SIZE)
    changed = block["optimizer"].any(axis=(1, 2)).tolist()
    assert changed == ([True] if owners == 1 else [False, True, False])


@pytest.mark.parametrize("name", OWN)
def test_workers_with_a_state_of_their_own_move_theta_as_if_each_had_been_alone(name) -> None:
    """Only theta is common: the sum of both workers' moves, each from its own state."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 2, SIZE, generator=generator)
    together = new_block(name, workers=2)
    pair = stores(together, name)
    moves = torch.zeros(SIZE)
    for turn in gradients:
        for worker in range(2):
            pair[worker].push(turn[worker], 0.01)
    for worker in range(2):
        alone = stores(new_block(name, workers=1), name)[0]
        for turn in gradients:
            alone.push(turn[worker], 0.01)
        moves += alone.theta
        np.testing.assert_array_equal(together["optimizer"][worker, 0], alone.state[0])
    torch.testing.assert_close(pair[0].theta, moves)


@pytest.mark.parametrize("name", OWN)
def test_evaluator_and_trainer_have_no_state_that_a_push_could_move(name) -> None:
    block = new_block(name, workers=2)
    for store in stores(block, name)[2:]:
        with pytest.raises(ValueError):
            store.push(torch.ones(SIZE), 0.01)
    assert not block["optimizer"].any() and not block["theta"].any()


def push_and_die(block: SharedBlock, slot: int, pushes: int) -> None:
    store = ParameterStore(block, Momentum(), slot)
    for _ in range(pushes):
        store.push(torch.full((SIZE,), slot + 1.0), 0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_workers_own_state_survives_its_death_and_its_successor_goes_on() -> None:
    block = new_block("momentum", workers=2)
    for slot, pushes in ((0, 3), (1, 4), (0, 5)):
        child = spawn.context().Process(target=push_and_die, args=(block, slot, pushes))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    expected = [1 - 0.9**8, 2 * (1 - 0.9**4)]  # 8 pushes of 1 in slot 0, 4 of 2 in slot 1
    np.testing.assert_allclose(block["optimizer"][:, 0, 0], expected, rtol=1e-5)


# Checkpoints

SMALL = {
    "mode": "serial",
    "workers": 2,
    "envs_per_worker": 2,
    "steps": 600,
    "checkpoint_every": 300,
    "eval_episodes": 2,
    "hidden": (8,),
    "lr": 1e-4,
    "quiet": True,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each optimiser."""
    folder = str(tmp_path_factory.mktemp("runs"))
    return {
        name: training.train(*resolve({**SMALL, "optimizer": name, "runs_dir": folder})).run
        for name in OPTIMIZERS
    }


@pytest.fixture
def run(runs, name, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(runs[name], tmp_path / "CartPole-v1" / "x"))


def state_of(run: Path) -> dict[str, np.ndarray]:
    return checkpoint.load(checkpoint.resolve(run)).tensors["optimizer"]


def resume(run: Path, **settings) -> dict[str, np.ndarray]:
    """Resume at the end of the budget, which saves what was restored; returns the state."""
    training.train(*resolve({"resume": str(run), "quiet": True, **settings}))
    return state_of(run)


@each_optimizer
def test_every_row_is_saved_under_its_name_and_comes_back_bit_for_bit(name, run) -> None:
    rows = range(OPTIMIZERS[name].rows)
    if OPTIMIZERS[name].shared:
        names = {f"row_{k}" for k in rows}
    else:
        names = {f"worker_{worker}.row_{k}" for worker in range(2) for k in rows}
    before = state_of(run)
    assert before.keys() == names and all(row.any() for row in before.values())
    assert len({row.tobytes() for row in before.values()}) == len(names)
    after = resume(run)
    assert after.keys() == names
    assert all(np.array_equal(after[row], before[row]) for row in names)


@each_optimizer
def test_a_resumed_run_goes_on_as_if_never_interrupted(name, run) -> None:
    middle = min((run / "checkpoints").glob("step-*"))
    assert checkpoint.load(middle).step < 400
    whole = checkpoint.load(checkpoint.resolve(run))
    training.train(*resolve({"resume": str(middle), "quiet": True}))
    again = checkpoint.load(checkpoint.resolve(run))
    assert again.step == whole.step == 600
    for stem in ("model", "optimizer"):
        for row, values in whole.tensors[stem].items():
            np.testing.assert_array_equal(again.tensors[stem][row], values, row)


@pytest.mark.parametrize("name", OWN)
def test_new_workers_start_from_0_and_the_rows_of_those_gone_are_dropped(name, run) -> None:
    before = state_of(run)
    more = resume(run, workers=3)
    assert more.keys() == {"worker_0.row_0", "worker_1.row_0", "worker_2.row_0"}
    assert all(np.array_equal(more[row], before[row]) for row in before)
    assert not more["worker_2.row_0"].any()
    fewer = resume(run, workers=1)
    assert fewer.keys() == {"worker_0.row_0"}
    assert np.array_equal(fewer["worker_0.row_0"], before["worker_0.row_0"])
    assert not resume(run, workers=2)["worker_1.row_0"].any(), "it was dropped"


@pytest.mark.parametrize("name", ["shared-adam"])
def test_a_shared_state_is_the_same_for_any_number_of_workers(name, run) -> None:
    before, after = state_of(run), resume(run, workers=3)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[row], before[row]) for row in before)


@pytest.mark.parametrize("name", ["shared-adam", "momentum"])
@pytest.mark.parametrize("damage", ["missing", "short", "one number"])
def test_a_state_that_lacks_a_row_of_a_worker_it_knows_is_refused(name, run, damage) -> None:
    found = checkpoint.load(checkpoint.resolve(run))
    tensors = {stem: dict(group) for stem, group in found.tensors.items()}
    last = max(tensors["optimizer"])
    if damage == "missing":
        del tensors["optimizer"][last]
    else:
        tensors["optimizer"][last] = np.ones(1 if damage == "one number" else 7, np.float32)
    checkpoint.save(run / "checkpoints", found.step, tensors, found.state)
    with pytest.raises(UserError, match="checkpoint does not match: "):
        resume(run)
