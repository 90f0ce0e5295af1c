"""Who reads changes nothing, needs no write access, and is told what is wrong and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from memscaler.history.reader import HistoryMissing, HistoryUnreadable, open_history
from memscaler.history.tables import FILE, HOUR_S, Hour, KnownGpu, Park
from tests.asked import short_folder
from tests.governor import REPOSITORY
from tests.history.filled import GPU, NAME, fill

NOW_S = 1.8e9
PARK = Park(NOW_S, NOW_S + 60, 3.0, "connection", 0.0002, 80.0, 1200.5, 3599.5, "counter")
HOUR = Hour(NOW_S // HOUR_S * HOUR_S, {"parked": 60.0}, {"parked": 1200.5}, 1200.5, 3599.5, 1.5, 1, 1)
NOBODY = 65534
READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from memscaler.core.errors import MemscalerError
from memscaler.history.reader import open_history
os.setgroups([int(group) for group in sys.argv[2:]])
os.setegid(65534)
os.seteuid(65534)
try:
    with open_history(Path(sys.argv[1])) as history:
        print(len(history.gaps("GPU-a")))
except MemscalerError as error:
    print(type(error).__name__, error.exit_code, error.hint)
"""


def read_as_nobody(folder, *groups: int) -> str:
    command = [sys.executable, "-c", READ_AS_NOBODY, str(folder), *map(str, groups)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()


@pytest.fixture
def public():
    """A directory that everybody reaches."""
    with short_folder() as folder:
        yield folder


def test_what_was_written(tmp_path):
    """Each row comes back as it was told, also in parts; times in seconds."""
    fill(tmp_path, gaps=[(NOW_S, 0.25), (NOW_S + 5, 90.125), (NOW_S + 900, 7.0)], hours=[HOUR], since_unix_s=NOW_S)
    fill(tmp_path, "GPU-b", gaps=[(NOW_S, 1.0)], index=1, name="P40")
    with open_history(tmp_path) as history:
        known = history.gpus()
        assert [(gpu.uuid, gpu.index, gpu.name) for gpu in known] == [(GPU, 0, NAME), ("GPU-b", 1, "P40")]
        assert isinstance(known[0], KnownGpu)
        assert abs(known[0].first_unix_s - time.time()) < 60
        assert history.since_unix_s() == NOW_S
        assert history.gaps(GPU) == [(NOW_S, 0.25), (NOW_S + 5, 90.125), (NOW_S + 900, 7.0)]
        assert history.gaps(GPU, NOW_S + 5) == [(NOW_S + 5, 90.125), (NOW_S + 900, 7.0)]
        assert history.gaps(GPU, most=2) == [(NOW_S + 5, 90.125), (NOW_S + 900, 7.0)]
        assert history.gaps("GPU-c") == history.parks("GPU-c") == history.hours("GPU-c") == []
        (hour,) = history.hours(GPU)
        assert hour.state_s == dict.fromkeys(("awake", "cooling", "held", "unmanaged"), 0.0) | HOUR.state_s
        assert (hour.energy_j, hour.saved_j, hour.unknown_s) == (1200.5, 3599.5, 1.5)
        assert (hour.parks, hour.wakes, hour.start_unix_s) == (1, 1, HOUR.start_unix_s)
        assert history.hours(GPU, HOUR.start_unix_s + HOUR_S - 1) == [hour]
        assert history.hours(GPU, HOUR.start_unix_s + HOUR_S) == []


def test_a_park_that_ends_later(tmp_path):
    """It has no end until it is told; then it is one park, not two. One whose end nobody saw stays without."""
    begun = Park(NOW_S, None, 3.0, "", None, 80.0, None, None, "")
    lost = Park(NOW_S - 999, None, 3.0, "", None, None, None, None, "")
    fill(tmp_path, parks=[lost, begun])
    with open_history(tmp_path) as history:
        assert history.parks(GPU) == [lost, begun]
    fill(tmp_path, parks=[PARK])
    with open_history(tmp_path) as history:
        assert history.parks(GPU) == [lost, PARK]
        assert history.parks(GPU, NOW_S) == [PARK]


def test_one_who_may_not_write_reads_beside_a_daemon_that_does(public):
    """Between its batches and during them, from a directory in which he may create nothing."""
    fill(public, gaps=[(float(nth), 1.0) for nth in range(500)])
    (public / FILE).chmod(0o644)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            fill(public, gaps=[(5.0, 1.0)] * 500)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        found = [int(read_as_nobody(public)) for _ in range(5)]
    finally:
        ended.set()
        thread.join()
    assert all(count % 500 == 0 for count in found)
    assert found == sorted(found)
    assert found[-1] > 500
    assert [path.name for path in public.iterdir()] == [FILE]


def test_who_may_read(public):
    """Root only where the group is missing, else its members: 0640; others are told whom to ask."""
    fill(public)
    mode = (public / FILE).stat()
    assert mode.st_mode & 0o777 == (0o640 if mode.st_gid else 0o600)
    assert read_as_nobody(public).startswith("PermissionMissing 4 run as root")
    os.chown(public / FILE, -1, 4321)
    (public / FILE).chmod(0o640)
    assert read_as_nobody(public, 4321) == "0"
    public.chmod(0o700)
    assert read_as_nobody(public, 4321).startswith("PermissionMissing")


def test_there_is_none(tmp_path):
    """Which is said, and nothing is made."""
    for folder in (tmp_path, tmp_path / "none", tmp_path / "none" / "deeper"):
        with pytest.raises(HistoryMissing) as told, open_history(folder):
            pass
        assert told.value.hint
    assert list(tmp_path.iterdir()) == []


def test_something_else_lies_there(tmp_path):
    """A link is not followed, a pipe is not waited for, and a file of another kind is not read."""
    (tmp_path / "elsewhere").mkdir()
    fill(tmp_path / "elsewhere")
    path = tmp_path / FILE
    for make in (
        lambda: path.symlink_to(tmp_path / "elsewhere" / FILE),
        lambda: os.mkfifo(path),
        lambda: path.write_bytes(b"x" * 5000),
        lambda: path.write_bytes(b""),
    ):
        make()
        with pytest.raises(HistoryUnreadable), open_history(tmp_path):
            pass
        path.unlink()


def test_a_name_with_odd_characters(tmp_path):
    """Of the directory: it is no part of the address that SQLite reads."""
    folder = tmp_path / "what? #1 100% & more"
    fill(folder, gaps=[(1.0, 1.0)])
    with open_history(folder) as history:
        assert history.gaps(GPU) == [(1.0, 1.0)]
