"""The model-parallel baseline: split equals whole; real runs equal serial ones or end with 75."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from scripted_envs import ChainEnv
from torch import distributed

from async_dqn.config.config import Config
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import QNetwork
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import WORKERS_STOP
from async_dqn.processes import spawn
from async_dqn.runs import checkpoint
from async_dqn.workers.learner import Learner
from async_dqn.workers.pipeline import FirstLearner, LastStage, batch_loss, split
from async_dqn.workers.run_spec import RunSpec
from runs import Here, is_alive, listening

PRESET = ("--preset", "sync-model-parallel", "--eval-episodes", "2", "--quiet")
# Worker 0 is nearly always stepping: a blow to worker 1 hits no update, where it would be awaited.
SLOW = ("--import", "scripted_ids", "--env", "Scripted/Faulty-v0", "--env-arg", "fault='sleep'")
SLOW += ("--env-arg", "seconds=0.01", "--env-arg", "every=True", "--env-arg", "worker=0")


# The cut


@pytest.mark.parametrize(
    ("layers", "settings"),
    [
        (3, {"hidden": (8, 8)}),  # dense layer, norm, ReLU
        (3, {"hidden": (8,)}),  # behind is the head alone
        (6, {"hidden": (8, 64, 8, 8)}),
        (4, {"hidden": (8, 8), "dueling": True, "low": (0.0,) * 4, "high": (9.0,) * 4}),
        (1, {"network": "small-conv", "observation_shape": (4, 10, 10)}),
        (1, {"network": "nature", "observation_shape": (4, 84, 84)}),
    ],
)
def test_the_two_parts_one_after_the_other_are_the_network(layers: int, settings: dict) -> None:
    common = {"network": "mlp", "observation_shape": (4,), "hidden": (), "dueling": False}
    common |= {"scale": 1 / 255, "num_actions": 3, "layer_norm": True}
    torch.manual_seed(0)
    net = QNetwork(Architecture(**common | settings))
    front, back = split(net)
    assert len(front) == layers
    obs = torch.randint(0, 256, (5, *(common | settings)["observation_shape"]), dtype=torch.uint8)
    assert torch.equal(back(front(obs)), net(obs)[0].q_values)
    ids = [id(p) for part in (front, back) for p in part.parameters()]
    assert ids == [id(p) for p in net.parameters()]  # each has one range of the flat vector


def test_the_loss_of_the_last_stage_by_hand() -> None:
    q_values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    pass_batch = torch.tensor([[1.0, 5.0, 0.25], [0.0, 1.0, 0.75], [1.0, 99.0, 0.0]])
    assert batch_loss(q_values, pass_batch).item() == 0.25 * 4.5 + 0.75 * 2.0


# Gradients


def serve(run_spec: RunSpec, block: SharedBlock, rendezvous: Path) -> None:
    """Worker 1."""
    torch.set_num_threads(1)
    store = run_spec.store(block, 1)
    stage = LastStage(run_spec, FlatNetwork(run_spec.network()), store, rendezvous)
    while not store.leaving:
        stage.serve(run_spec.learning_rate(store.steps))


def chain_task() -> RunSpec:
    settings = {"mode": "sync", "workers": 2, "model_parallel": True, "envs_per_worker": 3}
    settings |= {"rollout_length": 5, "hidden": (16, 16), "dueling": True, "target_sync_steps": 60}
    settings |= {"algorithm": "q-lambda", "double": True, "max_grad_norm": 1e-3}
    config = Config.from_flat(settings)
    spec = EnvSpec(ChainEnv, {}, (), 50)
    info = make.probe(spec)
    return RunSpec(config, spec, info, architecture.choose(config, info))


def test_the_split_gradient_is_the_whole_one_and_one_update_follows(tmp_path) -> None:
    """Full rollouts, and a short one as at the end of the budget."""
    run_spec, rendezvous = chain_task(), tmp_path / "rendezvous"
    torch.manual_seed(0)
    whole = FlatNetwork(run_spec.network())
    block = SharedBlock(run_spec.sections(len(whole.vector)))
    block["multipliers"][:] = 1.0
    store, alone = run_spec.store(block, 0), run_spec.optimizer()
    store.theta.copy_(whole.vector)
    store.begin(0)
    theta, state = whole.vector.clone(), list(torch.zeros(alone.rows, len(whole.vector)))
    other = spawn.context().Process(target=serve, args=(run_spec, block, rendezvous), daemon=True)
    other.start()
    learner = FirstLearner(run_spec, store, rendezvous)
    try:
        assert not rendezvous.exists()
        learner.reset(0, 0)
        for k, budget in enumerate((100, 100, 4, 100)):
            learner._pull()
            rollout = learner.collector.collect(learner.epsilon(0), budget, lambda count: None)
            learned = learner._gradient(rollout)
            split_gradient = learner.network.gradient.clone()
            expected = Learner._gradient(learner, rollout)
            gradient = learner.network.gradient
            assert (gradient != 0).sum() > len(gradient) / 2
            torch.testing.assert_close(split_gradient, gradient, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(learned[:3], expected[:3], rtol=1e-5, atol=1e-7)
            # Cut by the norm of the whole, applied once.
            alone.step(theta, gradient * 1e-3 / gradient.norm(), state, 1e-3, k)
            learner.network.gradient.copy_(split_gradient)
            learner._push(0, learned)
            torch.testing.assert_close(store.theta, theta, rtol=1e-5, atol=1e-6)
        store.control[WORKERS_STOP] = 1
        store.push(None, 0.0)  # a round without a pass; both leave after it
        other.join(20)
        assert store.leaving and other.exitcode == 0 and store.updates == 4
    finally:
        distributed.destroy_process_group()
        other.kill()


# Real runs


def test_a_run_makes_the_updates_of_serial_mode_and_meets_its_budget(tmp_path) -> None:
    short = ("--steps", "805", "--max-grad-norm", "1", "--lr", "1e-3", "--epsilon-steps", "900")
    short += ("--rollout-length", "5")
    serial = ("--workers", "1", "--mode", "serial", "--envs-per-worker", "16", "--epochs", "1")
    serial += PRESET[2:]
    runs = [
        Here(tmp_path / "a", *PRESET, *short),
        Here(tmp_path / "b", *serial, *short),
    ]
    models = []
    for trainer in runs:
        code, _, err = trainer.finish()
        assert code == 0, err
        path = checkpoint.resolve(trainer.run, fall_back=False)
        models.append(checkpoint.load(path).tensors["model"])
    results = [trainer.result() for trainer in runs]
    assert [result["steps"] for result in results] == [805, 805]
    assert results[0]["updates"] == results[1]["updates"] > 10
    for name, tensor in models[0].items():
        torch.testing.assert_close(
            torch.from_numpy(tensor), torch.from_numpy(models[1][name]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "blow", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSTOP]
)
def test_a_broken_pipeline_ends_the_run_with_the_cause_and_it_resumes(tmp_path, blow) -> None:
    def strike(trainer: Here) -> None:
        front, back = pids = trainer.pids("worker")
        for pid in pids:
            assert listening(pid)
            assert all(address.startswith("0100007F:") for address in listening(pid))
        os.kill(back, blow)
        while blow is signal.SIGKILL and is_alive(front):
            time.sleep(0.01)  # the trainer is to find both of them dead at once

    endless = ("--steps", "1000000", "--hang-timeout", "1")
    trainer = Here(tmp_path, *PRESET, *SLOW, *endless, strike=strike)
    code, _, err = trainer.finish()
    assert code == 75, err
    cause = "SIGKILL in " if blow is signal.SIGKILL else "no sign of life"
    first = next(event for event in trainer.events() if event["event"] == "death")
    assert first["role"] == "worker" and first["index"] == 1 and first["cause"].startswith(cause)
    assert f"worker 1 failed once, given up ({cause}" in err
    steps = trainer.result()["steps"]
    assert steps > 0 and trainer.result()["restarts"] == 0
    if blow is signal.SIGKILL:
        resume = ("--resume", str(trainer.run), *SLOW[:2])
        again = Here(tmp_path, *resume, "--steps", str(steps + 99))
        code, _, err = again.finish()
        assert code == 0, err
        assert again.result()["steps"] == steps + 99
