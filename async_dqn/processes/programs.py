"""This package's own programs as processes beside this one, and what they said at their end."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import async_dqn

LONGEST_WORDS = 300


def search_path() -> str:
    """A PYTHONPATH by which a child finds this package, and what this process finds."""
    source = str(Path(async_dqn.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))


def start(arguments: Sequence[str], log: Path, **how: Any) -> subprocess.Popen:
    """A process of Python that finds this package and writes into `log`; `how` as of `Popen`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": search_path()},
            **how,
        )


def last_words(log: Path) -> str:
    """The first error in a log, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    told = (errors[:1] or lines[-1:] or ["no output"])[0].removeprefix("error: ")
    return told[:LONGEST_WORDS]
