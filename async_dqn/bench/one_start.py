"""`python -m async_dqn.bench.one_start`, with the options of a run: the figures of one start.

A line of JSON, for `bench startup`. As at the start of training nothing heavy is imported early;
every child imports this module.
"""

import sys
from typing import Any


def _trainer(run: Any) -> Any:
    from async_dqn.bench.first_updates import FirstUpdates

    return FirstUpdates(run)


if __name__ == "__main__":
    from async_dqn.config.options import parse_train
    from async_dqn.config.presets import resolve
    from async_dqn.envs import make
    from async_dqn.training import training

    config, explicit = resolve(parse_train(sys.argv[1:]))
    make.check_env_id(config.environment.env, config.environment.import_modules)
    sys.exit(training.train(config, explicit, trainer=_trainer).exit_code)
