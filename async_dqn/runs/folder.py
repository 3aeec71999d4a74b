"""The folder of one run: where it lies, that it is ours alone, and what it must never do.

`<runs dir>/<environment>/<run name>/` belongs to the one process that holds the lock on its
`.lock`; the kernel drops the lock with the process, so a killed trainer blocks nobody. Every
refusal comes before anything is written.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Self

from async_dqn.config.config import UserError, check_run_name
from async_dqn.runs.durable import SAFELY, is_own_folder

LOCK = ".lock"
LOG_BYTES = 10_000_000
CHECKPOINT_NAME = re.compile(r"step-(\d{12})")


class RunFolder(contextlib.AbstractContextManager):
    """A run folder held by this process, with its sub-folders `checkpoints` and `logs`.

    `path` is absolute, since environments may change the working directory; `str(run)` is the
    path as the user wrote it.
    """

    def __init__(self, path: Path, lock: FileIO, made: Sequence[Path] = ()) -> None:
        """Internal: use `create` or `open`."""
        self._shown, self._lock = path, lock
        self._made = [Path(os.path.abspath(folder)) for folder in made]
        self.path = Path(os.path.abspath(path))
        self.name = self.path.name
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"

    @classmethod
    def create(
        cls, runs_dir: str | Path, env_name: str, run_name: str | None, algorithm: str, seed: int
    ) -> Self:
        """Make and lock a new run folder; without a name `<algorithm>-s<seed>-<next free k>`.

        Raises UserError, with nothing written: bad name, a run already there, a run in progress,
        a symbolic link on the way, a place that cannot be written to.
        """
        check_new_run(runs_dir, env_name, run_name)
        numbered = (f"{algorithm}-s{seed}-{k}" for k in itertools.count(1))
        names: Iterable[str] = numbered if run_name is None else [run_name]
        for path in (Path(runs_dir, env_folder(env_name), name) for name in names):
            claim = _claim(path)
            if claim is not None:
                return cls(path, *claim)
        raise _taken(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Lock an existing run folder in order to resume it.

        Raises UserError: not there, a symbolic link, in use by another process, read-only.
        """
        path = Path(path)
        for folder in (path, path / "checkpoints", path / "logs"):
            _refuse_link(folder)
        if not (path / "checkpoints").is_dir():
            raise UserError(f"{path} is not a run folder; resume from a folder below --runs-dir")
        lock = _lock(path)
        if lock is None:
            raise _in_use(path)
        _make_folders([path / "logs"])
        return cls(path, lock)

    def discard(self) -> None:
        """Remove a new run that came to nothing: it has no checkpoint. Keeps all else."""
        if self.path in self._made and not any(self.checkpoints.iterdir()):
            shutil.rmtree(self.path)
            _remove_folders(self._made[:-1])

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        self._lock.close()

    def __str__(self) -> str:
        return str(self._shown)

    def __exit__(self, *_: object) -> None:
        self.close()


def cap_logs(folder: Path) -> None:
    """Empty every log below `folder` that is over LOG_BYTES: an environment may print for ever."""
    for log in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_BYTES:
                os.truncate(log, 0)  # children append: they go on at the start


