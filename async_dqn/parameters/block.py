"""One block of anonymous shared memory, described by a table of named sections.

A memfd has no name, so nothing is left behind after a SIGKILL; it is not limited by /dev/shm; and
it crosses to a child as one file descriptor whatever the size of the model. Where there is no
memfd (macOS) an unlinked temporary file takes its place.
"""

import fcntl
import hashlib
import math
import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: one cache line, so that no two sections share one


class BlockSection(NamedTuple):
    """A named array of the block."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class SharedBlock:
    """Named numpy arrays in one shared mapping; pickling it hands over the file descriptor.

    Raises:
        MemoryError: the system cannot reserve that much memory.
        RuntimeError: an attached descriptor does not hold a block of this layout.
    """

    def __init__(self, sections: tuple[BlockSection, ...], descriptor: int | None = None):
        self.sections = (BlockSection("header", "int64", (4,)), *sections)
        offsets, size = {}, 0
        for section in self.sections:
            offsets[section.name] = size
            size += -(-section.bytes // ALIGNMENT) * ALIGNMENT
        attached = descriptor is not None
        self.descriptor = descriptor if attached else _anonymous_file(size)
        os.set_inheritable(self.descriptor, False)
        weakref.finalize(self, os.close, self.descriptor)
        if attached and os.fstat(self.descriptor).st_size != size:
            raise RuntimeError("the shared memory block has another size")
        self._map = mmap.mmap(self.descriptor, size)
        self._arrays = {
            s.name: np.ndarray(s.shape, s.dtype, self._map, offsets[s.name]) for s in self.sections
        }
        digest = hashlib.sha256(repr(self.sections).encode()).digest()
        header = np.frombuffer(digest, np.int64)
        if attached and (self["header"] != header).any():
            raise RuntimeError("the shared memory block has another layout")
        self["header"][:] = header

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __reduce__(self):
        # DupFd registers the descriptor with the process that is being started, so it can only
        # be built here, while the start arguments are pickled.
        return _attach, (self.sections[1:], reduction.DupFd(self.descriptor))


def _attach(sections: tuple[BlockSection, ...], duplicate: Any) -> SharedBlock:
    return SharedBlock(sections, duplicate.detach())


def _anonymous_file(size: int) -> int:
    """Return the descriptor of `size` zero bytes that no path names."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            # Written, not truncated to size: a full disk fails here instead of with SIGBUS later.
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
            file.flush()
            return os.dup(file.fileno())
    descriptor = os.memfd_create("async_dqn", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    # Nobody may change the size under the others' feet (a shrink would be their SIGBUS).
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor
