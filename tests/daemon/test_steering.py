"""What operators ask of a running governor: holds, pauses, parking now; and that it outlives a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.errors import MemscalerError, UsageError
from tests.governor import Governor, connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
FOR_EVER = "1h"


def client(governor: Governor) -> Client:
    return Client(str(governor.runtime_dir))


def gpu(governor: Governor, name: str = "gpu0") -> dict:
    return next(each for each in client(governor).status()["gpus"] if each["gpu"] == name)


def memscaler(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memscaler", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_hold_keeps_one_gpu_awake_until_it_is_given_back(tmp_path):
    """A hold wakes a parked GPU, is told with owner and reason, touches no other GPU, and ends when asked to."""
    with (
        listener() as server,
        governing(tmp_path, "a40,a40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms") as governor,
    ):
        held, other = governor.driver.boards
        eventually(lambda: held.locks and other.locks)
        lease = client(governor).change("hold", gpus=["gpu0"], for_s=600, reason="benchmark")
        assert lease["gpus"] == ["gpu0"]
        eventually(lambda: not held.locks)
        time.sleep(0.6)
        assert not held.locks
        assert other.locks
        told = gpu(governor)
        assert told["state"] == "held"
        (hold,) = told["holds"]
        assert (hold["id"], hold["owner"], hold["reason"]) == (lease["id"], "root", "benchmark")
        assert 590 < hold["expires_in_s"] <= 600
        ended = client(governor).change("unhold", gpus=["gpu0"])["ended"]
        assert [each["id"] for each in ended] == [lease["id"]]
        eventually(lambda: held.locks)
        assert governor.stop() == 0


def test_hold_expires(tmp_path):
    """A hold with an end needs nobody to end it."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        client(governor).change("hold", for_s=2)
        started = time.monotonic()
        eventually(lambda: board.locks)
        assert time.monotonic() - started > 1.5
        eventually(lambda: not gpu(governor)["holds"])


def test_after_a_hold_without_an_end_nothing_comes_by_itself(tmp_path):
    """Nobody is told that it parks in a hundred years."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        client(governor).change("hold")
        eventually(lambda: not board.locks)
        eventually(lambda: gpu(governor)["state"] == "held")
        told = gpu(governor)
        assert (told["next"], told["next_in_s"], told["holds"][0]["expires_in_s"]) == ("", None, None)


def test_unhold_of_one_gpu_leaves_the_others_held(tmp_path):
    """Of a hold on two GPUs, one is given back; what is no hold is said."""
    with (
        listener() as server,
        governing(tmp_path, "a40,a40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms") as governor,
    ):
        first, second = governor.driver.boards
        client(governor).change("hold")
        client(governor).change("unhold", gpus=["gpu1"])
        eventually(lambda: second.locks)
        assert not first.locks
        with pytest.raises(UsageError, match="there is no hold nope"):
            client(governor).change("unhold", id="nope")
        with pytest.raises(UsageError, match="none of the GPUs that are governed"):
            client(governor).change("hold", gpus=["gpu7"])


def test_holds_and_pause_survive_a_restart(tmp_path):
    """Killed or stopped and started again: what was held is held, and a pause is one."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        with governing(tmp_path, "a40", *arguments) as governor:
            lease = client(governor).change("hold", for_s=600, reason="training")
            governor.process.kill()
            governor.process.wait()
        with governing(tmp_path, "a40", *arguments) as governor:
            (hold,) = gpu(governor)["holds"]
            assert (hold["id"], hold["reason"]) == (lease["id"], "training")
            assert hold["expires_in_s"] < 600
            client(governor).change("unhold", id=lease["id"])
            client(governor).change("pause", reason="maintenance")
            assert governor.stop() == 0
        with governing(tmp_path, "a40", *arguments) as governor:
            time.sleep(0.6)
            assert not governor.driver.boards[0].locks
            assert gpu(governor)["state"] == "held"
            client(governor).change("resume")
            eventually(lambda: governor.driver.boards[0].locks)


def test_lease_file_of_nonsense_is_said_and_left(tmp_path):
    """What cannot be read holds nothing, and the governor works."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "leases.json").write_text('{"boot_id": ')
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        assert governor.events("lease.lost")
        eventually(lambda: governor.driver.boards[0].locks)


def test_park_now(tmp_path):
    """It does not wait for the idle time; a GPU that works, is held or has a client is not parked, and it says why."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", FOR_EVER) as governor,
    ):
        board = governor.driver.boards[0]
        with connect(server):
            (refused,) = client(governor).change("park")["gpus"]
            assert refused["state"] != "parked"
            assert f"1 on port {port_of(server)}" in refused["reason"]
        server.accept()[0].close()
        board.set_utilization(50)
        (refused,) = client(governor).change("park")["gpus"]
        assert "utilisation" in refused["reason"]
        board.set_utilization(0)
        client(governor).change("hold", reason="mine")
        (refused,) = client(governor).change("park")["gpus"]
        assert "mine" in refused["reason"]
        client(governor).change("unhold")
        assert not board.locks
        assert client(governor).change("park", gpus=["gpu0"])["gpus"] == [
            {"gpu": "gpu0", "state": "parked", "reason": ""}
        ]
        assert board.locks
        with connect(server):
            eventually(lambda: not board.locks, within_s=2)
        server.accept()[0].close()


def test_hold_tied_to_a_command(tmp_path):
    """`memscaler hold -- COMMAND`: awake while the command runs, and not a moment longer if it is killed."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        where = ["--runtime-dir", str(tmp_path)]
        command = [sys.executable, "-m", "memscaler", "hold", "gpu0", *where, "--reason", "x", "--", "sleep", "60"]
        process = subprocess.Popen(command)
        eventually(lambda: not board.locks)
        time.sleep(0.6)
        assert not board.locks
        process.kill()
        process.wait()
        eventually(lambda: board.locks)
        for pid in children_named("sleep"):
            os.kill(pid, signal.SIGKILL)
        done = memscaler("hold", *where, "--", "sh", "-c", "exit 3")
        assert done.returncode == 3, done.stderr
        process = subprocess.Popen([*command[: command.index("--reason")], "--for", "1s", "--", "sleep", "61"])
        eventually(lambda: not board.locks)
        eventually(lambda: board.locks)  # the hold's time is up, the command goes on
        assert process.poll() is None
        process.kill()
        process.wait()
        for pid in children_named("sleep"):
            os.kill(pid, signal.SIGKILL)


def children_named(name: str) -> list[int]:
    """Orphans of this test's command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().split(b"\0")[:-1] in (
                    [name.encode(), b"60"],
                    [name.encode(), b"61"],
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_full_disk_refuses_a_hold(tmp_path):
    """A hold that could not be written down would not survive a restart: it is refused, and nothing is held."""
    if os.geteuid() != 0:
        pytest.fail("needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], check=True)
    try:
        with (
            listener() as server,
            governing(disk, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms") as governor,
        ):
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            with connect(server):
                eventually(lambda: not board.locks, within_s=2)
                fill(disk)
                with pytest.raises(MemscalerError, match="cannot be written down"):
                    client(governor).change("hold", reason="x" * 200)
                assert not gpu(governor)["holds"]
            server.accept()[0].close()
            eventually(lambda: "the journal cannot be written" in str(governor.events("gpu.park_skipped")))
            assert not board.locks, "parked without a journal"
            (disk / "filling").unlink()
            eventually(lambda: board.locks)
            assert governor.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the simulated boards are mapped


def fill(disk: Path) -> None:
    """Until not a byte is left."""
    with (disk / "filling").open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
