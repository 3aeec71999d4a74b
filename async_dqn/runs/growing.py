"""Tables of a run that are read while it writes them."""

import csv
from collections.abc import Iterator
from pathlib import Path


class GrowingTable:
    """The rows of metrics.csv or evaluations.csv whose step is beyond `last`, as they come."""

    def __init__(self, path: Path, last: int = -1):
        self.path, self.last = path, last
        self._header: list[str] = []
        self._read = 0  # bytes

    def new(self) -> Iterator[dict[str, float]]:
        """Whole rows that came since the last call: numbers by column, empty cells left out.

        None come as long as the file is not there.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for cells in csv.reader(whole.decode().splitlines()):
            if not self._header:
                self._header = cells
                continue
            row = {name: float(c) for name, c in zip(self._header, cells, strict=True) if c}
            if row["step"] > self.last:
                self.last = int(row["step"])
                yield row
