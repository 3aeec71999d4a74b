"""One line per promise: figure, target, pass or miss.

    python -m benchmarks.chaos                # all but the soak; without --quick about an hour
    python -m benchmarks.chaos workers hangs --quick
    python -m benchmarks.chaos soak --minutes 30

What ran at full length goes to benchmarks/results/reliability.md.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence

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
    "resume": signals.resume,
    "faults": data.faults,
    "numbers": data.numbers,
    "steps": data.steps,
    "saving": files.saving,
    "rot": files.rot,
    "disk": files.disk,
    "hostile": files.hostile,
}
HEAD = ("bench", "promise", "measured", "target", "", "made on")
TABLE = RESULTS / "reliability.md"


def main() -> int:
    """Run the named ones, or all; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("names", nargs="*", choices=[*CHAOS, "soak", []], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    given = parser.parse_args()
    kept = True
    for name in given.names or CHAOS:
        soaking = name == "soak"
        promises = soak.soak(given.minutes) if soaking else CHAOS[name](given.quick)
        for promise in promises:
            kept &= promise.kept
            print(" | ".join(promise.row), flush=True)
        if not given.quick and (not soaking or given.minutes >= 30):
            _keep(name, promises)
    return 0 if kept else 1


def _keep(name: str, promises: Sequence[Promise]) -> None:
    """Put the rows of a bench into the table, in place of its former ones."""
    rows = {bench: [] for bench in (*CHAOS, "soak")}
    for line in TABLE.read_text().splitlines() if TABLE.exists() else ():
        bench = line.removeprefix("| ").partition(" | ")[0]
        if bench in rows:
            rows[bench].append(line)
    origin = machine()
    cells = [(name, *promise.row, origin) for promise in promises]
    rows[name] = [f"| {' | '.join(row)} |" for row in cells]
    text = ["# Reliability", "", "`python -m benchmarks.chaos` and `soak --minutes 30`.", ""]
    head = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    lines = [*text, *head, *itertools.chain(*rows.values())]
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
