"""Servers outlive their supervisor, and the next one goes on with them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request

import pytest

from tests.kernel.crowd import cgroup
from tests.servers.bench import NOBODY, alive, bench, eventually, free_port, ours


@pytest.fixture
def b():
    with bench() as made:
        yield made


def described(b, *words, **more):
    """One server on a port."""
    port = more.pop("port", None) or free_port()
    return {"name": "a", "command": b.small("--port", port, *words), "port": port, **more}


def test_a_killed_supervisor_leaves_its_servers_and_the_next_adopts_them(b):
    """Ready stays ready with the same process; its later death is seen, although it is nobody's child any more."""
    b.describe(described(b), described(b, "--load", -1) | {"name": "loads"})
    b.start()
    first, loads = b.until("a", "ready"), b.until("loads", "starting")
    eventually(lambda: b.server("loads")["reason"])
    loads = b.server("loads")
    b.kill()
    assert alive(first["pid"])
    b.start()
    after = b.until("a", "ready")
    assert after["pid"] == first["pid"]
    assert after["since_unix_s"] == first["since_unix_s"]
    assert b.until("loads", "starting")["pid"] == loads["pid"]
    assert len(b.events("server.started")) == 2
    assert len(b.events("server.adopted")) == 2
    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: b.server("a")["restarts"] == 1, what=b.said)
    assert b.until("a", "ready")["pid"] != first["pid"]
    assert "its exit status is unknown" in b.server("a")["ended"]
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert not ours(b.folder)


def test_a_stream_does_not_notice(b):
    """A client that reads while the supervisor is killed, started anew and told to reload."""
    a = described(b)
    b.describe(a)
    b.start()
    b.until("a", "ready")
    lines, ended = [], threading.Event()

    def read():
        with urllib.request.urlopen(f"http://127.0.0.1:{a['port']}/stream", timeout=30) as stream:
            while not ended.is_set():
                lines.append(stream.readline())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        eventually(lambda: len(lines) > 5)
        b.kill()
        b.start()
        other = described(b) | {"name": "other"}
        b.describe({**a, "restart_limit": 7, "stop_timeout": "3s"}, other)
        b.reload()
        b.until("other", "ready")
        b.describe({**a, "hooks": [{"name": "fan", "command": b.small()}]}, {**other, "environment": {"NEW": "1"}})
        b.reload()
        eventually(lambda: b.events("server.stopping", server="other"))
        b.until("other", "ready")
        b.describe(a)
        b.reload()
        count = len(lines)
        eventually(lambda: len(lines) > count + 5)
        assert reader.is_alive()
        assert set(lines) == {b"token\n"}
    finally:
        ended.set()
        reader.join()
    assert len(b.events("server.started", server="a")) == 1


def test_what_was_changed_meanwhile_is_told_and_restarted_by_apply_only(b):
    """Also one that is described no more: both live on until somebody applies."""
    a, gone = described(b), described(b) | {"name": "gone"}
    b.describe(a, gone)
    b.start()
    pids = {name: b.until(name, "ready")["pid"] for name in ("a", "gone")}
    b.kill()
    b.describe({**a, "environment": {"NEW": "1"}})
    b.start()
    assert "its description has changed since it was started" in b.until("a", "ready")["reason"]
    assert "nobody describes it any more" in b.until("gone", "ready")["reason"]
    assert {name: b.server(name)["pid"] for name in pids} == pids
    b.kill()  # told again, and again
    b.start()
    assert {name: b.until(name, "ready")["pid"] for name in pids} == pids
    b.reload()
    eventually(lambda: "gone" not in b.report(), what=b.said)
    assert not alive(pids["gone"])
    eventually(lambda: b.server("a")["pid"] not in (None, pids["a"]))
    assert b.until("a", "ready")["reason"] == ""


def test_a_server_that_died_meanwhile_is_started_and_its_rest_is_gone(b):
    """Its child, which ignores SIGTERM, is found by the session that it is in."""
    b.describe(described(b, "--child", "stubborn"))
    b.start()
    pid = b.until("a", "ready")["pid"]
    child = int(eventually(lambda: b.output("a").rpartition("child ")[2].partition("\n")[0]))
    b.kill()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    assert alive(child)
    b.start()
    assert b.until("a", "ready")["pid"] != pid
    assert not alive(child)


