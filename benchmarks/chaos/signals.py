"""The trainer killed, interrupted and terminated at random moments (A8, A10, A13, A14)."""

import contextlib
import math
import os
import random
import signal
import statistics
import time

from async_dqn.config.config import UserError
from async_dqn.runs import checkpoint
from benchmarks.chaos.promise import Promise
from benchmarks.chaos.watched import ENDLESS, Watched, wait_gone

RUN = ("--env", "CartPole-v1", "--steps", ENDLESS, "--checkpoint-every", "5000")
RUN += ("--eval-every", "20000", "--eval-episodes", "20")
LATEST_S = 5.0  # after the start of the process


def saved(run: Watched) -> list[int]:
    """Steps of the checkpoints that were acknowledged."""
    events = [event for event in run.events() if event["event"] == "checkpoint"]
    return [
        int(event["path"].removeprefix("step-")) for event in events if "latest" in event["marks"]
    ]


def newest(run: Watched) -> int:
    """The step of the checkpoint that loads, -1 for none, -2 for none although there is one."""
    try:
        return checkpoint.load(checkpoint.resolve(run.run)).step
    except (UserError, ValueError):  # ValueError: there is no run folder yet
        return -2 if list(run.folder.glob("*/*/checkpoints/step-*/manifest.json")) else -1


def trainer(quick: bool) -> list[Promise]:
    """SIGKILLs of the trainer from 0.02 s after its start to the middle of the run."""
    kills = 5 if quick else 50
    orphans = unreadable = lost = 0
    shm = set(os.listdir("/dev/shm"))
    for k in range(kills):
        run = Watched(*RUN, workers=2)
        time.sleep(0.02 + LATEST_S * k / kills)
        run.process.kill()
        run.process.communicate()
        orphans += len(wait_gone(run.children(), 2))
        found, acknowledged = newest(run), saved(run)
        unreadable += found == -2
        lost += bool(acknowledged) and found < max(acknowledged)
    left = len(set(os.listdir("/dev/shm")) - shm)
    return [
        Promise(
            f"A8 {kills} SIGKILLs of the trainer",
            f"{orphans} children alive after 2 s, {left} files in /dev/shm",
            "0, 0",
            orphans == left == 0,
        ),
        Promise(
            f"A10 the newest checkpoint after {kills} SIGKILLs",
            f"{unreadable} unreadable, {lost} acknowledged but lost",
            "0, 0",
            unreadable == lost == 0,
        ),
    ]


def signals(quick: bool) -> list[Promise]:
    """SIGINT to the whole group and SIGTERM to the trainer, sometimes a second one; half of them
    while it starts, half while it trains.

    In the start nothing can be damaged, and one signal is enough; but no handler runs while Python
    loads torch's libraries, for up to two seconds on a slow machine.
    """
    count, promises = 6 if quick else 30, []
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        wrong, traces, alive, slowest, second = [], 0, 0, 0.0, 0.0
        for k in range(count):
            run = Watched(*RUN, workers=2)
            if k % 2:
                run.wait_until_learning()
            # Before 0.1 s Python itself is starting.
            time.sleep(random.uniform(0.0 if k % 2 else 0.1, 1.5))
            for pid in [run.process.pid, *(run.children() if number == signal.SIGINT else [])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            begun, twice = time.monotonic(), k % 3 == 2
            if twice:
                time.sleep(0.05)
                run.process.send_signal(number)
            code, err = run.end(30)
            seconds = time.monotonic() - begun
            slowest = max(slowest, seconds)
            second = max(second, seconds if twice and k % 2 else 0.0)
            if code != expected or newest(run) == -2:
                wrong.append((k, code, newest(run)))
            traces += "Traceback" in err
            alive += len(wait_gone(run.children(), 1))
        kept = not wrong and not traces and not alive and slowest < 10 and second < 1.1
        promises.append(
            Promise(
                f"A14 {count} times {number.name}",
                f"{len(wrong)} wrong exits or lost checkpoints {wrong[:3] or ''}, {traces} "
                f"tracebacks, {alive} left alive, slowest {slowest:.1f} s, with a second signal in "
                f"training {second:.1f} s",
                "0, 0, 0, under 10 s, under 1 s",
                kept,
            )
        )
    return promises


RESUMED = ("--steps", "200_000", "--checkpoint-every", "10_000", "--eval-every", "20_000")
T_975 = {2: 12.71, 5: 2.776}  # Student's t for a 95 % interval, by number of pairs


def resume(quick: bool) -> list[Promise]:
    """SIGKILLs of the trainer, each followed by a resume, against runs left alone, by seed."""
    seeds, kills = (2, 1) if quick else (5, 4)
    differences, wrong = [], 0
    for seed in range(seeds):
        alone = Watched("--seed", str(seed), *RESUMED, workers=2)
        alone.end()
        run = Watched("--seed", str(seed), *RESUMED, workers=2)
        place = run  # owns the folder
        for _ in range(kills):
            before = scores(run)
            run.wait_for(lambda run=run, before=before: scores(run) > before)
            time.sleep(random.uniform(0, 0.3))
            run.process.kill()
            run.process.communicate()
            wait_gone(run.children(), 2)
            run = Watched("--resume", str(run.run), workers=2, folder=place.folder)
        run.end()
        rows = (run.run / "metrics.csv").read_text().splitlines()[1:]
        steps = [int(row.split(",")[0]) for row in rows]
        wrong += steps != sorted(set(steps)) or run.result()["steps"] != 200_000
        differences.append(late_score(run) - late_score(alone))
    middle = statistics.mean(differences)
    half = T_975[seeds] * statistics.stdev(differences) / math.sqrt(seeds)
    return [
        Promise(
            f"A13 CartPole, {seeds} seeds, {kills} SIGKILLs and resumes each: mean score of the "
            "second half less that of a run left alone",
            f"{middle:+.1f} (95 % interval {middle - half:+.1f} to {middle + half:+.1f}); "
            f"{wrong} runs with steps that go back, or that miss the budget",
            "not below 0; 0",
            middle + half >= 0 and not wrong,
        )
    ]


def late_score(run: Watched) -> float:
    """Mean over the evaluations of the second half of the budget."""
    rows = [row.split(",") for row in (run.run / "evaluations.csv").read_text().splitlines()[1:]]
    return statistics.mean(float(row[4]) for row in rows if int(row[0]) > 100_000)


def scores(run: Watched) -> int:
    """How many evaluations there were."""
    return sum(event["event"] == "evaluation" for event in run.events())
