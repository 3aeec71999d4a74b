"""`track RUN`: a run, finished or not, reported to a service."""

import signal
from collections.abc import Sequence
from pathlib import Path

from async_dqn.config.config import UserError
from async_dqn.config.fields import describe_error
from async_dqn.config.options import Parser
from async_dqn.runs.companions import SERVICES, check_service
from async_dqn.runs.progress import print_line
from async_dqn.track.follow import Follower


def track(argv: Sequence[str]) -> int:
    """Report a run to Weights & Biases or MLflow, until it ends: what `--track` does while it
    trains, also afterwards. What was sent before is not sent again.
    """
    parser = Parser(prog="async-dqn track", description=track.__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder")
    services = "{" + ",".join(SERVICES) + "}"
    parser.add_argument("--to", metavar=services, required=True, help="the service")
    given = parser.parse(argv)
    folder, name = Path(given["run"]).absolute(), given["to"]
    if name not in SERVICES:
        raise UserError(f"--to must be one of {', '.join(SERVICES)} (got {name!r})")
    if not (folder / "config.json").is_file():
        raise UserError(f"{given['run']} is not a run folder")
    check_service(name)
    # Ctrl-C is for the trainer, which then ends this run as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Follower(folder, name).follow()
    except Exception as error:  # the service's own kinds
        raise UserError(f"{name} failed: {describe_error(error)}") from error
    print_line(f"sent         {given['run']} to {name}")
    return 0
