"""What a run was made with: versions of this program and its libraries, revision of the code."""

import contextlib
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import async_dqn

LIBRARIES = ("torch", "numpy", "gymnasium", "ale-py", "minatar", "safetensors", "tensorboard")


def git_revision() -> str | None:
    """The commit this program runs from; None unless it runs from a checkout."""
    root = Path(async_dqn.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # else git would find a repository further up
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@functools.cache  # every checkpoint asks
def versions() -> dict[str, str | None]:
    """Versions of Python, of this program and of the libraries (None: not installed)."""
    found: dict[str, str | None] = dict.fromkeys(LIBRARIES)
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {"python": platform.python_version(), "async_dqn": async_dqn.__version__, **found}
