"""The file survives what may happen to it, and what cannot be written is kept in memory until it can be."""

from __future__ import annotations

import contextlib
import grp
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memscaler.core.gaps import Gap
from memscaler.history import store as stores
from memscaler.history import writer
from memscaler.history.batch import MOST_GAPS
from memscaler.history.reader import HistoryUnreadable, open_history
from memscaler.history.retention import Limits
from memscaler.history.store import DAMAGED, Damaged, Newer, Store
from memscaler.history.tables import FILE, VERSION, Park
from memscaler.history.writer import History
from tests.governor import REPOSITORY, eventually
from tests.history.filled import GPU, fill, opened

SECOND_NS = 10**9
WRITER = """
import itertools, sys
from pathlib import Path
from tests.history.filled import fill
for nth in itertools.count(int(sys.argv[2])):
    fill(Path(sys.argv[1]), gaps=[(1000 * nth + each, 1.0) for each in range(200)], saved_j=1.0)
    print(nth, flush=True)
"""


@contextlib.contextmanager
def raw(folder: Path):
    """The file as SQLite sees it."""
    with contextlib.closing(sqlite3.connect(folder / FILE, isolation_level=None)) as connection:
        yield connection


def gaps(folder: Path) -> list[tuple[float, float]]:
    with open_history(folder) as history:
        return history.gaps(GPU)


def tell_gaps(history: History, count: int) -> None:
    now_ns = time.monotonic_ns()
    for nth in range(count):
        history.gap(Gap(GPU, now_ns - (count - nth) * SECOND_NS, now_ns - (count - nth) * SECOND_NS + SECOND_NS // 2))


def test_killed_at_any_moment(tmp_path):
    """It is whole; every batch that was said to be written is there, and of the last one all or nothing."""
    chance, nth = random.Random(6), 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(nth)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 5)):
                nth = int(process.stdout.readline()) + 1
            time.sleep(chance.random() * 0.02)
            process.kill()
            for line in process.stdout:
                nth = int(line) + 1
        kept = Store(tmp_path, Limits()).kept()  # whoever comes next undoes the half batch
        with raw(tmp_path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = gaps(tmp_path)
        assert len(found) % 200 == 0
        assert len(found) // 200 in (nth, nth + 1)
        assert kept is not None
        assert kept.saved[GPU].total_j == len(found) // 200
        nth = len(found) // 200


def test_a_group_that_comes_later(tmp_path, monkeypatch):
    """Its members may read what was begun before it was there; nothing else is changed by a later opening."""
    group = grp.getgrnam("games")  # of every Debian; nobody is in it
    monkeypatch.setattr(stores, "GROUP", "nobody-has-this-group")
    fill(tmp_path)
    before = (tmp_path / FILE).stat()
    assert before.st_mode & 0o777 == 0o600
    monkeypatch.setattr(stores, "GROUP", group.gr_name)
    Store(tmp_path, Limits()).kept()
    after = (tmp_path / FILE).stat()
    assert (after.st_mode & 0o777, after.st_gid, after.st_uid) == (0o640, group.gr_gid, before.st_uid)
    (tmp_path / FILE).chmod(0o600)  # by its owner's will
    fill(tmp_path)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_one_half_written_is_told_to_who_may_not_mend_it(tmp_path):
    """A journal that has to be undone is for the daemon: a reader says so, and the daemon's start mends it."""
    fill(tmp_path, gaps=[(1.0, 1.0)])
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN')\n"
        "c.executemany('INSERT INTO gap (gpu, start_ms, length_ms) VALUES (1, ?, 5)', ((n,) for n in range(90000)))\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / FILE)], check=True)
    assert (tmp_path / f"{FILE}-journal").stat().st_size > 0
    with pytest.raises(HistoryUnreadable) as told, open_history(tmp_path) as history:
        history.gaps(GPU)
    assert "next start" in told.value.hint
    History(tmp_path)
    assert gaps(tmp_path) == [(1.0, 1.0)]


def test_a_full_disk_loses_nothing_that_memory_holds(small_disk):
    """Batch after batch is refused; when there is room again all of it is there, in order, once."""
    fill(small_disk, gaps=[(1.0, 1.0)])
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * (1 << 20))
    history = opened(small_disk)
    for _ in range(3):
        tell_gaps(history, 700)
        history.write()
        eventually(lambda: not history._is_busy())
    assert history.failures == 3
    assert gaps(small_disk) == [(1.0, 1.0)]
    (small_disk / "ballast").unlink()
    history.close()
    assert len(gaps(small_disk)) == 2101
    with raw(small_disk) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_memory_is_bounded_and_what_is_lost_is_told(tmp_path, capfd, monkeypatch):
    """While nothing can be written no more is kept than was promised."""
    monkeypatch.setattr(stores, "WAIT_S", 0.0)
    fill(tmp_path)
    history = opened(tmp_path)
    with raw(tmp_path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            tell_gaps(history, MOST_GAPS // 2)
            eventually(lambda: not history._is_busy())
            history.write()
            eventually(lambda: not history._is_busy())
    history.close()
    assert len(gaps(tmp_path)) == MOST_GAPS
    said = capfd.readouterr().out
    assert said.count("history.not_written") == 1
    assert said.count("history.lost") == 1
    assert f"rows={MOST_GAPS // 2}" in said


def test_a_lock_that_somebody_holds(tmp_path):
    """The loop's thread does not wait for it, the end waits a moment, and it is written when the lock is gone."""
    fill(tmp_path)
    history = opened(tmp_path)
    with raw(tmp_path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        tell_gaps(history, 5)
        history.write()
        tell_gaps(history, 5)
        history.write()
        assert history._is_busy()
        assert time.monotonic() - began < 1
        history.close()
        assert time.monotonic() - began < stores.WAIT_S
        connection.execute("ROLLBACK")
    eventually(lambda: len(gaps(tmp_path)) == 5)
    history.close()
    assert len(gaps(tmp_path)) == 10


def test_a_disk_that_hangs_at_the_start(tmp_path, monkeypatch):
    """What was there comes later; until then nothing is written over it, and what was counted meanwhile is added."""
    fill(tmp_path, saved_j=5.0)
    monkeypatch.setattr(writer, "READ_S", 0.05)
    with raw(tmp_path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        history = opened(tmp_path)
        history.count(GPU, 2.0)
        assert history.of(GPU) == (2.0, 2.0)
        connection.execute("ROLLBACK")
    eventually(lambda: history.of(GPU) == (7.0, 7.0))
    history.close()
    assert History(tmp_path).of(GPU) == (7.0, 7.0)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"x" * 5000),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
        lambda path: os.truncate(path, 1 << 40),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000),
    ],
    ids=["another", "cut", "sparse", "overwritten"],
)
def test_one_that_is_damaged(tmp_path, capfd, harm):
    """It is moved aside, which is said once, and a new one is begun."""
    fill(tmp_path, gaps=[(float(nth), 1.0) for nth in range(2000)], saved_j=3.0)
    harm(tmp_path / FILE)
    history = opened(tmp_path)
    history.count(GPU, 2.0)
    tell_gaps(history, 1)
    history.close()
    if (tmp_path / f"{FILE}{DAMAGED}").exists():  # the sparse one is whole as far as anybody reads it
        assert capfd.readouterr().out.count("history.damaged") == 1
        assert len(gaps(tmp_path)) == 1
    else:
        assert (tmp_path / FILE).stat().st_size > 1 << 30
    assert History(tmp_path).of(GPU)[1] >= 2.0


