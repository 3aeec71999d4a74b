"""Workers and evaluators that die, hang or fail for ever (A1 to A4, A9, A26)."""

import os
import random
import signal
import statistics
import time

import numpy as np

from async_dqn.runs import checkpoint
from benchmarks.chaos.promise import Promise
from benchmarks.chaos.watched import ENDLESS, Pauses, Watched, wait_gone

CARTPOLE = ("--env", "CartPole-v1", "--eval-every", "200000", "--eval-episodes", "20")
SCRIPTED = ("--import", "scripted_ids", "--env", "Scripted/Faulty-v0")


def finite(run: Watched) -> bool:
    """Whether the newest checkpoint loads, and holds finite parameters only."""
    tensors = checkpoint.load(checkpoint.resolve(run.run)).tensors
    return all(np.isfinite(array).all() for part in tensors.values() for array in part.values())


def first_step_after(run: Watched, worker: int, before: int, limit: float) -> float:
    """Seconds until the worker's count goes beyond `before`; `limit` if it does not."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit:
        if run.steps[worker] > before:
            return time.monotonic() - begun
        time.sleep(0.001)
    return limit


def throughput(kills: int, seconds: float) -> dict:
    """Train CartPole for `seconds` with that many SIGKILLs of random workers in between."""
    shm, run = set(os.listdir("/dev/shm")), Watched(*CARTPOLE, "--steps", ENDLESS)
    run.attach()
    run.wait_for(lambda: (run.steps > 20_000).all())
    pauses, descriptors, dead = Pauses(run), run.descriptors(), 0.0
    begun, before, delays = time.monotonic(), run.steps.sum(), []
    moments = sorted(random.uniform(0, seconds) for _ in range(kills))
    for moment in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        worker = random.randrange(run.workers)
        run.kill("worker", worker)
        time.sleep(0.002)  # its last step may still be on the way
        delays.append(first_step_after(run, worker, int(run.steps[worker]), 10.0))
        dead += delays[-1]
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    living = run.workers * (time.monotonic() - begun) - dead
    speed = float(run.steps.sum() - before) / living
    pauses.over, after = True, run.descriptors()
    code, _ = run.stop()
    return {
        "speed": speed,
        "delays": delays,
        "restarts": run.result()["restarts"],
        "pause": pauses.longest,
        "descriptors": after - descriptors,
        "sound": code == 143 and finite(run) and not wait_gone(run.children(), 2),
        "shm": set(os.listdir("/dev/shm")) == shm,
    }


def workers(quick: bool) -> list[Promise]:
    """SIGKILLs of random workers at random times."""
    kills, pairs = (5, 1) if quick else (50, 5)
    found = throughput(kills, kills * 0.8)
    speeds = [
        (throughput(kills // 5, 12.0)["speed"], throughput(0, 12.0)["speed"]) for _ in range(pairs)
    ]
    share = statistics.median(a / b for a, b in speeds)
    middle, worst = statistics.median(found["delays"]), max(found["delays"])
    clean = found["sound"] and found["shm"] and found["descriptors"] == 0
    return [
        Promise(
            f"A1 {kills} SIGKILLs of workers: restarts",
            f"{found['restarts']}",
            f"{kills}",
            found["restarts"] == kills,
        ),
        Promise(
            "A1 kill to the worker's next step",
            f"median {middle:.2f} s, worst {worst:.2f} s",
            "under 1 s, under 5 s",
            middle < 1 and worst < 5,
        ),
        Promise(
            "A1 longest pause of all steps",
            f"{found['pause']:.2f} s",
            "under 1 s",
            found["pause"] < 1,
        ),
        Promise(
            "A1 checkpoint loads and is finite; no orphan, descriptor or shared memory left",
            "yes" if clean else f"{found}",
            "yes",
            clean,
        ),
        Promise(
            f"A26 steps/s of the living against none killed, median of {pairs}",
            f"{100 * share:.0f} %",
            "at least 90 %",
            share >= 0.9,
        ),
    ]


KINDS = {
    "segfault": "SIGSEGV",
    "abort": "SIGABRT",
    "bus": "SIGBUS",
    "kill": "SIGKILL",
    "exit": "exit 0",
    "sys-exit": "exit 3",
}


def deaths(quick: bool) -> list[Promise]:
    """Environments that end their process, in every way there is."""
    wanted, promises = 2 if quick else 10, []
    for kind, cause in KINDS.items():
        options = ("--env-arg", f"fault='{kind}'", "--env-arg", "at_step=3000", "--steps", ENDLESS)
        run = Watched(*SCRIPTED, *options, "--envs-per-worker", "1", "--eval-every", ENDLESS)
        run.wait_for(lambda run=run: len(run.deaths()) >= wanted, 120)
        code, _ = run.stop()
        found = run.deaths()
        right = sum(cause in death["cause"] and "env.step" in death["cause"] for death in found)
        started = sum(event["event"] == "restart" for event in run.events())
        measured = f"{right} of {len(found)} causes right, {started} restarts"
        kept = right == len(found) and started >= len(found) - run.workers and code == 143
        promises.append(Promise(f"A2 {kind}", measured, f"all of {wanted} or more", kept))
    return promises


def hangs(quick: bool) -> list[Promise]:
    """Processes that stop, loop, or sleep in C with the interpreter's lock; then all at once."""
    wanted, promises = 2 if quick else 10, []
    for kind in ("stop", "loop", "sleep-in-c"):
        moment = ENDLESS if kind == "stop" else "20_000"
        fault = ("--env-arg", f"fault='{kind}'", "--env-arg", f"at_step={moment}")
        common = ("--envs-per-worker", "1", "--steps", ENDLESS, "--eval-every", ENDLESS)
        run = Watched(*SCRIPTED, *fault, *common, "--hang-timeout", "2")
        run.attach()
        run.wait_for(lambda run=run: (run.steps > 1000).all())
        delays = []
        while len(delays) < wanted:
            if kind == "stop":
                worker = random.randrange(run.workers)
                run.kill("worker", worker, signal.SIGSTOP)
            else:
                worker = run.wait_for(lambda run=run: _still(run), 120) - 1
            delays.append(first_step_after(run, worker, int(run.steps[worker]), 20.0))
        run.stop()
        promises.append(
            Promise(
                f"A3 {wanted} times {kind}, timeout 2 s: replaced and stepping",
                f"worst {max(delays):.1f} s",
                "within 7 s",
                max(delays) < 7,
            )
        )
    return [*promises, _frozen()]


