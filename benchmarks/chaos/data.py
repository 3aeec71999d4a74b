"""What environments give: exceptions, malformed data, rewards too large; and exact counts."""

import random
import tempfile
import time
from pathlib import Path

import numpy as np

from async_dqn.runs import checkpoint
from benchmarks.chaos.processes import finite
from benchmarks.chaos.promise import Promise
from benchmarks.chaos.watched import ENDLESS, Watched

HUGE = ("--import", "scripted_ids", "--env", "Scripted/HugeReward-v0", "--eval-every", ENDLESS)


def tally(folder: str, *arguments: str) -> tuple[str, ...]:
    """Options of a run on the CartPole that keeps its books in `folder`."""
    environment = ("--import", "benchmarks.chaos.chaos_envs", "--env", "Chaos/CartPole-v1")
    preset = ("--preset", "cartpole", "--eval-every", ENDLESS)
    return (*environment, *preset, "--env-arg", f"folder={folder!r}", *arguments)


def written(folder: str, book: str) -> int:
    """How much a book of all processes holds."""
    return sum(path.stat().st_size for path in Path(folder).glob(f"{book}-*"))


def faults(quick: bool) -> list[Promise]:
    """Random exceptions in step and reset, and random malformed data."""
    promises = []
    for number, fault, steps in (("A5", "raise", 100_000), ("A6", "malformed", 1_000_000)):
        steps, share = steps // 10 if quick else steps, 0.001
        with tempfile.TemporaryDirectory() as folder:
            options = ("--env-arg", f"fault={fault!r}", "--env-arg", f"share={share}")
            run = Watched(*tally(folder, *options), "--steps", str(steps), workers=2)
            code, _ = run.end(900)
            injected = written(folder, "faults")
        counted = checkpoint.load(checkpoint.resolve(run.run)).state["env_errors"]
        measured = (
            f"exit {code}, {counted} counted of {injected}, {run.result()['restarts']} deaths"
        )
        kept = code == 0 and counted == injected and finite(run) and not run.result()["restarts"]
        target = "exit 0, all counted, no death, parameters finite"
        name = f"{number} {fault}: {100 * share:g} % of {steps:,} steps"
        promises.append(Promise(name, measured, target, kept))
    return promises


def numbers(quick: bool) -> list[Promise]:
    """Gradients that are not finite: now and then, then always."""
    steps = 50_000 if quick else 200_000
    run = Watched(
        *HUGE, "--env-arg", "every=400", "--steps", str(steps), "--checkpoint-every", "2000"
    )
    run.attach()
    bad, looks = _look(run)
    code, _ = run.end()
    skipped = checkpoint.load(checkpoint.resolve(run.run)).state["skipped_updates"]
    begun = time.monotonic()
    always = Watched(*HUGE, "--steps", ENDLESS)
    last, err = always.end()
    seconds = time.monotonic() - begun
    backs = err.count("half the learning rate")
    return [
        Promise(
            f"A7 some gradients not finite ({skipped} dropped)",
            f"exit {code}; {bad} bad of {looks} looks at parameters and moments, every 10 ms",
            "exit 0, 0 bad",
            code == bad == 0 and looks > 0 and skipped > 0,
        ),
        Promise(
            "A7 no gradient is finite",
            f"{backs} way back, exit {last} after {seconds:.0f} s, "
            f"checkpoint {'finite' if finite(always) else 'BAD'}",
            "1, exit 1 within 30 s, finite",
            (backs, last) == (1, 1) and seconds < 30 and finite(always),
        ),
    ]


def _look(run: Watched) -> tuple[int, int]:
    """Looks at theta and the optimiser's moments until the run ends, and how many were bad."""
    run.wait_for(lambda: list(run.folder.glob("*/*/checkpoints/latest")))
    model = checkpoint.load(checkpoint.resolve(run.run)).tensors["model"]
    size = -(-sum(array.size for array in model.values()) // 16) * 16
    shared, bad, looks = [run.array(name, size) for name in ("theta", "optimizer")], 0, 0
    while run.process.poll() is None:
        bad += not all(np.isfinite(array).all() for array in shared)
        looks += 1
        time.sleep(0.01)
    return bad, looks


def steps(quick: bool) -> list[Promise]:
    """The environments' own count of steps against the run's, after kills and resumes."""
    kills, resumes, promises = (5, 1, []) if quick else (50, 5, [])
    for count in (1, 8):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as runs:
            common = ("--envs-per-worker", str(count), "--checkpoint-every", ENDLESS)
            run = Watched(*tally(folder, *common), "--steps", ENDLESS, workers=2, folder=Path(runs))
            for part in range(resumes + 1):
                if part:
                    more = ("--resume", str(run.run), "--import", "benchmarks.chaos.chaos_envs")
                    run = Watched(*more, workers=2, folder=Path(runs))
                run.attach()
                run.wait_for(lambda run=run: (run.steps > 500).all())
                for _ in range(kills // (resumes + 1)):
                    time.sleep(random.uniform(0.1, 0.4))
                    run.kill("worker", random.randrange(2))
                run.stop()
            taken, booked = run.result()["steps"], written(folder, "steps")
        allowed = count * (kills + 2 * (resumes + 1))
        promises.append(
            Promise(
                f"A12 steps after {kills} SIGKILLs and {resumes} resumes, B = {count}",
                f"{taken:,} in the run, {booked - taken} more in the environments' books",
                f"0 to {allowed}: those of killed vector steps",
                0 <= booked - taken <= allowed,
            )
        )
    return promises
