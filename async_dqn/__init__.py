"""Asynchronous deep Q-learning: many workers, one shared Q-network, no locks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_dqn.algorithms.q_learning import QLearning
    from async_dqn.algorithms.rollout import Rollout
    from async_dqn.algorithms.rollout_passes import LossOutput
    from async_dqn.api import AsyncDQN
    from async_dqn.config.extension import Traits
    from async_dqn.config.fields import UserError

__version__ = "0.1.0"
__all__ = ["AsyncDQN", "LossOutput", "QLearning", "Rollout", "Traits", "UserError", "__version__"]

# Late, because most need torch and the command line must answer without it.
_MODULES = {
    "AsyncDQN": "api",
    "LossOutput": "algorithms.rollout_passes",
    "QLearning": "algorithms.q_learning",
    "Rollout": "algorithms.rollout",
    "Traits": "config.extension",
    "UserError": "config.fields",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
