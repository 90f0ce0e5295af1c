"""What must be true of the model servers' units, as tests/systemd/scenarios.py, among whose scenarios these run."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.systemd import box
from tests.systemd.box import (
    COMMAND,
    CONFIG,
    SLOW,
    UNITS,
    cursor,
    eventually,
    run,
    show,
    systemctl,
    wait_awake,
    wait_governing,
    wait_parked,
)
from tests.systemd.registry import Scenarios

SUPERVISOR = "memscaler-servers.service"
OF_ALICE = "memscaler-servers@alice.service"
USER = "memscaler-servers"
DESCRIBED = Path("/etc/memscaler/servers.d")
PROGRAM = "/usr/bin/python3 /opt/small.py"
CHAT, MORE, HERS = 8090, 8091, 8092
LEFT_S = 20.0  # for a restart of the supervisor

SCENARIOS = Scenarios()
scenario = SCENARIOS.add


def _describe(name: str, port: int, *words: str, more: str = "") -> None:
    command = " ".join([PROGRAM, "--port", str(port), *words])
    (DESCRIBED / f"{name}.toml").write_text(f'command = "{command}"\nport = {port}\n{more}\n')


def _hook(port: int) -> str:
    return f'[[hook]]\nname = "beside"\ncommand = "{PROGRAM} --port {port}"\n'


def _servers(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(COMMAND, "servers", *arguments, "--json").stdout)
    return found


def _report(name: str, supervisor: str = "") -> dict[str, Any] | None:
    """What the supervisor has told of a server; None if nothing."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(Path(f"/run/{USER}{supervisor}/servers.json").read_text())
        return next((each for each in found["servers"] if each["name"] == name), None)
    return None


def _ready(name: str, supervisor: str = "") -> int:
    """Its process id, once it is."""

    def pid() -> int:
        found = _report(name, supervisor)
        return found["pid"] if found and found["state"] == "ready" else 0

    return eventually(pid, what=f"{name} is ready")


def _entries(after: str, *filters: str) -> list[dict[str, Any]]:
    run("journalctl", "--sync")
    # Not --after-cursor: see box.entries.
    lines = run("journalctl", "-o", "json", "--no-pager", f"--cursor={after}", *filters).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if entry["__CURSOR"] != after]


def _events(after: str, name: str, unit: str = SUPERVISOR) -> list[dict[str, Any]]:
    told = map(box.event_of, _entries(after, f"_SYSTEMD_UNIT={unit}"))
    return [found for found in told if found.get("event") == name]


def _said(after: str, text: str, unit: str = SUPERVISOR) -> bool:
    return any(text in str(entry.get("MESSAGE")) for entry in _entries(after, "-u", unit))


def _members(unit: str = SUPERVISOR) -> set[int]:
    """The processes in its control group."""
    group = show("ControlGroup", unit)
    file = Path(f"/sys/fs/cgroup{group}/cgroup.procs")
    return {int(word) for word in file.read_text().split()} if group and file.exists() else set()


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _supervisor(unit: str = SUPERVISOR) -> int:
    return int(show("MainPID", unit))


@contextlib.contextmanager
def _changed(unit: str, name: str, *lines: str) -> Iterator[None]:
    """The unit with a drop-in, and without afterwards."""
    _drop_in(unit, name, *lines)
    try:
        yield
    finally:
        (UNITS / f"{unit}.d" / f"{name}.conf").unlink()
        systemctl("daemon-reload")


def _drop_in(unit: str, name: str, *lines: str) -> None:
    folder = UNITS / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.conf").write_text("\n".join(("[Service]", *lines, "")))
    systemctl("daemon-reload")


def _begin() -> int:
    """The server's process id; the supervisor runs."""
    systemctl("start", SUPERVISOR)
    return _ready("chat")


# ---- from nothing to ready ------------------------------------------------------------------------------------------


