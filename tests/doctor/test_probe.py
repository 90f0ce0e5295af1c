"""`doctor --probe`: boards that are really parked and really woken, however it ends."""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from memscaler.gpu.journal import Journal
from memscaler.simulator import Lock
from tests.doctor.bench import clean_environment, command, doctor, memscaler, only
from tests.governor import connect, eventually, governing, listener, port_of

SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
PROBE = "MS-PROBE-02"
QUICK = {"MEMSCALER_SETTLE_TIMEOUT": "300ms"}
PATIENT = {"MEMSCALER_SETTLE_TIMEOUT": "60s"}  # with boards whose clocks do not fall that long


def probe(runtime_dir, names, **more):
    found = doctor(runtime_dir, PROBE, "--probe", "--simulate", names, **more)[PROBE]
    return {subject: each for each in found for subject in each["subjects"] or ("",)}


@contextmanager
def probing(runtime_dir, driver, names="a40", **environ):
    """A probe that has parked the first board and waits for its clocks to fall."""
    driver.boards[0].set_settle(park_ms=600_000)
    arguments = ("doctor", PROBE, "--probe", "--simulate", names, "--runtime-dir", str(runtime_dir))
    running = subprocess.Popen(
        command(*arguments), env=clean_environment(**PATIENT, **environ), cwd="/", stdout=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: driver.boards[0].memory_lock or running.poll() is not None)
        assert running.poll() is None
        yield running
    finally:
        running.kill()
        running.communicate()


def children(pid):
    return [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]


def test_each_lever_is_tried(runtime_dir, boards):
    """Parked, seen to be parked, woken, seen to be awake: by each lever; what has none is not touched."""
    driver = boards("a40", "p40", "h100", "vgpu")
    found = probe(runtime_dir, "a40,p40,h100,vgpu")
    assert found["gpu0"]["seen"].startswith("memory clock locked to 405 MHz in ")
    assert found["gpu1"]["seen"].startswith("performance state forced to P8 in ")
    assert found["gpu2"]["seen"].startswith("graphics clock locked to 345 MHz in ")
    assert [found[f"gpu{index}"]["result"] for index in range(4)] == ["PASS"] * 3 + ["UNKNOWN"]
    assert [len(driver.call_log(symbol)) for symbol in (SET, RESET)] == [1, 1]
    assert not any(board.locks for board in driver.boards)
    assert Journal(runtime_dir / "journal").entries() == ()
    assert (
        "parked"
        not in memscaler("restore", "--runtime-dir", str(runtime_dir), "--simulate", "a40,p40,h100,vgpu").stdout
    )


def test_without_probe_nothing_is_touched(runtime_dir, boards):
    """All other checks only read."""
    driver = boards("a40", "p40")
    doctor(runtime_dir, "--simulate", "a40,p40")
    named = doctor(runtime_dir, "MS-PROBE", "--simulate", "a40,p40")
    assert [each["result"] for check in named for each in named[check]] == ["UNKNOWN", "UNKNOWN"]
    assert driver.call_log([SET, RESET, "NvAPI_GPU_SetForcePstate", "nvmlDeviceSetGpuLockedClocks"]) == []
    assert not (runtime_dir / "lock").exists()


def test_success_without_effect(runtime_dir, boards):
    """A driver that says yes and does nothing fails, with every lever, and is woken each time."""
    driver = boards("a100")
    driver.inject("nvmlDeviceSetGpuLockedClocks", ignore=True)
    found = probe(runtime_dir, "a100", env={"MEMSCALER_SETTLE_TIMEOUT": "200ms"})
    assert (found["gpu0"]["result"], "nothing moved within 0.2 s" in found["gpu0"]["seen"]) == ("FAIL", True)
    assert not driver.boards[0].locks


def test_the_driver_refuses(runtime_dir, boards):
    """Without the right to, the code is told, and nothing is left in the journal."""
    boards("a100", permission="deny")
    found = probe(runtime_dir, "a100")
    assert (found["gpu0"]["result"], "NVML 4" in found["gpu0"]["seen"]) == ("FAIL", True)
    assert Journal(runtime_dir / "journal").entries() == ()


def test_a_board_at_work_is_left_alone(runtime_dir, boards):
    """It is not parked under somebody's request; nor is one that is low by itself, which would prove nothing."""
    driver = boards("a40", "a40")
    driver.boards[0].set_utilization(40)
    driver.boards[1].set_context(False)
    eventually(lambda: not driver.boards[1].settling)
    found = probe(runtime_dir, "a40,a40")
    assert found["gpu0"]["seen"] == "not tried: it is at work (40%)"
    assert "as low as it gets already" in found["gpu1"]["seen"]
    assert driver.call_log(SET) == []


