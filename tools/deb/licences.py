"""What the python packages in a folder say of their authors and licences, as paragraphs of debian/copyright.

Usage: python -m tools.deb.licences FOLDER >>debian/copyright
Exit status 1 if one of them says nothing that we understand.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

OWN = "memscaler"  # has its paragraph already
WORDS = {  # as packages have it: as Debian has it
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD-3-clause",
    "ISC License": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
}
KNOWN = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-clause", "ISC", "MIT", "PSF-2.0"}
APACHE = " On Debian systems the whole licence is in /usr/share/common-licenses/Apache-2.0."
NO_TEXT = " It brings no text of its own; this is what its metadata say."
APACHE_BEGINS = re.compile(r"\s*Apache License\s+Version 2\.0")
COPYRIGHT = re.compile(r"^\W*(Copyright\b.*\d{4}.*)$", re.MULTILINE)
AUTHORS = ("Author", "Author-email", "Maintainer", "Maintainer-email")


def main(folder: str) -> int:
    """Print a paragraph for each."""
    found = {path: PathDistribution(path) for path in sorted(Path(folder).glob("*.dist-info"))}
    unclear = [each.name for each in found.values() if not set(licence(each).split()) - {"and", "or"} <= KNOWN]
    unclear += [each.name for each in found.values() if not licence(each)]
    if unclear or not found:
        print(f"which licence? {', '.join(unclear) or 'no package is there'}", file=sys.stderr)
        return 1
    for path, each in found.items():
        if each.name != OWN:
            print(paragraph(each, licence_texts(path)))
    return 0


def paragraph(package: Distribution, texts: list[str]) -> str:
    """Who made it, and the text of its licence."""
    said = licence(package)
    who = sorted({mark[1].strip() for text in texts for mark in COPYRIGHT.finditer(text)}) or [author(package)]
    shown = [APACHE if APACHE_BEGINS.match(text) else _indented(text) for text in texts if said != "Apache-2.0"]
    lines = ["", f"Files: {package.name}/*", "Copyright: " + "\n           ".join(who), f"License: {said}"]
    return "\n".join([*lines, "\n .\n".join(dict.fromkeys(shown)) or (APACHE if said == "Apache-2.0" else NO_TEXT)])


def licence(package: Distribution) -> str:
    """For example "Apache-2.0 and MIT"; empty if it says nothing."""
    told = _told(package, "License-Expression", "License")
    if not told:
        kinds = package.metadata.get_all("Classifier") or []
        told = next((kind for kind in kinds if kind in WORDS), "")
    return re.sub(r"\b(AND|OR)\b", lambda found: found[1].lower(), WORDS.get(told, told))


def licence_texts(folder: Path) -> list[str]:
    """The files that are named for it, in a .dist-info folder."""
    names = [path for path in folder.rglob("*") if path.is_file() and re.match("LICEN[CS]E", path.name)]
    return [path.read_text(encoding="utf-8") for path in sorted(names)]


def author(package: Distribution) -> str:
    """Whoever it names."""
    return _told(package, *AUTHORS) or f"the authors of {package.name}"


def _told(package: Distribution, *keys: str) -> str:
    """The first of these fields that it has."""
    return next((found[0] for key in keys if (found := package.metadata.get_all(key))), "")


def _indented(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(f" {line}" if line else " ." for line in lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