def test_bytes_that_somebody_has_changed(tmp_path):
    """Whatever they are: nothing raises, governing goes on, and in the end something can be written again."""
    fill(tmp_path / "whole", gaps=[(float(nth), 1.0) for nth in range(2000)], saved_j=3.0)
    fill(tmp_path / "whole", parks=[Park(5.0, None, 1.0, "x", None, 80.0, None, None, "")])
    data, chance = (tmp_path / "whole" / FILE).read_bytes(), random.Random(8)
    for nth in range(60):
        harmed = bytearray(data)
        for _ in range(chance.choice((1, 3, 40))):
            at = chance.randrange(chance.choice((100, 4096, len(data))))
            harmed[at] = chance.randrange(256)
        folder = tmp_path / str(nth)
        folder.mkdir()
        (folder / FILE).write_bytes(harmed)
        with contextlib.suppress(HistoryUnreadable), open_history(folder) as read:
            for gpu in read.gpus():
                read.gaps(gpu.uuid), read.parks(gpu.uuid), read.hours(gpu.uuid)
            read.totals()
        history = opened(folder)
        history.count(GPU, 2.0)
        tell_gaps(history, 1)
        history.close()
        eventually(lambda history=history: history.close() or not (history._batch or history._unwritten), what=str(nth))
        assert history.of(GPU)[1] >= 2.0
        shutil.rmtree(folder)


