"""Real runs, real signals: what the supervisor promises of processes."""

import csv
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from async_dqn.config.config import Config
from async_dqn.config.cores import usable_cores
from async_dqn.envs.make import probe
from async_dqn.envs.spec import EnvSpec
from async_dqn.evaluation import evaluator
from async_dqn.evaluation.evaluator import EvaluatorLoop
from async_dqn.networks.architecture import choose
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.layout import (
    ACKNOWLEDGED,
    CPU_NS,
    HEARTBEAT_NS,
    LAST_PROGRESS_STEP,
    STEPS,
    padded_size,
    sections,
)
from async_dqn.parameters.optimizers import SharedAdam
from async_dqn.parameters.store import ParameterStore
from async_dqn.parameters.upkeep import Upkeep
from async_dqn.processes.child_side import RecordPipe
from async_dqn.processes.signals import SAME_S
from async_dqn.processes.spawn import MAX_FAILURES, PROGRESS_STEPS
from async_dqn.runs import checkpoint
from async_dqn.training.supervisor import Supervisor
from async_dqn.workers.run_spec import RunSpec
from runs import (
    ROOT,
    SMALL,
    UNHURRIED,
    Here,
    Started,
    Trainer,
    is_alive,
    listening,
    send,
    state,
    wait_gone,
)

ENDLESS = ("--steps", "100_000_000")


@pytest.fixture
def start(tmp_path):
    """Start trainers that do not outlive the test."""
    trainers = []

    def start(*arguments: str) -> Trainer:
        trainers.append(Trainer(tmp_path, *arguments))
        return trainers[-1]

    yield start
    for trainer in trainers:
        trainer.process.kill()
        trainer.process.communicate()


def children(trainer: Started) -> list[int]:
    return trainer.pids("worker") + trainer.pids("evaluator")


def test_a_run_survives_sigkill_of_a_worker_and_ends_at_exactly_its_budget(tmp_path):
    trainer = Here(tmp_path, *SMALL, "--steps", "10003", strike=send(signal.SIGKILL, "worker"))
    code, _, err = trainer.finish()
    result = trainer.result()
    assert code == 0, err
    assert (result["status"], result["steps"], result["restarts"]) == ("budget reached", 10003, 1)
    deaths = [event for event in trainer.events() if event["event"] == "death"]
    assert [(d["role"], d["index"]) for d in deaths] == [("worker", 0)]
    assert "SIGKILL" in deaths[0]["cause"]
    assert "warning: worker 0 died (SIGKILL in " in err
    assert err.endswith(", probably out of memory), restarting 1 of 10\n")


def test_one_of_sixteen_workers_is_killed_and_replaced_without_a_dip_of_the_score(tmp_path):
    chain = "--import scripted_ids --env Scripted/Chain-v0 --hidden 32 --gamma 0.8 --lr 1e-3"
    looks = "--epsilon-steps 2000 --eval-every 1000 --eval-episodes 5 --steps 30000"
    many = "--workers 16 --oversubscribe --target-sync-steps none"

    learned: list[float] = []

    def scores(trainer: Here) -> list[float]:
        return [e["mean"] for e in trainer.events() if e["event"] == "evaluation"]

    def has_learned(trainer: Here) -> bool:
        return scores(trainer)[-3:] == [1.0] * 3

    def strike(trainer: Here) -> None:
        learned.extend(scores(trainer))
        os.kill(trainer.pids("worker")[7], signal.SIGKILL)

    arguments = f"{chain} {looks} {many}".split()
    trainer = Here(tmp_path, *arguments, strike=strike, when=has_learned)
    code, _, err = trainer.finish()
    assert code == 0, err
    result = trainer.result()
    assert (result["status"], result["steps"], result["restarts"]) == ("budget reached", 30000, 1)
    after = scores(trainer)[len(learned) :]
    assert len(after) > 1 and set(after) == {1.0}


