"""Links of the pages outside of docs/, which the site's strict build does not see as they stand."""

import re
from pathlib import Path

import pytest

from memscaler.simulator import known_boards

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/README.md", "bpf/README.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([\w-]+))?\)")


def anchors(path):
    """As sites make them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Every file that is linked to is there, and so is the heading."""
    for target, anchor in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = (ROOT / page).parent / target
        assert "://" in target or path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_readme_is_short():
    """What is longer belongs into docs/."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_boards_of_the_page():
    """The page on installing names every simulated board."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    told = text.partition("There\nare ")[2].partition(".\n")[0]
    assert set(re.split(r", | and ", told)) == set(known_boards())
