"""How the sleeper tells: undo in the form of the log, reports that fit, names that people know."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import memscaler.sleep.undo
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Stage, StageTotals
from memscaler.sleep.fitting import told_in_short
from memscaler.sleep.link import encode
from memscaler.sleep.told import who
from tests.patience import patience


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_undo_says_has_the_form_of_the_log(tmp_path, form):
    """It is run by the guardian into the governor's log."""
    (tmp_path / "sleep").mkdir()
    (tmp_path / "sleep" / "8080.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "-P", memscaler.sleep.undo.__file__, str(tmp_path), form],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * patience(),
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines
    if form == "json":
        assert [json.loads(line)["event"] for line in lines] == ["sleep.undone"]
        assert json.loads(lines[0])["level"] == "error"
        assert "timestamp" in json.loads(lines[0])
    else:
        assert all(line.startswith("memscaler restore: ") for line in lines)


def report(count: int, *, asleep: int = 0, words: int = 40) -> Sleep:
    """As a sleeper tells of so many servers after some weeks."""
    totals = {
        stage: StageTotals(100, 100, 3, 12345.678, tuple(1.234 + n for n in range(10)))
        for stage in (Stage.SERVER_SLEEP, Stage.STOP_SERVER)
    }
    servers = tuple(
        SleepingServer(
            name=f"model-{number}",
            port=10_000 + number,
            gpus=(f"GPU-00000000-0000-0000-0000-{number:012}",),
            stage=Stage.STOP_SERVER if number < asleep else None,
            rung=Rung.DOWN if number < asleep else Rung.UP,
            since_unix_s=1_800_000_000.123,
            next=Stage.SUSPEND,
            next_unix_s=1_800_000_000.123,
            why_not="w" * words,
            note="n" * words,
            totals=totals,
        )
        for number in range(count)
    )
    return Sleep(1, servers, MachineSleep(wanted=True, why_not=("x" * 200,) * 30))


def fits(told: Sleep) -> bool:
    try:
        encode(told)
    except ValueError:
        return False
    return True


def test_a_report_that_fits_is_told_whole():
    whole = report(20, asleep=10)
    assert told_in_short(whole, fits) == whole


@pytest.mark.parametrize(("count", "asleep", "words"), [(150, 5, 400), (230, 5, 40), (600, 50, 100), (600, 600, 2000)])
def test_a_report_that_is_too_long_keeps_what_sleeps(count, asleep, words):
    """It says that it is short; the state of a server that sleeps is left out last, and then that is said, too."""
    whole = report(count, asleep=asleep, words=words)
    assert not fits(whole)
    told = told_in_short(whole, fits)
    assert fits(told)
    assert "too many servers for one report" in told.problem
    known = {(each.name, each.rung, each.stage) for each in whole.servers}
    assert all((each.name, each.rung, each.stage) in known for each in told.servers)
    down = sum(each.rung is Rung.DOWN for each in told.servers)
    if down < asleep:
        assert f"{asleep - down} of them not up" in told.problem
        assert down == len(told.servers)
    kept = next(each for each in told.servers if each.rung is Rung.DOWN)
    assert kept.totals[Stage.STOP_SERVER].entered == 100


def test_a_user_without_a_name_is_called_a_user():
    assert [who("998"), who("alice"), who("")] == ["user 998", "alice", "an operator"]
