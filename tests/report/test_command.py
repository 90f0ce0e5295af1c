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
from memscaler.history.tables import FILE, Hour, Park
from tests.cli.commands import ENVIRON
from tests.history.filled import fill
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


def test_who_reads_no_further(fresh_month):
    """As other tools: 141, and nothing on standard error; also where all of it would have been in one buffer."""
    for args in (["--json"], []):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "memscaler", "report", "--state-dir", str(fresh_month), *args]
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, env=ENVIRON, timeout=120)
        os.close(writing)
        assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_full_disk_behind_standard_output(fresh_month):
    """One line that says so, and exit code 1."""
    command = [sys.executable, "-m", "memscaler", "report", "--state-dir", str(fresh_month)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, env=ENVIRON, timeout=120)
    assert (ended.returncode, ended.stderr) == (1, b"memscaler: No space left on device\n")


def test_a_first_look(tmp_path, zone):
    """Two minutes of one GPU: no rows of days before it, times in seconds, small energies, and how old all this is."""
    zone("UTC")
    recording, card, begin_s = Recording(), Card(), NOW_S - 500.0
    work = [(begin_s, begin_s + 2), (begin_s + 120, begin_s + 121)]
    record(recording, card, work, begin_s + 122, idle_after_s=100, lasts=True)
    recording.write(tmp_path, {card.uuid: (begin_s, begin_s + 122)})
    found = gather(tmp_path, [], read_period("7d", NOW_S), None)
    text = report_text(found, Paint(False))
    days = [line for line in text.splitlines() if line.startswith("2026-11-") and " to " not in line]
    assert [line.split() for line in days] == [["2026-11-21", "2.5", "Wh", "0.31", "Wh", "3s", "1m", "41s", "18s", "1"]]
    assert "records  none before 2026-11-21 21:51" in text
    assert "recorded until 21:53: the daemon writes every ten minutes, and when it ends" in text
    assert "parked   18s, 15 % of the quiet time" in text
    assert "1 gap in 2m 2s is too little" in " ".join(text.split())
    told = report_document(found)
    assert told["recorded_until_unix_s"] == begin_s + 122
    for day in told["days"]:
        length_s = day["end_unix_s"] - day["start_unix_s"]
        assert day["recorded_s"] + day["unrecorded_s"] == pytest.approx(length_s)
    assert told["total"]["unrecorded_s"] > 7 * 86400


def test_ends_of_parks_that_are_no_wakes(tmp_path, zone):
    """They are told apart, by their reasons; times that only some wakes have say so."""
    zone("UTC")
    begin_s = NOW_S - 4000.0
    reasons = [("connection", 0.012), ("connection", None), ("ledger", None), ("memscaler ends", None), ("hold", None)]
    parks = [
        Park(begin_s + at, begin_s + at + 5, 1.0, reason, latency_s, 80.0, 100.0, 300.0, "integrated")
        for at, (reason, latency_s) in zip(range(0, 50, 10), reasons, strict=True)
    ]
    hour = Hour(begin_s // 3600 * 3600, {"parked": 25.0}, {"parked": 500.0}, 500.0, 1500.0, 0.0, 5, 3)
    fill(tmp_path, parks=parks, hours=[hour])
    found = gather(tmp_path, [], read_period("7d", NOW_S), None)
    (gpu,) = report_document(found)["gpus"]
    assert gpu["total"]["wakes"] == 3
    assert gpu["total"]["other_ends"] == {"memscaler ends": 1, "hold": 1}
    text = report_text(found, Paint(False))
    assert "3; 12 ms median, 12 ms p99, 12 ms worst, known of 1 of 3" in text
    assert "ended    1 by memscaler ends, 1 by hold" in text


def test_a_state_dir_that_is_none(fresh_month):
    """A file in its place is told as such."""
    ended = report(fresh_month / FILE)
    assert ended.returncode == 2
    assert "is no directory" in ended.stderr
    assert len(ended.stderr.splitlines()) == 2


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
    assert "calibration.json is not as `memscaler calibrate` writes it" in told.stderr
    assert "Error" not in told.stderr


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
    """Without it there is text, and a page with its tables, which says what to install; plots alone are refused."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError('not installed', name='matplotlib')"
    )
    path = f"{tmp_path}:{Path.cwd()}"
    assert report(fresh_month, PYTHONPATH=path).returncode == 0
    page = report(fresh_month, "--html", "-", PYTHONPATH=path)
    assert page.returncode == 0, page.stderr
    assert "-m pip install &#x27;matplotlib&gt;=3.8&#x27;" in page.stdout
    assert "gpu1 by day" in page.stdout
    assert "<svg" not in page.stdout
    ended = report(fresh_month, "--plots", str(tmp_path / "plots"), PYTHONPATH=path)
    assert ended.returncode == 1
    assert "-m pip install 'matplotlib>=3.8'" in ended.stderr
    assert not (tmp_path / "plots").exists()


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
