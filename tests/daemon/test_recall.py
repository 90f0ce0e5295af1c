"""What earlier runs have left is read at the start, which waits for no disk."""

from __future__ import annotations

import contextlib
import sqlite3
import time

from structlog.testing import capture_logs

from memscaler.core.energy import open_account
from memscaler.core.gaps import Gap
from memscaler.core.model import Public
from memscaler.daemon.recall import Recalled, recall
from memscaler.history.tables import FILE
from memscaler.history.writer import History

UUID, LATER = "GPU-1", "GPU-2"
SECOND_NS = 1_000_000_000


def remember(folder) -> None:
    """A gap of a minute, as an earlier run has seen it."""
    history = History(folder)
    history.take_on(UUID, 0, "NVIDIA A40", open_account(Public.AWAKE, time.monotonic_ns()))
    end_ns = time.monotonic_ns()
    history.gap(Gap(UUID, end_ns - 60 * SECOND_NS, end_ns))
    history.close()


def test_what_was_left(tmp_path):
    """The gaps of the GPUs that are asked for; none of one that is new."""
    remember(tmp_path)
    recalled = recall(tmp_path, [UUID, LATER])
    assert [length_s for _, length_s in recalled.gaps[UUID]] == [60.0]
    assert recalled.gaps[LATER] == []


def test_nothing_was_left(tmp_path):
    """That is no more than said."""
    with capture_logs() as events:
        assert recall(tmp_path, [UUID]) == Recalled()
    assert [event["event"] for event in events] == ["gaps.unknown"]


def test_a_disk_that_does_not_answer(tmp_path):
    """Then nothing is known, and the start goes on: a file that somebody keeps locked answers after five seconds."""
    remember(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other, capture_logs() as events:
        other.execute("BEGIN EXCLUSIVE")
        before_s = time.monotonic()
        assert recall(tmp_path, [UUID], within_s=0.5) == Recalled()
        assert time.monotonic() - before_s < 4
    assert [event["event"] for event in events] == ["history.not_read"]
