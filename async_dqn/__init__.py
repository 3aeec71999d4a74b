"""Asynchronous deep Q-learning: many workers, one shared Q-network, no locks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_dqn.api import AsyncDQN

__version__ = "0.1.0"
__all__ = ["AsyncDQN", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, because the API needs torch and the command line must answer without it.
    if name == "AsyncDQN":
        from async_dqn.api import AsyncDQN

        return AsyncDQN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
