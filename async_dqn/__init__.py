"""Asynchronous deep Q-learning: many workers, one shared Q-network, no locks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_dqn.api import AsyncDQN
    from async_dqn.config.fields import UserError

__version__ = "0.1.0"
__all__ = ["AsyncDQN", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, because the API needs torch and the command line must answer without it.
    if name == "AsyncDQN":
        from async_dqn.api import AsyncDQN

        return AsyncDQN
    if name == "UserError":
        from async_dqn.config.fields import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
