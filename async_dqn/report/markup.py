"""A short document of headings, text, tables and figures, as HTML in one file and as Markdown.

What it is filled with may come from files of strangers: everything is escaped, nothing in it runs.
"""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Lines to type or to copy."""

    text: str


class Table(NamedTuple):
    """A header and rows of as many cells; all columns but the first are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG, the name of its file beside the Markdown, and what it shows in words."""

    name: str
    png: bytes
    alt: str


Block = Heading | Text | Code | Table | Picture

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }}
img {{ max-width: 100%; height: auto; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3rem .7rem; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
pre {{ background: #f4f4f4; padding: .7rem; overflow-x: auto; font-size: .85rem; }}
</style></head><body>
{body}
</body></html>
"""


def to_html(blocks: Sequence[Block]) -> str:
    """One page that needs no other file and no network."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    return PAGE.format(title=html.escape(title), body="\n".join(map(_html, blocks)))


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown that shows the pictures from the files beside it."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(header, rows):
            lines = [_html_row("th", header), *(_html_row("td", row) for row in rows)]
            return "<div><table>\n" + "\n".join(lines) + "\n</table></div>"
        case Picture(_, png, alt):
            data = base64.b64encode(png).decode()
            return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Code(text):
            return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
        case Table(header, rows):
            under = ["---", *("---:" for _ in header[1:])]
            cells = [[_plain(cell) for cell in row] for row in (header, *rows)]
            return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], under, *cells[1:]))
        case Picture(name, _, alt):
            return f"![{_plain(alt)}]({name})"


def _plain(text: str) -> str:
    """`text` on one line, its Markdown and HTML characters taken as they stand."""
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", " ".join(text.split()))