@scenario()
def servers_install() -> None:
    """Both units are there after setup, not enabled, understood by systemd line by line, and their user is nobody."""
    shutil.copy(box.TREE / "tests/servers/small.py", "/opt/small.py")
    for unit in (SUPERVISOR, "memscaler-servers@.service"):
        assert systemctl("is-enabled", unit, check=False).stdout.strip() == "disabled"
        done = run("systemd-analyze", "verify", UNITS / unit)
        assert not done.stderr.strip(), done.stderr
    entry = pwd.getpwnam(USER)
    assert entry.pw_uid
    assert entry.pw_shell.endswith("nologin")
    assert DESCRIBED.is_dir() or not list(CONFIG.parent.glob("servers.d")), "a file in its place"
    DESCRIBED.mkdir(exist_ok=True)
    # As a real driver's devices are: for everybody.
    for path in (box.STATE.parent, *box.STATE.parent.glob("**/*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    for unit in (SUPERVISOR, "memscaler-servers@.service"):
        where = (f"Environment=MEMSCALER_SIM_STATE={box.STATE}", f"ReadWritePaths={box.STATE.parent}")
        _drop_in(unit, "emulator", *where, "TimeoutStartSec=20min")


@scenario()
def servers_start() -> None:
    """`systemctl enable --now` returns when the supervisor can be asked; the server is ready, with no right at all."""
    start = cursor()
    _describe("chat", CHAT, "--say", "hello", more='gpus = ["gpu1"]\n' + _hook(CHAT + 100))
    systemctl("enable", "--now", SUPERVISOR)
    assert _servers("list")["servers"], "not to be asked when it was said to be started"
    pid = _ready("chat")
    user = pwd.getpwnam(USER)
    for process in (_supervisor(), pid):
        assert box.of_process(process, "Uid").split() == [str(user.pw_uid)] * 4
        assert box.of_process(process, "NoNewPrivs") == "1"
        for kind in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"):
            assert int(box.of_process(process, kind), 16) == 0, kind
    eventually(lambda: len(_members()) == 3, what="the supervisor, the server and its hook are in the unit")
    assert pid in _members()
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/var/lib/memscaler-servers")
    environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    uuid = box.driver().boards[1].uuid
    assert f"CUDA_VISIBLE_DEVICES={uuid}" in environment
    assert f"HOME={user.pw_dir}" in environment
    assert not [each for each in environment if each.startswith(("NOTIFY_SOCKET=", "WATCHDOG_", "RUNTIME_DIRECTORY="))]
    assert "1 ready" in show("StatusText", SUPERVISOR)
    bad = [found for found in _entries(start, "-u", SUPERVISOR, "-p", "warning") if found["_PID"] != "1"]
    assert not bad, bad


@scenario()
def servers_logs() -> None:
    """What a server writes is in the journal, of its unit and its user, and `memscaler servers logs` reads it."""
    pid = _begin()
    said = run(COMMAND, "servers", "logs", "chat").stdout
    assert "hello" in said, said
    entry = next(each for each in _entries_of(pid) if "hello" in each["MESSAGE"])
    assert entry["SYSLOG_IDENTIFIER"] == "memscaler-chat"
    assert entry["_SYSTEMD_UNIT"] == SUPERVISOR
    assert entry["_UID"] == str(pwd.getpwnam(USER).pw_uid)
    assert "hello" in run("journalctl", "-u", SUPERVISOR, "--no-pager").stdout
    run("useradd", "--system", "--groups", "memscaler,systemd-journal", "looker")
    assert "hello" in run("runuser", "-u", "looker", "--", COMMAND, "servers", "logs", "chat").stdout


def _entries_of(pid: int) -> list[dict[str, Any]]:
    run("journalctl", "--sync")
    lines = run("journalctl", "-o", "json", "--no-pager", f"_PID={pid}").stdout.splitlines()
    return [json.loads(line) for line in lines]


@scenario()
def servers_governed() -> None:
    """The governor watches the server's port with its GPUs, wakes them for a client, and shows the server."""
    _begin()
    systemctl("reload", box.UNIT)
    wait_governing()

    def watched() -> bool:
        document = run(COMMAND, "status", "--json").stdout
        return f'"{CHAT}"' in document or str(CHAT) in document

    eventually(watched, what="the port is watched")
    assert "chat" in run(COMMAND, "status").stdout
    wait_parked(0, 1)
    with socket.create_connection(("127.0.0.1", CHAT)):
        wait_awake(1)
        assert box.is_parked(0), "another one woke"
    wait_parked(1)


# ---- it lives on ----------------------------------------------------------------------------------------------------


def _adopted(start: str, before: int, pid: int) -> None:
    """By another supervisor, and its log goes on."""
    eventually(lambda: _supervisor() not in (0, before), within_s=LEFT_S, what="another supervisor")
    eventually(lambda: _events(start, "server.adopted"), within_s=LEFT_S, what="the server is adopted")
    assert _ready("chat") == pid
    assert not _events(start, "server.started")
    assert not _events(start, "server.ended")
    assert {pid, _supervisor()} < _members()
    assert len(_members()) == 3, "the hook is another one, or gone"
    assert _servers("list")["servers"]


@scenario()
def servers_restart() -> None:
    """`systemctl restart` leaves the server and its hook as they are; the next supervisor adopts them."""
    pid, before, start = _begin(), _supervisor(), cursor()
    there = _members() - {before}
    with socket.create_connection(("127.0.0.1", CHAT)) as client:
        systemctl("restart", SUPERVISOR)
        _adopted(start, before, pid)
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b"200" in client.recv(100), "the connection was cut"
    assert _members() - {_supervisor()} == there
    assert _events(start, "supervisor.leaves")


@scenario()
def servers_killed() -> None:
    """After SIGKILL of the supervisor systemd starts another one, which adopts the server."""
    pid, before, start = _begin(), _supervisor(), cursor()
    os.kill(before, signal.SIGKILL)
    _adopted(start, before, pid)


@scenario()
def servers_watchdog() -> None:
    """A supervisor that is stopped (SIGSTOP) is killed by systemd, and the next one adopts the server."""
    with _changed(SUPERVISOR, "watchdog", "WatchdogSec=5s"):
        systemctl("restart", SUPERVISOR)
        pid, before, start = _ready("chat"), _supervisor(), cursor()
        os.kill(before, signal.SIGSTOP)
        eventually(lambda: _said(start, "Watchdog timeout"), what="systemd notices")
        _adopted(start, before, pid)
    systemctl("restart", SUPERVISOR)
    assert _ready("chat") == pid


@scenario()
def servers_after_its_own_death() -> None:
    """A server that was adopted and is killed then is started again, in the same unit; its hook went with it."""
    systemctl("restart", SUPERVISOR)
    pid, start = _begin(), cursor()
    there = _members() - {_supervisor()}
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _ready("chat") != pid, what="another process")
    assert _ready("chat") in _members()
    eventually(lambda: _events(start, "hook.started"), what="its hook is another one, too")
    assert len(_members()) == 3
    assert not there & _members(), "the hook of the dead one was left"


# ---- what is described ----------------------------------------------------------------------------------------------


@scenario()
def servers_reload() -> None:
    """`systemctl reload` takes up what is new and touches nothing else; a wrong description changes nothing at all."""
    pid, supervisor = _begin(), _supervisor()
    _describe("more", MORE)
    systemctl("reload", SUPERVISOR)
    more = _ready("more")
    assert (_ready("chat"), _supervisor()) == (pid, supervisor)
    (DESCRIBED / "wrong.toml").write_text("potr = 8099\n")
    done = systemctl("reload", SUPERVISOR, check=False)
    assert done.returncode, "a refused description is a failed reload"
    assert show("ActiveState", SUPERVISOR) == "active"
    assert (_ready("chat"), _ready("more")) == (pid, more)
    (DESCRIBED / "wrong.toml").unlink()
    (DESCRIBED / "more.toml").unlink()
    systemctl("reload", SUPERVISOR)
    eventually(lambda: not _lives(more), what="what is described no more has ended")
    assert (_ready("chat"), _supervisor()) == (pid, supervisor)


@scenario()
def servers_wrong_configuration() -> None:
    """A start with a wrong description fails with 78 and is not tried again; governor and servers run on."""
    pid, start, governor = _begin(), cursor(), box.number("MainPID")
    (DESCRIBED / "wrong.toml").write_text("potr = 8099\n")
    try:
        assert systemctl("restart", SUPERVISOR, check=False).returncode
        time.sleep(1 + SLOW)  # RestartSec=, and some
        assert show("ActiveState", SUPERVISOR) == "failed"
        assert show("ExecMainStatus", SUPERVISOR) == "78"
        assert _said(start, "potr")
        assert (box.number("MainPID"), box.is_governing()) == (governor, True)
        assert _lives(pid)
    finally:
        (DESCRIBED / "wrong.toml").unlink()
    systemctl("start", SUPERVISOR)
    assert _ready("chat") == pid


@scenario()
def servers_of_a_user() -> None:
    """The template's unit runs the servers of its user as that user, and the other one does not."""
    run("useradd", "--create-home", "alice")
    pid = _begin()
    _describe("hers", HERS, "--say", "of-alice", more='user = "alice"')
    systemctl("enable", "--now", OF_ALICE)
    hers = _ready("hers", "-alice")
    uid = str(pwd.getpwnam("alice").pw_uid)
    for process in (hers, _supervisor(OF_ALICE)):
        assert box.of_process(process, "Uid").split() == [uid] * 4
    systemctl("reload", SUPERVISOR)
    assert _report("hers") is None
    assert _report("chat", "-alice") is None
    assert _ready("chat") == pid
    assert {each["name"] for each in _servers("list")["servers"]} == {"chat", "hers"}
    assert "of-alice" in run(COMMAND, "servers", "logs", "hers").stdout
    listed = run("runuser", "-u", "alice", "--", COMMAND, "servers", "list", "--user", "alice", check=False)
    assert listed.returncode == 0, listed.stderr
    before = _supervisor(OF_ALICE)
    systemctl("restart", OF_ALICE)
    assert _supervisor(OF_ALICE) != before
    assert _ready("hers", "-alice") == hers
    systemctl("reload", OF_ALICE)
    systemctl("disable", "--now", OF_ALICE)
    assert not _lives(hers)
    assert _lives(pid)
    (DESCRIBED / "hers.toml").unlink()


# ---- the end --------------------------------------------------------------------------------------------------------


@scenario()
def servers_governor_stops() -> None:
    """A stop and a restart of the governor, and one of the supervisor, do not touch the other."""
    pid, supervisor = _begin(), _supervisor()
    systemctl("restart", box.UNIT)
    systemctl("stop", box.UNIT)
    assert (_ready("chat"), _supervisor()) == (pid, supervisor)
    systemctl("start", box.UNIT)
    governor = wait_governing()
    systemctl("restart", SUPERVISOR)
    assert box.number("MainPID") == governor


@scenario()
def servers_stop() -> None:
    """`systemctl stop` ends all servers and their hooks, in time, with status 0, and leaves nothing behind."""
    pid, start = _begin(), cursor()
    there = _members()
    assert len(there) == 3
    began = time.monotonic()
    systemctl("stop", SUPERVISOR)
    took_s = time.monotonic() - began
    assert not [each for each in there if _lives(each)]
    assert not _lives(pid)
    assert (show("Result", SUPERVISOR), show("ActiveState", SUPERVISOR)) == ("success", "inactive")
    assert not _said(start, "remains running"), "systemd found a process that was left"
    assert not Path("/run/memscaler-servers").exists()
    assert took_s < 3 * SLOW, took_s
    time.sleep(1 + SLOW / 4)
    assert show("ActiveState", SUPERVISOR) == "inactive"


@scenario()
def servers_left_behind() -> None:
    """What a supervisor that is killed in its stop leaves behind: `systemctl kill` ends it, or the next one adopts it."""
    pid, before = _begin(), _supervisor()
    os.kill(before, signal.SIGSTOP)
    systemctl("stop", "--no-block", SUPERVISOR)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: show("ActiveState", SUPERVISOR) in ("failed", "inactive"), what="the unit has stopped")
    assert _lives(pid)
    systemctl("start", SUPERVISOR)
    assert _ready("chat") == pid, "not adopted"
    before = _supervisor()
    os.kill(before, signal.SIGSTOP)
    systemctl("stop", "--no-block", SUPERVISOR)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: show("ActiveState", SUPERVISOR) in ("failed", "inactive"), what="the unit has stopped")
    assert _lives(pid)
    systemctl("kill", SUPERVISOR)
    eventually(lambda: not _lives(pid), what="systemctl kill reaches what was left")
    systemctl("reset-failed", SUPERVISOR, check=False)
    systemctl("disable", SUPERVISOR)
    (DESCRIBED / "chat.toml").unlink()
