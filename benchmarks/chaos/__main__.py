"""One line per promise: figure, target, pass or miss.

    python -m benchmarks.chaos                # all but the soak; without --quick about an hour
    python -m benchmarks.chaos workers hangs --quick
    python -m benchmarks.chaos soak --minutes 30

The rows of a full call of all are written to benchmarks/results/reliability.md.
"""

import argparse
import sys
from collections.abc import Callable

from benchmarks.chaos import data, files, processes, signals, soak
from benchmarks.chaos.promise import Promise
from benchmarks.scores import RESULTS, machine

CHAOS: dict[str, Callable[[bool], list[Promise]]] = {
    "workers": processes.workers,
    "deaths": processes.deaths,
    "hangs": processes.hangs,
    "failures": processes.failures,
    "evaluator": processes.evaluator,
    "trainer": signals.trainer,
    "signals": signals.signals,
    "faults": data.faults,
    "numbers": data.numbers,
    "steps": data.steps,
    "saving": files.saving,
    "rot": files.rot,
    "disk": files.disk,
    "hostile": files.hostile,
}
HEAD = ("promise", "measured", "target", "")


def main() -> int:
    """Run the named ones, or all; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("names", nargs="*", choices=[*CHAOS, "soak", []], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    given = parser.parse_args()
    kept = True
    rows = []
    for name in given.names or CHAOS:
        soaking = name == "soak"
        for promise in soak.soak(given.minutes) if soaking else CHAOS[name](given.quick):
            kept &= promise.kept
            rows.append(promise.row)
            print(" | ".join(promise.row), flush=True)
    if not given.names and not given.quick:
        table = [f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
        lines = ["# Reliability", "", "`python -m benchmarks.chaos`", "", machine(), "", *table, ""]
        (RESULTS / "reliability.md").write_text("\n".join(lines))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