def _still(run: Watched) -> int:
    """1 + a worker that takes no steps; 0 while all do."""
    before = run.steps
    time.sleep(0.5)
    still = np.flatnonzero(run.steps == before)
    return int(still[0]) + 1 if still.size else 0


def _frozen() -> Promise:
    run = Watched(*CARTPOLE, "--steps", ENDLESS, "--hang-timeout", "2")
    run.attach()
    run.wait_for(lambda: (run.steps > 20_000).all())
    everybody = [run.process.pid, *run.children()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in everybody:
            os.kill(pid, number)
        time.sleep(6)
    killed = len(run.deaths())
    run.stop()
    return Promise("A3 all frozen for three timeouts", f"{killed} killed", "0", killed == 0)


def failures(quick: bool) -> list[Promise]:
    """An environment that always raises: in one of four workers, then in all."""
    one = Watched(*SCRIPTED, "--env-arg", "worker=1", "--steps", "3_000_000", workers=4)
    code, _ = one.end(900)
    given_up = [e for e in one.events() if "given up" in str(e["cause"])]
    begun = time.monotonic()
    soon = ("--env-arg", "at_step=9")  # the trainer takes a step before it starts them
    every = Watched(*SCRIPTED, *soon, "--steps", ENDLESS, "--eval-every", ENDLESS, workers=4)
    last, err = every.end()
    seconds = time.monotonic() - begun
    loads = finite(every)
    return [
        Promise(
            "A4 one worker of 4 always fails",
            f"exit {code}, {len(given_up)} given up",
            "exit 0, 1 given up",
            (code, len(given_up)) == (0, 1),
        ),
        Promise(
            "A4 all workers always fail",
            f"exit {last} after {seconds:.0f} s, checkpoint {'loads' if loads else 'lost'}",
            "exit 75 within 60 s, checkpoint loads",
            last == 75 and seconds < 60 and loads and "Traceback" not in err,
        ),
    ]


def evaluator(quick: bool) -> list[Promise]:
    """SIGKILLs of the process that keeps the target network and evaluates."""
    kills = 3 if quick else 20
    run = Watched(*CARTPOLE, "--steps", ENDLESS, "--target-sync-steps", "500")
    run.attach()
    run.wait_for(lambda: (run.steps > 20_000).all())
    delays = []
    for k in range(kills):
        time.sleep(random.uniform(0.2, 1.0))
        run.kill("evaluator")
        begun = time.monotonic()
        run.wait_for(lambda wanted=k + 2: len(run.pids("evaluator")) == wanted)
        delays.append(time.monotonic() - begun)
    before = int(run.steps.sum())
    time.sleep(2)
    going = int(run.steps.sum()) > before
    code, _ = run.stop()
    kept = code == 143 and going and finite(run) and max(delays) < 5
    worst = f"worst restart {max(delays):.2f} s, training {'went on' if going else 'stopped'}"
    return [Promise(f"A9 {kills} SIGKILLs of the evaluator", worst, "under 5 s, goes on", kept)]