@pytest.mark.parametrize("role", ["worker", "evaluator"])
def test_who_shows_no_sign_of_life_is_replaced(tmp_path, role):
    short = ("--steps", "10000", "--hang-timeout", "1", "--eval-episodes", "5")
    trainer = Here(tmp_path, *SMALL, *short, strike=send(signal.SIGSTOP, role))
    code, _, err = trainer.finish()
    assert code == 0, err
    assert (trainer.result()["steps"], trainer.result()["restarts"]) == (10000, 1)
    (death,) = (event for event in trainer.events() if event["event"] == "death")
    assert death["role"] == role and "no sign of life" in death["cause"]


@pytest.mark.parametrize("mode", [pytest.param("async", marks=pytest.mark.slow), "sync"])
def test_whose_environments_are_slow_together_is_not_taken_for_hung(tmp_path, mode):
    """Each takes half the time that is waited for a sign of life; a worker has four of them."""
    slow = "--import scripted_ids --env Scripted/Slow-v0 --env-arg reset=0.5 --env-arg step=0.02"
    looks = "--eval-episodes 4 --eval-every 1000 --steps 80 --hang-timeout 1"
    trainer = Here(tmp_path, *SMALL[:4], *slow.split(), *looks.split(), "--mode", mode)
    code, _, err = trainer.finish()
    assert code == 0 and "warning" not in err, err
    assert (trainer.result()["steps"], trainer.result()["restarts"]) == (80, 0)


@pytest.mark.parametrize("more", [0, 1])
def test_more_workers_than_cores_are_told_what_to_expect(tmp_path, more):
    workers = ("--workers", str(usable_cores() + more))
    code, out, _ = Here(tmp_path, *workers, "--steps", "200", "--eval-episodes", "2").finish()
    assert code == 0 and ("expect no gain" in out) == bool(more)
    assert "hang_timeout=60" in out


def test_a_worker_killed_while_starting_is_replaced_too(tmp_path):
    trainer = Here(
        tmp_path,
        *(*SMALL, "--steps", "5000"),
        strike=send(signal.SIGKILL, "worker"),
        when=lambda trainer: trainer.pids("worker"),
    )
    code, _, err = trainer.finish()
    assert code == 0, err
    assert (trainer.result()["steps"], trainer.result()["restarts"]) == (5000, 1)


def test_the_evaluator_is_replaced_and_the_final_parameters_are_still_scored(tmp_path):
    short = ("--steps", "10000", "--eval-episodes", "20")
    trainer = Here(tmp_path, *SMALL, *short, strike=send(signal.SIGKILL, "evaluator"))
    code, _, err = trainer.finish()
    assert code == 0, err
    assert trainer.result()["final_mean"] is not None
    assert len(trainer.pids("evaluator")) == 2


# 100 episodes of 50 steps of a millisecond.
LONG_END = (
    *("--import", "scripted_ids", "--env", "Scripted/Faulty-v0", "--env-arg", "fault=sleep"),
    *("--env-arg", "every=True", "--env-arg", "seconds=0.001", "--env-arg", "n=1000"),
    *(*SMALL, "--steps", "1000", "--eval-episodes", "100"),
)