def env_folder(env_name: str) -> str:
    """Folder name of an environment: the id with / (and anything else unusual) as -."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", env_name).lstrip(".-")[:100] or "env"


def check_new_run(runs_dir: str | Path, env_name: str, run_name: str | None) -> None:
    """Every refusal (UserError) of `RunFolder.create`, without writing: before slow imports."""
    if run_name is not None:
        check_run_name(run_name)
    place = Path(runs_dir, env_folder(env_name))
    folders = [place.parent, place, *([] if run_name is None else [place / run_name])]
    for folder in folders[1:]:
        _refuse_link(folder)
    _check_writable(folders)
    if run_name is not None and not _is_free(folders[-1]):
        raise _taken(folders[-1])


def _check_writable(folders: list[Path]) -> None:
    """The deepest of the nested `folders` that exists must be a folder we may write in."""
    root = folders[0]
    existing = [folder for folder in folders if os.path.lexists(folder)]
    deepest = existing[-1] if existing else root.parent
    if not deepest.exists():
        number = errno.ENOENT
    elif not deepest.is_dir():
        number = errno.ENOTDIR
    elif os.access(deepest, os.W_OK | os.X_OK):
        return
    else:  # access() does not say which
        read_only = os.statvfs(deepest).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
    raise _cannot_write(existing[-1] if existing else root, OSError(number, os.strerror(number)))


def _is_free(path: Path) -> bool:
    """True where no run lies: nothing there, or empty folders and a lock left by a failed start."""
    if not os.path.lexists(path):
        return True
    entries = path.rglob("*") if is_own_folder(path) else [path]
    return all(entry.name == LOCK or is_own_folder(entry) for entry in entries)


def _claim(path: Path) -> tuple[FileIO, list[Path]] | None:
    """Create and lock the run folder `path`; None when it is, or just became, another's.

    Returns the lock and the folders that are new.
    """
    if not _is_free(path):
        return None
    made = _make_folders([path.parent.parent, path.parent, path])
    lock = None
    try:
        lock = _lock(path)
        if lock is not None and _is_free(path):
            _make_folders([path / "checkpoints", path / "logs"])
            return lock, made
    except UserError:
        _remove_folders(made)
        raise
    if lock is not None:
        lock.close()
    return None


def _make_folders(folders: list[Path]) -> list[Path]:
    """Create those of the nested `folders` that are missing, all or none; return the new ones."""
    made: list[Path] = []
    try:
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                made.append(folder)
    except (OSError, ValueError) as error:
        _remove_folders(made)
        raise _cannot_write(folder, error) from None
    return made


def _remove_folders(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _lock(path: Path) -> FileIO | None:
    try:
        return hold(path / LOCK)
    except OSError as error:
        raise _cannot_write(path, error) from None


def hold(path: Path) -> FileIO | None:
    """The file `path`, locked and with our pid in it; None when another process holds it. Raises
    OSError."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o600), "r+")
    if not _try_flock(file):
        file.close()
        return None
    with contextlib.suppress(OSError):  # the pid is a courtesy; the lock itself holds
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file


def _try_flock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: go on without
        pass
    return True


def is_locked(path: Path) -> bool:
    """Whether a process is at work in the run folder `path`."""
    try:
        with FileIO(os.open(path / LOCK, os.O_RDWR | SAFELY), "r+") as file:
            return not _try_flock(file)
    except OSError:
        return False


def _taken(path: Path) -> UserError:
    if is_locked(path):
        return _in_use(path)
    steps = _steps(path)
    if steps is None:
        return UserError(f"{path} already holds a run (no checkpoint); use another --run-name")
    return UserError(
        f"{path} already holds a run ({steps} steps); "
        f"use --resume {path} or another --run-name. Kept: all of it"
    )


def _steps(path: Path) -> str | None:
    """Steps of the newest checkpoint or of the result, such as "1.2 M"; None without either."""
    names = [CHECKPOINT_NAME.fullmatch(entry.name) for entry in path.glob("checkpoints/*")]
    steps = [int(name[1]) for name in names if name]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        steps.append(int(json.loads((path / "result.json").read_text())["steps"]))
    return rounded(max(steps)) if steps else None


def rounded(count: float) -> str:
    """A count for people: 950, 50 k, 1.2 M."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{float(f'{count / size:.3g}'):g} {unit}"
    return str(count)


def _in_use(path: Path) -> UserError:
    holder = ""
    with contextlib.suppress(OSError, ValueError):
        holder = (path / LOCK).read_text().strip()
    owner = f"process {holder}" if holder.isdecimal() else "another process"
    return UserError(f"{path} is in use by {owner}; stop it or use another --run-name")


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link; refusing to write through it")


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"cannot write to {path}: {reason}; choose another --runs-dir")
