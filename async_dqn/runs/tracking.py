"""What reports a run to a service while it trains: a process for each, that reads the run folder.

It can hang or die without harm to the training; `async_dqn.track` is what it runs.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import async_dqn
from async_dqn.config.config import UserError

SERVICES = {"wandb": "wandb", "mlflow": "mlflow"}  # and the module each needs
PATIENCE_S = 30.0  # for a service, once the run has ended


def named(track: str) -> list[str]:
    """The services of the setting `track`."""
    return [] if track == "none" else track.split(",")


def check_services(track: str) -> None:
    """Raise UserError where the package of one is missing."""
    for name in named(track):
        if importlib.util.find_spec(SERVICES[name]) is None:
            raise UserError(
                f"{name} is not installed; pip install -c constraints.txt -e '.[track]'"
            )


class Tracking:
    """The processes that report one run; leaving the context waits for them."""

    def __init__(self, folder: Path, track: str, warn: Callable[[str], None]):
        self._folder, self._names, self._warn = folder.absolute(), named(track), warn
        self._children: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Once config.json is written."""
        source = str(Path(async_dqn.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        for name in self._names:
            with self._log(name).open("wb") as log:
                self._children[name] = subprocess.Popen(
                    [sys.executable, "-m", "async_dqn", "track", str(self._folder), "--to", name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C is not for them, and all of it ends together
                )

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + PATIENCE_S
        for name, child in self._children.items():
            try:
                code = child.wait(max(0.0, until - time.monotonic()))
                said = self._log(name).read_text(errors="replace").strip()
                why = said.rpartition("error: ")[2].splitlines()
                reason = why[-1] if why else f"it ended with {code}"
            except subprocess.TimeoutExpired:
                code, reason = 1, f"it took more than {PATIENCE_S:g} s"
            self._end(child)
            if code:
                again = f"`async-dqn track {self._folder} --to {name}` sends it again"
                self._warn(f"tracking failed ({reason}); {again}")

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"track-{name}.log"

    def _end(self, child: subprocess.Popen) -> None:
        """With what it has started itself."""
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        child.wait()
