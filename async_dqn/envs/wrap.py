"""Wrappers that the user names: `module:Class key=value ...`, applied in order."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import gymnasium

from async_dqn.config.extension import imported
from async_dqn.config.fields import UserError, describe_error, is_foreign, show
from async_dqn.config.options import key_value

BEFORE_KEYWORD = re.compile(r"\s+(?=[A-Za-z_]\w*=)")
TRUSTED = ("gymnasium.wrappers",)  # imported anyway


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The `module:Class` of a wrapper and its keywords; raises UserError."""
    name, *pairs = BEFORE_KEYWORD.split(text.strip())
    if not is_foreign(name):
        raise UserError(f"--wrap is given as 'module:Class key=value ...' (got {show(text)})")
    return name, dict(key_value("--wrap", pair) for pair in pairs)


def wrapped(env: gymnasium.Env, wraps: Sequence[str], modules: Collection[str]) -> gymnasium.Env:
    """The environment in these wrappers, the first one innermost.

    Raises UserError where one cannot be imported, its module is not among those that the user
    named, or it makes no environment.
    """
    for text in wraps:
        name, keywords = parse(text)
        make = imported("--wrap", name, (*TRUSTED, *modules))
        try:
            env = make(env, **keywords)
        except Exception as error:
            raise UserError(f"--wrap {name}: {describe_error(error)}") from error
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"--wrap {name} made a {type(env).__name__}, not a gymnasium.Env")
    return env
