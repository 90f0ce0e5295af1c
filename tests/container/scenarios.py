"""memscaler in a container as compose.yaml runs it: the image from the Containerfile, a real runtime, the real kernel.

`make test-container` makes the image and runs this; it takes minutes, so `make test` does not.
"""

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.container import oci
from tests.container.box import IMAGE, Host, box
from tests.governor import eventually
from tests.kernel.crowd import Actor, cgroup, new_id, played

RUN = ("run", "--idle-after", "200ms", "--quiet", "no-connections", "--touch", "off", "--metrics", "off", "--port")
SLACK_S = 1.0


@pytest.fixture
def host(tmp_path):
    """An A40."""
    return Host(tmp_path, "a40", "p40")


@pytest.fixture
def server(host):
    """A server in a container named web, in a network of its own: its pid and its port there."""
    identity, netns = new_id(), f"ms-test-{os.getpid()}"
    host.name_container(identity, "web")
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
        actor = Actor(("a-server",), ("127.0.0.1",), netns=f"/run/netns/{netns}")
        with cgroup(f"docker-{identity}.scope") as group, played(replace(actor, cgroup=group)) as (there,):
            yield there
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=True)


def connected(there):
    """A client in the server's own network."""
    code = f"import socket, time; s = socket.create_connection(('127.0.0.1', {there.port})); time.sleep(100)"
    return subprocess.Popen(["nsenter", "--net", f"--target={there.pid}", "python3", "-c", code])


def test_a_client_of_another_container_wakes(host, server):
    """Parked by a container that may do little; awake when somebody connects in another container's network."""
    board = host.boards[0]
    with box(host, "governor", "memscaler", *RUN, f"{server.port}@container:web:gpu0") as governor:
        eventually(lambda: board.locks, within_s=30, what="park")
        assert governor.events("kernel.attached")[0]["hooks"] == ["sockops", "tracepoint"]
        client = connected(server)
        try:
            eventually(lambda: not board.locks, what="wake")
            assert governor.events("gpu.woken")[0]["reason"].startswith("connection")
        finally:
            client.kill()
            client.wait()
        assert governor.stop() == 0


def test_it_has_what_the_file_says_and_no_more(host):
    """The capabilities of compose.yaml, a seccomp filter, no new privileges, nothing to write to but what is named."""
    with box(host, "governor", "memscaler", *RUN, "1:gpu0") as governor:
        eventually(lambda: host.boards[0].locks, within_s=30, what="park")
        status = governor.status()
        given = {"SYS_ADMIN": 21, "SYS_PTRACE": 19, "DAC_READ_SEARCH": 2}
        assert set(oci.service("memscaler")["cap_add"]) == set(given)
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == sum(1 << bit for bit in given.values())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        said = governor.run("sh", "-c", "touch /x /usr/x /etc/memscaler/x /sys/kernel/tracing/x; id -u").stderr
        assert said.count("Read-only file system") == 4
        assert governor.run("memscaler", "verify").returncode == 0  # the health check
        assert json.loads(governor.run("memscaler", "status", "--json").stdout)["gpus"]
        assert host.boards[0].locks
        assert governor.stop() == 0
        assert not host.boards[0].locks, "docker stop wakes what is parked"


def test_the_seccomp_profile_lets_it_load():
    """With our capabilities, and not without them, the default profile allows what the loader calls."""
    granted = [f"CAP_{each}" for each in oci.service("memscaler")["cap_add"]]
    for rights, action in ((granted, "SCMP_ACT_ALLOW"), ([], "SCMP_ACT_ERRNO")):
        rules = [rule for rule in oci.seccomp(rights)["syscalls"] if "perf_event_open" in rule["names"]]
        assert [rule["action"] for rule in rules] == [action]
        assert {"bpf", "setns"} <= set(rules[0]["names"])


@pytest.mark.parametrize("right", ["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"])
def test_each_right_is_needed(host, right):
    """Without SYS_ADMIN nothing starts; without one of the others it cannot see who listens."""
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(100)"
    command = ["python3", "-c", code]
    with subprocess.Popen(command, user=65534, group=65534, extra_groups=[], stdout=subprocess.PIPE) as there:
        try:
            watch = f"{int(there.stdout.readline())}:gpu0"
            with box(host, "all", "memscaler", "ports", "--json", "--port", watch) as whole:
                assert whole.wait() == 0
            asked = (*RUN, watch) if right == "SYS_ADMIN" else ("ports", "--json", "--port", watch)
            with box(host, "less", "memscaler", *asked, without=(right,)) as less:
                status = less.wait()
        finally:
            there.kill()
    assert str(there.pid) in whole.log
    assert status == 4 if right == "SYS_ADMIN" else str(there.pid) not in less.log


def test_a_killed_container_leaves_nothing_parked(host):
    """`docker kill` takes the guardian along; the one in the other container wakes the GPU at once."""
    board = host.boards[0]
    with box(host, "governor", "memscaler", *RUN, "1:gpu0") as governor:
        eventually(lambda: board.locks, within_s=30, what="park")
        with box(host, "guardian", "memscaler-guardian") as guardian:
            eventually(lambda: " -> FLOCK" in Path("/proc/locks").read_text(), within_s=30, what="its sleep")
            governor.kill()
            killed = time.monotonic()
            eventually(lambda: not board.locks, within_s=SLACK_S, what="restore")
            print(f"awake {(time.monotonic() - killed) * 1e3:.0f} ms after the container was killed")
            assert guardian.wait() == 0


def test_without_it_the_restart_wakes(host):
    """What a killed container left parked stays so until the next start (restart: always), which wakes it first."""
    board = host.boards[0]
    with box(host, "governor", "memscaler", *RUN, "1:gpu0") as governor:
        eventually(lambda: board.locks, within_s=30, what="park")
        governor.kill()
        time.sleep(0.5)
        assert board.locks, "then the guardian survives, and docs/containers.md is wrong"
    started = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as busy,
        socket.create_connection(busy.getsockname()),
        box(host, "again", "memscaler", *RUN, f"{busy.getsockname()[1]}:gpu0") as again,
    ):
        eventually(lambda: not board.locks, within_s=30, what="restore at the start")
        print(f"awake {time.monotonic() - started:.1f} s after the start")
        assert again.stop() == 0


def test_the_image_is_what_was_built():
    """Memscaler and its packages in the pinned versions; no pip, no compiler, no driver."""
    from tools.release.lock import ENVIRONMENTS, read

    there = {path.name for path in IMAGE.glob("opt/memscaler/lib/python3*/site-packages/*.dist-info")}
    wanted = {f"{pin.name.replace('-', '_')}-{pin.version}.dist-info" for pin in read() if pin.holds(ENVIRONMENTS[-1])}
    assert {name.lower() for name in there if not name.startswith("memscaler")} == wanted
    assert not [name for name in ("gcc", "cc", "pip3") if (IMAGE / "usr/bin" / name).exists()]
    # empty files are where the tests above have laid the simulated ones
    assert not [path for path in IMAGE.glob("usr/lib/*/libnvidia-*") if path.stat().st_size]
    assert os.access(IMAGE / "opt/memscaler/bin/memscaler", os.X_OK)
