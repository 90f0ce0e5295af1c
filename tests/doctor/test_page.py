"""docs/troubleshooting.md has a section for every check. MEMSCALER_UPDATE_GOLDEN=1 writes their first paragraphs anew."""

import os
import re
import textwrap
from pathlib import Path

from memscaler.daemon.doctor.distribution import _MANAGERS, _PACKAGES
from memscaler.daemon.doctor.table import BY_ID, CHECKS
from memscaler.gpu.nvml_calls import REMEDIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
SECTION = re.compile(r"^### (MS-[A-Z]+-\d\d)\n\n((?:.+\n)+)", re.MULTILINE)


def about(check):
    return textwrap.fill(check.about, 120, break_on_hyphens=False, break_long_words=False) + "\n"


def test_every_check_has_its_section():
    """The same ids in the same order, each section beginning with what the table says of the check, and going on."""
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        text = SECTION.sub(lambda found: f"### {found[1]}\n\n{about(BY_ID[found[1]])}", text)
        PAGE.write_text(text, encoding="utf-8")
    sections = dict(SECTION.findall(text))
    assert list(sections) == [check.id for check in CHECKS]
    assert {each: sections[each] for each in sections} == {check.id: about(check) for check in CHECKS}
    for part in re.split(r"^#+ .*$", text, flags=re.MULTILINE)[1:]:
        assert len(part.strip().split("\n\n")) >= 2 or not part.strip()


def test_the_checks_are_told_in_sentences():
    """What is told of a check is whole sentences, and its title is short."""
    assert all(check.about.endswith(".") and len(check.title) <= 20 for check in CHECKS)


def test_the_remedies_of_the_page_are_those_of_the_code():
    """Every distribution's command, and every code of NVML that has a remedy."""
    text = PAGE.read_text(encoding="utf-8")
    for manager, package in _PACKAGES["bcc"].items():
        assert f"`sudo {manager} {package}`" in text
        assert manager in _MANAGERS.values()
    table = text.partition("| NVML says |")[2].partition("\n\n")[0]
    told = {int(number) for line in table.splitlines()[2:] for number in re.findall(r"\d+", line.split("|")[1])}
    assert set(REMEDIES) <= told
