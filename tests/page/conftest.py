"""One headless Chromium for all tests of the page, and pages that complain about whatever a browser complains about."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from tests.patience import patience

WAIT_MS = 15000 * patience()


@dataclass
class Complaints:
    """What a browser said in its console about a page, and to whom else than memscaler it went."""

    said: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """What the test brings about itself."""

    def left(self) -> list[str]:
        return self.elsewhere + [said for said in self.said if not any(each in said for each in self.expected)]


@pytest.fixture
def look(browser: Browser):
    """Open a page in a browser of this size, scheme, ...; at the end it has nothing to complain about."""
    opened = []

    def open_page(url: str, width: int = 1280, height: int = 900, **more) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        page, complaints = context.new_page(), Complaints()
        page.set_default_timeout(WAIT_MS)
        page.complaints = complaints
        opened.append((context, complaints))
        origin = urlsplit(url)[:2]
        page.on("console", lambda message: complaints.said.append(message.text))
        page.on("pageerror", lambda error: complaints.said.append(str(error)))
        page.on("request", lambda asked: urlsplit(asked.url)[:2] == origin or complaints.elsewhere.append(asked.url))
        page.goto(url)
        return page

    yield open_page
    for context, _ in opened:
        with suppress(Exception):
            context.close()
    assert [complaints.left() for _, complaints in opened] == [[]] * len(opened)
