"""How processes are started: a fork server with the heavy imports done, never `fork`.

Forking a process that has used torch hangs the child (its thread pools do not survive), so the
server only imports. `spawn` stands in where there is no fork server.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

PRELOADED = ("async_dqn.worker", "async_dqn.evaluator")


def context() -> BaseContext:
    """The context that starts our children."""
    return multiprocessing.get_context("forkserver" if _has_fork_server() else "spawn")


def preload(modules: list[str]) -> None:
    """Start the fork server now; it imports torch and `modules` while the trainer goes on."""
    if not _has_fork_server():
        return
    multiprocessing.set_forkserver_preload([*PRELOADED, *modules])
    path = os.environ.get("PYTHONPATH")
    # The server is a fresh interpreter: it must find this package wherever it was started.
    package = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, path]))
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def _has_fork_server() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()
