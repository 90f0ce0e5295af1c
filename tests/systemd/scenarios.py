"""What must be true of memscaler as a service of a real systemd. Runs in an emulated machine: `make test-systemd`.

Each scenario begins with a governing unit (the first ones make it) and leaves one. They run in this order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from memscaler.gpu.journal import Entry
from tests.systemd import box, gateway, gpuctl, servers
from tests.systemd.box import (
    CONFIG,
    JOURNAL,
    PORTS,
    PREFIX,
    SLOW,
    TREE,
    UNIT,
    UNITS,
    changed,
    check_governs,
    client,
    configure,
    cursor,
    entries,
    event_of,
    events,
    eventually,
    number,
    restart,
    run,
    said,
    show,
    systemctl,
    wait_awake,
    wait_governing,
    wait_parked,
)
from tests.systemd.registry import Scenarios

KEPT = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}
GROWING_SINCE = 254  # RestartSteps=


SCENARIOS = Scenarios()
scenario = SCENARIOS.add


# ---- from nothing to governing --------------------------------------------------------------------------------------


@scenario(needed=True)
def install() -> None:
    """It is installed as the README says, and systemd understands every line of what was installed."""
    run("python3", "-m", "venv", "--without-pip", PREFIX)
    box.pip("pip", TREE)
    run(box.COMMAND, "setup", "--no-start")
    assert (box.DROP_INS / "pauses.conf").exists() == (box.systemd_version() >= GROWING_SINCE)
    Path("/opt/llm.py").write_text(box.SERVER)
    server = "[Service]\nUser=daemon\nExecStart=/usr/bin/python3 /opt/llm.py\n[Install]\nWantedBy=multi-user.target\n"
    (UNITS / "llm.service").write_text(server)
    box.STATE.parent.mkdir(exist_ok=True)
    # A real driver's state is in the kernel, a simulated one's in a file.
    where = (f"Environment=MEMSCALER_SIM_STATE={box.STATE}", f"ReadWritePaths={box.STATE.parent}")
    box.drop_in("emulator", *where, *box.PATIENT)
    configure()
    systemctl("enable", "--now", "llm.service")
    verified = run("systemd-analyze", "verify", UNITS / UNIT)
    assert not verified.stderr.strip(), verified.stderr
    assert Path("/etc/memscaler").is_dir()


@scenario(needed=True)
def no_driver_yet() -> None:
    """Without a driver the start fails with 69 and is tried again; when the driver is there, it governs by itself."""
    start = cursor()
    done = systemctl("enable", "--now", UNIT, check=False)
    assert done.returncode != 0, "the start is said to have succeeded"
    assert show("UnitFileState") == "enabled"
    eventually(lambda: len(_pauses_s(start)) >= 2, within_s=60, what="two restarts")
    assert said(start, "no usable NVIDIA driver")
    assert any(entry.get("EXIT_STATUS") == "69" for entry in entries(start)), "no exit status 69 in the journal"
    pauses = _pauses_s(start)
    say_pauses = [round(pause, 1) for pause in pauses]
    if box.systemd_version() >= GROWING_SINCE:
        assert pauses[1] > pauses[0] + 1, say_pauses
    else:
        assert all(4 < pause < 4 + 3 * SLOW for pause in pauses), say_pauses
    box.install_driver()
    wait_governing(within_s=60)
    assert events(start, "memscaler.started")
    check_governs(0, 1)


def _pauses_s(after: str) -> list[float]:
    """How long systemd waited before each restart."""
    pauses, failed = [], 0
    for entry in entries(after):
        if "Failed with result" in str(entry["MESSAGE"]):
            failed = int(entry["__REALTIME_TIMESTAMP"])
        elif "Scheduled restart job" in str(entry["MESSAGE"]):
            pauses.append((int(entry["__REALTIME_TIMESTAMP"]) - failed) / 1e6)
    return pauses


@scenario()
def ready_when_governing() -> None:
    """`systemctl start` returns when it governs, and the unit is activating until then."""
    systemctl("stop", UNIT)
    start = cursor()
    with subprocess.Popen(["systemctl", "start", UNIT]) as starting:
        states = []
        while starting.poll() is None:
            states.append(show("ActiveState"))
            time.sleep(0.5)
    assert starting.returncode == 0
    assert show("ActiveState") == "active"
    before = [state for state in states if state not in ("inactive", "active")]
    assert set(before) == {"activating"}, states
    said_so_far = [event_of(entry).get("event") for entry in entries(start)]
    assert {"kernel.attached", "gpu.governed", "guardian.started", "memscaler.started"} <= set(said_so_far)
    ready = next(entry for entry in entries(start) if str(entry["MESSAGE"]).startswith("Started "))
    started = next(entry for entry in entries(start) if event_of(entry).get("event") == "memscaler.started")
    assert int(started["__MONOTONIC_TIMESTAMP"]) <= int(ready["__MONOTONIC_TIMESTAMP"]) + 1e6
    eventually(lambda: show("StatusText"), what="a status text")


@scenario()
def parks_and_wakes() -> None:
    """All levers, the metrics, and a port whose GPU has to be found, of a server of another user."""
    start = cursor()
    wait_parked(0, 1, 2)
    assert len(list(JOURNAL.glob("GPU-*.json"))) == 3
    for gpu, port in enumerate(PORTS):
        with client(port):
            wait_awake(gpu)
            assert box.is_parked((gpu + 1) % 3), "another one woke"
        wait_parked(gpu)
    assert "memscaler_gpu_energy_joules_total" in box.scrape()
    woken = events(start, "gpu.woken")
    assert {found["gpu"] for found in woken} == {"gpu0", "gpu1", "gpu2"}, woken
    assert not [found for found in map(event_of, entries(start)) if found.get("level") in ("warning", "error")]


@scenario()
def another_namespace() -> None:
    """It enters the network namespace of a unit that has its own."""
    boxed = "[Service]\nPrivateNetwork=yes\nExecStart=/usr/bin/python3 /opt/llm.py 9000\n"
    (UNITS / "boxed.service").write_text(boxed)
    systemctl("daemon-reload")
    systemctl("start", "boxed.service")
    configure(watches=box.WATCHES + '\n[[watch]]\nport = 9000\nscope = "unit:boxed.service"\ngpus = ["gpu2"]\n')
    restart()
    wait_parked(2)
    pid = show("MainPID", "boxed.service")
    ask = "import socket, time; s = socket.create_connection(('127.0.0.1', 9000)); s.sendall(b'who?'); s.recv(3); "
    command = ["nsenter", "-t", pid, "-n", "/usr/bin/python3", "-c", ask + "time.sleep(600)"]
    with subprocess.Popen(command) as asking:
        try:
            wait_awake(2, within_s=10)
        finally:
            asking.kill()
    systemctl("stop", "boxed.service")
    configure()
    restart()


@scenario()
def confined() -> None:
    """The processes have no more rights than the unit says, and see no more."""
    pid = number("MainPID")
    for process in (pid, *box.children(pid)):
        assert box.of_process(process, "NoNewPrivs") == "1"
        assert box.of_process(process, "Seccomp") == "2"
        for kind in ("CapBnd", "CapPrm", "CapEff"):
            has, kept = int(box.of_process(process, kind), 16), sum(1 << bit for bit in KEPT.values())
            assert has == kept or (process != pid and not has & ~kept), kind  # the guardian keeps fewer
    root = Path(f"/proc/{pid}/root")
    assert not any((root / "usr/lib/modules").iterdir())
    assert not any((root / "home").iterdir())
    inside = ["nsenter", "-t", str(pid), "-m"]
    for path in ("/etc/x", "/usr/x", "/var/lib/x", "/opt/x", "/boot/x", "/proc/sys/kernel/x"):
        assert run(*inside, "touch", path, check=False).returncode != 0, path
    run(*inside, "touch", "/run/memscaler/x")
    Path("/run/memscaler/x").unlink()
    assert show("ControlGroup") in Path(f"/proc/{pid}/cgroup").read_text()


# ---- the log --------------------------------------------------------------------------------------------------------


@scenario()
def journal() -> None:
    """Each line has its priority and its event; `journalctl -p warning` shows what wants a person, and nothing else."""
    wait_parked(0)
    start = cursor()
    guardian = box.children(number("MainPID"))[0]
    os.kill(guardian, signal.SIGKILL)
    eventually(lambda: events(start, "guardian.died"), what="the guardian's death is told")
    mine = box.entries_of_this_run()
    assert all(entry["SYSLOG_IDENTIFIER"] == "memscaler" for entry in mine), mine
    told = {found["event"]: entry for entry in mine if (found := event_of(entry))}
    assert told["gpu.governed"]["PRIORITY"] == "6"
    assert told["guardian.died"]["PRIORITY"] == "3"
    assert "timestamp" not in event_of(told["gpu.governed"]), "the journal has its own"
    warnings = [entry for entry in entries(start, "-p", "warning") if entry.get("_SYSTEMD_UNIT") == UNIT]
    assert {event_of(entry).get("event") for entry in warnings} == {"guardian.died"}
    eventually(lambda: events(start, "guardian.started"), what="another guardian")
    wait_parked(0)


# ---- reload ---------------------------------------------------------------------------------------------------------


@scenario()
def reload() -> None:
    """`systemctl reload` takes up a new configuration in the same process; a wrong one changes nothing."""
    wait_parked(0, 1)
    start, pid, mark = cursor(), number("MainPID"), box.driver().log_mark()
    configure(more='[gpu.gpu0]\nidle_after = "1h"\n')
    systemctl("reload", UNIT)
    eventually(lambda: events(start, "config.reloaded"), what="the new configuration is taken up")
    assert number("MainPID") == pid
    eventually(box.is_governing, what="it is reloading no more")
    with client(PORTS[0]), client(PORTS[1]):
        wait_awake(0, 1)
    wait_parked(1)
    time.sleep(2 * SLOW)
    assert not box.is_parked(0), "the new idle time of gpu0 is not heeded"
    touched = {record.gpu for record in box.driver().call_log(after=mark)}
    assert 2 not in touched, "a GPU was touched that nothing was said about"
    CONFIG.write_text('idle_aftr = "1s"\n')
    assert systemctl("reload", UNIT, check=False).returncode, "a refused configuration is a failed reload"
    eventually(lambda: said(start, "idle_aftr"), what="what is wrong is in the journal")
    assert number("MainPID") == pid
    check_governs(1)
    configure()
    systemctl("reload", UNIT)
    eventually(lambda: len(events(start, "config.reloaded")) == 2, what="the old configuration is taken up")
    check_governs(0)
    assert number("MainPID") == pid


# ---- when it is killed ----------------------------------------------------------------------------------------------


def _comes_back(before: int, *gpus: int) -> None:
    """All GPUs are awake before the next one governs, and it does."""
    wait_awake(*gpus, within_s=60)
    assert not is_other_governing(before), "it was restarted before the GPUs were awake"
    eventually(lambda: is_other_governing(before), within_s=60, what="it is restarted", pause_s=0.3)
    check_governs(*gpus)


def is_other_governing(before: int) -> bool:
    return box.is_governing() and number("MainPID") not in (0, before)


@scenario()
def watchdog() -> None:
    """A daemon that is stopped (SIGSTOP) while GPUs are parked is killed by systemd, and its GPUs are woken."""
    with changed("watchdog", "WatchdogSec=10s"):
        pid = restart()
        wait_parked(0, 1)
        start = cursor()
        os.kill(pid, signal.SIGSTOP)
        _comes_back(pid, 0, 1)
        assert said(start, "Watchdog timeout")


@scenario()
def killed() -> None:
    """After SIGKILL of the daemon the GPUs are woken, by its guardian or by ExecStopPost, and systemd restarts it.

    systemd kills the guardian as soon as it learns of the daemon's death: either may be the first.
    """
    wait_parked(0, 1)
    start, pid = cursor(), number("MainPID")
    os.kill(pid, signal.SIGKILL)
    _comes_back(pid, 0, 1)
    assert said(start, "the daemon died") or said(start, "memory-clock restored")


@scenario()
def killed_with_its_guardian() -> None:
    """After SIGKILL of both at once, ExecStopPost wakes the GPUs."""
    wait_parked(0, 1)
    start, pid = cursor(), number("MainPID")
    for process in (*box.children(pid), pid):
        os.kill(process, signal.SIGKILL)
    _comes_back(pid, 0, 1)
    assert said(start, "memory-clock restored"), "not by `memscaler restore`"


@scenario()
def killed_as_a_unit() -> None:
    """After `systemctl kill -s KILL` ExecStopPost wakes the GPUs, or else the next start does.

    With systemd 257 on Linux 6.18 (cgroup.kill) the ExecStopPost process is dead at birth.
    """
    wait_parked(0, 1)
    pid = number("MainPID")
    systemctl("kill", "--signal=KILL", UNIT)
    eventually(lambda: is_other_governing(pid), within_s=60, what="it is restarted")
    check_governs(0, 1)


# ---- restart limits -------------------------------------------------------------------------------------------------


def _stays_failed(status: int) -> None:
    before = number("NRestarts")
    assert systemctl("restart", UNIT, check=False).returncode != 0
    time.sleep(5 + SLOW)  # RestartSec=, and some
    assert show("ActiveState") == "failed"
    assert number("ExecMainStatus") == status
    assert number("NRestarts") in (0, before)
    assert not box.is_parked(0)


@scenario()
def wrong_configuration() -> None:
    """It ends with 78, which is not tried again."""
    wait_parked(0)
    start = cursor()
    CONFIG.write_text('idle_aftr = "1s"\n')
    try:
        _stays_failed(78)
        assert said(start, "idle_aftr")
    finally:
        configure()
    systemctl("start", UNIT)


@scenario()
def wrong_command_line() -> None:
    """It ends with 2, which is not tried again."""
    with changed("wrong", "ExecStart=", f"ExecStart={box.COMMAND} run --no-such-flag"):
        _stays_failed(2)
    systemctl("start", UNIT)


# ---- stops and upgrades ---------------------------------------------------------------------------------------------


@scenario()
def stop() -> None:
    """A stop while GPUs are parked: status 0, everything awake, nothing in the journal of parked GPUs, in time."""
    wait_parked(0, 1, 2)
    start, began = cursor(), time.monotonic()
    systemctl("stop", UNIT)
    took_s = time.monotonic() - began
    assert not any(map(box.is_parked, range(3)))
    assert (show("Result"), show("ActiveState"), number("ExecMainStatus")) == ("success", "inactive", 0)
    assert str(events(start, "memscaler.stopped")[-1]["every_gpu_awake"]).lower() == "true"
    assert not list(JOURNAL.glob("GPU-*.json"))
    assert not said(start, "SIGKILL"), "a process had to be killed"
    assert took_s < 3 * SLOW, took_s
    time.sleep(5 + SLOW)
    assert show("ActiveState") == "inactive"
    systemctl("start", UNIT)
    check_governs(0)


@scenario()
def upgrade() -> None:
    """The package is replaced while GPUs are parked. Until the restart the old one governs; then the new one does."""
    wait_parked(0, 1)
    pid = number("MainPID")
    box.pip("--force-reinstall", "--no-deps", TREE)
    assert number("MainPID") == pid
    check_governs(0)
    wait_parked(0, 1)
    mark = box.driver().log_mark()
    assert restart() != pid
    assert box.driver().call_log(after=mark), "nobody woke anything"
    check_governs(0, 1)


@scenario()
def upgrade_and_crash() -> None:
    """Killed between the replacement of the package and the restart: what was loaded before wakes the GPUs."""
    wait_parked(0, 1)
    pid = number("MainPID")
    box.pip("--force-reinstall", "--no-deps", TREE)
    os.kill(pid, signal.SIGKILL)
    _comes_back(pid, 0, 1)


@scenario()
def journal_of_another_boot() -> None:
    """An entry that an earlier boot left is void: no lock survives a reboot."""
    systemctl("stop", UNIT)
    board = box.driver().boards[0]
    entry = Entry(board.uuid, board.pci_bus_id, "memory-clock", 405, "0" * 32, time.time())
    JOURNAL.mkdir(exist_ok=True)
    (JOURNAL / f"{board.uuid}.json").write_text(json.dumps(asdict(entry)))
    start, mark = cursor(), box.driver().log_mark()
    done = run(box.COMMAND, "restore")
    assert done.stdout.strip() == "nothing to restore"
    systemctl("start", UNIT)
    wait_parked(0)
    first = next(record for record in box.driver().call_log(after=mark) if record.gpu == 0)
    assert not events(start, "gpu.restored")
    assert "Reset" not in first.symbol, f"the first call was {first}"
    troubles = [found for found in map(event_of, entries(start)) if found.get("level") in ("warning", "error")]
    # Every start says these where the root of cgroup v2 is out of sight, as in the namespaces of --native.
    of_the_kernel = {"kernel.noticed", "watch.without_silence"}
    assert {found.get("event") for found in troubles} <= of_the_kernel, troubles


# ---- who may ask ----------------------------------------------------------------------------------------------------


@scenario()
def group_may_read() -> None:
    """A member of the group memscaler may ask for the status and change nothing; others may not even ask."""
    for name, more in (("reader", ["--groups", "memscaler"]), ("stranger", [])):
        run("useradd", "--system", *more, name)
    path = Path("/run/memscaler/control.sock")
    assert path.stat().st_mode & 0o777 == 0o660
    assert path.group() == "memscaler"
    assert _asks("reader", "status", "--json").returncode == 0
    refused = _asks("reader", "pause")
    assert refused.returncode == 4, refused
    assert _asks("stranger", "status").returncode == 4
    assert run(box.COMMAND, "status", "--json").returncode == 0
    check_governs(0)


def _asks(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("runuser", "-u", user, "--", box.COMMAND, *arguments, check=False)


# ---- tighter, for those who can -------------------------------------------------------------------------------------


@scenario()
def tighter() -> None:
    """The drop-in of docs/systemd.md for machines whose ports all name their GPUs: it parks and wakes with it."""
    lines = tight_lines((TREE / "docs/systemd.md").read_text())
    with changed("tight", *lines):
        configure(watches=box.WATCHES)
        restart()
        check_governs(0, 1)
        assert box.exposure() <= 2.5, box.exposure()
    configure()
    restart()


def tight_lines(page: str) -> list[str]:
    """The drop-in as it stands in the documentation."""
    block = page.partition("<!-- tight -->")[2].partition("<!-- /tight -->")[0]
    lines = [line.strip() for line in block.splitlines()]
    return [line for line in lines if "=" in line and not line.startswith("#")]


# ---- the model servers' units ---------------------------------------------------------------------------------------


SCENARIOS += servers.SCENARIOS


# ---- the gateway's unit ---------------------------------------------------------------------------------------------


SCENARIOS += gateway.SCENARIOS


# ---- what is set on other programs ----------------------------------------------------------------------------------


SCENARIOS += gpuctl.SCENARIOS


# ---- setup, on a machine that lives ---------------------------------------------------------------------------------


def _setup(*arguments: str) -> list[str]:
    """What it told."""
    return run(box.COMMAND, "setup", *arguments).stdout.splitlines()


@scenario()
def setup_again() -> None:
    """A second one does nothing. After an upgrade it renews the unit and restarts the service, parked GPUs or not."""
    _setup()
    pid = wait_governing()
    assert _setup()[-1] == "nothing to do"
    assert number("MainPID") == pid
    wait_parked(0, 1)
    unit = next(PREFIX.glob("lib/python3*/site-packages/memscaler/systemd")) / UNIT
    unit.write_text(unit.read_text() + "# a newer one\n")
    told = _setup()
    assert f"write   {UNITS / UNIT} (starts {box.COMMAND})" in told
    assert f"run     systemctl restart {UNIT}" in told
    assert (UNITS / UNIT).read_text().endswith("# a newer one\n")
    assert wait_governing() != pid
    assert show("NeedDaemonReload") == "no"
    check_governs(0, 1)
    systemctl("start", servers.SUPERVISOR)
    unit = unit.with_name(servers.SUPERVISOR)
    unit.write_text(unit.read_text() + "# a newer one\n")
    assert "run     systemctl daemon-reload" in _setup()
    assert show("NeedDaemonReload", servers.SUPERVISOR) == "no", "the old unit would be started"
    systemctl("stop", servers.SUPERVISOR)


@scenario()
def setup_removed() -> None:
    """Everything is awake and stopped before the unit goes; configuration and savings stay; then it is set up anew."""
    wait_parked(0, 1, 2)
    start = cursor()
    told = _setup("--remove")
    assert not any(map(box.is_parked, range(3)))
    assert str(events(start, "memscaler.stopped")[-1]["every_gpu_awake"]).lower() == "true"
    assert not (UNITS / UNIT).exists()
    assert not list(UNITS.glob(f"*.wants/{UNIT}"))
    assert show("LoadState") == "not-found" or (box.DROP_INS / "emulator.conf").exists(), told
    assert not Path("/usr/local/share/man/man1/memscaler.1").exists()
    assert not Path("/run/memscaler").exists()
    assert CONFIG.exists()
    assert _setup("--remove")[-1] == "nothing to do"
    told = _setup()
    assert f"run     systemctl enable {UNIT}" in told
    assert f"run     systemctl start {UNIT}" in told
    wait_governing()
    check_governs(0, 1)


@scenario()
def setup_drop_in() -> None:
    """With the first [[stage]] table setup grants what stages need, and takes it back with the last one."""
    usual = show("TimeoutStopUSec")
    configure(more='[[stage]]\ndo = "stop-server"\nafter = "12h"\n')
    found = json.loads(run(box.COMMAND, "doctor", "MS-UNIT-01", "--json", check=False).stdout)["checks"]
    assert any("sleep.conf" in each["seen"] and each["remedy"].endswith(" setup") for each in found), found
    told = _setup()
    assert f"run     systemctl restart {UNIT}" in told
    assert (show("TimeoutStopUSec"), show("NeedDaemonReload")) == ("15min", "no")
    assert "char-nvidia-uvm rw" in show("DeviceAllow")
    wait_governing()
    found = json.loads(run(box.COMMAND, "doctor", "MS-UNIT-01", "--json", check=False).stdout)["checks"]
    assert not any("sleep.conf" in each["seen"] for each in found), found
    configure()
    _setup()
    assert (show("TimeoutStopUSec"), show("NeedDaemonReload")) == (usual, "no")
    wait_governing()
    check_governs(0, 1)


# ---- reboots --------------------------------------------------------------------------------------------------------


REBOOT = Path("/var/lib/systemd-tests/reboot.json")
WITNESS = Path("/var/lib/systemd-tests/witness.json")
LOOK = f"""
import json
from pathlib import Path
from tests.systemd import box
box.environment()
Path("{WITNESS}").write_text(json.dumps([box.is_parked(gpu) for gpu in range({len(PORTS)})]))
"""


def _after_reboot() -> None:
    before = json.loads(REBOOT.read_text())
    assert before["boot"] != boot_id(), "that was no reboot"
    ended = run("journalctl", "-b", "-1", "-u", UNIT, "-o", "json", "--no-pager").stdout.splitlines()
    told = [event_of(json.loads(line)) for line in ended]
    stopped = [found for found in told if found.get("event") == "memscaler.stopped"]
    assert str(stopped[-1]["every_gpu_awake"]).lower() == "true"
    assert json.loads(WITNESS.read_text()) == [False] * len(PORTS), "not awake on the way down"
    box.STATE.unlink()  # like a real board's, its state does not outlive the boot
    box.STATE.with_name("server").unlink()
    box.install_driver()
    wait_governing()
    check_governs(0, 1)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@scenario(after=_after_reboot)
def reboot() -> None:
    """The machine is restarted while GPUs are parked: they are woken on the way down, and governed after it."""
    wait_parked(0, 1)
    REBOOT.write_text(json.dumps({"boot": boot_id()}))
    Path("/opt/look.py").write_text(LOOK)
    # Begins before memscaler, so it ends after it: what it sees then is what the shutdown leaves.
    command = f"ExecStop={sys.executable} /opt/look.py\nWorkingDirectory={TREE}\nEnvironment=PYTHONPATH={TREE}"
    witness = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nTimeoutStopSec=5min\n" + command
    (UNITS / "witness.service").write_text(f"[Unit]\nBefore={UNIT}\n{witness}\n")
    systemctl("daemon-reload")
    systemctl("start", "witness.service")


NAMES = tuple(each.name for each in SCENARIOS)
