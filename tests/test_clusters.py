"""What is for clusters, as far as one machine can show it: jobs told to end, and queued again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs import ROOT

SCRIPT = ROOT / "examples" / "clusters" / "slurm-array.sh"
OPTIONS = ("--steps", "150_000", "--checkpoint-every", "20_000", "--eval-every", "50_000")


def job(tmp_path: Path, seed: int) -> subprocess.Popen:
    """The script as SLURM starts it, with an `scontrol` that writes down what it is told."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tools / "scontrol").chmod(0o755)
    about = {"SLURM_ARRAY_TASK_ID": str(seed), "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9"}
    about |= {"SLURM_CPUS_PER_TASK": "1", "PYTHON": sys.executable}
    path = f"{tools}:{os.environ['PATH']}"
    words = [*OPTIONS, "--runs-dir", str(tmp_path / "runs")]
    return subprocess.Popen(
        [SCRIPT, *words],
        cwd=ROOT,
        env=os.environ | about | {"PATH": path},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_array_jobs_go_on_where_they_were_told_to_end(tmp_path) -> None:
    runs = tmp_path / "runs" / "CartPole-v1"
    jobs = [job(tmp_path, seed) for seed in (0, 1)]
    while len(list(runs.glob("seed-*/checkpoints/step-*"))) < 2:
        assert all(one.poll() is None for one in jobs)
        time.sleep(0.05)
    jobs[1].send_signal(signal.SIGTERM)  # to the script alone, as `--signal=B:` has it
    assert jobs[1].wait(60) == 0
    assert (tmp_path / "told").read_text() == "requeue 7_1\n"
    stopped = json.loads((runs / "seed-1" / "result.json").read_text())
    assert stopped["status"] == "stopped" and stopped["steps"] < 150_000
    again = job(tmp_path, 1)
    assert jobs[0].wait(120) == again.wait(120) == 0
    for seed in (0, 1):
        result = json.loads((runs / f"seed-{seed}" / "result.json").read_text())
        assert (result["status"], result["steps"]) == ("budget reached", 150_000)
    assert (tmp_path / "told").read_text().count("\n") == 1
    assert len(list(runs.iterdir())) == 2


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = (SCRIPT.parent / "Containerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    names = [name for line in copied for name in line]
    assert {"constraints.txt", "setup.cfg", "async_dqn", "launch.py"} <= set(names)
    for name in names:
        assert list(ROOT.glob(name)), name
    assert 'ENTRYPOINT ["async-dqn"]' in text
