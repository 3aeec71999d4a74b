"""`doctor`: is this machine right, and is this environment?"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from async_dqn.config.options import parse_train
from async_dqn.config.presets import resolve
from async_dqn.doctor.environment import about_environment
from async_dqn.doctor.findings import FINE, Finding
from async_dqn.doctor.machine import about_machine
from async_dqn.runs.progress import print_line

NO_SETTINGS = ("config", "preset", "version", "print_config")


def doctor(argv: Sequence[str]) -> int:
    """Look at this machine, and with --env at an environment, and say what to do about it. It takes
    the options of a training run.
    """
    given = parse_train(argv, "doctor", doctor.__doc__)
    sources = given.get("config"), given.get("preset")
    settings = {name: value for name, value in given.items() if name not in NO_SETTINGS}
    config, _ = resolve(settings, *sources)
    findings = _printed(about_machine(Path(config.run.runs_dir)))
    if "env" in given:
        findings += _printed(about_environment(config))
    found = sum(finding.level != FINE for finding in findings)
    print_line(f"{found} to look at" if found else "nothing to worry about")
    return 0


def _printed(findings: Iterable[Finding]) -> list[Finding]:
    """All of them, each printed when it is there."""
    known = []
    for finding in findings:
        known.append(finding)
        print_line(f"{finding.level:8} {finding.topic:20} {finding}")
    return known
