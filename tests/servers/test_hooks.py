"""Programs beside servers."""

import os
import signal
import time
from pathlib import Path

import pytest

from memscaler.servers.hooks import PATIENCE_S
from tests.servers.bench import PYTHON, alive, bench, eventually, free_port


@pytest.fixture
def b():
    with bench() as made:
        yield made


def teller(b, name):
    """A hook that writes when it begins and when it is asked to end."""
    diary = b.folder / "state/diary"
    code = (
        "import os, signal, sys, time\n"
        f"def tell(what): open({str(diary)!r}, 'a').write(what + ' {name}\\n')\n"
        "def end(*_): tell('ends'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); tell('begins'); print('I am', os.environ['SERVER_NAME'], flush=True)\n"
        "while True: time.sleep(100)\n"
    )
    return [PYTHON, "-c", code]


def diary(b):
    file = b.folder / "state/diary"
    return file.read_text().splitlines() if file.exists() else []


def test_a_tree_of_hooks_lives_as_long_as_its_server(b):
    """Launched when it is ready and not before, ended in the opposite order, before the server; again for the next one."""
    port = free_port()
    hooks = [
        {"name": "one", "command": teller(b, "one"), "hooks": [{"name": "inner", "command": teller(b, "inner")}]},
        {"name": "off", "command": teller(b, "off"), "enabled": False},
        {"name": "two", "command": teller(b, "two")},
    ]
    b.describe({"name": "a", "command": b.small("--port", port, "--load", 1.5), "port": port, "hooks": hooks})
    b.start()
    eventually(lambda: b.server("a")["reason"] == "loading model")
    assert not diary(b)
    b.until("a", "ready")
    eventually(lambda: len(diary(b)) == 3, what=lambda: (diary(b), b.said()))
    assert set(diary(b)) == {"begins one", "begins inner", "begins two"}
    assert [event["hook"] for event in b.events("hook.started")] == ["one", "one.inner", "two"]
    assert b.output("a.one.inner") == "I am a\n"
    os.kill(b.server("a")["pid"], signal.SIGKILL)
    eventually(lambda: len(diary(b)) == 9, what=lambda: (diary(b), b.said()))
    assert diary(b)[3:6] == ["ends two", "ends inner", "ends one"]
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert diary(b)[9:] == ["ends two", "ends inner", "ends one"]


def test_a_hooks_death_is_told_and_changes_nothing_else(b):
    """Its own hooks end with it; the server goes on, and no other copy is started."""
    hooks = [
        {"name": "one", "command": b.small("--child", "stubborn"), "hooks": [{"name": "inner", "command": b.small()}]}
    ]
    b.describe({"name": "a", "command": b.small(), "hooks": hooks})
    b.start()
    pid = b.until("a", "ready")["pid"]
    eventually(lambda: len(b.events("hook.started")) == 2)
    one, inner = (event["pid"] for event in b.events("hook.started"))
    child = int(eventually(lambda: b.output("a.one").rpartition("child ")[2].partition("\n")[0]))
    os.kill(one, signal.SIGKILL)
    eventually(lambda: not alive(inner) and not alive(child))
    assert b.events("hook.ended", hook="one", how="SIGKILL")
    assert b.server("a")["pid"] == pid
    assert b.server("a")["state"] == "ready"
    assert len(b.events("hook.started")) == 2


def test_a_hook_that_cannot_be_started_is_told(b):
    """The server and the other hooks do not mind."""
    hooks = [{"name": "bad", "command": ["/no/such"]}, {"name": "good", "command": b.small()}]
    b.describe({"name": "a", "command": b.small(), "hooks": hooks})
    b.start()
    b.until("a", "ready")
    eventually(lambda: b.events("hook.started", hook="good"))
    assert b.events("hook.failed", hook="bad", err="cannot be started: /no/such: no such program")


def test_hooks_are_changed_without_a_restart(b):
    """One goes, one comes, one is another program, one stays as it is."""
    server = {"name": "a", "command": b.small()}
    stays = {"name": "stays", "command": b.small("--say", "stays")}
    b.describe(
        {**server, "hooks": [stays, {"name": "goes", "command": b.small()}, {"name": "other", "command": b.small()}]}
    )
    b.start()
    pid = b.until("a", "ready")["pid"]
    eventually(lambda: len(b.events("hook.started")) == 3)
    pids = {event["hook"]: event["pid"] for event in b.events("hook.started")}
    b.describe(
        {
            **server,
            "hooks": [
                stays,
                {"name": "other", "command": b.small("--say", "2")},
                {"name": "new", "command": b.small()},
            ],
        }
    )
    b.reload()
    eventually(
        lambda: b.output("a.other") == "2\n" and not alive(pids["goes"]) and not alive(pids["other"]), what=b.said
    )
    assert b.events("hook.started", hook="new")
    assert alive(pids["stays"])
    assert b.server("a")["pid"] == pid


def test_a_second_signal_hurries_hooks_that_are_being_ended(b):
    """One that ignores SIGTERM is not waited for."""
    b.describe({"name": "a", "command": b.small(), "hooks": [{"name": "one", "command": b.small("--stubborn")}]})
    b.start()
    b.until("a", "ready")
    eventually(lambda: b.events("hook.started"))
    hook = b.events("hook.started")[0]["pid"]
    eventually(lambda: int(ignored(hook), 16) & 1 << signal.SIGTERM - 1)
    b.send(signal.SIGINT)
    eventually(lambda: b.server("a")["state"] == "stopping")
    b.send(signal.SIGINT)
    begun = time.monotonic()
    eventually(lambda: not alive(hook), 4.0)
    assert time.monotonic() - begun < PATIENCE_S
    assert b.ended() == 0


def ignored(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith("SigIgn"))
