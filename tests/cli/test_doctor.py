"""`memscaler doctor` as people and programs see it."""

import json
import os
import pty
import subprocess

import pytest

from memscaler.daemon.doctor.table import CHECKS
from tests.asked import short_folder
from tests.doctor.bench import clean_environment, command, memscaler

# An id is for ever: people search for it, and scripts ask for it. New ones come behind those of their group.
IDS = [
    "MS-KERNEL-01",
    "MS-KERNEL-02",
    "MS-KERNEL-03",
    "MS-KERNEL-04",
    "MS-KERNEL-05",
    "MS-KERNEL-06",
    "MS-KERNEL-07",
    "MS-KERNEL-08",
    "MS-DRIVER-01",
    "MS-DRIVER-02",
    "MS-DRIVER-03",
    "MS-DRIVER-04",
    "MS-GPU-01",
    "MS-GPU-02",
    "MS-GPU-03",
    "MS-GPU-04",
    "MS-GPU-05",
    "MS-SERVER-01",
    "MS-SERVER-02",
    "MS-SERVER-03",
    "MS-RIVAL-01",
    "MS-GVM-01",
    "MS-GVM-02",
    "MS-GVM-03",
    "MS-CONFIG-01",
    "MS-CONFIG-02",
    "MS-CONFIG-03",
    "MS-CONFIG-04",
    "MS-CONFIG-05",
    "MS-UNIT-01",
    "MS-UNIT-02",
    "MS-UNIT-03",
    "MS-UNIT-04",
    "MS-UNIT-05",
    "MS-DAEMON-01",
    "MS-DAEMON-02",
    "MS-DAEMON-03",
    "MS-DAEMON-04",
    "MS-METRICS-01",
    "MS-PROBE-01",
    "MS-PROBE-02",
]


@pytest.fixture(scope="module")
def folder():
    with short_folder() as path:
        yield path


def run(folder, *arguments, **more):
    return memscaler("doctor", "--runtime-dir", str(folder), *arguments, **more)


def test_the_ids():
    """None goes, none changes its place."""
    assert [check.id for check in CHECKS] == IDS


@pytest.mark.parametrize("nobody", [False, True])
def test_for_people(folder, nobody):
    """Each finding in 80 columns, a remedy below what is not good, a summary; to nobody as well as to root."""
    result = run(folder, nobody=nobody)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    words = ("PASS", "WARN", "FAIL", "UNKNOWN")
    heads = [line for line in lines if line.startswith(tuple(f"{word} " for word in words))]
    told = " ".join(lines)
    assert all(check in told for check in IDS if "PROBE" not in check)
    assert sum(line.startswith("         -> ") for line in lines) == sum(not head.startswith("PASS") for head in heads)
    assert any(line.split(" ")[1:2] == ["PASS,"] for line in lines[-3:])
    assert result.returncode == any(head.startswith("FAIL") for head in heads)
    assert "\x1b" not in result.stdout
    assert nobody == ("inconclusive without root" in told)


def test_json(folder):
    """Programs get every finding with its id, and a version of the format; without --probe nothing is tried."""
    result = run(folder, "--json", "--simulate", "a40,a40")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document["ok"] is (result.returncode == 0)
    assert list(dict.fromkeys(each["id"] for each in document["checks"])) == [
        each for each in IDS if "PROBE" not in each
    ]
    for each in document["checks"]:
        assert set(each) == {"id", "title", "subjects", "result", "seen", "remedy", "docs"}
        assert each["docs"] == f"docs/troubleshooting.md#{each['id'].lower()}"
        assert bool(each["remedy"]) == (each["result"] != "PASS"), each
        assert "\n" not in each["seen"] + each["remedy"]
    assert sum(document["counts"].values()) == len(document["checks"])


def test_some_checks(folder):
    """By id, by group, by option, in any case; one that is not there is a usage error that lists those that are."""
    document = json.loads(run(folder, "ms-unit", "--only", "MS-KERNEL-07", "--only", "MS-UNIT-03", "--json").stdout)
    assert sorted({each["id"] for each in document["checks"]}) == [
        "MS-KERNEL-07",
        "MS-UNIT-01",
        "MS-UNIT-02",
        "MS-UNIT-03",
        "MS-UNIT-04",
        "MS-UNIT-05",
    ]
    result = run(folder, "MS-KERNEL-99")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no check 'MS-KERNEL-99'" in result.stderr
    assert "MS-KERNEL-01" in result.stderr


def on_a_terminal(folder, **environ):
    """What it prints there."""
    ours, theirs = pty.openpty()
    try:
        env = clean_environment(**{"TERM": "xterm", **environ})
        arguments = command("doctor", "MS-KERNEL-01", "--runtime-dir", str(folder))
        subprocess.run(arguments, stdin=theirs, stdout=theirs, check=True, env=env, cwd="/", timeout=60)
        return os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_colour(folder):
    """Only the verdict, only on a terminal, and not against NO_COLOR."""
    assert "\x1b[32mPASS\x1b[0m     MS-KERNEL-01" in on_a_terminal(folder)
    assert "\x1b" not in on_a_terminal(folder, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(folder, TERM="dumb")