def test_totals_outlive_a_file_that_is_damaged_while_the_daemon_runs(tmp_path):
    """They are known, and go into the next one."""
    fill(tmp_path, saved_j=3.0)
    history = opened(tmp_path)
    history.count(GPU, 2.0)
    history.write()
    history._join(5.0)
    (tmp_path / FILE).write_bytes(b"x" * 5000)
    history.count(GPU, 6.0)
    history.close()
    assert history.of(GPU)[1] == 9.0
    assert History(tmp_path).of(GPU)[1] == 9.0


def test_the_journal_of_a_damaged_one_goes_with_it(tmp_path):
    """Else SQLite would apply it to the next file."""
    fill(tmp_path)
    (tmp_path / FILE).write_bytes(b"x" * 5000)
    (tmp_path / f"{FILE}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 600)
    with pytest.raises(Damaged):
        Store(tmp_path, Limits()).kept()
    assert not (tmp_path / f"{FILE}-journal").exists()
    assert not (tmp_path / FILE).exists()


def test_one_of_a_newer_memscaler(tmp_path, capfd):
    """It is left alone, to the byte, and that is said once; a reader says it, too."""
    fill(tmp_path, saved_j=5.0)
    with raw(tmp_path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / FILE).read_bytes()
    history = opened(tmp_path)
    for told_j in (1.0, 2.0):
        history.count(GPU, told_j)
        history.close()
    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert history.of(GPU) == (3.0, 3.0)
    assert capfd.readouterr().out.count("history.not_written") == 1
    with pytest.raises(Newer):
        Store(tmp_path, Limits()).kept()
    with pytest.raises(HistoryUnreadable, match="newer"), open_history(tmp_path):
        pass


def test_rows_that_no_file_takes_are_not_tried_for_ever(tmp_path, capfd):
    """They are dropped, which is said; what comes after them is written, and the file stays."""
    fill(tmp_path, saved_j=1.0)
    history = opened(tmp_path)
    now_ns = time.monotonic_ns()
    history.gap(Gap(GPU, now_ns, now_ns + 2**90))
    history.close()
    assert history.failures == 1
    tell_gaps(history, 1)
    history.close()
    assert len(gaps(tmp_path)) == 1
    assert "history.refused" in capfd.readouterr().out
    assert not (tmp_path / f"{FILE}{DAMAGED}").exists()


@pytest.mark.parametrize("mode", [0o1777, 0o757, 0o775])
def test_a_directory_that_others_may_write_to(tmp_path, capfd, mode):
    """They could put a journal beside the file, which SQLite would believe: nothing is read or written there."""
    tmp_path.chmod(mode)
    history = opened(tmp_path)
    history.count(GPU, 1.0)
    history.close()
    assert list(tmp_path.iterdir()) == []
    assert "others may write" in capfd.readouterr().out


def test_a_file_that_is_somebody_elses(tmp_path):
    """It is neither read nor written."""
    fill(tmp_path, saved_j=5.0)
    os.chown(tmp_path / FILE, 65534, 65534)
    before = (tmp_path / FILE).read_bytes()
    history = opened(tmp_path)
    history.count(GPU, 1.0)
    history.close()
    assert history.of(GPU) == (1.0, 1.0)
    assert (tmp_path / FILE).read_bytes() == before


def test_the_end_of_a_process_in_the_middle_of_a_batch(tmp_path):
    """A thread that still writes when the interpreter ends does no harm."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.history.filled import opened, GPU\n"
        "from tests.history.test_store import tell_gaps\nhistory = opened(Path(sys.argv[1]))\n"
        "tell_gaps(history, 9000)\nhistory.write()"
    )
    for _ in range(5):
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=REPOSITORY, timeout=60)
        if Store(tmp_path, Limits()).kept() is not None:
            assert len(gaps(tmp_path)) % 9000 == 0


def test_a_signal_does_not_end_a_batch(tmp_path):
    """The main thread's signals are not the worker's business."""
    history = opened(tmp_path)
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        tell_gaps(history, 5000)
        history.write()
        os.kill(os.getpid(), signal.SIGUSR1)
        history.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
    assert len(gaps(tmp_path)) == 5000


def test_two_that_begin_it_at_once(tmp_path):
    """Two daemons with one directory: neither takes the other's new file for a damaged one."""
    for nth in range(8):
        folder = tmp_path / str(nth)
        threads = [
            threading.Thread(target=fill, args=(folder, f"GPU-{each}"), kwargs={"saved_j": 1.0}) for each in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [path.name for path in folder.iterdir()] == [FILE]
        with open_history(folder) as history:
            assert len(history.gpus()) == 4
