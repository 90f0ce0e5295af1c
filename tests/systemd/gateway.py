"""What must be true of the gateway's unit, as tests/systemd/scenarios.py, among whose scenarios these run."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.systemd import box
from tests.systemd.box import CONFIG, SLOW, UNITS, eventually, run, show, systemctl
from tests.systemd.registry import Scenarios

UNIT = "memscaler-gateway.service"
BACKEND = "gateway-backend.service"
FRONT, BEHIND, OTHER, NOBODY = 8180, 8181, 8182, 8183
SERVER = f"""
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        said = b"from behind"
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
http.server.ThreadingHTTPServer(("127.0.0.1", {BEHIND}), Answer).serve_forever()
"""

SCENARIOS = Scenarios()
scenario = SCENARIOS.add


def _table(listen: int, to: int, more: str = "") -> str:
    return f'[[gateway]]\nlisten = "0.0.0.0:{listen}"\nto = "127.0.0.1:{to}"\n{more}\n'


def _ask(port: int = FRONT, within_s: float = 30.0) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/x", timeout=within_s * SLOW) as answer:
        said: bytes = answer.read()
        return said


def _main() -> int:
    return int(show("MainPID", UNIT))


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5 * SLOW).close()
    except ConnectionRefusedError:
        return False
    return True


def _log() -> str:
    run("journalctl", "--sync")
    return run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager").stdout


def _begin(*tables: str) -> int:
    """The gateway's process id, with these tables."""
    box.configure(more="\n".join(tables or (_table(FRONT, BEHIND),)))
    Path("/opt/backend.py").write_text(SERVER)
    (UNITS / BACKEND).write_text("[Service]\nUser=daemon\nExecStart=/usr/bin/python3 /opt/backend.py\n")
    patient = UNITS / f"{UNIT}.d" / "patient.conf"
    patient.parent.mkdir(exist_ok=True)
    patient.write_text("[Service]\nTimeoutStartSec=20min\n")
    systemctl("daemon-reload")
    systemctl("restart", UNIT)
    return _main()


def _end() -> None:
    systemctl("stop", UNIT, BACKEND)
    box.configure()


