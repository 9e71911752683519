"""Hand the repository's documents to MkDocs under their own paths, so that links between them work on the site too."""

import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files, InclusionLevel

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]\[]*)\]\(<?([^)\s>]+)>?\)")
FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
SUFFIXES = (".svg", ".png", ".jpg")


def pages(entry: Any) -> list[str]:
    """List the pages of a navigation, from the top down."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def nav() -> list[str]:
    """List the pages that mkdocs.yml names."""
    return pages(yaml.safe_load((Path(__file__).parent / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


def results() -> list[str]:
    """List the tables of measurements, to which pages link; the navigation leaves them out."""
    return sorted(str(file.relative_to(REPOSITORY)) for file in REPOSITORY.glob("benchmarks/results/**/*.md"))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, the tables that they link to, and all images beside them."""
    images = [file for place in ("figures", "benchmarks/results", "docs") for file in (REPOSITORY / place).rglob("*")]
    listed = [str(file.relative_to(REPOSITORY)) for file in images if file.suffix in SUFFIXES]
    for name in [*nav(), *results(), *sorted(listed)]:
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / name)))
    return files


def on_nav(nav: Any, config: Any, files: Files) -> Any:
    """Accept that the tables of measurements are pages without a place in the navigation."""
    del config
    for file in files.documentation_pages():
        if file.src_uri.startswith("benchmarks/results/"):
            file.inclusion = InclusionLevel.NOT_IN_NAV
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files that are no pages, such as sources, into the file's path."""
    del config

    def mended(match: re.Match[str]) -> str:
        text, link = match.groups()
        if re.match(r"[a-z][a-z+.-]*:|#", link):
            return match.group()
        target, _, _ = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if files.get_file_from_path(path):
            return match.group()
        words = text.strip("`")
        return f"`{path}`" if words in path else f"{text} (`{path}`)"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("`") else LINK.sub(mended, part) for part in parts)
