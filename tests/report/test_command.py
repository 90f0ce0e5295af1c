"""`memscaler report`: as a real process on files by the real writer, and its text and JSON against what they were."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from memscaler.cli.output import print_json
from memscaler.cli.paint import Paint
from memscaler.cli.report.document import report_document
from memscaler.cli.report.gather import gather
from memscaler.cli.report.period import read_period
from memscaler.cli.report.price import read_price
from memscaler.cli.report.text import report_text
from memscaler.history.tables import FILE
from tests.cli.commands import ENVIRON
from tests.report.conftest import NOW_S
from tests.report.recorded import Card, Recording, record, requests

HERE = Path(__file__).parent
PRICE = read_price("0.30 EUR/kWh")


def report(folder, *args, **environ):
    command = [sys.executable, "-m", "memscaler", "report", "--state-dir", str(folder), *args]
    env = {**ENVIRON, "TZ": "UTC", **environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


# ---- goldens: `UPDATE_GOLDEN=1 pytest tests/report` writes them anew; look at the difference -----------------------------


def compare(name, text):
    path = HERE / name
    text = "\n".join(line for line in text.splitlines() if not line.startswith("auto ")) + "\n"  # it may yet learn
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_text(a_month, zone):
    """A week of two GPUs, and a third that is gone."""
    zone("UTC")
    text = report_text(gather(a_month, [], read_period("7d", NOW_S), PRICE), Paint(False))
    assert max(map(len, text.splitlines())) <= 80
    compare("golden.txt", text)


def test_text_of_months(a_month, zone):
    """A long period is told by month; a day without any record has no figures, but its hours."""
    zone("America/New_York")
    text = report_text(gather(a_month, ["gpu1", "gpu2"], read_period("60d", NOW_S), None), Paint(False))
    assert max(map(len, text.splitlines())) <= 80
    compare("golden.months.txt", text)


def test_json(a_month, zone):
    """The keys are a contract."""
    zone("UTC")
    printed = io.StringIO()
    with redirect_stdout(printed):
        print_json(report_document(gather(a_month, ["1"], read_period("2d", NOW_S), PRICE)))
    document = _rounded(json.loads(printed.getvalue()))
    *timers, auto = document["gpus"][0]["what_if"]["policies"]
    assert auto["auto"]
    assert 0.9 < auto["share"] <= 1
    document["gpus"][0]["what_if"]["policies"] = timers  # the adaptive one may yet learn
    text = json.dumps(document, indent=1)
    compare("golden.json", text)


def _rounded(value):
    """Sums of floating point numbers differ in their last digits from machine to machine."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_json_and_text_agree(a_month, zone):
    """Days add up to the total, GPUs to all."""
    zone("Europe/Berlin")
    told = report_document(gather(a_month, [], read_period("30d", NOW_S), PRICE))
    for entry in [told, *told["gpus"]]:
        for key in ("energy_j", "saved_j", "wakes", "unrecorded_s", "cost_saved"):
            known = [day[key] for day in entry["days"] if day[key] is not None]
            assert sum(known) == pytest.approx(entry["total"][key]), key
    for key in ("energy_j", "saved_j", "wakes", "margin_j"):
        assert sum(gpu["total"][key] for gpu in told["gpus"]) == pytest.approx(told["total"][key])


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_it_reports(fresh_month):
    """Text without any escape sequence where it is no terminal, and JSON of the same."""
    shown, told = report(fresh_month, "--price", "0.30 EUR/kWh"), report(fresh_month, "--json")
    assert (shown.returncode, shown.stderr, told.returncode, told.stderr) == (0, "", 0, "")
    assert "\x1b" not in shown.stdout
    assert " EUR used, at 0.30 EUR/kWh" in shown.stdout
    document = json.loads(told.stdout)
    assert document["schema"] == 1
    assert [gpu["gpu"] for gpu in document["gpus"]] == ["gpu0", "gpu1", "gpu2"]
    assert document["gpus"][2]["gone"]
    assert document["total"]["saved_j"] > 0


