"""Loads a checkpoint again and again, each time mutated, and watches what the interpreter does.

python -m benchmarks.chaos.hostile CHECKPOINT COUNT    # prints what happened as JSON
"""

import hashlib
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from async_dqn.config.config import UserError
from async_dqn.runs import checkpoint

RISKY = {"exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect", "open"}


class Watch:
    """Collects risky audit events while `on`; opening files below `path` is no risk."""

    def __init__(self, path: Path):
        self.path, self.on, self.seen = str(path), False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """One audit event."""
        if not self.on or event not in RISKY:
            return
        if event != "open" or (isinstance(args[0], str) and not args[0].startswith(self.path)):
            self.seen.append([event, str(args[0])[:100]])


def mutated(whole: bytes) -> bytes:
    """With bytes put in, taken out, or changed, in one to thirty places."""
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 3, 30))):
        place, way = random.randrange(len(data) + 1), random.randrange(4)
        if way == 0:
            data[place:place] = random.randbytes(random.randrange(1, 20))
        elif way == 1:
            del data[place : place + random.randrange(1, 200)]
        elif way == 2 and data:
            data[place % len(data)] = random.randrange(256)
        else:
            data[place:] = data[: random.randrange(len(data) + 1)]
    return bytes(data)


def seal(path: Path) -> None:
    """A manifest that fits the files as they are, so that what is behind the check sums is met."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def main(path: Path, count: int) -> None:
    """Print counts of outcomes, what was seen, the slowest load and the memory used."""
    whole = {file: file.read_bytes() for file in sorted(path.iterdir())}
    checkpoint.load(path)  # what is imported late is there now
    watch, found = Watch(path), {"refused": 0, "loaded": 0, "other": 0}
    slowest = 0.0
    for k in range(count):
        file = random.choice(list(whole))
        file.write_bytes(mutated(whole[file]))
        if k % 2 and file.name != "manifest.json":
            seal(path)
        begun, watch.on = time.monotonic(), True
        try:
            checkpoint.load(path)
            outcome = "loaded"
        except UserError:
            outcome = "refused"
        except Exception:
            outcome = "other"
        watch.on = False
        slowest = max(slowest, time.monotonic() - begun)
        found[outcome] += 1
        for each, data in whole.items():
            each.write_bytes(data)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "seen": watch.seen, "slowest": slowest, "megabytes": megabytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
