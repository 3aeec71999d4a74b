"""Checkpoints: killed while saving, bits that flip, a disk that fills up (A10, A11, A19)."""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from async_dqn.config.config import UserError
from async_dqn.runs import checkpoint
from benchmarks.chaos.promise import Promise
from benchmarks.chaos.watched import ENDLESS, ROOT, Watched

SAVER = """
import itertools, sys
from pathlib import Path
import numpy as np
from async_dqn import checkpoint
folder = Path(sys.argv[1])
checkpoint.clean(folder)
for step in itertools.count(int(sys.argv[2])):
    tensors = {"model": {"w": np.full(400_000, step, np.float32)}}
    checkpoint.save(folder, step, tensors, {"steps": step}, ("latest",), 2)
    print(step, flush=True)
"""


def saving(quick: bool) -> list[Promise]:
    """SIGKILLs of a process that saves without pause."""
    kills = 10 if quick else 200
    unreadable = lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder, step = Path(name, "run", "checkpoints"), 1
        folder.mkdir(parents=True)
        for _ in range(kills):
            command = [sys.executable, "-c", SAVER, str(folder), str(step)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.1))
            process.kill()
            told = [step, *map(int, process.stdout.read().split())]
            process.wait()
            try:
                found = checkpoint.load(checkpoint.resolve(folder.parent)).step
            except UserError:
                found, unreadable = -1, unreadable + 1
            lost += found < max(told)
            step = max(*told, found) + 1
        checkpoint.clean(folder)
        left = [path.name for path in folder.iterdir() if ".tmp-" in path.name]
    return [
        Promise(
            f"A10 {kills} SIGKILLs of a process that saves",
            f"{unreadable} unreadable, {lost} acknowledged but lost, {len(left)} leftovers",
            "0, 0, 0",
            not (unreadable or lost or left),
        )
    ]


def rot(quick: bool) -> list[Promise]:
    """Single bits that flip anywhere in a checkpoint."""
    flips, found, crashes = 50 if quick else 1000, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run", "checkpoints")
        folder.mkdir(parents=True)
        numbers = np.random.default_rng(0).normal(size=5000).astype(np.float32)
        tensors = {part: {"w": numbers} for part in ("model", "target", "optimizer")}
        path = checkpoint.save(folder, 7, tensors, {"steps": 7}, ("latest",), 2)
        whole = {file: file.read_bytes() for file in path.iterdir()}
        places = [(file, k) for file, data in whole.items() for k in range(8 * len(data))]
        for file, k in random.sample(places, flips):
            data = bytearray(whole[file])
            data[k // 8] ^= 1 << k % 8
            file.write_bytes(data)
            try:
                checkpoint.load(path)
            except UserError:
                found += 1
            except Exception:
                crashes += 1
            file.write_bytes(whole[file])
    measured = f"{found} found, {crashes} crashes"
    return [
        Promise(
            f"A11 {flips} flipped bits", measured, f"{flips}, 0", (found, crashes) == (flips, 0)
        )
    ]


def disk(quick: bool) -> list[Promise]:
    """A file system of 12 MB that fills up in the middle of a run, and is freed later.

    Mounting one takes rights that not everybody has.
    """
    wait = 10 if quick else 70
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", name], capture_output=True
        )
        if mounted.returncode:
            return [Promise("A19 full disk", "not measured: no right to mount", "-", False)]
        try:
            return [_filled(Path(name), wait)]
        finally:
            subprocess.run(["umount", "--lazy", name])


def _filled(place: Path, wait: float) -> Promise:
    options = ("--env", "CartPole-v1", "--steps", ENDLESS, "--checkpoint-every", "20000")
    run = Watched(*options, "--eval-every", ENDLESS, workers=2, folder=place)
    run.attach()
    run.wait_for(lambda: any(event["event"] == "checkpoint" for event in run.events()))
    filler, loads = place / "filler", True
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    before = run.steps.sum()
    until = time.monotonic() + min(wait, 30)
    slowest = float("inf")
    while time.monotonic() < until:
        time.sleep(1)
        loads &= checkpoint.load(checkpoint.resolve(run.run)).step > 0
        now = run.steps.sum()
        slowest, before = min(slowest, float(now - before)), now
    filler.unlink()
    old = checkpoint.load(checkpoint.resolve(run.run)).step
    deadline = time.monotonic() + wait
    while checkpoint.load(checkpoint.resolve(run.run)).step == old and time.monotonic() < deadline:
        time.sleep(0.5)
    again = checkpoint.load(checkpoint.resolve(run.run)).step > old
    code, err = run.stop()
    kept = loads and again and slowest > 0 and code == 143 and "Traceback" not in err
    return Promise(
        f"A19 disk full for {min(wait, 30)} s, then freed",
        f"slowest second {slowest:,.0f} steps; the old checkpoint {'loads' if loads else 'LOST'}; "
        f"saved again: {'yes' if again else 'NO'}; exit {code}",
        "never 0; loads; yes; 143",
        kept,
    )


def hostile(quick: bool) -> list[Promise]:
    """Checkpoints with bytes put in, taken out and changed, many under a manifest that fits."""
    count = 500 if quick else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run", "checkpoints")
        folder.mkdir(parents=True)
        tensors = {part: {"w": np.ones((20, 10), np.float32)} for part in ("model", "optimizer")}
        path = checkpoint.save(folder, 7, tensors, {"steps": 7}, ("latest",), 2)
        command = [sys.executable, "-m", "benchmarks.chaos.hostile", str(path), str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    kept = (
        not found["seen"]
        and not found["other"]
        and found["megabytes"] < 512
        and found["slowest"] < 2
    )
    return [
        Promise(
            f"A20 {count:,} mutated checkpoints",
            f"{found['refused']:,} refused, {found['loaded']:,} harmless; {found['other']} other "
            f"errors, {len(found['seen'])} imports, executions or files outside; slowest "
            f"{found['slowest']:.2f} s, {found['megabytes']:.0f} MB",
            "0, 0; below 2 s, 512 MB",
            kept,
        )
    ]
