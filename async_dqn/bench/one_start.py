"""`python -m async_dqn.bench.one_start`, with the options of a run: the figures of one start.

A line of JSON, for `bench startup`. As at the start of training nothing heavy is imported early;
every child imports this module.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_dqn.bench.first_updates import FirstUpdates
    from async_dqn.runs.run import Run


def _trainer(run: "Run") -> "FirstUpdates":
    from async_dqn.bench.first_updates import FirstUpdates

    return FirstUpdates(run)


def main(argv: Sequence[str]) -> int:
    """Make the run and print its figures; the exit code. Raises UserError as training does."""
    from async_dqn.config.options import parse_train
    from async_dqn.config.presets import resolve
    from async_dqn.envs import make
    from async_dqn.training import training

    config, explicit = resolve(parse_train(argv))
    make.check_env_id(config.environment.env, config.environment.import_modules)
    return training.train(config, explicit, trainer=_trainer).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
