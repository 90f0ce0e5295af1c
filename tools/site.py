"""Pages of the site that lie outside of docs/: a hook of mkdocs, see mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # in the site: in the repository
    "figures.md": "bench/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "man/memscaler.1.md": "man/memscaler.1.md",
    "man/memscaler.toml.5.md": "man/memscaler.toml.5.md",
    "man/memscaler.service.8.md": "man/memscaler.service.8.md",
}
WIDE = ("configuration.md", "metrics.md", "kernels.md", "figures.md")
TITLE = re.compile(r'\A% "([^"]+)" "(\d)".*\n')
HEADING = re.compile(r"^(#+ )", re.MULTILINE)
TERM = re.compile(r"\n(: )", re.MULTILINE)
LINK = re.compile(r"\]\((\.\./)?docs/")  # there from outside of docs/, in the site to a page beside this one


def on_files(files: Files, config: Any) -> Files:
    """Add them."""
    for place, path in ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_page(text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave out the table of contents beside wide tables."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    return markdown


def _page(text: str) -> str:
    """Pages of the manual get a title, and their headings go down by one."""
    title = TITLE.match(text)
    if title is None:
        return LINK.sub("](", text)
    body = HEADING.sub(r"#\1", text[title.end() :])
    return f"# {title[1].lower()}({title[2]})\n" + TERM.sub("\n:   ", body)
