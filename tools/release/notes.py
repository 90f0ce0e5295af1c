"""CHANGELOG.md: one section for each release, the newest first: `## 1.2.0 (2026-01-31)`."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNRELEASED = "not released"
_HEADING = re.compile(r"^## (?P<version>\S+) \((?P<when>[^)]+)\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Section:
    """What is new in one release. when: a date, or UNRELEASED."""

    version: str
    when: str
    text: str


def sections(changelog: str) -> list[Section]:
    """All of it. Raise ValueError for a heading of another form."""
    headings = list(_HEADING.finditer(changelog))
    every = re.findall(r"^## .*$", changelog, re.MULTILINE)
    if not headings or len(every) != len(headings):
        odd = sorted(set(every) - {each[0] for each in headings})
        raise ValueError(f"CHANGELOG.md wants headings like '## 1.2.0 (2026-01-31)', not {odd}")
    ends = [each.start() for each in headings[1:]] + [len(changelog)]
    return [
        Section(each["version"], each["when"], changelog[each.end() : end].strip() + "\n")
        for each, end in zip(headings, ends, strict=True)
    ]
