"""The history of the deeper stages: written by the real writer, beside one that never had any, and bounded."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import replace

import pytest

from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.history import stages
from memscaler.history.batch import MOST_SPELLS, Batch
from memscaler.history.reader import open_history
from memscaler.history.retention import Limits
from memscaler.history.store import Store
from memscaler.history.tables import FILE, VERSION, Hour
from memscaler.history.writer import History
from tests.history.filled import GPU, fill, opened

NOW_S = 1_800_000_000.0
SPELL = Spell("chat", 8080, "container:web", Stage.STOP_SERVER, NOW_S, gpus=("GPU-a", "GPU-b"))
SPENT = Spent(600.0, 590.0, 4720.0, 590.0, 5000.0, 12.5, 900.0, 1)


def write(folder, *spells: Spell, deep=(), limits: Limits | None = None) -> None:
    batch = Batch(gpus={GPU: (0, "A40")})
    for spell in spells:
        batch.add_spell(spell)
    for hour, stage, spent in deep:
        batch.add_deep(GPU, hour, stage, spent)
    Store(folder, limits or Limits()).write(batch, NOW_S)


def tables(folder) -> set[str]:
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file:
        return {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_what_is_told_is_read(tmp_path):
    """To the millisecond, with everything that is known; later words about a spell take the place of earlier ones."""
    ended = replace(SPELL, until_unix_s=NOW_S + 600, wake_s=12.5)
    other = replace(SPELL, at_unix_s=NOW_S - 60, stage=Stage.CHECKPOINT, failed=True, until_unix_s=NOW_S - 60)
    theirs = replace(SPELL, at_unix_s=NOW_S + 900, by="llama-swap", port=8081)
    write(tmp_path, SPELL, other)
    write(tmp_path, ended, theirs)
    with open_history(tmp_path) as history:
        assert history.spells() == [other, ended, theirs]
        assert history.spells(NOW_S) == [ended, theirs]


def test_hours_add_up(tmp_path):
    """Also over batches."""
    write(tmp_path, deep=[(500_000, Stage.STOP_SERVER, SPENT), (500_000, Stage.STOP_SERVER, SPENT)])
    write(tmp_path, deep=[(500_000, Stage.STOP_SERVER, SPENT), (500_001, Stage.SERVER_SLEEP, SPENT)])
    with open_history(tmp_path) as history:
        assert history.deep(GPU) == [
            (500_000 * 3600.0, Stage.STOP_SERVER, SPENT.plus(SPENT).plus(SPENT)),
            (500_001 * 3600.0, Stage.SERVER_SLEEP, SPENT),
        ]
        assert [stage for _, stage, _ in history.deep(GPU, 500_001 * 3600.0)] == [Stage.SERVER_SLEEP]
        assert history.deep("GPU-of-nobody") == []


def test_who_never_went_deeper_has_a_file_as_before(tmp_path):
    """No table more, and the same version: an older memscaler reads and writes it, before and after."""
    fill(tmp_path, gaps=[(NOW_S, 5.0)])
    assert not tables(tmp_path) & {"spell", "deep"}
    with open_history(tmp_path) as history:
        assert (history.spells(), history.deep(GPU)) == ([], [])
    write(tmp_path, SPELL)
    assert tables(tmp_path) >= {"spell", "deep"}
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_stages_of_a_newer_one_are_passed_over(tmp_path):
    """Not an error, and not made into something else."""
    write(tmp_path, SPELL, deep=[(500_000, Stage.STOP_SERVER, SPENT)])
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute("UPDATE spell SET stage = 'hibernate'")
        file.execute("UPDATE deep SET stage = 'hibernate'")
    with open_history(tmp_path) as history:
        assert (history.spells(), history.deep(GPU)) == ([], [])


def test_old_ones_are_forgotten(tmp_path):
    """As old parks and old hours."""
    now_s = time.time()
    hours = [Hour((int(now_s // 3600) - nth) * 3600.0) for nth in range(30)]
    fill(tmp_path, hours=hours)  # so the clock is believed
    old_s = now_s - 401 * 86400
    this_hour, old_hour = int(now_s // 3600), int((now_s - 6 * 366 * 86400) // 3600)
    deep = [(this_hour, Stage.STOP_SERVER, SPENT), (old_hour, Stage.STOP_SERVER, SPENT)]
    write(tmp_path, replace(SPELL, at_unix_s=old_s), replace(SPELL, at_unix_s=now_s - 60), deep=deep)
    with open_history(tmp_path) as history:
        assert [round(spell.at_unix_s - now_s) for spell in history.spells()] == [-60]
        assert [hour_s for hour_s, _, _ in history.deep(GPU)] == [this_hour * 3600.0]


def test_the_file_is_bounded(tmp_path, monkeypatch):
    """Of the spells the newest are kept."""
    monkeypatch.setattr(stages, "MOST_SPELLS", 50)
    for nth in range(3):
        write(tmp_path, *(replace(SPELL, at_unix_s=NOW_S + 100 * nth + each) for each in range(40)))
    with open_history(tmp_path) as history:
        found = [spell.at_unix_s - NOW_S for spell in history.spells()]
    assert found == [*range(130, 140), *range(200, 240)]


def test_memory_is_bounded():
    """What there is no room for is counted; what is known already may still be told better."""
    batch = Batch()
    for nth in range(MOST_SPELLS + 5):
        batch.add_spell(replace(SPELL, at_unix_s=NOW_S + nth))
    batch.add_spell(replace(SPELL, wake_s=1.0))
    assert (len(batch.spells), batch.lost) == (MOST_SPELLS, 5)
    assert next(iter(batch.spells.values())).wake_s == 1.0
    assert batch.is_full
    later = Batch()
    later.add(batch)
    assert (later.spells, later.lost) == (batch.spells, 5)


def test_a_history_that_is_not_written(tmp_path):
    """A dry run keeps nothing."""
    history = History(tmp_path, writes=False)
    history.spell(SPELL)
    history.deeper(GPU, Stage.STOP_SERVER, SPENT)
    history.close()
    assert list(tmp_path.iterdir()) == []


def test_the_writer(tmp_path):
    """What is told goes to the file with the next batch; of a GPU that nobody follows nothing is kept."""
    history = opened(tmp_path)
    history.spell(SPELL)
    history.deeper(GPU, Stage.STOP_SERVER, SPENT)
    history.deeper("GPU-of-nobody", Stage.STOP_SERVER, SPENT)
    history.close()
    with open_history(tmp_path) as read:
        assert read.spells() == [SPELL]
        ((_, stage, spent),) = read.deep(GPU)
        assert (stage, spent) == (Stage.STOP_SERVER, SPENT)
        assert [gpu.uuid for gpu in read.gpus()] == [GPU]


@pytest.mark.parametrize("harm", ["DROP TABLE deep", "ALTER TABLE spell RENAME COLUMN wake_s TO x"])
def test_one_that_somebody_has_changed(tmp_path, harm):
    """Governing goes on, the file is moved aside if need be, and what comes next is kept."""
    write(tmp_path, SPELL)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute(harm)
    later = replace(SPELL, at_unix_s=NOW_S + 50)
    history = opened(tmp_path)
    history.spell(later)
    history.close()
    with open_history(tmp_path) as read:
        assert later in read.spells()
