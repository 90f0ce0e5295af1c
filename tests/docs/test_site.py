"""The documentation as a site: whole, without a broken link, and without anything from elsewhere."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Loads(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if LOADS.get(tag) == name and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built strictly: a broken link, a page that is missing in the menu or on the disk fails it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr  # with --quiet mkdocs forgets to be strict
    return folder


def test_every_page_is_there(site):
    """Those of docs/, and those from elsewhere in the repository."""
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in ROOT.glob("docs/**/*.md")}
    pages |= {
        "figures",
        "changelog",
        "contributing",
        "man/memscaler.1",
        "man/memscaler.toml.5",
        "man/memscaler.service.8",
    }
    assert pages <= {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site):
    """No font, script, style or picture comes from another place than the site."""
    for path in site.rglob("*.html"):
        parser = Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        assert parser.found
        assert not [each for each in parser.found if re.match(r"(https?:)?//", each)], path
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//|@import", styles)


def test_it_can_be_searched(site):
    """The index knows the pages."""
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert all(word in index for word in ("CUDA_DISABLE_PERF_BOOST", "MEMSCALER_IDLE_AFTER", "memscaler config check"))


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder."""

    def log_message(self, *_):
        pass


@pytest.fixture
def served(site):
    """The address of the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_on_a_phone(served, browser):
    """No page is wider than the screen: the widest tables and lines of code scroll in their place."""
    phone = browser.new_page(viewport={"width": 380, "height": 800})
    wide = []
    for name in ("index", "install", "configuration", "kernels", "figures", "how-it-works", "man/memscaler.1"):
        phone.goto(f"{served}/{name}.html")
        if phone.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            wide.append(name)
    assert wide == []


def test_the_search_in_a_browser(served, browser):
    """It finds, no script fails, and nobody else is asked."""
    asked, wrong = [], []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(f"{served}/index.html?q=CUDA_DISABLE_PERF_BOOST")
    page.locator(".md-search-result__link").first.wait_for(state="attached")
    found = [each.get_attribute("href") or "" for each in page.locator(".md-search-result__link").all()]
    assert any("will-it-help.html" in link for link in found)
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((served, "data:"))] == []
    assert wrong == []
