"""One compute thread per process, set before anything imports torch."""

import os

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


@pytest.fixture
def umask():
    """Set the umask for the rest of the test."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)
