"""calibration.json: whole or not there, and never a reason not to govern."""

import dataclasses
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.calibration import Calibration, Spread
from memscaler.history.calibration import FILE, MOST_BYTES, load, save

KNOWN = Calibration(
    "GPU-1",
    "A40",
    1.7e9,
    "0.1",
    "550.1",
    "memory-clock",
    405,
    5,
    Spread(80.0, 79.5, 80.5),
    Spread(18.0, 18.0, 18.0),
    17.5,
    1.6e9,
    Spread(0.01, 0.01, 0.02),
    Spread(0.05, 0.04, 0.2),
    Spread(0.02, 0.02, 0.03),
    None,
    0.0004,
    Spread(1.2, -0.1, 1.5),
    0.9,
    "instant",
    "counter",
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=8,
)


def test_there_and_back(tmp_path):
    """What is written is read; others' entries stay, one's own is replaced."""
    save(tmp_path, [KNOWN])
    other = dataclasses.replace(KNOWN, uuid="GPU-2", at_unix_s=1.8e9)
    save(tmp_path, [other])
    newer = dataclasses.replace(KNOWN, rounds=9)
    save(tmp_path, [newer])
    assert load(tmp_path) == {"GPU-1": newer, "GPU-2": other}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644


def test_none_there(tmp_path):
    """The first time."""
    assert load(tmp_path) == {}
    assert load(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "1",
        '{"format": 1}',
        '{"format": 2, "gpus": {}}',
        '{"format": 1, "gpus": []}',
        "[" * 10**5,
    ],
)
def test_damaged(tmp_path, text):
    """It counts as none, and the next calibration replaces it."""
    (tmp_path / FILE).write_text(text)
    assert load(tmp_path) == {}
    save(tmp_path, [KNOWN])
    assert load(tmp_path) == {"GPU-1": KNOWN}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("awake_w", 80),
        ("awake_w", {"median": "NaN", "low": 1, "high": 2}),
        ("parked_w", {"median": -1, "low": 1, "high": 2}),
        ("bare_w", -3),
        ("bare_w", 1e400),
        ("at_unix_s", None),
        ("target", "x"),
    ],
)
def test_one_damaged_entry(tmp_path, key, value):
    """The others are read."""
    save(tmp_path, [KNOWN, dataclasses.replace(KNOWN, uuid="GPU-2")])
    document = json.loads((tmp_path / FILE).read_text())
    document["gpus"]["GPU-2"][key] = value
    (tmp_path / FILE).write_text(json.dumps(document))
    assert load(tmp_path) == {"GPU-1": KNOWN}


@given(st.dictionaries(st.sampled_from([each.name for each in dataclasses.fields(Calibration)]), JSON), JSON)
def test_whatever_stands_there(tmp_path_factory, entry, gpus):
    """It is read or left out; nothing is raised, and what is read can be reckoned with."""
    folder = tmp_path_factory.mktemp("state")
    for found in ({"GPU-1": entry}, gpus):
        (folder / FILE).write_text(json.dumps({"format": 1, "gpus": found}))
        for each in load(folder).values():
            assert each.costs().spared_w >= 0


@pytest.mark.parametrize("make", ["link", "fifo", "folder", "large"])
def test_of_somebody_else(tmp_path, make):
    """Only a small file of our own is read: not what a link leads to, nor a pipe that would never end."""
    path = tmp_path / FILE
    if make == "link":
        save(tmp_path, [KNOWN])
        path.rename(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    else:
        save(tmp_path, [KNOWN])
        path.write_text(path.read_text() + " " * MOST_BYTES)
    assert load(tmp_path) == {}