@scenario()
def gateway_passes() -> None:
    """Setup leaves it off; started, it is ready, holds a client until its backend is there, and passes bytes through."""
    assert systemctl("is-enabled", UNIT, check=False).stdout.strip() == "disabled"
    verified = run("systemd-analyze", "verify", UNITS / UNIT)
    assert not verified.stderr.strip(), verified.stderr
    _begin()
    assert show("ActiveState", UNIT) == "active"
    systemctl("stop", BACKEND, check=False)
    answers: list[bytes] = []
    held = threading.Thread(target=lambda: answers.append(_ask()))
    held.start()
    eventually(lambda: "waking" in _log(), what="the client is held")
    assert not answers
    systemctl("start", BACKEND)
    held.join(30 * SLOW)
    assert answers == [b"from behind"]
    eventually(lambda: "1 up" in show("StatusText", UNIT), within_s=60, what="systemctl status says so")
    for who in ((), ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")):
        checked = run(*who, box.COMMAND, "gateway", "--check", check=False)
        assert checked.returncode == 0, checked.stdout
        assert f"{UNIT} (pid {_main()}) listens there already" in checked.stdout
    found = json.loads(run(box.COMMAND, "doctor", "MS-UNIT-05", "--json", check=False).stdout)["checks"]
    assert ["is not enabled" in each["seen"] for each in found] == [True]
    _end()


@scenario()
def gateway_sandbox() -> None:
    """It is nobody, without rights, in a file system that it cannot write; and may ask the governor all the same."""
    pid = _begin(_table(FRONT, BEHIND), _table(OTHER, NOBODY, 'server = "9999"\nwait = "20s"\nwake_timeout = "10s"'))
    assert "0" not in box.of_process(pid, "Uid").split()
    assert {int(box.of_process(pid, f"Cap{kind}"), 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (box.of_process(pid, "NoNewPrivs"), box.of_process(pid, "Seccomp")) == ("1", "2")
    assert str(grp.getgrnam("memscaler").gr_gid) in box.of_process(pid, "Groups").split()
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt")
    for place in ("/etc/x", "/usr/x", "/var/lib/x", "/opt/x"):
        written = run(*inside, "touch", place, check=False)  # even root, in there
        assert "Read-only file system" in written.stderr, (place, written)
    own = (f"--reuid={box.of_process(pid, 'Uid').split()[0]}", f"--groups={grp.getgrnam('memscaler').gr_gid}")
    written = run(*inside, "setpriv", *own, "touch", "/run/memscaler/x", check=False)
    assert written.returncode, "it can write into the governor's folder"
    Path("/home/somebody").mkdir(exist_ok=True)
    assert "somebody" not in run(*inside, "ls", "/home", check=False).stdout
    assert run(*inside, "ls", "/proc/1", check=False).returncode or not Path("/proc/1").stat().st_uid
    assert not set(run(*inside, "ls", "/dev").stdout.split()) & {"mem", "kmsg", "vdb", "ttyS0"}
    try:
        _ask(OTHER)
    except urllib.error.HTTPError as error:
        assert error.code == 503  # noqa: PT017
    assert "the governor refuses" in _log(), "it was not let in to the governor"
    assert "cannot be asked" not in _log()
    _end()


@scenario()
def gateway_comes_again() -> None:
    """A reload drops no connection, a wrong configuration changes nothing, and one that is killed is started again."""
    pid = _begin()
    systemctl("start", BACKEND)
    assert _ask() == b"from behind"
    with socket.create_connection(("127.0.0.1", FRONT), timeout=10 * SLOW) as kept:
        box.configure(more=_table(FRONT, BEHIND) + _table(OTHER, BEHIND))
        systemctl("reload", UNIT)
        eventually(lambda: _listens(OTHER), what="the new door is open")
        CONFIG.write_text("[[gateway]]\nlisten = 'nonsense'\n")
        systemctl("reload", UNIT, check=False)
        eventually(lambda: "reload.refused" in _log() or "nonsense" in _log(), what="the mistake is told")
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(64).startswith(b"HTTP/1.1 200 ")
    assert _main() == pid
    box.configure(more=_table(FRONT, BEHIND))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _main() not in (0, pid), what="it is started again")
    eventually(lambda: show("ActiveState", UNIT) == "active", within_s=60)
    assert _ask() == b"from behind"
    CONFIG.write_text("[[gateway]]\nlisten = 'nonsense'\n")
    assert systemctl("restart", UNIT, check=False).returncode
    eventually(lambda: show("ActiveState", UNIT) == "failed", what="it is not tried again")
    assert show("ExecMainStatus", UNIT) == "78"
    systemctl("reset-failed", UNIT)
    _end()


@scenario()
def gateway_stop() -> None:
    """`systemctl stop` lets go of an idle connection, tells who is held to come back, and ends with status 0, in time."""
    pid = _begin(_table(FRONT, BEHIND), _table(OTHER, NOBODY))
    systemctl("start", BACKEND)
    assert _ask() == b"from behind"
    answers: list[int] = []

    def wait() -> None:
        try:
            _ask(OTHER)
        except urllib.error.HTTPError as error:
            answers.append(error.code)

    held = threading.Thread(target=wait)
    held.start()
    eventually(lambda: "waking" in _log().rpartition("gateway.started")[2], what="somebody is held")
    with socket.create_connection(("127.0.0.1", FRONT), timeout=10 * SLOW) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(64)
        began = time.monotonic()
        systemctl("stop", UNIT)
        took_s = time.monotonic() - began
    held.join(10 * SLOW)
    assert answers == [503]
    assert [show(name, UNIT) for name in ("Result", "ActiveState", "ExecMainStatus")] == ["success", "inactive", "0"]
    assert took_s < 30, took_s
    assert not Path(f"/proc/{pid}").exists()
    assert not _listens(FRONT)
    _end()