def test_work_that_comes_in_between(runtime_dir, boards):
    """The first sign of it wakes the board at once."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        driver.boards[0].set_utilization(30)
        out, _ = running.communicate(timeout=60)
        assert "work came in between; it is awake again" in " ".join(out.split())
        assert running.returncode == 0
    assert not driver.boards[0].locks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(runtime_dir, boards, number):
    """Ctrl-C, a kill, the end of the terminal: the board is woken before the process ends."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        running.send_signal(number)
        assert running.wait(60) == 130
        assert not driver.boards[0].locks
        assert Journal(runtime_dir / "journal").entries() == ()


def test_killed(runtime_dir, boards):
    """Kill -9: the guardian wakes the board."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        running.kill()
        eventually(lambda: not driver.boards[0].locks)
        eventually(lambda: Journal(runtime_dir / "journal").entries() == ())


def test_killed_with_its_guardian(runtime_dir, boards):
    """Both at one instant: `memscaler restore` cures, and the doctor says so."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        (guardian,) = children(running.pid)
        for pid in (running.pid, guardian):
            os.kill(pid, signal.SIGSTOP)
        for pid in (guardian, running.pid):
            os.kill(pid, signal.SIGKILL)
        running.wait(60)
    assert driver.boards[0].memory_lock == Lock(405, 405)
    left = only(doctor(runtime_dir, "MS-GPU-05", "--simulate", "a40"), "MS-GPU-05")
    assert (left["result"], left["remedy"]) == ("FAIL", "sudo memscaler restore")
    assert probe(runtime_dir, "a40")["gpu0"]["remedy"] == "sudo memscaler restore"
    result = memscaler("restore", "--runtime-dir", str(runtime_dir), "--simulate", "a40")
    assert (result.returncode, "memory-clock restored" in result.stdout) == (0, True)
    assert not driver.boards[0].locks


def test_an_undo_that_fails_at_first(runtime_dir, boards):
    """It is tried again until it succeeds."""
    driver = boards("a40")
    driver.inject(RESET, code=999, times=6)
    assert probe(runtime_dir, "a40")["gpu0"]["result"] == "PASS"
    assert not driver.boards[0].locks


def test_an_undo_without_effect(runtime_dir, boards):
    """Success that changes nothing is a failure with its remedy, and the guardian is left the journal and the rest."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, ignore=True, times=3)
    found = probe(runtime_dir, "a40", env=QUICK)["gpu0"]
    assert (found["result"], found["seen"]) == ("FAIL", "memory-clock: every undo was tried, but its clocks stay down")
    assert found["remedy"].startswith("sudo memscaler restore --all")
    eventually(lambda: not driver.boards[0].locks)
    eventually(lambda: Journal(runtime_dir / "journal").entries() == ())


@pytest.mark.parametrize(("times", "by"), [(1, "a second undo"), (2, "the reset of every lever")])
def test_an_undo_without_effect_at_first(runtime_dir, boards, times, by):
    """It is repeated, and then everything is reset; that it took that is said."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, ignore=True, times=times)
    found = probe(runtime_dir, "a40", env=QUICK)["gpu0"]
    assert (found["result"], found["seen"].endswith(f"without effect; {by} has woken it")) == ("WARN", True)
    assert not driver.boards[0].locks
    assert Journal(runtime_dir / "journal").entries() == ()


def test_an_undo_without_effect_before_the_clocks_have_fallen(runtime_dir, boards):
    """Clocks that are up because the park is still on its way prove nothing."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, ignore=True, times=1)
    driver.boards[0].set_settle(park_ms=500)
    found = probe(runtime_dir, "a40", env=QUICK)["gpu0"]
    assert (found["result"], "a second undo has woken it" in found["seen"]) == ("WARN", True)
    assert not driver.boards[0].locks


def test_the_server_ends_meanwhile(runtime_dir, boards):
    """A GPU without a context is down by right: nobody can see whether it woke, and that is no failure."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, delay_ms=3000, times=1)
    arguments = ("doctor", PROBE, "--probe", "--simulate", "a40", "--runtime-dir", str(runtime_dir))
    running = subprocess.Popen(
        command(*arguments), env=clean_environment(**QUICK), cwd="/", stdout=subprocess.PIPE, text=True
    )
    eventually(lambda: driver.boards[0].memory_lock or running.poll() is not None)
    driver.boards[0].set_context(False)
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, "its server ended meanwhile" in " ".join(out.split())) == (0, True)
    eventually(lambda: not driver.boards[0].locks)