def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(b):
    """The start time tells: the file may say what it likes."""
    a = described(b)
    b.describe(a)
    b.start()
    pid = b.until("a", "ready")["pid"]
    b.kill()
    os.kill(pid, signal.SIGKILL)
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    other = subprocess.Popen(b.small("--port", a["port"]), start_new_session=True, **nobody)
    try:
        file = b.folder / "state/state.json"
        document = json.loads(file.read_text())
        document["servers"][0]["process"]["pid"] = other.pid
        file.write_text(json.dumps(document))
        eventually(lambda: listens(a["port"]))
        b.start()
        report = b.until("a", "waiting")
        assert f"is taken by python3 (pid {other.pid})" in report["reason"]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "boot": null}', "\0" * 100])
def test_a_file_that_makes_no_sense_is_told_and_nothing_is_killed(b, text):
    """The process on the port is named instead; once it has gone its server is started."""
    b.describe(described(b, restart_limit=0))
    b.start()
    pid = b.until("a", "ready")["pid"]
    b.kill()
    (b.folder / "state/state.json").write_text(text)
    b.start()
    assert f"(pid {pid})" in b.until("a", "waiting")["reason"]
    if "boot" not in text:
        assert b.events("state.unreadable")
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    assert b.until("a", "ready")["pid"] != pid


def test_sigterm_ends_all_unless_systemd_restarts_the_unit(b, monkeypatch):
    """Systemd's word is asked for; here by a systemctl of our own, for a unit that our cgroup names."""
    from memscaler.servers.ending import is_restart

    cgroup = b.folder / "cgroup"
    cgroup.write_text("0::/system.slice/system-memscaler.slice/memscaler-servers@alice.service\n")
    systemctl = b.folder / "systemctl"
    unit = "memscaler-servers@alice.service"
    monkeypatch.setenv("PATH", f"{b.folder}:{os.environ['PATH']}")

    def says(text, code=0):
        systemctl.write_text(f'#!/bin/sh\necho "$@" > {b.folder}/asked\n{text}\nexit {code}\n')
        systemctl.chmod(0o755)
        return is_restart(cgroup)

    assert says(f"echo '12 {unit} restart running'").yes
    assert (b.folder / "asked").read_text() == f"list-jobs --no-legend --plain --full {unit}\n"
    assert not says(f"echo '12 {unit} stop running'").yes
    assert says("echo '12 other.service restart running'").why.startswith("systemd has no job")
    assert "cannot tell" in says("echo Failed to connect to bus >&2", 1).why
    assert "did not say within" in says("sleep 60").why
    cgroup.write_text("0::/user.slice/user-1000.slice/session-1.scope\n")
    assert is_restart(cgroup).why == "no unit of systemd's"
    cgroup.write_text("0::/user.slice/user-1000.slice/user@1000.service/app.slice/memscaler-servers.service\n")
    assert is_restart(cgroup)
    says("", 0)
    assert "--user" in (b.folder / "asked").read_text()


def test_a_server_that_is_left_is_adopted_and_its_hooks_too(b):
    """No second copy of either; the hook of a server is ended with it, whoever started it."""
    hooks = [{"name": "fan", "command": b.small(), "hooks": [{"name": "log", "command": b.small()}]}]
    b.describe(described(b, hooks=hooks))
    b.start()
    b.until("a", "ready")
    eventually(lambda: len(b.events("hook.started")) == 2)
    pids = [event["pid"] for event in b.events("hook.started")]
    eventually(lambda: all(str(pid) in (b.folder / "state/state.json").read_text() for pid in pids))
    b.kill()
    b.start()
    b.until("a", "ready")
    b.reload()
    assert len(b.events("hook.started")) == 2
    assert all(map(alive, pids))
    b.send(signal.SIGINT)
    assert b.ended() == 0
    assert not any(map(alive, pids))


def test_a_restart_by_systemd_leaves_hooks_to_the_next_supervisor(b):
    """What a supervisor leaves deliberately is all written down; here a systemctl of our own says why it has to go."""
    unit = f"ms-test-{os.getpid()}.service"
    systemctl = b.folder / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho '12 {unit} restart running'\n")
    systemctl.chmod(0o755)
    b.describe(described(b, hooks=[{"name": "fan", "command": b.small()}]))
    with cgroup(unit) as group:
        b.start(env={"PATH": f"{b.folder}:{os.environ['PATH']}"})
        first = b.until("a", "ready")
        hook = eventually(lambda: b.events("hook.started"))[0]["pid"]
        (group / "cgroup.procs").write_text(str(b.process.pid))
        b.send(signal.SIGTERM)
        assert b.ended() == 0
    assert b.events("supervisor.leaves")
    assert alive(first["pid"])
    assert alive(hook)
    assert f'"pid":{hook},' in (b.folder / "state/state.json").read_text()
    b.start()
    assert b.until("a", "ready")["pid"] == first["pid"]
    b.send(signal.SIGINT)
    assert b.ended() == 0
    assert not alive(hook)


