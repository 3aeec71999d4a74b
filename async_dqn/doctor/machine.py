"""Findings about the machine: what a run has here, and what will hold it up."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from async_dqn.config.cores import free_memory, free_tasks, has_bfloat16, usable_cores
from async_dqn.doctor.findings import FINE, NOTE, Finding, judged
from async_dqn.processes.child_side import RECORD_BYTES
from async_dqn.runs.preflight import FILES, FILES_PER_CHILD, LEAST_RECORD_BYTES, free_room
from async_dqn.runs.versions import versions

LEAST_MEMORY, LEAST_DISK = 2e9, 1e9  # bytes
BUSY = 0.5  # others' share of a core, for each core


def about_machine(runs_dir: Path) -> Iterator[Finding]:
    """One finding after another; `runs_dir` is where runs are to be."""
    cores, known = usable_cores(), os.cpu_count() or 1
    limited = f"{cores} of {known}, by affinity or control group" if cores < known else f"{cores}"
    yield Finding(FINE, "cores", f"{limited} usable, which --workers takes by default")
    busy = os.getloadavg()[0]
    others = f"{busy:.1f} processes were at work in the last minute"
    yield judged(busy > BUSY * cores, "load", others, "times will be longer than alone", NOTE)
    free = free_memory()
    if free is not None:
        text = f"{free / 1e9:.1f} GB may be used"
        advice = "lower --workers and --replay-capacity"
        yield judged(free < LEAST_MEMORY, "memory", text, advice)
    yield Finding(FINE, "shared memory", "a file without a name, for which /dev/shm is not needed")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = (files - FILES) // FILES_PER_CHILD - 1
    yield judged(most < 2 * cores, "open files", f"{files}: {most} workers", "raise ulimit -n")
    tasks = free_tasks()
    if tasks is not None:
        text = f"{tasks} more processes and threads"
        yield judged(tasks < 10 * cores, "processes", text, "raise ulimit -u or pids.max")
    small = RECORD_BYTES < LEAST_RECORD_BYTES
    yield judged(small, "pipes", f"take {RECORD_BYTES + 4} bytes whole", "use --mode serial")
    room = free_room(runs_dir)
    text = f"{room / 1e9:.1f} GB free for {runs_dir}"
    yield judged(room < LEAST_DISK, "disk", text, "make room or choose another --runs-dir")
    words = "multiplied by the CPU" if has_bfloat16() else "slower than float32 here, not used"
    yield Finding(FINE, "bfloat16", words)
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    found = f"{', '.join(gpus)}: --device cuda" if gpus else "none; workers learn on the CPU"
    yield Finding(FINE, "GPU", found)
    yield Finding(FINE, "versions", ", ".join(f"{n} {v}" for n, v in versions().items() if v))
