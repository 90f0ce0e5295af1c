"""Deeper stages in a report: what they saved and cost, what others would have, and what nobody knows."""

import json

import pytest

from memscaler.cli.paint import Paint
from memscaler.cli.report.document import report_document
from memscaler.cli.report.gather import gather
from memscaler.cli.report.page import report_page
from memscaler.cli.report.period import read_period
from memscaler.cli.report.text import report_text
from tests.report.conftest import NOW_S
from tests.report.test_command import _rounded, compare


def found(folder, *gpus, since="7d"):
    return gather(folder, gpus, read_period(since, NOW_S), None)


def test_text(deep_month, zone):
    """A table of the stages, what they spared and how long leaving them took; and what a deeper stage would have."""
    zone("UTC")
    text = report_text(found(deep_month), Paint(False))
    assert max(map(len, text.splitlines())) <= 80
    compare("golden.stages.txt", text)


def test_json(deep_month, zone):
    """The keys are a contract."""
    zone("UTC")
    told = report_document(found(deep_month, "0", since="3d"))
    mine = {key: told[key] for key in ("stages", "machine_could_sleep")} | {"deeper": told["gpus"][0]["deeper"]}
    compare("golden.stages.json", json.dumps(_rounded(mine), indent=1))


def test_the_figures(deep_month, zone):
    """Text and JSON are of these nights: 10.5 W spared for seven hours of six nights, less 900 J in each hour."""
    zone("UTC")
    (stop,) = [each for each in report_document(found(deep_month))["stages"] if each["stage"] == "stop-server"]
    assert stop["saved_j"] == pytest.approx(6 * 7 * (3590 * 10.5 - 900))
    assert (stop["entered"], stop["failed"], stop["unended"]) == (6, 0, 0)
    assert (stop["wake"]["median_s"], stop["wake"]["worst_s"]) == (13.0, 16.0)
    (gpu,) = report_document(found(deep_month, "0"))["gpus"]
    ten, *_ = gpu["deeper"]["what_if"]
    assert ten["stage"] == "stop-server"
    assert ten["waited_s_per_day"] == pytest.approx(13 * ten["times_per_day"])
    spared_j, switch_j = 10.5 * ten["seconds_per_day"], 7 * 900 * ten["times_per_day"]
    assert ten["saved_j_per_day"] == pytest.approx(spared_j - switch_j)


def test_what_nobody_knows_is_said(deep_month, zone):
    """A stage without a reading, one of others, one that failed, and a machine that slept: no figure is made up."""
    zone("UTC")
    told = report_document(found(deep_month))
    stages = {each["stage"]: each for each in told["stages"]}
    assert stages["server-sleep"]["saved_j"] is None
    assert stages["server-sleep"]["by_others_s"] == 6 * 3600
    assert (stages["checkpoint"]["entered"], stages["checkpoint"]["failed"]) == (0, 1)
    assert (stages["suspend"]["seconds"], stages["suspend"]["saved_j"]) == (4 * 3600, None)
    assert all(each["saved_j"] is None for each in told["machine_could_sleep"])
    first, second, _ = told["gpus"]
    assert set(first["deeper"]["unknown"]) == {"server-sleep", "checkpoint"}
    assert set(second["deeper"]["unknown"]) == {"server-sleep", "checkpoint", "stop-server"}


def test_who_never_went_deeper_reads_nothing_of_it(a_month, zone):
    """Not a word, and empty lists for programs."""
    zone("UTC")
    report = found(a_month)
    assert "tage" not in report_text(report, Paint(False))
    assert "eeper" not in report_page(report)
    told = report_document(report)
    assert (told["stages"], told["machine_could_sleep"]) == ([], [])
    assert told["gpus"][0]["deeper"] == {"measured": [], "what_if": [], "unknown": {}}


def test_page(deep_month, zone):
    """The page has the same tables and sentences as the text."""
    zone("UTC")
    page = report_page(found(deep_month))
    assert 'aria-label="Deeper stages"' in page
    assert 'aria-label="gpu0: deeper stages"' in page
    assert "a machine that sleeps cannot be measured" in page
    assert "gpu1: deeper stages" not in page
