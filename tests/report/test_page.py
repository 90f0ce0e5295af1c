"""The page in a real browser, and the files of the plots."""

import re
from xml.etree import ElementTree as ET

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from memscaler.cli.report.files import write_page
from memscaler.cli.report.gather import gather
from memscaler.cli.report.page import MARK, report_page
from memscaler.cli.report.period import read_period
from memscaler.cli.report.price import read_price
from memscaler.core.errors import MemscalerError
from tests.report.conftest import NOW_S
from tests.report.test_command import report


@pytest.fixture(scope="module")
def page_of_a_month(a_month, tmp_path_factory):
    """Where it is."""
    found = gather(a_month, [], read_period("30d", NOW_S), read_price("0.30 EUR/kWh"))
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, report_page(found))
    return path


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
def test_everybody_can_read_it(look, page_of_a_month, scheme, width):
    """No console message, no request to anywhere (the fixture looks), nothing for axe, no sideways scrolling."""
    page = look(page_of_a_month.as_uri(), width=width, color_scheme=scheme)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_what_it_shows(look, page_of_a_month):
    """The sums, the advice, the plots, a table of days and one of idle times for each GPU."""
    page = look(page_of_a_month.as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("What parking saved")
    expect(page.get_by_text("at 0.30 EUR/kWh")).to_be_visible()
    expect(page.get_by_role("img")).to_have_count(1 + 3 * 4)
    expect(page.get_by_role("heading", name="gpu2 NVIDIA L40S")).to_contain_text("not seen since")
    days = page.get_by_role("region", name="gpu0 by day").get_by_role("row")
    expect(days).to_have_count(1 + 31 + 1)
    expect(page.get_by_role("region", name="gpu0: other idle times")).to_contain_text("auto")


def test_its_plots_follow_the_scheme(look, page_of_a_month):
    """Bars and words have the page's colours, light and dark."""
    colours = []
    for scheme in ("light", "dark"):
        page = look(page_of_a_month.as_uri(), color_scheme=scheme)
        text = page.locator("figure svg text").first
        colours.append(text.evaluate("each => getComputedStyle(each).fill"))
    assert colours == ["rgb(80, 96, 111)", "rgb(163, 177, 191)"]


def test_it_prints(look, page_of_a_month):
    """On paper no table is cut off."""
    page = look(page_of_a_month.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('.wide')].every(each => each.scrollWidth <= each.clientWidth)")
    assert len(page.pdf(format="A4")) > 10_000


def test_it_needs_nothing_else(page_of_a_month):
    """No script, no address, and every id only once."""
    text = page_of_a_month.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert "url(http" not in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len({*ids})
    for used in re.findall(r'(?:href="#|url\(#)([^")]*)', text):
        assert used in ids


def test_names_are_text(a_month, zone):
    """A card with the name of an element is shown by that name."""
    zone("UTC")
    found = gather(a_month, ["gpu0"], read_period("7d", NOW_S), read_price("1 <"[:1]))
    evil = "<img src=x onerror=alert(1)>"
    gpus = tuple(type(gpu)(**{**{key: getattr(gpu, key) for key in gpu.__slots__}, "name": evil}) for gpu in found.gpus)
    text = report_page(type(found)(**{**{key: getattr(found, key) for key in found.__slots__}, "gpus": gpus}))
    assert evil not in text
    assert "&lt;img src=x" in text


# ---- files ----------------------------------------------------------------------------------------------------------------


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    """An older report and an empty file give way, also behind a link; whatever else is there stays."""
    page, other, link = tmp_path / "report.html", tmp_path / "notes.txt", tmp_path / "link.html"
    page.touch()
    link.symlink_to(page)
    write_page(page, MARK + " first")
    write_page(link, MARK + " second")
    assert page.read_text() == MARK + " second"
    assert link.is_symlink()
    other.write_text("precious")
    with pytest.raises(MemscalerError, match="is no report"):
        write_page(other, MARK)
    assert other.read_text() == "precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.html", "notes.txt", "report.html"]


def test_page_and_plots_by_the_command(fresh_month, tmp_path):
    """It says what it wrote; the plots are whole pictures; `-` prints the page and nothing else."""
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    ended = report(fresh_month, "gpu1", "--html", str(page), "--plots", str(plots))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [f"wrote {page}", f"wrote 10 plots into {plots}"]
    names = ["energy", "gpu1-gaps", "gpu1-hours", "gpu1-wakes", "gpu1-what-if"]
    assert sorted({each.stem for each in plots.iterdir()}) == names
    for name in names:
        assert ET.parse(plots / f"{name}.svg").getroot().tag.endswith("svg")
        assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = report(fresh_month, "gpu1", "--html", "-")
    assert printed.stdout.startswith(MARK)
    assert printed.stdout.rstrip().endswith("</html>")
