"""One compute thread per process, set before anything imports torch; one fork server for all."""

import os

import pytest

from async_dqn.processes import spawn

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    """Import once what every child would: whoever came first would else decide what that is."""
    spawn.preload(["pytest"])


@pytest.fixture
def umask():
    """Set the umask for the rest of the test."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)
