"""What a machine does to a daemon: standstill, detached programs, unmounted tracefs, limits, memory pressure, reboots."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.kernel.loader import SYS_BPF
from tests.governor import Governor, alive, connect, eventually, governing, listener, port_of, stand_still

pytestmark = pytest.mark.usefixtures("quick_settings")
BPF_LINK_DETACH = 34
PIDFD_GETFD = 438  # the same on all architectures
RESET = "nvmlDeviceResetMemoryLockedClocks"


@pytest.mark.parametrize("who", ["daemon", "daemon while parking"])
def test_a_daemon_that_is_stopped_does_not_make_clients_slow(tmp_path, who):
    """SIGSTOP while parked, then a client: the guardian wakes its GPU. Later it goes on as if nothing had happened."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        if who != "daemon":
            board.set_settle(park_ms=1500)
            with connect(server):
                eventually(lambda: not board.locks)
            server.accept()[0].close()
            eventually(lambda: board.locks)
        stand_still(governor.pid)
        try:
            started = time.monotonic()
            client = connect(server)
            eventually(lambda: not board.locks, within_s=3)
            print(f"awake after {time.monotonic() - started:.2f} s")
            eventually(lambda: "stands still" in governor.log_path.read_text())
        finally:
            os.kill(governor.pid, signal.SIGCONT)
        time.sleep(0.5)
        assert not board.locks
        client.close()
        server.accept()[0].close()
        eventually(lambda: board.locks)
        assert governor.stop() == 0
        assert not board.locks


def test_a_daemon_that_is_stopped_for_a_moment_just_goes_on(tmp_path):
    """SIGSTOP and SIGCONT without a client: nobody does anything, and the next client wakes the GPU."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        mark = governor.driver.log_mark()
        stand_still(governor.pid)
        time.sleep(1)
        os.kill(governor.pid, signal.SIGCONT)
        time.sleep(0.5)
        assert not governor.driver.call_log([RESET], after=mark)
        with connect(server):
            eventually(lambda: not board.locks, within_s=2)
        server.accept()[0].close()


def test_a_stopped_guardian_does_not_delay_the_end(tmp_path):
    """SIGSTOP of the guardian: GPUs park and wake, and the end is in time."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        guardian = governor.guardian_pid
        os.kill(guardian, signal.SIGSTOP)
        with connect(server):
            eventually(lambda: not board.locks)
        server.accept()[0].close()
        eventually(lambda: board.locks)
        started = time.monotonic()
        assert governor.stop() == 0
        assert time.monotonic() - started < 3
        assert not board.locks
        os.kill(guardian, signal.SIGCONT)
        eventually(lambda: not alive(guardian))


def links_of(pid: int) -> Iterator[int]:
    """Our own descriptors of another process's BPF links."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()) in ("anon_inode:bpf_link", "anon_inode:bpf-link"):
            fd = libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
            assert fd >= 0, os.strerror(ctypes.get_errno())
            yield fd
    os.close(pidfd)


def detach(link: int) -> bool:
    """`bpftool link detach`; False for a link that has no such operation."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("=I", link).ljust(64, b"\0")
    return libc.syscall(SYS_BPF[platform.machine()], BPF_LINK_DETACH, attributes, len(attributes)) == 0