@pytest.mark.skipif(usable_cores() < 2, reason="one core has nobody to share with")
@pytest.mark.parametrize(
    ("role", "number", "restarts"),
    [
        pytest.param("player", "SIGSTOP", 0, marks=pytest.mark.slow),
        ("evaluator", "SIGKILL", 1),
        pytest.param("player", "SIGKILL", 1, marks=pytest.mark.slow),
    ],
)
def test_a_final_evaluation_on_all_cores_survives_its_processes(tmp_path, role, number, restarts):
    def is_helping(trainer: Here) -> bool:
        return trainer.live.block["seats"][0].any()  # of a player that has shown a sign of life

    def strike(trainer: Here) -> None:
        assert not any(map(is_alive, trainer.pids("worker")))  # they have left the cores
        title = Path(f"/proc/{trainer.pids('player')[0]}/cmdline").read_bytes()
        assert title.startswith(b"async-dqn player 1 ")
        os.kill(trainer.pids(role)[0], getattr(signal, number))

    trainer = Here(tmp_path, *LONG_END, strike=strike, when=is_helping)
    code, _, err = trainer.finish()
    assert code == 0, err
    assert trainer.result()["final_mean"] is not None
    # One that is hung would be replaced after a minute: nobody waited for it.
    assert trainer.result()["restarts"] == restarts
    with (trainer.run / "evaluations.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert last["episodes"] == "100"
    everyone = [*children(trainer), *trainer.pids("player")]
    assert wait_gone(everyone, seconds=1) == []
    log = trainer.run / "logs" / "player-1.log"
    assert log.exists() and log.read_text() == ""


def test_an_evaluator_that_keeps_up_is_replaced_however_often_it_dies(tmp_path):
    deaths = [0]  # at which step

    def progress(trainer: Here) -> int:
        return int(trainer.live.store.slots[2, LAST_PROGRESS_STEP])

    def keeps_up(trainer: Here) -> bool:
        return progress(trainer) >= deaths[-1] + PROGRESS_STEPS

    def strike(trainer: Here) -> None:
        if len(deaths) > MAX_FAILURES + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        os.kill(trainer.pids("evaluator")[-1], signal.SIGKILL)
        deaths.append(progress(trainer))
        trainer.strike = strike

    arguments = (*SMALL, *ENDLESS, "--target-sync-steps", "200")
    trainer = Here(tmp_path, *arguments, strike=strike, when=keeps_up)
    code, _, err = trainer.finish()
    assert code == 143 and "given up" not in err
    assert len(trainer.pids("evaluator")) == MAX_FAILURES + 2


def evaluator_start(**settings) -> SimpleNamespace:
    config = Config.from_flat({"eval_every": 100, "workers": 1, **settings})
    spec = EnvSpec("CartPole-v1")
    run_spec = RunSpec(config, spec, probe(spec), choose(config, probe(spec)))
    block = SharedBlock(run_spec.sections(padded_size(run_spec.network())))
    return SimpleNamespace(run_spec=run_spec, block=block, index=1, incarnation=1)


@pytest.mark.parametrize(("goal", "share"), [(None, "2%"), (475.0, "10%")])
def test_why_evaluations_are_put_off_is_told_once(monkeypatch, goal, share):
    monkeypatch.setattr(evaluator, "LATE_S", 0.05)
    reader, writer = multiprocessing.Pipe(duplex=False)
    start, said = evaluator_start(stop_at_return=goal), []
    store = ParameterStore(start.block, SharedAdam(), 0)
    run = SimpleNamespace(
        run_spec=start.run_spec,
        store=store,
        block=start.block,
        recorder=SimpleNamespace(warn=said.append),
    )
    supervisor, loop = Supervisor(run), EvaluatorLoop(start, RecordPipe(writer), None)
    supervisor.evaluator.pipe = reader
    store.slot[STEPS] = 350
    loop.slot[CPU_NS] += 10**15  # far beyond what the tests before it took
    assert not loop._due()
    supervisor._drain(supervisor.evaluator)
    assert not said
    time.sleep(0.06)
    for _ in range(2):
        assert not loop._due()
        supervisor._drain(supervisor.evaluator)
    (text,) = said
    assert text.startswith("the evaluation due at step 100 is put off: evaluations may take")
    assert f" {share} of" in text
    assert ("--stop-at-return allows" in text) == (goal is None)


def test_an_evaluation_that_its_process_did_not_live_to_finish_is_due_again():
    start = evaluator_start()
    block = start.block

    def is_due() -> bool:
        return EvaluatorLoop(start, None, None)._due()

    store = ParameterStore(block, SharedAdam(), 0)
    store.slot[STEPS] = 550
    assert not is_due()
    store.snapshot.publish(store.theta, 500)  # and then it died
    assert is_due()
    store.control[ACKNOWLEDGED] = 1
    assert not is_due()


@pytest.fixture(scope="module", params=["async", "sync"])
def ended(request, tmp_path_factory) -> SimpleNamespace:
    """A run that was looked at while it went on, stopped by Ctrl-Z for longer than a child may show
    no sign of life, and then ended by a signal."""
    mode, folder = request.param, tmp_path_factory.mktemp("ended")
    number = {"async": signal.SIGINT, "sync": signal.SIGHUP}[mode]
    arguments = ("--mode", mode, "--eval-every", "200", "--eval-episodes", "5", "--hang-timeout")
    trainer = Trainer(folder, *SMALL, *UNHURRIED, *arguments, "2", *ENDLESS, "--run-name", "named")
    try:
        trainer.wait_until_learning()
        pids = {role: trainer.pids(role) for role in ("worker", "evaluator")}
        everyone = (trainer.process.pid, *children(trainer))
        worker = Path(f"/proc/{pids['worker'][1]}")
        server = worker.joinpath("stat").read_text().rpartition(")")[2].split()[1]
        seen = SimpleNamespace(
            listening=[listening(pid) for pid in everyone],
            niceness={
                role: [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids[role]] for role in pids
            },
            title=worker.joinpath("cmdline").read_bytes(),
            threads=len(os.listdir(worker / "task")),
            descriptors=len(os.listdir(worker / "fd")),
            threads_of_server=len(os.listdir(f"/proc/{server}/task")),
        )
        os.kill(trainer.process.pid, signal.SIGTSTP)
        trainer.wait_for(lambda: {state(pid) for pid in everyone} == {"T"}, seconds=5)
        before = len(trainer.events())
        time.sleep(3)
        os.kill(trainer.process.pid, signal.SIGCONT)
        trainer.wait_for(lambda: len(trainer.events()) > before + 1)
        return SimpleNamespace(seen=seen, trainer=trainer, **signalled(trainer, number))
    finally:
        trainer.process.kill()


def signalled(trainer: Trainer, *numbers: signal.Signals) -> dict[str, Any]:
    """Send signals, one right after the other; how the run ended."""
    begun = time.monotonic()
    for number in numbers:
        os.kill(trainer.process.pid, number)
        time.sleep(0.01)
    code, _, err = trainer.finish(seconds=20)
    seconds, left = time.monotonic() - begun, wait_gone(children(trainer), seconds=1)
    return {"number": number, "code": code, "err": err, "seconds": seconds, "left": left}


def assert_saved_and_gone(trainer: Trainer, number, code, err, seconds, left) -> None:
    assert code == (130 if number is signal.SIGINT else 143)
    assert seconds < 10 and left == []
    assert trainer.result()["status"] == "stopped"
    loaded = checkpoint.load(checkpoint.resolve(trainer.run))
    assert loaded.step == trainer.result()["steps"] > 0
    note, error = err.splitlines()
    assert note == "note: stopping, saving (again to quit now)"
    saved = f"checkpoint saved at step {loaded.step:,}, --resume {trainer.run} goes on"
    assert error == f"error: stopped by {number.name}; {saved}"


def test_a_signal_ends_with_a_checkpoint_and_no_child_left(ended):
    found = dict(vars(ended))
    del found["seen"]
    assert_saved_and_gone(**found)


@pytest.mark.parametrize("mode", ["async", "serial"])
def test_a_signal_that_comes_twice_within_a_moment_is_one(start, mode):
    """As from `timeout` and from service managers: to the process, then to its group."""
    arguments = ("--mode", mode, "--eval-every", "200", "--eval-episodes", "5")
    trainer = start(*SMALL, *UNHURRIED, *arguments, *ENDLESS)
    trainer.wait_until_learning()
    assert_saved_and_gone(trainer, **signalled(trainer, *[signal.SIGTERM] * 3))


def test_a_worker_has_one_compute_thread_and_its_name_and_the_fork_server_has_one_thread(ended):
    assert ended.seen.threads <= 4
    assert ended.seen.title.startswith(b"async-dqn worker 1 named")
    assert ended.seen.descriptors <= 20
    assert ended.seen.threads_of_server == 1  # it only imports, so it can be forked


def test_after_ctrl_z_nobody_is_taken_for_hung(ended):
    assert ended.trainer.result()["restarts"] == 0
    assert not any(event["event"] == "death" for event in ended.trainer.events())


def test_nothing_listens_on_the_network(ended):
    assert ended.seen.listening == [[]] * 4


def test_the_evaluator_goes_before_the_workers_where_cores_are_short(ended):
    niceness = ended.seen.niceness
    assert min(niceness["worker"]) > max(niceness["evaluator"])


def test_a_second_signal_quits_at_once(start):
    trainer = start(*SMALL, *UNHURRIED, *ENDLESS, "--checkpoint-every", "200")
    trainer.wait_for(lambda: any(e["event"] == "checkpoint" for e in trainer.events()))
    os.kill(trainer.pids("worker")[0], signal.SIGSTOP)  # it is waited for, a while
    os.kill(trainer.process.pid, signal.SIGINT)
    assert trainer.process.stderr.readline() == "note: stopping, saving (again to quit now)\n"
    time.sleep(SAME_S)
    begun = time.monotonic()
    os.kill(trainer.process.pid, signal.SIGINT)
    code, _, err = trainer.finish(seconds=20)
    assert code == 130 and time.monotonic() - begun < 4
    last = checkpoint.resolve(trainer.run)
    assert err == f"error: stopped without saving; last checkpoint {last.name}\n"
    assert checkpoint.load(last).step > 0 and not (trainer.run / "result.json").exists()
    assert wait_gone(children(trainer), seconds=2) == []


DEATHS = {
    "exit": "exit 0 in env.step",
    "sys-exit": "exit 3 in env.step",
    "segfault": "SIGSEGV in env.step",
    "abort": "SIGABRT in env.step",
    "bus": "SIGBUS in env.step",
    "kill": "SIGKILL in env.step, probably out of memory",
    "loop": "no sign of life for 3 s in env.step",
    "sleep-in-c": "no sign of life for 3 s in env.step",
}


@pytest.mark.parametrize("mode", ["async", pytest.param("sync", marks=pytest.mark.slow)])
def test_every_death_in_an_environment_is_told_and_the_run_goes_on(tmp_path, mode):
    folder = tmp_path / "deaths"
    folder.mkdir()
    arguments = ("--env-arg", f"folder={str(folder)!r}", "--env-arg", f"kinds={' '.join(DEATHS)!r}")
    trainer = Here(
        tmp_path / "runs",
        *("--import", "scripted_ids", "--env", "Scripted/Dying-v0", *SMALL, "--mode", mode),
        *("--steps", "20_000", "--hang-timeout", "3", "--eval-episodes", "2", *arguments),
    )
    code, _, err = trainer.finish()
    assert (code, trainer.result()["steps"]) == (0, 20_000), err
    told = [line.partition(" died (")[2] for line in err.splitlines()]
    assert sorted(told) == sorted(f"{cause}), restarting 1 of 10" for cause in DEATHS.values())
    assert trainer.result()["restarts"] == len(DEATHS)


FAULTS = {"async": "raise", "sync": "wrong-shape"}


@pytest.mark.parametrize("mode", FAULTS)
def test_faults_of_environments_are_warned_of_once_and_counted(tmp_path, mode):
    trainer = Here(
        tmp_path,
        *("--import", "scripted_ids", "--env", "Scripted/Faulty-v0", *SMALL, "--mode", mode),
        *("--env-arg", f"fault={FAULTS[mode]}", "--env-arg", "at_step=100"),
        *("--steps", "4000", "--eval-episodes", "2"),
    )
    code, _, err = trainer.finish()
    assert code == 0 and err.count("\n") == 1
    assert err.startswith("warning: an environment failed by step ") and "built anew" in err
    result = trainer.result()
    assert result["restarts"] == result["retired_workers"] == 0
    # Every environment lives for 100 steps, and 8 train together.
    assert 24 <= result["env_errors"] <= 4000 // 100
    with (trainer.run / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert int(last["async/env_errors"]) == result["env_errors"]


def test_ctrl_c_to_the_whole_group_during_start_up_leaves_nobody(start):
    trainer = start(*SMALL, *UNHURRIED, *ENDLESS)
    trainer.wait_for(lambda: trainer.pids("worker"))
    for pid in [trainer.process.pid, *children(trainer)]:
        if is_alive(pid):
            os.kill(pid, signal.SIGINT)
    code, _, err = trainer.finish(seconds=20)
    assert code == 130
    assert "Traceback" not in err
    assert wait_gone(children(trainer), seconds=1) == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> SimpleNamespace:
    """A run whose trainer was killed some steps after its last checkpoint; what it left behind."""
    before, folder = set(os.listdir("/dev/shm")), tmp_path_factory.mktemp("killed")
    often = ("--checkpoint-every", "1000", "--steps", "6000")
    trainer = Trainer(folder, *SMALL, *UNHURRIED, *often)

    def has_more_to_lose() -> bool:
        if not any(trainer.folder.glob("*/*/checkpoints/latest")):
            return False
        return max(steps_reported(trainer.run), default=0) > newest(trainer).state["steps"]

    try:
        trainer.wait_for(has_more_to_lose)
    finally:
        trainer.process.kill()
    left = wait_gone(children(trainer), seconds=2)
    trainer.finish()
    shared = set(os.listdir("/dev/shm")) - before
    return SimpleNamespace(trainer=trainer, left=left, shared=shared, saved=newest(trainer).state)


def newest(trainer: Started) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.resolve(trainer.run))


def steps_reported(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_no_orphan_and_no_shared_memory_is_left_when_the_trainer_is_killed(killed):
    assert killed.left == [] and killed.shared == set()


def test_a_resumed_run_goes_on_to_its_budget_without_writing_a_step_twice(killed, tmp_path):
    run = tmp_path / "env" / "copy"
    shutil.copytree(killed.trainer.run, run)
    resumed = Here(tmp_path, "--resume", str(run), *UNHURRIED[:2])
    code, _, err = resumed.finish()
    assert code == 0, err
    result = resumed.result()
    assert (result["steps"], result["status"]) == (6000, "budget reached")
    assert result["updates"] > killed.saved["updates"]
    steps = steps_reported(run)
    assert steps == sorted(set(steps))
    assert _tensorboard_steps(run, "time/fps") == steps


def _tensorboard_steps(run: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    return [point.step for point in events.Scalars(tag)]


@pytest.mark.parametrize(
    ("least", "code", "status"),
    [("2", 75, "stopped"), ("1", 0, "budget reached")],
)
def test_a_worker_that_always_fails_is_given_up(tmp_path, least, code, status):
    trainer = Here(
        tmp_path,
        *("--import", "scripted_ids", "--env", "Scripted/Faulty-v0", "--workers", "2"),
        *("--env-arg", "worker=1", "--min-workers", least, "--steps", "10_000"),
    )
    found, _, err = trainer.finish()
    assert found == code
    warnings = err.splitlines()
    if code:
        words = "error: 1 of 2 workers failed 2 times (last: RuntimeError: "
        assert warnings[-1].startswith(words) and "; checkpoint saved at step " in warnings.pop()
    assert len(warnings) == 2 and all(line.startswith("warning: worker 1 ") for line in warnings)
    assert "Traceback" in (trainer.run / "logs" / "worker-1.log").read_text()
    assert trainer.result()["status"] == status
    assert trainer.result()["retired_workers"] == 1
    with (trainer.run / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert last["async/retired_workers"] == "1"
    deaths = [event for event in trainer.events() if event["event"] == "death"]
    assert {death["index"] for death in deaths} == {1} and len(deaths) == 2
    assert "scripted failure at step 1" in deaths[-1]["cause"]
    assert checkpoint.load(checkpoint.resolve(trainer.run)).step == trainer.result()["steps"]


UNBUILT = "UserError: cannot create env: "


def faulty(*arguments: str) -> tuple[str, ...]:
    words = ("--import", "scripted_ids", "--env", "Scripted/Faulty-v0")
    return (*words, *(f"--env-arg={argument}" for argument in arguments))


def test_the_target_network_goes_on_without_an_evaluator(tmp_path):
    """Its environments cannot be made: it is given up after it said the same twice."""
    broken = faulty("fault=build", "title=async-dqn evaluator")
    often = ("--eval-every", "2000", "--target-sync-steps", "2000", "--steps", "30000")
    trainer = Here(tmp_path, *broken, *SMALL, "--algorithm", "n-step-q", *often)
    code, _, err = trainer.finish()
    assert code == 0, err
    assert trainer.result()["steps"] == 30000
    assert re.search(rf"evaluator failed \d times, given up \({UNBUILT}", err)
    with (trainer.run / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert int(float(last["async/target_lag_steps"])) < 10_000


def test_who_dies_twice_of_the_same_before_its_first_step_is_given_up(tmp_path):
    broken = faulty("fault=build", "title=async-dqn worker 1")
    trainer = Here(tmp_path, *broken, *SMALL, "--steps", "5000")
    code, _, err = trainer.finish()
    assert code == 0, err
    assert f"worker 1 failed 2 times, given up ({UNBUILT}" in err
    assert (trainer.result()["steps"], trainer.result()["restarts"]) == (5000, 1)


def test_a_signal_to_the_whole_group_is_the_trainers_alone(tmp_path):
    def strike(trainer: Here) -> None:
        stat = Path(f"/proc/{trainer.pids('evaluator')[0]}/stat").read_text()
        server = int(stat.rpartition(")")[2].split()[1])
        for number in (signal.SIGTERM, signal.SIGHUP):  # as `timeout` does, and a terminal
            os.kill(server, number)

    trainer = Here(tmp_path, *SMALL, "--steps", "5000", strike=strike)
    code, _, err = trainer.finish()
    assert (code, err, trainer.result()["restarts"]) == (0, "", 0)


def test_memory_that_a_pass_frees_serves_the_next_one():
    program = """
import ctypes, resource, torch
from async_dqn.processes.child_side import M_MMAP_THRESHOLD, keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        parts = [torch.ones(1 << 20) for _ in range(8)]  # 32 MiB, all freed before the next turn
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
if hasattr(libc := ctypes.CDLL(None), "mallopt"):  # what it begins with, and may adapt
    libc.mallopt(M_MMAP_THRESHOLD, 128 << 10)
first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    before, after = map(int, output.split())
    if before < 50_000:
        pytest.skip("this allocator keeps freed memory by itself")
    assert after < before / 100


@pytest.mark.parametrize("mode", ["async", pytest.param("sync", marks=pytest.mark.slow)])
def test_few_descriptors_are_enough_for_eight_workers(start, mode):
    trainer = start(
        *("--workers", "8", "--oversubscribe", "--envs-per-worker", "1", "--mode", mode),
        *("--steps", "2000", "--eval-episodes", "2"),
    )
    resource.prlimit(trainer.process.pid, resource.RLIMIT_NOFILE, (128, 128))
    code, _, err = trainer.finish()
    assert (code, err) == (0, "") and len(trainer.pids("worker")) == 8


def test_a_tiny_dev_shm_is_enough(tmp_path):
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount")
    words = ["launch.py", "--runs-dir", tmp_path, *SMALL, "--hidden", "2000,200", "--steps", "500"]
    command = f'{mount} && exec "$@" && ls /dev/shm'
    run = ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, *map(str, words)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_step_is_granted_before_the_target_network_has_its_keeper():
    """A late evaluator would leave the workers with the target network of step 0."""

    def granted(evaluator_beat: int, incarnation: int, started: int = 2, **settings) -> list[int]:
        config = Config.from_flat({"workers": 2, "steps": 1000, **settings})
        block = SharedBlock(sections(2, 16, 2))
        upkeep = Upkeep(target_every=config.optimizer.target_sync_steps)
        store = ParameterStore(block, SharedAdam(), 3, upkeep)
        run = SimpleNamespace(
            run_spec=SimpleNamespace(config=config),
            store=store,
            block=block,
            reporter=SimpleNamespace(worker_speeds=None),
        )
        supervisor = Supervisor(run)
        store.slots[2, HEARTBEAT_NS] = evaluator_beat
        supervisor.evaluator.incarnation = incarnation
        for worker in supervisor.workers[:started]:
            worker.incarnation = 0
        supervisor._grant()
        return block["lease_limits"].tolist()

    assert not any(granted(0, 0))
    assert all(granted(1, 0))
    assert all(granted(0, 1))  # the first one died: nobody waits for ever
    assert all(granted(0, 0, target_sync_steps=None))
    # Who is not there yet keeps no steps from those who are.
    first, second = granted(1, 0, started=1)
    assert first > 0 and second == 0
