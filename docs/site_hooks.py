"""The site has pages from outside its folder: the README as its first, committed tables, the
changelog. Links to them, which are right in the repository, are turned to where they are there."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TABLES = "benchmarks/results"
OTHERS = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
REPOSITORY = "the repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere."""
    for path in sorted((ROOT / TABLES).glob("*.*")):
        if path.suffix in (".md", ".png"):
            files.append(_added(config, f"tables/{path.name}", path))
    for name, place in OTHERS.items():
        files.append(_added(config, place, ROOT / name))
    return files


def _added(config: MkDocsConfig, place: str, path: Path) -> File:
    return File.generated(config, place, abs_src_path=str(path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between pages; what is no page is named, not linked."""
    here = Path(page.file.src_uri)
    origin = Path(page.file.abs_src_path).resolve().parent

    def turned(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        place = _place((origin / target).resolve())
        if place is None:
            return f"{before}#{after}"
        relative = "../" * (len(here.parts) - 1) + place
        return f"{before}{relative}{anchor}{after}"

    return LINK.sub(turned, markdown)


def _place(path: Path) -> str | None:
    """Where a file of the repository is on the site."""
    try:
        name = path.relative_to(ROOT).as_posix()
    except ValueError:
        return None
    if name in OTHERS:
        return OTHERS[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.startswith(f"{TABLES}/") and path.suffix in (".md", ".png"):
        return f"tables/{path.name}"
    return None
