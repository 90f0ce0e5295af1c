"""What must be true of the Debian package where a real systemd runs. Runs in an emulated machine: `make test-deb`.

The scenarios are one story, from the installation to the purge: each begins where the one before it ended.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from tests.systemd import box
from tests.systemd.box import (
    CONFIG,
    PORTS,
    UNIT,
    UNITS,
    cursor,
    events,
    eventually,
    number,
    run,
    said,
    show,
    systemctl,
    wait_awake,
    wait_governing,
    wait_parked,
)
from tests.systemd.registry import Scenario

PACKAGES = Path("/opt/packages")
MEMSCALER = "/usr/bin/memscaler"
SERVED = 2  # the GPU of the server (box.adopt_server), which nothing in the configuration names
# Found by its name: nobody tells its port. To memscaler, which asks whether it works, it answers 404.
SERVER = "@/usr/bin/python3 llama-server -m http.server 8080"
BEFORE = Path("/var/lib/systemd-tests/before.json")
TREES = ("/etc", "/usr", "/opt", "/var/lib", "/run/memscaler")
# What dpkg, systemd and the group's making note down, and our own.
NOT_OURS = ("/var/lib/dpkg/", "/var/lib/systemd", "/etc/group-", "/etc/gshadow", "/var/lib/gpu-simulator")


def paths() -> set[str]:
    """Every file and folder that a package could leave behind."""
    found = {tree for tree in TREES if Path(tree).exists()}
    for tree in TREES:
        for folder, folders, files in os.walk(tree):
            found |= {f"{folder}/{name}" for name in (*folders, *files)}
    return {path for path in found if not path.startswith(NOT_OURS)}


def dpkg(*arguments: str | Path) -> str:
    """What it printed."""
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    return run("dpkg", *arguments).stdout


def status() -> dict[str, object]:
    """What the daemon says of itself."""
    told: dict[str, object] = json.loads(run(MEMSCALER, "status", "--json").stdout)
    return told


def a_client_wakes_it() -> None:
    """Somebody connects to the server, and has not asked to the end."""
    with socket.create_connection(("127.0.0.1", PORTS[0])) as asking:
        asking.sendall(b"GET / HTTP/1.1\r\n")
        wait_awake(SERVED)


def install() -> None:
    """A package that is installed is there, is not switched on, and starts nothing."""
    (UNITS / "llm.service").write_text(f"[Service]\nUser=daemon\nExecStart={SERVER}\n")
    systemctl("daemon-reload")
    systemctl("start", "llm.service")
    box.install_driver()
    BEFORE.write_text(json.dumps(sorted(paths())))
    dpkg("--install", PACKAGES / "memscaler.deb")
    assert show("UnitFileState") == "disabled"
    assert show("ActiveState") == "inactive"
    assert CONFIG.exists()
    gpus = run("env", f"MEMSCALER_SIM_STATE={box.STATE}", MEMSCALER, "gpus", "--json").stdout
    assert gpus.count("GPU-") >= len(box.BOARDS), gpus
    verified = run("systemd-analyze", "verify", UNIT).stderr
    assert "memscaler" not in verified, verified


def enable() -> None:
    """`systemctl enable --now memscaler` with the package's own configuration parks, and a connection wakes."""
    # A real driver's state is in the kernel, a simulated one's in a file.
    where = (f"Environment=MEMSCALER_SIM_STATE={box.STATE}", f"ReadWritePaths={box.STATE.parent}")
    box.drop_in("emulator", *where, *box.PATIENT)
    start = cursor()
    systemctl("enable", "--now", UNIT)
    assert show("UnitFileState") == "enabled"
    wait_governing()
    wait_parked(SERVED, within_s=60)
    a_client_wakes_it()
    assert not box.is_parked(0), "a GPU was parked that no server uses"
    assert {found["gpu"] for found in events(start, "gpu.woken")} == {f"gpu{SERVED}"}
    assert box.exposure() <= 2.9, box.exposure()


def configure() -> None:
    """A changed configuration is taken up by a reload, and is the administrator's from then on."""
    CONFIG.write_text(CONFIG.read_text().replace('#idle_after = "60s"', 'idle_after = "1s"'))
    systemctl("reload", UNIT)
    eventually(box.is_governing, what="it is reloading no more")
    wait_parked(SERVED)
    a_client_wakes_it()


def upgrade() -> None:
    """An upgrade while a GPU is parked wakes it and goes on with the new version; configuration and holds stay."""
    run(MEMSCALER, "hold", "gpu0", "--for", "1h", "--reason", "a test")
    wait_parked(SERVED)
    before, config, start, mark = number("MainPID"), CONFIG.read_text(), cursor(), box.driver().log_mark()
    dpkg("--install", PACKAGES / "newer.deb")
    wait_governing()
    assert number("MainPID") != before, "the old version still runs"
    assert str(status()["version"]).endswith("+next")
    assert box.driver().call_log(after=mark), "nobody woke anything"
    assert str(events(start, "memscaler.stopped")[-1]["every_gpu_awake"]).lower() == "true"
    assert CONFIG.read_text() == config
    assert "a test" in run(MEMSCALER, "status", "--json").stdout, "the hold is gone"
    wait_parked(SERVED)
    a_client_wakes_it()
    run(MEMSCALER, "unhold")


def broken_upgrade() -> None:
    """Killed while its files are being replaced, it leaves no GPU parked either: the same version is installed again."""
    wait_parked(SERVED)
    pid, start = number("MainPID"), cursor()
    with subprocess.Popen(["dpkg", "--install", PACKAGES / "newer.deb"], stdout=subprocess.DEVNULL) as installing:
        run("kill", "-9", str(pid))
        wait_awake(SERVED, within_s=60)
    assert installing.returncode == 0
    eventually(lambda: number("MainPID") not in (0, pid) and box.is_governing(), within_s=60, what="it governs again")
    assert not said(start, "Start request repeated too quickly")
    wait_parked(SERVED)
    a_client_wakes_it()


def remove() -> None:
    """A removal while a GPU is parked stops the daemon, wakes the GPU, and leaves the configuration and what was counted."""
    wait_parked(SERVED)
    dpkg("--remove", "memscaler")
    assert not any(map(box.is_parked, range(len(box.BOARDS))))
    assert run("pgrep", "--full", "memscaler.*(govern|guardian).py", check=False).returncode == 1
    assert show("ActiveState") in ("inactive", "failed")
    box.drop_in("emulator")
    box.DROP_INS.rmdir()
    left = paths() - set(json.loads(BEFORE.read_text()))
    kept = {path for path in left if path.startswith("/etc/memscaler")}
    counted = {path for path in left if path.startswith("/var/lib/memscaler")}
    assert kept == {"/etc/memscaler", str(CONFIG)}, kept
    assert counted, "what was saved so far is lost"
    assert not left - kept - counted - {f"{UNITS}/multi-user.target.wants/{UNIT}"}, left


def purge() -> None:
    """After a purge nothing is left but the group, and what was masked or enabled is forgotten."""
    dpkg("--purge", "memscaler")
    left = paths() - set(json.loads(BEFORE.read_text()))
    assert not left, left
    lost = set(json.loads(BEFORE.read_text())) - paths()
    assert not lost, lost
    assert not list(Path("/var/lib/systemd/deb-systemd-helper-enabled").rglob("memscaler*"))
    assert run("getent", "group", "memscaler").stdout


STORY = (install, enable, configure, upgrade, broken_upgrade, remove, purge)
SCENARIOS = [
    Scenario(each.__name__.replace("_", "-"), (each.__doc__ or "").strip(), each, needed=True) for each in STORY
]
