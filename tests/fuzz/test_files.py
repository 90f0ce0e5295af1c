"""Journals, leases, histories and notes of a release that somebody has tampered with: read as what they are, or not at all; nothing else is touched."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memscaler.core.errors import PermissionMissing
from memscaler.core.snapshot import Identity, Released
from memscaler.daemon.leases import FILE, MAX_LEASES, MAX_REASON, Leases
from memscaler.daemon.standby import FILE as RELEASED
from memscaler.daemon.standby import Standby
from memscaler.gpu.journal import BOOT_ID, PATTERN, UNKNOWN_LEVER, Journal
from memscaler.history.batch import MOST_J
from memscaler.history.tables import FILE as KEPT
from memscaler.history.writer import History
from tests.fuzz.cases import case, fuzzed, json_like, mutated
from tests.history.filled import fill

BOOT = BOOT_ID.read_text().strip()
ELSEWHERE = "GPU-elsewhere"
ENTRY = {
    "uuid": "GPU-a",
    "pci_bus_id": "0000:3b:00.0",
    "lever": "memory-clock",
    "target": 405,
    "boot_id": BOOT,
    "at": 1.5,
}
LEASE = {
    "id": "5eed5eed", "kind": "hold", "gpus": ["GPU-a"], "owner": "root", "reason": "x", "expires_s": None, "pid": 0, "pid_started": 0,
}  # fmt: skip
NOTE = {"boot_id": BOOT, "owner": "root", "reason": "driver 580", "since_unix_s": 1.7e9}
DOCUMENT = {"boot_id": BOOT, "leases": [LEASE]}
WORDS = [
    b"null",
    b"1e999",
    b"-1",
    b"Infinity",
    b"NaN",
    b'"',
    b"\\u0000",
    b"[",
    b"{}",
    b"9" * 5000,
    b"1e308",
    b"\x00",
    b"\xff",
    b"true",
    b"[" * 9000,
]
NAMES = [
    "GPU-a.json",
    "GPU-b.json",
    "GPU-.json",
    "GPU-a.json.json",
    "GPU-a\n.json",
    "GPU-\udcff.json",
    "GPU-a.1.tmp",
    "x",
    "GPU-a.JSON",
]
KINDS = ["file"] * 12 + ["symlink", "loop", "dangling", "zeros", "directory", "fifo", "huge", "sparse"]


@functools.cache
def _history() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), gaps=[(1.7e9 + nth, 1.0) for nth in range(50)], saved_j=5.0, since_unix_s=1.7e9)
        return (Path(folder) / KEPT).read_bytes()


def _with(base: dict[str, Any], keys: dict[str, Any]) -> bytes:
    return json.dumps({**base, **keys}).encode("utf-8", "surrogatepass")


entries = st.builds(
    lambda keys: _with(ENTRY, keys),
    st.dictionaries(
        st.sampled_from(sorted(ENTRY)), json_like([ELSEWHERE, f"../outside/{ELSEWHERE}", "405"]), max_size=2
    ),
) | mutated([json.dumps(ENTRY).encode()], WORDS)
notes = st.builds(
    lambda keys: _with(NOTE, keys),
    st.dictionaries(st.sampled_from(sorted(NOTE)), json_like([BOOT, "root"]), max_size=2),
) | mutated([json.dumps(NOTE).encode()], WORDS)
histories = st.deferred(lambda: mutated([_history()], WORDS))
leases = (
    st.builds(
        lambda keys, times: json.dumps(
            {**DOCUMENT, "leases": [{**LEASE, **keys, "id": f"{n}"} for n in range(times)]}
        ).encode(),
        st.dictionaries(
            st.sampled_from(sorted(LEASE)),
            json_like(["hold", "tied", "pause", 1e308, 1e12, os.getpid(), ["GPU-a"]]),
            max_size=2,
        ),
        st.sampled_from([1, 1, 1, 0, MAX_LEASES + 9]),
    )
    | st.builds(
        lambda keys: _with(DOCUMENT, keys), st.dictionaries(st.sampled_from(sorted(DOCUMENT)), json_like(), max_size=2)
    )
    | mutated([json.dumps(DOCUMENT).encode()], WORDS)
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The directory itself, and one beside it that is nobody's business."""
    base = tmp_path_factory.mktemp("files")
    (base / "outside").mkdir()
    (base / "outside" / f"{ELSEWHERE}.json").write_text(
        json.dumps({**ENTRY, "lever": "secret", "pci_bus_id": "secret"})
    )
    (base / "outside" / FILE).write_text(json.dumps({**DOCUMENT, "leases": [{**LEASE, "owner": "secret"}]}))
    fill(base / "outside", "GPU-secret", saved_j=5.0)
    (base / "outside" / RELEASED).write_text(json.dumps({**NOTE, "owner": "secret"}))
    return base / "inside", base / "outside"


