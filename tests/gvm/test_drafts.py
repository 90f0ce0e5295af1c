"""Entries of the journal that are written beforehand: valid by one rename, and never for what is not so."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm.drafts import WAS, Drafts, entry_of
from memscaler.gvm.journal import Entry, Journal
from memscaler.gvm.processes import Subject, started_at
from memscaler.gvm.turning import Place, Was
from memscaler.gvm.wanted import Aim, wanted

PID = os.getpid()
PLACE = Place(Knob.COMPUTE_FREEZE, Means.CGROUP, PID, started_at(PID) or 0, "/a/cgroup", 7)
AIM = Aim("batch", "8080", Subject(PID, PLACE.started, "python"), PLACE, 1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def entry(journal: Journal, *aims: Aim) -> Entry:
    """Of the freeze that these want."""
    aims = aims or (AIM,)
    (want,) = wanted(aims, {(aim.rule, aim.watch) for aim in aims}).values()
    return entry_of(journal, PLACE, WAS, (1,), want)


def files(journal: Journal) -> list[str]:
    return sorted(path.suffix for path in journal.folder.iterdir())


def test_there_and_back(journal: Journal) -> None:
    """Nobody takes a draft for an entry; what is found after its rename is what would have been written."""
    drafts = Drafts(journal)
    drafts.keep([AIM])
    for _ in range(3):
        assert files(journal) == [".draft"]
        assert journal.found().entries == ()
        before = time.time()
        assert drafts.use(entry(journal))
        (found,) = journal.found().entries
        assert before - 1 <= found.at_unix_s <= time.time() + 1
        journal.add(replace(entry(journal), at_unix_s=found.at_unix_s))
        assert journal.found().entries == (found,)
        drafts.keep([AIM])
        assert files(journal) == [".json"]
        assert drafts.back(PLACE)
    drafts.keep([])
    assert files(journal) == []


@pytest.mark.parametrize(
    "change",
    [{"was": Was(1)}, {"ours": (0, 1)}, {"rule": "another"}, {"name": "another"}],
    ids=lambda each: next(iter(each)),
)
def test_what_is_otherwise_is_written(journal: Journal, change: dict[str, object]) -> None:
    """And it is taken away as ever."""
    drafts = Drafts(journal)
    drafts.keep([AIM])
    other = replace(entry(journal), **change)  # type: ignore[arg-type]
    assert not drafts.use(other)
    journal.add(other)
    assert not drafts.back(PLACE)
    assert [each.rule for each in journal.found().entries] == [other.rule]


def test_somebody_has_tidied_up(journal: Journal) -> None:
    """Then it is written, and taken away, by who does that without drafts."""
    drafts = Drafts(journal)
    drafts.keep([AIM])
    (path,) = journal.folder.glob("*.draft")
    path.unlink()
    assert not drafts.use(entry(journal))
    drafts.keep([AIM])
    assert drafts.use(entry(journal))
    journal.take(PLACE)
    assert not drafts.back(PLACE)
    assert files(journal) == []


def test_nobody_wants_it_any_more_while_it_is_in_use(journal: Journal) -> None:
    """It does not become a draft again."""
    drafts = Drafts(journal)
    drafts.keep([AIM])
    assert drafts.use(entry(journal))
    drafts.keep([])
    assert not drafts.back(PLACE)
    assert files(journal) == [".json"]


def test_the_rule_is_another_one_now(journal: Journal) -> None:
    """The draft follows, and says what will be so."""
    drafts, other = Drafts(journal), replace(AIM, rule="another")
    drafts.keep([AIM])
    drafts.keep([other])
    assert not drafts.use(entry(journal))
    drafts.keep([other])
    assert drafts.use(entry(journal, other))
    assert [each.rule for each in journal.found().entries] == ["another"]


def test_drafts_of_one_that_is_gone(journal: Journal) -> None:
    """Are not taken for ours: their pid is another one."""
    Drafts(journal).keep([AIM, replace(AIM, place=replace(PLACE, inode=8))])
    assert files(journal) == [".draft", ".draft"]
    Drafts(journal).keep([AIM])
    assert files(journal) == [".draft"]


def test_what_is_no_freeze_has_none(journal: Journal) -> None:
    """How it was before is not known beforehand."""
    Drafts(journal).keep([replace(AIM, place=replace(PLACE, knob=Knob.CPU_NICE, means=Means.NICE), value=5)])
    assert not journal.folder.exists()