def test_gpus_are_named_as_elsewhere(fresh_month):
    """By number, name and the beginning of the UUID; a wrong one is refused with those that are known."""
    for name in ("1", "gpu1", "GPU-1111"):
        document = json.loads(report(fresh_month, name, "--json").stdout)
        assert [gpu["name"] for gpu in document["gpus"]] == ["Tesla P40"]
    wrong = report(fresh_month, "gpu9")
    assert wrong.returncode == 2
    assert "gpu0 GPU-8f3a0c52" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--since", "soon"], 2, "hint: --since 12h, 7d or 2026-11-01"),
        (["--price", "0,30"], 2, "hint: a point, no comma"),
        (["--html", "-", "--json"], 2, "hint: give --html a file"),
        (["--html", "/nowhere/at/all.html"], 1, "there is no directory /nowhere/at"),
        (["--html", "/etc/passwd"], 1, "is no report"),
        (["--html", "/etc"], 1, "is a directory"),
        (["--plots", "/nowhere/at/all"], 1, "cannot write /nowhere/at/all"),
    ],
)
def test_what_is_wrong_is_said(fresh_month, args, status, says):
    """One line, a hint, an exit code; nothing on standard output."""
    ended = report(fresh_month, *args)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_history(tmp_path):
    """It says where it looked, and how there will be one."""
    ended = report(tmp_path)
    assert ended.returncode == 1
    assert str(tmp_path / FILE) in ended.stderr
    assert "hint: " in ended.stderr


def test_a_damaged_history(tmp_path):
    """No traceback."""
    (tmp_path / FILE).write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    ended = report(tmp_path)
    assert ended.returncode == 1
    assert "hint: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_history_of_nothing(tmp_path):
    """A daemon that has just begun, and governed nothing yet."""
    Recording().write(tmp_path, {})
    shown, told = report(tmp_path), report(tmp_path, "--json")
    page = report(tmp_path, "--html", "-")
    assert "no GPU was ever governed" in shown.stdout
    assert json.loads(told.stdout)["total"]["energy_j"] is None
    assert "No GPU was ever governed" in page.stdout


def test_one_gap(tmp_path):
    """The first hour of a GPU: figures, and no advice."""
    now_s = time.time()
    recording, card = Recording(), Card()
    record(recording, card, [(now_s - 1800, now_s - 1700), (now_s - 100, now_s - 50)], now_s)
    recording.write(tmp_path, {card.uuid: (now_s - 1800, now_s)})
    shown = report(tmp_path, "--since", "2h")
    assert shown.returncode == 0, shown.stderr
    assert "too little to advise from" in shown.stdout


def test_a_damaged_calibration_is_no_obstacle(fresh_month):
    """It is said on standard error; standard output stays JSON."""
    path = fresh_month / "calibration.json"
    path.write_text("{")
    try:
        told = report(fresh_month, "--json")
    finally:
        path.unlink()
    assert json.loads(told.stdout)["gpus"][0]["what_if"]["costs"]["source"] == "observed"
    assert "calibration.json is of no use" in told.stderr


def test_colours_on_a_terminal(a_month, zone):
    """Painted text says the same."""
    zone("UTC")
    found = gather(a_month, [], read_period("7d", NOW_S), None)
    plain, painted = report_text(found, Paint(False)), report_text(found, Paint(True))
    assert "\x1b" in painted
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m"):
        painted = painted.replace(code, "")
    assert painted == plain


def test_text_needs_no_matplotlib(fresh_month, tmp_path):
    """Without it there is text; a page says what to install, and changes nothing."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError('not installed', name='matplotlib')"
    )
    path = f"{tmp_path}:{Path.cwd()}"
    assert report(fresh_month, PYTHONPATH=path).returncode == 0
    ended = report(fresh_month, "--html", str(tmp_path / "page.html"), PYTHONPATH=path)
    assert ended.returncode == 1
    assert "-m pip install 'matplotlib>=3.8'" in ended.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_year(tmp_path):
    """Of a GPU that is asked all day: its text takes seconds, not minutes."""
    now_s = time.time()
    start_s, recording, card = now_s - 364 * 86400, Recording(), Card()
    record(recording, card, requests(start_s, now_s, busy_per_hour=40.0), now_s)
    recording.write(tmp_path, {card.uuid: (start_s, now_s)})
    began_s = time.monotonic()
    shown = report(tmp_path, "--since", "364d")
    print(f"a year took {time.monotonic() - began_s:.1f} s")
    assert shown.returncode == 0, shown.stderr
    assert "MONTH" in shown.stdout
    assert time.monotonic() - began_s < 60
