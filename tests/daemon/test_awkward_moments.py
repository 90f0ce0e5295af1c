"""Operators, files and drivers that come at the wrong moment: what a hostile reading of the daemon has found."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.errors import MemscalerError
from tests.governor import REPOSITORY, connect, eventually, governing, listener, port_of, stand_still, watch_table

pytestmark = pytest.mark.usefixtures("quick_settings")
SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for few files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=60", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # the simulated boards are mapped


def fill(disk: Path) -> None:
    """Until no file can be made."""
    (disk / "filling").mkdir()
    for number in range(100):
        try:
            (disk / "filling" / str(number)).touch()
        except OSError:
            return
    pytest.fail("there is no end to this disk")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_leases_end_on_a_full_disk(small_disk):
    """Holds that end while nothing can be written end all the same, without a busy loop; later that is written down."""
    with (
        listener() as server,
        governing(small_disk / "run", "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "1h") as governor,
    ):
        operator = Client(str(governor.runtime_dir))
        with operator.held(gpus=["gpu0"], reason="tied"):
            operator.change("hold", gpus=["gpu0"], for_s=1.0)
            time.sleep(0.3)
            fill(small_disk)
        time.sleep(2)
        assert not operator.status()["gpus"][0]["holds"]
        before_s = cpu_s(governor.pid)
        time.sleep(2)
        assert cpu_s(governor.pid) - before_s < 0.3
        assert governor.stop() == 0


def test_reload_on_a_full_disk(small_disk, tmp_path):
    """A GPU that is held leaves while nothing can be written."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0") + watch_table(second, "gpu1"))
        with governing(small_disk / "run", "a40,a40", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))
            operator.change("hold", gpus=["gpu1"], for_s=600.0)
            fill(small_disk)
            config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0"))
            operator.change("reload")
            eventually(lambda: len(operator.status()["gpus"]) == 1)
            assert governor.stop() == 0


def test_no_descriptor_left_while_a_rival_is_looked_for(tmp_path, monkeypatch):
    """A conflict is told although /proc cannot be opened."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        eventually(lambda: governor.driver.boards[0].memory_clock_mhz == 405)
        resource.prlimit(governor.pid, resource.RLIMIT_NOFILE, (1, 4096))
        code = "import pynvml\npynvml.nvmlInit()\n"
        code += f"pynvml.{SET}(pynvml.nvmlDeviceGetHandleByIndex(0), 7251, 7251)"
        environment = {**os.environ, **governor.driver.environment}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        (told,) = eventually(lambda: governor.events("gpu.overridden"), within_s=15)
        assert "cannot be told" in told["rivals"]
        assert not governor.ended()


def test_a_gpu_that_comes_while_there_is_no_guardian(tmp_path):
    """Taken on by a reload, it is held awake like the others until there is a guardian."""
    config = tmp_path / "config.toml"
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    site = next(path for path in sys.path if path.endswith("site-packages"))
    with listener() as first, listener() as second:
        config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0"))
        environment = {"PYTHONPATH": f"{REPOSITORY}:{site}"}
        with governing(
            tmp_path / "run", "a40,a40", "--config", str(config), python=str(python), env=environment
        ) as governor:
            boards = governor.driver.boards
            eventually(lambda: boards[0].locks)
            python.unlink()
            os.kill(governor.guardian_pid, signal.SIGKILL)
            eventually(lambda: governor.events("guardian.start_failed"))
            config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0") + watch_table(second, "gpu1"))
            Client(str(governor.runtime_dir)).change("reload")
            time.sleep(1.5)
            assert not boards[0].locks
            assert not boards[1].locks
            python.symlink_to(os.path.realpath(sys.executable))
            eventually(lambda: boards[0].locks and boards[1].locks)
            assert governor.stop() == 0


def test_what_was_looked_for_before_a_reload_does_not_undo_it(tmp_path):
    """A look at the machine that began with the old settings ends after the new ones are in force."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))
            eventually(lambda: governor.driver.boards[0].locks)
            time.sleep(1)
            governor.driver.inject("nvmlDeviceGetComputeRunningProcesses_v3", delay_ms=1000)
            config.write_text('idle_after = "200ms"\n' + watch_table(first, "gpu0") + watch_table(second, "gpu0"))
            reloading = threading.Thread(target=lambda: operator.change("reload"))
            reloading.start()
            time.sleep(0.5)
            with listener():  # somebody listens anew: the scout looks
                reloading.join()
                eventually(lambda: len(operator.status()["watches"]) == 2)
                for _ in range(40):
                    assert len(operator.status()["watches"]) == 2
                    time.sleep(0.05)
            governor.driver.clear_faults()


def test_a_tied_hold_ends_with_its_process_across_a_restart(tmp_path):
    """The daemon is killed and started anew while the command runs: the hold goes on, and ends with the command."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        environment = {"MEMSCALER_SAMPLE_EVERY": "1s"}
        command = [sys.executable, "-m", "memscaler", "hold", "--runtime-dir", str(tmp_path), "--", "cat"]
        with governing(tmp_path, "a40", *arguments, env=environment) as governor:
            running = subprocess.Popen(command, stdin=subprocess.PIPE)
            eventually(lambda: Client(str(tmp_path)).status()["gpus"][0]["holds"])
            governor.process.kill()
            governor.process.wait()
        try:
            with governing(tmp_path, "a40", *arguments, env=environment) as governor:
                time.sleep(1.5)
                assert Client(str(tmp_path)).status()["gpus"][0]["holds"]
                assert not governor.driver.boards[0].locks
                running.communicate()
                eventually(lambda: governor.driver.boards[0].locks)
        finally:
            running.kill()
            running.wait()


def test_a_signal_during_a_release_ends_it(tmp_path):
    """SIGTERM while the GPUs are being woken for a release: an end is an end."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        board.inject(RESET, delay_ms=500)
        refused: list[MemscalerError] = []

        def release() -> None:
            try:
                Client(str(tmp_path)).change("release")
            except MemscalerError as error:
                refused.append(error)

        releasing = threading.Thread(target=release)
        releasing.start()
        eventually(lambda: governor.events("memscaler.stopping"))
        assert governor.stop() == 0
        releasing.join()
        assert refused


