"""What every child process does first: die with the trainer, keep out of its signals, keep a log.

A parent-death signal alone is not enough under a fork server: the kernel ties it to the SERVER,
which lives as long as any child holds its pipe. So each child closes that pipe, asks for the
signal, and watches the trainer itself as well.
"""

import ctypes
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from async_dqn.config.fields import describe_error

PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# A record with its 4-byte prefix must fit: up to PIPE_BUF a write happens whole or not at all.
RECORD_BYTES = getattr(select, "PIPE_BUF", 512) - 4


@dataclass(frozen=True)
class ParentIdentity:
    """Names the trainer, so that a child can tell it from a later process with the same pid."""

    pid: int
    started: str

    @classmethod
    def here(cls) -> "ParentIdentity":
        return cls(os.getpid(), _start_time(os.getpid()))


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _enter(title: str, parent: ParentIdentity, log: Path) -> None:
    """Tie this process to the trainer, name it, and send its output to `log`."""
    die_with(parent)
    # A collection that went through what the imports made would take up to 0.2 s, and copy its
    # pages, which all children share, by writing into the head of each object.
    gc.freeze()
    gc.enable()
    keep_freed_memory()
    os.setpgid(0, 0)  # a kill of the group also catches what the environment started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer alone handles Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked until here
    for number in (signal.SIGTERM, signal.SIGHUP):  # the fork server ignores them
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    faulthandler.enable(sys.stderr)
    try:
        import setproctitle

        setproctitle.setproctitle(title)
    except ImportError:
        pass


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory up to 32 MiB a piece; elsewhere nothing happens.

    By default it gives what a learning pass frees back to the kernel and takes it anew for the
    next one: page by page, a fifth of a worker's time where observations are images.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)


def end_with_parent() -> None:
    """In a process about to become another program: SIGTERM when the thread that made it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with(parent: ParentIdentity) -> None:
    """End this process when the trainer ends."""
    server_pipe = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if server_pipe is not None:
        os.close(server_pipe)
        forkserver._forkserver._forkserver_alive_fd = None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(os, "pidfd_open"):
        try:
            trainer = os.pidfd_open(parent.pid)
        except ProcessLookupError:
            os._exit(1)
        threading.Thread(target=_exit_after, args=(trainer,), daemon=True).start()
    else:
        threading.Thread(target=_exit_when_reparented, args=(os.getppid(),), daemon=True).start()
    if _start_time(parent.pid) != parent.started:
        os._exit(1)


def _exit_after(pidfd: int) -> None:
    wait([pidfd])
    os._exit(1)


def _exit_when_reparented(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


class RecordPipe:
    """The child's end of its pipe: small JSON records, dropped rather than waited for."""

    def __init__(self, connection: Connection):
        self._connection = connection
        os.set_inheritable(connection.fileno(), False)
        os.set_blocking(connection.fileno(), False)

    def send(self, record: dict[str, Any]) -> bool:
        """Send one record; False if the pipe is full (nothing was written)."""
        message = json.dumps(record).encode()
        if len(message) > RECORD_BYTES:
            raise ValueError(f"record of {len(message)} bytes does not fit in one pipe write")
        try:
            self._connection.send_bytes(message)
        except BlockingIOError:
            return False
        return True


def receive(connection: Connection) -> dict[str, Any] | None:
    """Read one record in the trainer; None at the end of the pipe."""
    try:
        return json.loads(connection.recv_bytes(RECORD_BYTES))
    except (EOFError, OSError, ValueError):
        return None


class PermanentError(Exception):
    """What goes wrong in a child, and would again in the next one."""


@contextmanager
def in_child(
    title: str, parent: ParentIdentity, log: Path, connection: Connection
) -> Iterator[RecordPipe]:
    """What a child does lies within: an exception goes to its log and to the trainer; exit 1."""
    _enter(title, parent, log)
    pipe = RecordPipe(connection)
    try:
        yield pipe
    except Exception as error:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        is_permanent = isinstance(error, PermanentError)
        cause = str(error) if is_permanent else describe_error(error)
        pipe.send({"kind": "failure", "cause": cause[:500], "is_permanent": is_permanent})
        os._exit(1)
