"""What is written down, and what is made of files that cannot be read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from memscaler.core.snapshot import Identity
from memscaler.gpu.journal import UNKNOWN_LEVER, Journal

GPU = Identity(0, "GPU-1234", "00000000:3B:00.0", "NVIDIA A40")


def test_record_and_release(journal: Journal) -> None:
    """An entry is readable by everybody, survives its writer and goes with its release."""
    entry = journal.record(GPU, "memory-clock", 405)
    path = journal.directory / "GPU-1234.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(journal.directory.stat().st_mode) == 0o755
    assert list(journal.directory.iterdir()) == [path]
    assert Journal(journal.directory).entries() == (entry,)
    journal.release(GPU.uuid)
    journal.release(GPU.uuid)
    assert journal.entries() == ()


def test_directory_is_not_made_by_reading(tmp_path: Path) -> None:
    """Looking for entries where none were ever written leaves no trace."""
    journal = Journal(tmp_path / "none")
    assert journal.entries() == ()
    assert not journal.directory.exists()


def test_another_boot_is_void(tmp_path: Path) -> None:
    """No lock survives a reboot."""
    Journal(tmp_path, boot_id="before").record(GPU, "memory-clock", 405)
    assert Journal(tmp_path, boot_id="after").entries() == ()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"lever": "pstate", "target": "x"}', "\xff\xfe"])
def test_broken_file_means_every_lever(journal: Journal, text: str) -> None:
    """A file that says nothing still says which GPU it is about."""
    journal.record(GPU, "memory-clock", 405)
    (journal.directory / "GPU-1234.json").write_bytes(text.encode("latin-1"))
    (entry,) = journal.entries()
    assert (entry.uuid, entry.lever) == ("GPU-1234", UNKNOWN_LEVER)


def test_other_files_are_left_alone(journal: Journal) -> None:
    """Half-written drafts and strangers in the directory are no entries."""
    journal.record(GPU, "memory-clock", 405)
    (journal.directory / "GPU-5678.1.tmp").write_text("{")
    (journal.directory / "state.json").write_text("{}")
    assert [entry.uuid for entry in journal.entries()] == ["GPU-1234"]


def test_who_wrote_it(journal: Journal) -> None:
    """An entry has its writer's pid; one of an older version, or that cannot be read, has none."""
    entry = journal.record(GPU, "memory-clock", 405)
    assert (entry.pid, journal.entries_of(os.getpid()), journal.entries_of(None)) == (os.getpid(), (entry,), (entry,))
    assert journal.entries_of(1) == ()
    path = journal.directory / f"{GPU.uuid}.json"
    older = json.loads(path.read_text())
    del older["pid"]
    path.write_text(json.dumps(older))
    assert (journal.entries_of(0), journal.entries_of(os.getpid())) == (journal.entries(), ())