def test_release_waits_for_a_slow_driver(tmp_path):
    """A read under way takes its time: the driver is let go of all the same, and the client is told so."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        eventually(lambda: governor.driver.boards[0].locks)
        governor.driver.inject("nvmlDeviceGetComputeRunningProcesses_v3", delay_ms=800)
        time.sleep(0.3)
        Client(str(tmp_path)).change("release")
        assert Client(str(tmp_path)).status()["mode"] == "released"
        assert governor.stop() == 0


def test_nobody_is_accused_of_what_the_guardian_did(tmp_path, monkeypatch):
    """After a standstill the guardian has woken every GPU: no conflict, and all of them park again."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with listener() as first, listener() as second:
        ports = ["--port", f"{port_of(first)}:gpu0", "--port", f"{port_of(second)}:gpu1"]
        with governing(tmp_path, "a40,a40", *ports, "--idle-after", "200ms") as governor:
            boards = governor.driver.boards
            eventually(lambda: all(board.memory_clock_mhz == 405 for board in boards))
            stand_still(governor.pid)
            client = connect(first)
            eventually(lambda: not any(board.locks for board in boards))
            os.kill(governor.pid, signal.SIGCONT)
            client.close()
            first.accept()[0].close()
            eventually(lambda: all(board.memory_clock_mhz == 405 for board in boards), within_s=15)
            time.sleep(3)
            assert not governor.events("gpu.overridden")
            assert all(board.locks for board in boards)


def test_a_reload_mends_a_lever_that_was_not_there(tmp_path):
    """`lever` names one that the card lacks: unmanaged. Put right, the GPU is parked without a restart."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        base = 'idle_after = "200ms"\n' + watch_table(first, "gpu0") + watch_table(second, "gpu1")
        config.write_text(base + '[gpu.gpu1]\nlever = "memory-clock"\n')
        with governing(tmp_path / "run", "a40,a100", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))
            board = governor.driver.boards[1]
            assert operator.status()["gpus"][1]["state"] == "unmanaged"
            config.write_text(base)
            operator.change("reload")
            eventually(lambda: board.graphics_lock)
            config.write_text(base + '[gpu.gpu1]\nlever = "memory-clock"\n')
            operator.change("reload")
            eventually(lambda: not board.locks)
            eventually(lambda: operator.status()["gpus"][1]["state"] == "unmanaged")
            time.sleep(0.6)
            assert not board.locks
            assert governor.stop() == 0


def test_a_read_that_hangs_is_told_when_it_matters(tmp_path):
    """It hangs while there is a client, who then goes: the GPU is not "about to park" for ever, and the status says why."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms") as governor,
    ):
        board = governor.driver.boards[0]
        operator = Client(str(tmp_path))
        client = connect(server)
        board.inject("nvmlDeviceGetPowerUsage", hang=True)
        time.sleep(1.2)
        operator.status()
        eventually(lambda: governor.events("driver.failed"), within_s=20)
        client.close()
        server.accept()[0].close()
        eventually(lambda: operator.status()["gpus"][0]["state"] == "unmanaged", within_s=20)
        told = operator.status()["gpus"][0]
        assert "does not return" in told["reason"]
        assert told["remedy"]
        board.clear_faults()


def test_reloads_leak_nothing_and_tell_the_truth(tmp_path):
    """GPUs come and go: descriptors stay flat. After a refused reload the next one tells all changes."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        one = 'idle_after = "200ms"\n' + watch_table(first, "gpu0")
        both = one + watch_table(second, "gpu1")
        config.write_text(both)
        with governing(tmp_path / "run", "a40,a40", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))

            def turn(text: str, gpus: int) -> None:
                config.write_text(text)
                operator.change("reload")
                eventually(lambda: len(operator.status()["gpus"]) == gpus)

            def descriptors() -> int:
                return len(list(Path(f"/proc/{governor.pid}/fd").iterdir()))

            turn(one, 1)
            turn(both, 2)
            time.sleep(0.5)
            before = descriptors()
            for _ in range(4):
                turn(one, 1)
                turn(both, 2)
            eventually(lambda: descriptors() <= before + 1)
            board = governor.driver.boards[1]
            eventually(lambda: board.locks)
            board.inject(RESET, hang=True)
            config.write_text(one)
            operator.change("reload")
            config.write_text(both.replace("200ms", "400ms"))
            with pytest.raises(MemscalerError, match="still being let go of"):
                operator.change("reload")
            config.write_text(one.replace("200ms", "300ms"))
            assert operator.change("reload")["changes"] == ["idle_after: 0.2s -> 0.3s"], "another GPU is no hindrance"
            governor.driver.clear_faults()
            eventually(lambda: not board.locks)