def put(path: Path, kind: str, data: bytes, target: Path) -> None:
    """Something of this kind at the path."""
    match kind:
        case "file":
            path.write_bytes(data)
        case "symlink":
            path.symlink_to(target)
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "zeros":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "huge":
            path.write_bytes(data + b" " * (1 << 20))
        case "sparse":
            path.touch()
            os.truncate(path, 1 << 40)


def emptied(folder: Path) -> None:
    """The directory, new."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(exist_ok=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@fuzzed(0.12)
@given(files=st.dictionaries(st.sampled_from(NAMES), st.tuples(st.sampled_from(KINDS), entries), max_size=2))
@example(files={"GPU-a.json": ("file", _with(ENTRY, {"target": float("inf")}))})
@example(files={"GPU-a.json": ("file", _with(ENTRY, {"at": 10**400}))})
@example(files={"GPU-a.json": ("file", b"[" * 100_000)})
@example(files={"GPU-a.json": ("fifo", b""), "GPU-b.json": ("file", _with(ENTRY, {}))})
@example(files={"GPU-a.json": ("zeros", b""), "GPU-b.json": ("sparse", b"")})
@example(files={"GPU-a.json": ("symlink", b"")})
@example(files={"GPU-a.json": ("file", _with(ENTRY, {"uuid": f"../outside/{ELSEWHERE}"}))})
def test_journal(folders, files):
    """Each file is an entry of its own GPU, or of an earlier boot; what cannot be read means that all is to be undone."""
    inside, outside = folders
    emptied(inside)
    before = contents(outside)
    for name, (kind, data) in files.items():
        put(inside / name, kind, data, outside / f"{ELSEWHERE}.json")
    with case("journal"):
        journal = Journal(inside, BOOT)
        with contextlib.suppress(PermissionMissing):
            found = {entry.uuid: entry for entry in journal.entries()}
            assert set(found) <= {Path(name).stem for name in files}
            assert "secret" not in str(found)
            for name, (kind, _) in files.items():
                if kind not in ("file", "huge") and fnmatch.fnmatchcase(name, PATTERN):
                    assert found[Path(name).stem].lever == UNKNOWN_LEVER
            for entry in found.values():
                assert journal.entry(entry.uuid) == entry or entry.at != entry.at
                assert "/" not in entry.uuid
                with contextlib.suppress(OSError):  # a directory is in its place
                    journal.release_entry(entry)
        written = Identity(0, "GPU-b", "0000:3b:00.0", "x")
        with contextlib.suppress(OSError):
            assert journal.record(written, "pstate", 8) in journal.entries()
            journal.release(written.uuid)
    assert contents(outside) == before


@fuzzed(0.10)
@given(kind=st.sampled_from(KINDS), data=leases)
@example(kind="file", data=_with(DOCUMENT, {"leases": [{**LEASE, "expires_s": 1e308}]}))
@example(kind="file", data=_with(DOCUMENT, {"leases": [{**LEASE, "pid": float("inf")}]}))
@example(kind="file", data=_with(DOCUMENT, {"leases": [{**LEASE, "kind": "tied", "pid": 10**400}]}))
@example(kind="file", data=_with(DOCUMENT, {"leases": {"a": 1}}))
@example(kind="file", data=b"[" * 100_000)
@example(kind="fifo", data=b"")
@example(kind="zeros", data=b"")
@example(kind="sparse", data=b"")
@example(kind="symlink", data=b"")
def test_leases(folders, kind, data):
    """They load, or the problem is said; whatever was loaded can be lived with and written down again."""
    inside, outside = folders
    emptied(inside)
    before = contents(outside)
    put(inside / FILE, kind, data, outside / FILE)
    with case("leases"):
        loaded = Leases(inside)
        assert not (loaded.problem and list(loaded))
        assert len(list(loaded)) <= MAX_LEASES
        assert "secret" not in str(list(loaded)) + loaded.problem
        assert kind in ("file", "huge", "dangling") or loaded.problem
        for lease in loaded:
            assert lease.covers("GPU-a") in (True, False)
            assert 0 < lease.expires_ns() <= 2**63
            assert len(lease.reason) <= MAX_REASON
            assert not lease.is_over()
        assert 0 <= loaded.next_end_ns() <= 2**63
        with contextlib.suppress(OSError, ValueError):
            mine = loaded.add("hold", ["GPU-a"], "root", "mine", 60.0)
            again = Leases(inside)
            assert not again.problem
            assert again.get(mine.id) == mine
            assert list(again) == list(loaded)
            loaded.end([lease.id for lease in loaded])
            assert not list(Leases(inside))
    assert contents(outside) == before


@fuzzed(0.02)
@given(kind=st.sampled_from(KINDS), data=notes)
@example(kind="file", data=_with(NOTE, {"since_unix_s": 10**400}))
@example(kind="file", data=_with(NOTE, {"since_unix_s": float("nan")}))
@example(kind="file", data=_with(NOTE, {"boot_id": "another"}))
@example(kind="file", data=b"[" * 100_000)
@example(kind="fifo", data=b"")
@example(kind="zeros", data=b"")
@example(kind="symlink", data=b"")
def test_note_of_a_release(folders, kind, data):
    """It is one of this boot, whole, or it is none; and what was written is read again."""
    inside, outside = folders
    emptied(inside)
    before = contents(outside)
    put(inside / RELEASED, kind, data, outside / RELEASED)
    with case("release"):
        wanted = Standby.wanted(inside)
        assert wanted is None or (kind in ("file", "huge") and math.isfinite(wanted.since_unix_s))
        assert "secret" not in str(wanted)
        with contextlib.suppress(OSError):
            mine = Released("alice", "driver \u0580", 1.5)
            emptied(inside)
            Standby.want(inside, mine)
            assert Standby.wanted(inside) == mine
    assert contents(outside) == before


@fuzzed(0.04)
@given(kind=st.sampled_from(KINDS), data=histories)
@example(kind="file", data=b"SQLite format 3\x00" + b"\xff" * 5000)
@example(kind="directory", data=b"")
@example(kind="fifo", data=b"")
@example(kind="zeros", data=b"")
@example(kind="sparse", data=b"")
@example(kind="symlink", data=b"")
def test_history(folders, kind, data):
    """Joules that may be, or none; the next ones are counted and written down, unless something else lies there."""
    inside, outside = folders
    emptied(inside)
    before = contents(outside)
    put(inside / KEPT, kind, data, outside / KEPT)
    with case("history"):
        saved = History(inside)
        assert 0 <= saved.since_unix_s <= time.time()
        assert saved.of("GPU-secret") == (0.0, 0.0)
        today_j, total_j = saved.of("GPU-a")
        assert 0 <= today_j <= MOST_J
        assert 0 <= total_j <= MOST_J
        assert kind in ("file", "huge") or total_j == 0
        saved.count("GPU-a", 1.0)
        assert saved.of("GPU-a")[1] >= total_j
        saved.close()
        for _ in range(100):  # the end of a daemon waits a second, not for a machine as busy as this one
            if kind not in ("file", "huge", "sparse") or History(inside).of("GPU-a") == saved.of("GPU-a"):
                break
            saved.close()
        else:
            pytest.fail("it was not written down")
    assert contents(outside) == before
