"""What goes with a run: processes that read its folder, to report it or to film the agent.

They can hang or die without harm to the training, which only looks whether they are there.
"""

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from async_dqn.config.config import Config, UserError
from async_dqn.processes.programs import last_words, start

SERVICES = {"wandb": "wandb", "mlflow": "mlflow"}  # and the module each needs
PATIENCE_S = 60.0  # for all of them, once the run has ended

Commands = dict[str, list[str]]  # by what they do: words of a command line


def commands_of(config: Config, folder: Path) -> Commands:
    """Those that the settings of a run ask for."""
    run = str(folder.absolute())
    commands = {f"track-{name}": ["track", run, "--to", name] for name in _services(config)}
    if (every := config.evaluation.video_every) is not None:
        commands["videos"] = ["watch", run, "--record", str(every)]
    return commands


def check_services(config: Config) -> None:
    """Raise UserError where the package of one that is asked for is missing."""
    for name in _services(config):
        check_service(name)


def check_service(name: str) -> None:
    """The same for one."""
    if importlib.util.find_spec(SERVICES[name]) is None:
        raise UserError(f"{name} is not installed; pip install -c constraints.txt -e '.[track]'")


def _services(config: Config) -> list[str]:
    return [] if config.run.track == "none" else config.run.track.split(",")


class Companions:
    """The processes of one run; leaving the context waits for them."""

    def __init__(
        self, folder: Path, commands: Mapping[str, list[str]], warn: Callable[[str], None]
    ):
        self._logs, self._commands, self._warn = folder.absolute() / "logs", commands, warn
        self._children: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Once config.json is written."""
        for name, words in self._commands.items():
            # Ctrl-C is not for them, and what one of them starts ends with it.
            log, module = self._log(name), ["-m", "async_dqn"]
            self._children[name] = start([*module, *words], log, start_new_session=True)

    def look(self) -> None:
        """Say at once which of them has failed."""
        for name, child in list(self._children.items()):
            if child.poll() is not None:
                self._end(name, "")

    def __enter__(self) -> "Companions":
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + PATIENCE_S
        for name, child in list(self._children.items()):
            try:
                child.wait(max(0.0, until - time.monotonic()))
                self._end(name, "")
            except subprocess.TimeoutExpired:
                self._end(name, f"it took more than {PATIENCE_S:g} s")

    def _end(self, name: str, reason: str) -> None:
        """With what it has started itself."""
        child = self._children.pop(name)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        if child.returncode == 0:
            return
        reason = reason or last_words(self._log(name))
        again = " ".join(["async-dqn", *self._commands[name]])
        self._warn(f"{name} failed ({reason}); `{again}` tries again")

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
