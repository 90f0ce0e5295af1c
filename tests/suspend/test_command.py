"""`memscaler suspend` and the whole daemon behind it, with a logind that never sleeps: clocks cannot be made to jump.

That the machine sleeps is for tools/suspend, in one that can.
"""

import json
import subprocess
import sys
import time

import pytest

from memscaler.cli.suspend import moment
from memscaler.core.errors import UsageError
from tests.governor import connect, eventually, governing, listener, watch_table
from tests.suspend.bus import a_box

SETTINGS = """
idle_after = "1h"
[[stage]]
after = "2h"
do = "suspend"
[suspend]
servers = "keep"
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    with a_box(tmp_path_factory.mktemp("bus")) as found:
        yield found


@pytest.fixture(scope="module")
def server():
    with listener() as found:
        yield found


@pytest.fixture(scope="module")
def governor(box, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("governor")
    config = folder / "config.toml"
    config.write_text(SETTINGS + watch_table(server, "gpu0"))
    address = {"DBUS_SYSTEM_BUS_ADDRESS": box.address}
    with governing(folder / "run", "a40", "--config", str(config), env=address) as found:
        eventually(lambda: machine(found).get("wanted"), within_s=30.0, what="the sleeper has told")
        yield found


def suspend(governor, *arguments):
    command = [sys.executable, "-m", "memscaler", "suspend", *arguments, "--runtime-dir", str(governor.runtime_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def machine(governor):
    done = suspend(governor, "status", "--json")
    return json.loads(done.stdout)["machine"] or {} if done.returncode == 0 else {}


def test_suspend_that_fails_is_told(governor, box):
    """Exit code 1, and why; everything is up again."""
    box.set(sleep="fails")
    done = suspend(governor, "now", "--wake-in", "2h")
    assert done.returncode == 1, done
    assert "the machine has not slept: failed: " in done.stderr
    assert "journalctl -u systemd-suspend" in done.stderr or "the kernel did not suspend" in done.stderr
    told = machine(governor)
    assert (told["rung"], told["failed"], told["suspends"]) == ("up", 1, 0)
    assert ["SuspendWithFlags", 1] in box.log()
    assert "failed" in suspend(governor, "status").stdout


def test_programs_are_told_the_same(governor, box):
    """With --json, as one document."""
    box.set(sleep="fails")
    done = suspend(governor, "now", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["slept"], document["machine"]["rung"]) == (False, "up")


def test_client_keeps_it_up_but_for_force(governor, box, server):
    """The refusal says who; with force, logind is asked without regard to inhibitors."""
    box.set(sleep="fails")
    with connect(server), server.accept()[0]:
        eventually(lambda: "is used" in suspend(governor, "now", "--no-wait").stderr, within_s=30.0)
        done = suspend(governor, "now", "--force", "--json")
        assert json.loads(done.stdout)["machine"]["last"].startswith("failed: ")
        assert ["SuspendWithFlags", 0] in box.log()


def test_inhibitor_keeps_it_up(governor, box):
    """Its owner is named, and what it says."""
    box.set(inhibitors=[["sleep", "apt", "upgrading", "block", 0, 77]])
    eventually(lambda: "apt inhibits sleep: upgrading" in suspend(governor, "now", "--no-wait").stderr, within_s=30.0)


def test_never_and_allow(governor):
    """An operator's word, by name, with the reason, for a time."""
    done = suspend(governor, "never", "--for", "2h", "--reason", "a demonstration")
    assert done.stdout == "the machine stays up for 2h\n", done
    told = machine(governor)
    assert told["never"].startswith("a demonstration")
    assert 7000 < told["never_for_s"] <= 7200
    assert "a demonstration" in suspend(governor, "status").stdout
    assert "never: a demonstration" in suspend(governor, "now").stderr
    assert suspend(governor, "allow").stdout.startswith("ended: a demonstration")
    assert not machine(governor)["never"]
    assert suspend(governor, "allow").stdout == "nothing kept it up but what is configured\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("now", "--wake-at", "soon"), "is no time"),
        (("now", "--wake-at", "2001-01-01 07:30"), "is over"),
        (("now", "--wake-at", "07:30", "--wake-in", "8h"), "one of them"),
        (("now", "--wake-in", "soon"), "--wake-in: "),
        (("never", "--for", "soon"), "--for: "),
    ],
)
def test_wrong_arguments(governor, arguments, text):
    """Exit code 2, before anybody is asked."""
    done = suspend(governor, *arguments)
    assert done.returncode == 2, done
    assert text in done.stderr


@pytest.mark.parametrize("wanted", ["suspend", ""])
def test_without_a_bus_status_names_logind_and_what_to_do(server, tmp_path, wanted):
    """Whether a stage suspends the machine, or only an operator could."""
    config = tmp_path / "config.toml"
    stages = f'idle_after = "1h"\n[[stage]]\nafter = "2h"\ndo = "{wanted or "server-sleep"}"\n'
    config.write_text(stages + watch_table(server, "gpu0"))
    nowhere = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    with governing(tmp_path / "run", "a40", "--config", str(config), env=nowhere) as found:

        def told():
            return " ".join(suspend(found, "status").stdout.split())

        eventually(lambda: "logind cannot be asked: the system bus cannot be reached" in told(), within_s=60)
        text = told()
        assert "systemctl status systemd-logind" in text
        assert "Errno" not in text
        assert ("`memscaler suspend now` only" in text) is (not wanted)


def test_no_daemon(tmp_path):
    """Exit code 3, as with every command that asks it."""
    command = [sys.executable, "-m", "memscaler", "suspend", "status", "--runtime-dir", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3


def test_moments():
    """Of today or tomorrow, or with a date; local time."""
    now_s = time.mktime((2026, 11, 23, 22, 0, 0, 0, 0, -1))
    assert moment("23:30", now_s) == now_s + 5400.0
    assert moment("07:30", now_s) == now_s + 9.5 * 3600.0
    assert moment("2026-11-24 07:30", now_s) == now_s + 9.5 * 3600.0
    assert moment("2026-11-24T07:30:15", now_s) == now_s + 9.5 * 3600.0 + 15.0
    with pytest.raises(UsageError):
        moment("2026-11-23 21:59", now_s)
