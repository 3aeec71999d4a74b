"""What a bench says: a promise by its number, what was measured, and whether that is enough."""

from typing import NamedTuple


class Promise(NamedTuple):
    """One line; `name` begins with the promise's number in docs/reliability.md."""

    name: str
    measured: str
    target: str
    kept: bool

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Its cells."""
        return self.name, self.measured, self.target, "pass" if self.kept else "MISS"
