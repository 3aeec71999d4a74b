"""A picture of the environment and, beside it, what the agent thinks of each action."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 360  # pixels of a picture, which small frames are enlarged to by whole factors
PANEL, MARGIN, LINE = 220, 10, 17
MOST_ROWS = 16
PAPER, INK, QUIET, BAR, CHOSEN = "#ffffff", "#222222", "#5c5c5c", "#b8c7d9", "#e07b39"


class Panel:
    """Draws frames with a panel of Q-values; bars are of the range seen so far."""

    def __init__(self, title: str, meanings: Sequence[str] | None, branches: Sequence[int]):
        self.title, self.meanings, self.branches = title, meanings, branches
        self._low, self._high = np.inf, -np.inf
        self._font = ImageFont.load_default(12)

    def draw(
        self, frame: NDArray[np.uint8], choice: Any, step: int, score: float
    ) -> NDArray[np.uint8]:
        """One picture [H, W, 3]: `frame` [h, w, 3], and `choice` (a `Decision`)."""
        image = _enlarged(Image.fromarray(frame))
        width, height = image.width + PANEL, max(HEIGHT, image.height)
        width, height = width + width % 2, height + height % 2  # as films want them
        picture = Image.new("RGB", (width, height), PAPER)
        picture.paste(image, (0, (height - image.height) // 2))
        pen = ImageDraw.Draw(picture)
        left = image.width + MARGIN
        pen.text((left, MARGIN), self.title[:32], INK, self._font)
        pen.text((left, MARGIN + LINE), f"step {step:,}   return {score:g}", INK, self._font)
        pen.text((left, MARGIN + 3 * LINE), "Q-values", QUIET, self._font)
        self._bars(pen, left, MARGIN + 4 * LINE, choice)
        return np.asarray(picture)

    def _bars(self, pen: ImageDraw.ImageDraw, left: int, top: int, choice: Any) -> None:
        legal = choice.q_values[np.isfinite(choice.q_values)]
        self._low = min(self._low, float(legal.min()))
        self._high = max(self._high, float(legal.max()))
        room = PANEL - 2 * MARGIN
        for row, (name, value, chosen) in enumerate(self._rows(choice)):
            y = top + row * LINE
            if np.isfinite(value):
                share = (value - self._low) / max(self._high - self._low, 1e-9)
                box = (left, y, left + max(2, round(share * room)), y + LINE - 3)
                pen.rectangle(box, CHOSEN if chosen else BAR)
            words = f"{value:.2f}" if np.isfinite(value) else "illegal"
            pen.text((left + 3, y), name, INK if chosen else QUIET, self._font)
            pen.text((left + room - 3, y), words, INK, self._font, anchor="ra")

    def _rows(self, choice: Any) -> list[tuple[str, float, bool]]:
        """Name, value, whether it is chosen; of many actions the best."""
        values, best = choice.q_values, self._chosen(choice)
        shown = range(len(values))
        if len(values) > MOST_ROWS:
            shown = sorted(np.argsort(-values, kind="stable")[:MOST_ROWS].tolist())
        return [(self._name(n), float(values[n]), n in best) for n in shown]

    def _chosen(self, choice: Any) -> set[int]:
        """The outputs that make up the choice: one, or one of each component."""
        if not self.branches:
            return {choice.number}
        starts = np.cumsum([0, *self.branches[:-1]])
        parts = zip(starts.tolist(), self.branches, strict=True)
        return {start + int(choice.q_values[start : start + n].argmax()) for start, n in parts}

    def _name(self, number: int) -> str:
        if self.branches:
            ends = np.cumsum(self.branches)
            component = int(np.searchsorted(ends, number, side="right"))
            return f"{component}: {number - int(ends[component]) + self.branches[component]}"
        known = self.meanings is not None and number < len(self.meanings)
        return f"{number} {self.meanings[number].lower()}" if known else f"{number}"


def _enlarged(image: Image.Image) -> Image.Image:
    """To about the height of a picture, small ones by a whole factor, with sharp pixels."""
    factor = HEIGHT / image.height
    if factor >= 2:
        factor = int(factor)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX)