def test_nothing_stops_it(runtime_dir, boards):
    """Ctrl-Z, or output to a terminal that it is not to write to, would leave the board parked: they are ignored."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        status = Path(f"/proc/{running.pid}/status").read_text()
        ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            assert ignored >> number - 1 & 1
            running.send_signal(number)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert not driver.boards[0].locks


def test_standing_still(runtime_dir, boards):
    """SIGSTOP cannot be ignored: the guardian wakes the board, and the probe knows it when it goes on."""
    driver = boards("a40")
    with probing(runtime_dir, driver) as running:
        running.send_signal(signal.SIGSTOP)
        eventually(lambda: not driver.boards[0].locks)
        eventually(lambda: Journal(runtime_dir / "journal").entries() == ())
        running.send_signal(signal.SIGCONT)
        out, _ = running.communicate(timeout=60)
        assert "this process stood still, so its guardian has stepped in; it is awake again" in " ".join(out.split())
    assert not driver.boards[0].locks


def test_a_client_is_connected(runtime_dir, boards):
    """However quiet it is, nobody's GPU is parked under a connection; afterwards it is tried."""
    driver = boards("a40")
    with listener() as server:
        env = {"MEMSCALER_WATCH": f"{port_of(server)}:gpu0"}
        with connect(server), server.accept()[0]:
            found = probe(runtime_dir, "a40", env=env)["gpu0"]
            seen = f"not tried: a client is connected to port {port_of(server)}"
            assert (found["result"], found["seen"]) == ("UNKNOWN", seen)
            assert driver.call_log([SET, RESET]) == []
        assert probe(runtime_dir, "a40", env=env)["gpu0"]["result"] == "PASS"


def test_a_client_that_comes_in_between(runtime_dir, boards):
    """It wakes the board at once."""
    driver = boards("a40")
    with (
        listener() as server,
        probing(runtime_dir, driver, MEMSCALER_WATCH=f"{port_of(server)}:gpu0") as running,
        connect(server),
    ):
        out, _ = running.communicate(timeout=60)
        assert "a client came in between; it is awake again" in " ".join(out.split())
    assert not driver.boards[0].locks


def test_only_what_is_governed_is_tried(runtime_dir, boards):
    """Nothing is called on a board that no watch names, where somebody else may have locked clocks."""
    driver = boards("a40", "a40")
    found = probe(runtime_dir, "a40,a40", env={"MEMSCALER_WATCH": "1:gpu1"})
    assert (found["gpu0"]["result"], found["gpu0"]["seen"]) == ("UNKNOWN", "not tried: no watch names it")
    assert found["gpu1"]["result"] == "PASS"
    assert {call.gpu for call in driver.call_log([SET, RESET])} == {1}
    waits = probe(runtime_dir, "a40,a40", env={"MEMSCALER_WATCH": "1"})  # its server has no context yet
    assert {each["seen"] for each in waits.values()} == {"not tried: no watch names it"}
    assert probe(runtime_dir, "a40,a40", env={"MEMSCALER_DISCOVER": "true"})["gpu0"]["result"] == "PASS"


def test_a_configuration_that_is_not_good(runtime_dir, boards):
    """Which boards it governs is not known, so none is tried: neither with a mistake, nor with somebody else's file."""
    driver = boards("a40")
    file = runtime_dir / "config.toml"
    for text, mode in (("idle_aftr = 1\n", 0o644), ("discover = true\n", 0o666)):
        file.write_text(text)
        file.chmod(mode)
        (found,) = doctor(runtime_dir, PROBE, "--probe", "--simulate", "a40", "--config", str(file))[PROBE]
        assert (found["result"], "configuration is not good" in found["seen"]) == ("UNKNOWN", True)
    assert driver.call_log([SET, RESET]) == []


def test_beside_a_daemon(tmp_path):
    """A daemon's GPUs are its own; loading the programs does not disturb it."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        found = doctor(tmp_path, "MS-PROBE", "--probe", "--simulate", "a40")
        assert only(found, PROBE)["seen"] == f"not tried: a daemon governs (pid {governor.pid})"
        loading = only(found, "MS-PROBE-01")
        assert (loading["result"], "loaded and attached: sockops and tracepoint" in loading["seen"]) == ("PASS", True)
        assert governor.stop() == 0


def test_as_nobody(runtime_dir):
    """Nothing is tried, and that is no failure."""
    found = doctor(runtime_dir, "MS-PROBE", "--probe", nobody=True)
    assert [each["result"] for check in found for each in found[check]] == ["UNKNOWN", "UNKNOWN"]
    assert only(found, PROBE)["remedy"] == "inconclusive without root: sudo memscaler doctor --probe"


def test_programs_that_cannot_be_loaded(runtime_dir):
    """Without a python that has bcc: the loader's own sentence and remedy."""
    found = doctor(runtime_dir, "MS-PROBE-01", "--probe", env={"MEMSCALER_LOADER_PYTHON": "/nowhere"})
    assert (only(found, "MS-PROBE-01")["result"], "cannot run /nowhere" in only(found, "MS-PROBE-01")["seen"]) == (
        "FAIL",
        True,
    )
