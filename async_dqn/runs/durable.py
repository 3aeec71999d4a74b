"""Files that survive a kill or a full disk: they are there whole, or not at all.

The order is always write, fsync, rename, fsync of the folder (the rename is what makes the file
visible, the last fsync what makes the rename durable). Folders are 0700, files 0600, and no
symbolic link is followed on write.
"""

import json
import os
import threading
from io import FileIO
from pathlib import Path
from typing import Any

# No link is followed, and opening a fifo does not wait for its writer.
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one elsewhere."""
    return path.is_dir() and not path.is_symlink()


def write_new(path: Path, data: bytes) -> None:
    """Create `path` with `data` and fsync it; FileExistsError when anything is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process or thread of ours writes to."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, durably and in one step; on OSError the old file stays."""
    aside = temporary(path)
    try:
        write_new(aside, data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_json(path: Path, value: Any) -> None:
    """The same with plain data, as JSON to read."""
    replace_file(path, f"{json.dumps(value, indent=2)}\n".encode())


class Lines:
    """An append-only file of whole records: what a kill or a full disk cut off is taken back."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`; drop a last line that lacks its newline."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self._file = FileIO(os.open(path, flags, 0o666), "r+")
        self._descriptor = self._file.fileno()
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        tail_start = max(0, size - 2**20)
        tail = os.pread(self._descriptor, size - tail_start, tail_start) if size else b""
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, tail_start + tail.rfind(b"\n") + 1)

    def append(self, data: bytes) -> None:
        """Write `data` whole, or nothing of it and raise OSError."""
        size = os.fstat(self._descriptor).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            if written:
                os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        """Idempotent."""
        self._file.close()
