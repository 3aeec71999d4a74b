"""A short document of headings, text, tables and figures, as HTML in one file and as Markdown.

What it is filled with may come from files of strangers: everything is escaped, nothing in it runs.
"""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple

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
@media (prefers-color-scheme: dark) {{
  body {{ color: #ddd; background: #161616; }}
  pre {{ background: #242424; }}
  th, td {{ border-color: #444; }}
  img {{ background: #fff; border-radius: 4px; }}
}}
</style></head><body>
{body}
</body></html>
"""


class Block(NamedTuple):
    """A piece of the document in both forms, and of a picture the file beside the Markdown."""

    html: str
    markdown: str
    name: str = ""
    png: bytes = b""


def heading(text: str, level: int = 2) -> Block:
    """A heading; level 1 is the title."""
    return Block(f"<h{level}>{html.escape(text)}</h{level}>", f"{'#' * level} {_plain(text)}")


def paragraph(text: str) -> Block:
    """A line of text."""
    return Block(f"<p>{html.escape(text)}</p>", _plain(text))


def code(text: str) -> Block:
    """Lines to type or to copy."""
    indented = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    return Block(f"<pre>{html.escape(text)}</pre>", indented)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    """A header and rows of as many cells; all columns but the first are aligned to the right."""
    page = [_html_row("th", header), *(_html_row("td", row) for row in rows)]
    titles, *cells = ([_plain(cell) for cell in row] for row in (header, *rows))
    under = ["---", *("---:" for _ in header[1:])]
    lines = (f"| {' | '.join(row)} |" for row in (titles, under, *cells))
    return Block("\n".join(["<div><table>", *page, "</table></div>"]), "\n".join(lines))


def picture(name: str, png: bytes, alt: str) -> Block:
    """A PNG, the name of its file, and what it shows in words."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    shown = f'<p><img alt="{html.escape(alt)}" src="{source}"></p>'
    return Block(shown, f"![{_plain(alt)}]({name})", name, png)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file and no network."""
    body = "\n".join(block.html for block in blocks)
    return PAGE.format(title=html.escape(title), body=body)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown that shows the pictures from the files beside it."""
    return "\n\n".join(block.markdown for block in blocks) + "\n"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _plain(text: str) -> str:
    """`text` on one line, its Markdown and HTML characters taken as they stand."""
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", " ".join(text.split()))