def test_a_hook_that_somebody_detaches_is_attached_again(tmp_path, monkeypatch):
    """Noticed at the next sample: said, attached anew, and whatever came meanwhile is counted."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        links = list(links_of(governor.pid))
        assert sum(detach(link) for link in links) == 1
        for link in links:
            os.close(link)
        (told,) = eventually(lambda: governor.events("kernel.hook_lost"))
        assert (told["hook"], told["attached_again"]) == ("sockops", True)
        time.sleep(1.5)
        assert len(governor.events("kernel.hook_lost")) == 1, "it is attached now"
        with connect(server):
            eventually(lambda: not board.locks, within_s=2)
        server.accept()[0].close()
        eventually(lambda: board.locks)


def test_tracefs_unmounted_while_running(tmp_path):
    """The hooks are held by descriptors: without tracefs they go on."""
    # Not --propagation private: that is about the root, which is no mount in a chroot.
    private = 'mount --make-rprivate /sys; exec "$@"'
    prefix = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", private, "sh")
    with (
        listener() as server,
        governing(
            tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms", prefix=prefix
        ) as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        inside = ["nsenter", "--target", str(governor.pid), "--mount", "--root"]
        for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
            subprocess.run([*inside, "umount", "--lazy", place], check=False, capture_output=True)
        mounts = Path(f"/proc/{governor.pid}/mounts").read_text()
        assert "tracefs /sys/" not in mounts, "it is to be gone"
        for _ in range(3):
            with connect(server):
                eventually(lambda: not board.locks, within_s=2)
            server.accept()[0].close()
            eventually(lambda: board.locks)
        assert governor.stop() == 0


@pytest.mark.parametrize("descriptors", [16, 32, 64, 128])
def test_few_descriptors(tmp_path, descriptors):
    """With too few descriptors it ends at once with a sentence, or governs; it never leaves a GPU parked."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms", "--metrics", "127.0.0.1:0"]
        governor = Governor(tmp_path, "a40", *arguments, prefix=("prlimit", f"--nofile={descriptors}"))
        try:
            eventually(lambda: governor.ended() or governor.events("memscaler.started"), within_s=30)
            log = governor.log_path.read_text()
            assert "Traceback" not in log
            if governor.ended():
                assert governor.process.returncode in (1, 69)
                assert "descriptor" in log or "Too many open files" in log
            else:
                board = governor.driver.boards[0]
                eventually(lambda: board.locks)
                clients = [connect(server) for _ in range(50)]
                eventually(lambda: not board.locks, within_s=2)
                for client in clients:
                    client.close()
                    server.accept()[0].close()
                assert governor.stop() == 0
                assert not board.locks
        finally:
            governor.process.kill()
            governor.process.wait()


def test_journal_and_leases_of_another_boot_are_void(tmp_path):
    """After a reboot no lock is left, and no hold: what lies there is not acted upon."""
    journal = tmp_path / "journal"
    journal.mkdir(parents=True)
    uuid = "GPU-e6686f1e-37e6-8e80-b4e7-a13c0feb6ccd"
    entry = {"uuid": uuid, "pci_bus_id": "", "lever": "memory-clock", "target": 405, "boot_id": "another", "at": 0.0}
    (journal / f"{uuid}.json").write_text(json.dumps(entry))
    lease = {"id": "1", "kind": "pause", "gpus": [], "owner": "root", "reason": "", "expires_s": None}
    lease |= {"pid": 0, "pid_started": 0}
    (tmp_path / "leases.json").write_text(json.dumps({"boot_id": "another", "leases": [lease]}))
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "1s") as governor,
    ):
        assert governor.driver.boards[0].uuid == uuid
        time.sleep(0.5)
        assert not governor.driver.call_log([RESET])
        assert not governor.events("lease.lost")
        eventually(lambda: governor.driver.boards[0].locks)


def test_memory_pressure(tmp_path):
    """Everything else is pushed out of memory; a parked GPU wakes in time all the same."""
    group = memory_group()
    if group is None:
        pytest.fail("no cgroup with a memory limit here")
    try:
        prefix = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        with (
            listener() as server,
            governing(
                tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms", prefix=prefix
            ) as governor,
        ):
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            eater = subprocess.Popen(
                ["sh", "-c", f"echo $$ > {group}/cgroup.procs && exec head -c 100m /dev/zero | tail"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                time.sleep(1)
                with connect(server):
                    eventually(lambda: not board.locks, within_s=3)
                server.accept()[0].close()
                eventually(lambda: board.locks)
            finally:
                eater.kill()
                eater.wait()
            assert governor.stop() == 0
            assert not board.locks
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def memory_group() -> Path | None:
    """A group of 150 MB: of cgroup v2 if it has the controller, else of v1."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = root / f"memscaler-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(150 << 20))
            return group
        group.rmdir()
    return None
