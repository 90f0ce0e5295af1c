"""The status page: its files, and a view put into its HTML, so that it can be read without JavaScript too.

The HTML names what goes where; page/page.js follows the same rules to keep it current:

    data-field="x"   the text
    data-when="x"    hidden while that is empty
    data-value="x"   also as the attribute data-is, for the style sheet
    data-time="x"    also as the attribute datetime
    data-list="x"    an entry for each in a list, made from the <template> in it; data-key tells them apart
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from memscaler.observe.view import Entry, Fields, View

FOLDER = Path(__file__).resolve().parent / "page"
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_LIST = re.compile(r'(data-list="(\w+)"><template>(.*?)</template>)', re.DOTALL)
_FIELD = re.compile(r'data-field="(\w+)"[^>]*>')
_ATTRIBUTE = re.compile(r'data-(when|value|time)="(\w+)"')


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is served."""

    body: bytes
    content_type: str
    etag: str


@cache
def files() -> Mapping[str, File]:
    """By name; read once."""
    found = {}
    for name, content_type in TYPES.items():
        body = (FOLDER / name).read_bytes()
        found[name] = File(body, content_type, hashlib.sha256(body).hexdigest()[:16])
    return found


@cache
def edition() -> str:
    """Changes with any of the files: a page that was loaded before an upgrade loads itself anew."""
    return hashlib.sha256(b"".join(file.body for file in files().values())).hexdigest()[:16]


def page(view: View) -> str:
    """The whole page."""
    html = files()["index.html"].body.decode().replace('data-assets=""', f'data-assets="{edition()}"')
    parts, done = [], 0
    for found in _LIST.finditer(html):
        entries = "".join(_entry(found[3], entry) for entry in view.lists.get(found[2], ()))
        parts += [_fill(html[done : found.start()], view.fields), found[1], entries]
        done = found.end()
    return "".join([*parts, _fill(html[done:], view.fields)])


def _entry(template: str, entry: Entry) -> str:
    return _fill(template.replace('data-key=""', f'data-key="{escape(entry.key)}"', 1), entry.fields)


def _fill(html: str, fields: Fields) -> str:
    def attribute(found: re.Match[str]) -> str:
        text = fields.get(found[2], "")
        match found[1]:
            case "when":
                return found[0] if text else f"{found[0]} hidden"
            case "value":
                return f'{found[0]} data-is="{escape(text)}"'
            case _:
                return f'{found[0]} datetime="{escape(text)}"'

    html = _ATTRIBUTE.sub(attribute, html)  # before any text of others is in it
    return _FIELD.sub(lambda found: found[0] + escape(fields.get(found[1], "")), html)
