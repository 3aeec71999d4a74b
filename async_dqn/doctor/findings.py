"""`Finding`: one line of what was found, and what to do about it."""

from typing import NamedTuple

FINE, NOTE, WARNING = "ok", "note", "warning"


class Finding(NamedTuple):
    """How serious it is, what it is about, what was found, what to do ("" for nothing)."""

    level: str
    topic: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return "; ".join(part for part in (self.text, self.advice) if part)


def judged(bad: bool, topic: str, text: str, advice: str, level: str = WARNING) -> Finding:
    """Fine, or of this level and with the advice where it is `bad`."""
    return Finding(level, topic, text, advice) if bad else Finding(FINE, topic, text)
