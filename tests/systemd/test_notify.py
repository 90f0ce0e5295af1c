"""What systemd is told, heard on a real socket."""

import os
import socket
import time

import pytest

from memscaler.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    """The end of the socket that is systemd's."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0memscaler-test-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        yield sock


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


def heard(sock: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().split("\n"))


def test_a_life(systemd):
    """Ready, alive, reloading and ready again, stopping: each as sd_notify(3) has it."""
    notifier = Notifier()
    notifier.status("loading")
    assert heard(systemd) == {"STATUS": "loading"}
    notifier.ready("2 awake")
    assert heard(systemd) == {"READY": "1", "STATUS": "2 awake"}
    notifier.alive("1 awake, 1 parked")
    assert heard(systemd) == {"WATCHDOG": "1", "STATUS": "1 awake, 1 parked"}
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    told = heard(systemd)
    assert told.pop("RELOADING") == "1"
    assert before_us <= int(told.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert not told
    notifier.ready()
    assert heard(systemd) == {"READY": "1"}
    notifier.stopping()
    assert heard(systemd) == {"STOPPING": "1"}


def test_a_status_is_one_line(systemd):
    """Whatever an error says: a line of its own would be another message."""
    notifier = Notifier()
    notifier.status("no driver\nREADY=1\n hint: install it")
    assert systemd.recv(4096) == b"STATUS=no driver READY=1 hint: install it"


@pytest.mark.usefixtures("systemd")
def test_children_are_not_told_where_to_speak(monkeypatch):
    """The variables are taken out of the environment."""
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier().heartbeat_ns == 5_000_000_000
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize(("interval", "pid"), [("", ""), ("0", ""), ("soon", ""), ("10000000", "1"), ("-5", "")])
def test_no_watchdog(monkeypatch, interval, pid):
    """Not asked for, asked of another process, or nonsense."""
    monkeypatch.setenv("WATCHDOG_USEC", interval)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Notifier().heartbeat_ns == 0


def test_nobody_listens():
    """Without systemd nothing is said, and nothing goes wrong."""
    notifier = Notifier()
    notifier.ready("on")
    notifier.reloading()
    assert notifier.send("WATCHDOG=1")
    assert notifier.heartbeat_ns == 0


def test_systemd_has_gone(tmp_path, monkeypatch):
    """A socket that nobody has open any more stops nobody."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()


@pytest.mark.usefixtures("systemd")
def test_systemd_does_not_read():
    """The heartbeat never waits; READY=1 waits a little, and not for ever."""
    notifier = Notifier()
    for _ in range(100_000):
        if not notifier.send("WATCHDOG=1"):
            break
    else:
        pytest.fail("the queue has no end")
    began = time.monotonic()
    notifier.alive("1 awake")
    assert time.monotonic() - began < 0.25
    began = time.monotonic()
    notifier.ready()
    assert 0.3 < time.monotonic() - began < 5


def test_ready_is_sent_once_there_is_room(systemd):
    """A full queue that is read at last loses no READY=1."""
    notifier = Notifier()
    count = 0
    while notifier.send("WATCHDOG=1"):
        count += 1
    systemd.recv(4096)
    notifier.ready()
    for _ in range(count - 1):
        assert systemd.recv(4096) == b"WATCHDOG=1"
    assert systemd.recv(4096) == b"READY=1"