def test_what_others_may_read(b):
    """The report is for all, the state for its owner: descriptions may hold secrets."""
    b.describe(described(b, environment={"API_KEY": "secret"}))
    b.start()
    b.until("a", "ready")
    report, state = (b.folder / name for name in ("run/servers.json", "state/state.json"))
    assert (report.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o644, 0o600)
    assert report.stat().st_uid == NOBODY
    assert "secret" not in report.read_text()
    b.send(signal.SIGTERM)
    b.ended()
    assert not report.exists()


def test_systemd_is_told_what_happens(b):
    """READY=1 once, a status that follows, RELOADING and READY around a reload, STOPPING at the end, and a heartbeat."""
    b.describe(described(b), {"name": "bad", "command": ["/no/such"]})
    told = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(b.folder / "notify"))
        (b.folder / "notify").chmod(0o666)
        listener.settimeout(0.05)

        def heard(*texts):
            with contextlib.suppress(TimeoutError):
                while True:
                    told.append(listener.recv(4096).decode())
            lines = "\n".join(told)
            return all(text in lines for text in texts)

        b.start(env={"NOTIFY_SOCKET": str(b.folder / "notify"), "WATCHDOG_USEC": "400000"})
        eventually(lambda: heard("READY=1", "STATUS=1 ready, 1 failed (bad)", "WATCHDOG=1"), what=lambda: told)
        before = len(told)
        b.reload()
        eventually(lambda: heard("RELOADING=1\nMONOTONIC_USEC="), what=lambda: told)
        eventually(lambda: heard() and any(each.startswith("READY=1") for each in told[before:]), what=lambda: told)
        b.describe(general="nonsense = 1\n")
        b.reload()
        assert "unknown key 'nonsense'" in b.events("reload.refused")[0]["err"]
        assert b.server("a")["state"] == "ready"
        b.send(signal.SIGTERM)
        assert b.ended() == 0
        eventually(lambda: heard("STOPPING=1"))


def test_what_was_started_and_not_written_down_is_found_and_ended(b):
    """Killed between the two, or with a full disk: else its port is taken for ever, by nobody that anybody knows."""
    hooks = [{"name": "fan", "command": b.small()}]
    b.describe(described(b, hooks=hooks))
    b.start()
    pid = b.until("a", "ready")["pid"]
    eventually(lambda: b.events("hook.started"))
    hook = b.events("hook.started")[0]["pid"]
    b.kill()
    file = b.folder / "state/state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "servers": []}))
    b.start()
    assert b.until("a", "ready")["pid"] != pid
    assert not alive(pid)
    eventually(lambda: not alive(hook))
    assert b.events("server.lost", server="a")
    assert not b.events("server.waiting")


def test_a_server_that_was_being_removed_is_not_started_again(b):
    """Its supervisor is killed while it ends it."""
    b.describe(described(b, "--stubborn", stop_timeout="4s"))
    b.start()
    b.until("a", "ready")  # it answers, and so ignores SIGTERM already
    b.describe()
    b.reload()
    b.until("a", "stopping")
    b.kill()
    b.start()
    eventually(lambda: "a" not in b.report(), what=b.said)
    assert len(b.events("server.started")) == 1
    assert not [pid for pid in ours(b.folder) if pid != b.pid]


def test_what_could_not_be_written_is_written_later(b):
    """By itself: perhaps nothing else happens for days, but the supervisor's end."""
    b.describe(described(b))
    b.start()
    b.until("a", "ready")
    file = b.folder / "state/state.json"
    os.chown(b.folder / "state", 0, 0)
    try:
        b.describe({"name": "new", "command": b.small(), "directory": "/tmp"})
        b.reload()
        pid = b.until("new", "ready")["pid"]
        assert b.events("state.write_failed")
        assert str(pid) not in file.read_text()
    finally:
        os.chown(b.folder / "state", NOBODY, NOBODY)
    eventually(lambda: f'"pid":{pid},' in file.read_text(), 40)
