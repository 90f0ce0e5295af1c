"""The driver's checks and those of each GPU: on simulated boards, and on drivers that fail in each known way."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from memscaler.core.snapshot import Identity
from memscaler.daemon.doctor.model import Result
from memscaler.gpu.journal import Journal
from memscaler.simulator import builder
from tests.doctor.bench import NOBODY, doctor, memscaler, only

GPUS = ["MS-DRIVER", "MS-GPU"]


def by_subject(found, check):
    """gpu0 -> what is said about it."""
    return {subject: each for each in found[check] for subject in each["subjects"]}


def test_boards_of_several_kinds(runtime_dir):
    """The lever of each, by the choice that `run` makes, and why MIG and a vGPU guest have none."""
    found = doctor(runtime_dir, *GPUS, "--simulate", "a40,p40,a100,a100-mig,vgpu")
    levers = by_subject(found, "MS-GPU-03")
    assert levers["gpu0"]["seen"].startswith("memory-clock: 7251 and 405 MHz")
    assert levers["gpu1"]["seen"].startswith("pstate: NVAPI")
    assert levers["gpu2"]["seen"].startswith("graphics-clock")
    assert (levers["gpu3"]["result"], "-mig 0" in levers["gpu3"]["remedy"]) == ("WARN", True)
    assert (levers["gpu4"]["result"], "hypervisor" in levers["gpu4"]["remedy"]) == ("WARN", True)
    assert only(found, "MS-DRIVER-02")["seen"] == "NVML 13.580.95.05, driver 580.95.05"
    assert set(by_subject(found, "MS-DRIVER-04")) == {f"gpu{index}" for index in range(5)}
    assert only(found, "MS-GPU-04")["subjects"] == [f"gpu{index}" for index in range(5)]
    assert only(found, "MS-GPU-05")["result"] == "PASS"


def test_boards_as_nobody(runtime_dir, boards):
    """Reading needs no root: the levers are told to everybody."""
    driver = boards("a40")
    for path in (runtime_dir, runtime_dir / "simulator", driver.state_path):
        os.chown(path, NOBODY, NOBODY)
    cache = runtime_dir / "cache"  # the usual one is root's
    shutil.copytree(driver.library_dir, cache / driver.library_dir.name)
    header = shutil.copy(builder._find_header(), cache / "nvml.h")  # the repository may be root's, too
    env = {"MEMSCALER_SIM_CACHE": str(cache), "MEMSCALER_NVML_H": header}
    found = doctor(runtime_dir, *GPUS, "--simulate", "a40", nobody=True, env=env)
    assert only(found, "MS-GPU-03")["result"] == "PASS"
    assert not [each for checks in found.values() for each in checks if each["result"] == "FAIL"]


def test_display_and_persistence(runtime_dir, boards):
    """A board with a screen and one without persistence are told apart from the others."""
    driver = boards("a40", "a40", persistence=True)
    driver.boards[1].set_display(True)
    found = doctor(runtime_dir, "MS-GPU", "--simulate", "a40,a40")
    display = by_subject(found, "MS-GPU-04")
    assert (display["gpu0"]["result"], display["gpu1"]["result"]) == ("PASS", "WARN")
    assert only(found, "MS-GPU-02")["result"] == "PASS"
    driver.boards[0].inject("nvmlDeviceGetDisplayActive", code=3)
    driver.boards[0].inject("nvmlDeviceGetPersistenceMode", code=3)
    found = doctor(runtime_dir, "MS-GPU", "--simulate", "a40,a40")
    assert by_subject(found, "MS-GPU-04")["gpu0"]["result"] == "UNKNOWN"
    assert by_subject(found, "MS-GPU-02")["gpu0"]["result"] == "UNKNOWN"


def test_a_lost_board(runtime_dir, boards):
    """One that has fallen off the bus is a failure; the other one is looked at all the same."""
    driver = boards("a40", "p40")
    driver.boards[1].lose()
    found = doctor(runtime_dir, "MS-GPU", "--simulate", "a40,p40")
    answers = by_subject(found, "MS-GPU-01")
    assert (answers["gpu0"]["result"], answers["gpu1"]["result"]) == ("PASS", "FAIL")
    assert "NVML 15" in answers["gpu1"]["seen"]
    assert set(by_subject(found, "MS-GPU-03")) == {"gpu0"}


@pytest.mark.parametrize(
    ("code", "result", "remedy"),
    [
        (4, "FAIL", "grant CAP_SYS_ADMIN"),
        (9, "FAIL", "modprobe nvidia"),
        (12, "FAIL", "driver"),
        (17, "FAIL", "give the container the GPU"),
        (18, "FAIL", "reboot"),
        (999, "FAIL", "restart it"),
        (77, "FAIL", "dmesg"),
    ],
)
def test_a_driver_that_does_not_initialise(runtime_dir, boards, code, result, remedy):
    """Each code of NVML has its own remedy, and what cannot be asked then is unknown."""
    driver = boards("a40")
    driver.inject("nvmlInit", code=code)
    found = doctor(runtime_dir, *GPUS, "--simulate", "a40")
    library = only(found, "MS-DRIVER-02")
    assert (library["result"], f"(NVML {code})" in library["seen"]) == (result, True)
    assert remedy in library["remedy"]
    assert only(found, "MS-GPU-03")["result"] == "UNKNOWN"
    mismatch = only(found, "MS-DRIVER-03")
    assert mismatch["result"] == ("FAIL" if code == 18 else "UNKNOWN")


def test_a_driver_that_hangs(runtime_dir, boards):
    """NvmlInit that never returns is unknown after some seconds, once for all checks, and the command ends."""
    driver = boards("a40")
    driver.inject("nvmlInit", hang=True)
    began_s = time.monotonic()
    found = doctor(runtime_dir, *GPUS, "MS-CONFIG-04", "--simulate", "a40")
    assert time.monotonic() - began_s < 40
    assert only(found, "MS-DRIVER-02")["seen"] == "the NVIDIA driver did not answer in 7 s"
    results = {each["result"] for check in found for each in found[check] if check not in ("MS-DRIVER-01", "MS-GPU-05")}
    assert results == {"UNKNOWN"}


def test_a_board_that_hangs(runtime_dir, boards):
    """A call that hangs holds up its check alone, and says so."""
    driver = boards("a40")
    driver.boards[0].inject("nvmlDeviceGetDisplayActive", hang=True)
    found = doctor(runtime_dir, "MS-GPU", "--simulate", "a40")
    assert only(found, "MS-GPU-04")["seen"] == "did not answer in 8 s"
    assert only(found, "MS-GPU-03")["result"] == only(found, "MS-GPU-05")["result"] == "PASS"


def test_no_library(runtime_dir):
    """Without a driver the distribution's own package is named. (Where there is one, it is found.)"""
    load = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"  # this process may have loaded the simulated one
    there = subprocess.run([sys.executable, "-c", load], stderr=subprocess.DEVNULL, check=False).returncode == 0
    finding = only(doctor(runtime_dir, "MS-DRIVER-02"), "MS-DRIVER-02")
    assert ("(NVML 12)" in finding["seen"]) is not there
    assert there or (finding["result"], "driver" in finding["remedy"]) == ("FAIL", True)


def test_modules_and_cards(machine):
    """No card, a card without its module, and both kinds of module."""
    assert "no NVIDIA GPU" in machine.check_apart("MS-DRIVER-01").seen
    machine.write("/sys/bus/pci/devices/0000:3b:00.0/vendor", "0x10de\n")
    machine.write("/sys/bus/pci/devices/0000:3b:00.0/class", "0x030200\n")
    machine.write("/sys/bus/pci/devices/0000:00:1f.0/vendor", "0x8086\n")
    finding = machine.check_apart("MS-DRIVER-01")
    assert (finding.result, "0000:3b:00.0" in finding.seen) == (Result.FAIL, True)
    assert finding.remedy.startswith("sudo modprobe nvidia; if there is no such module")
    machine.write("/usr/src/nvidia/Makefile")
    assert machine.check_apart("MS-DRIVER-01").remedy == "sudo modprobe nvidia"
    for text, version in [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release", "570.86.15"),
    ]:
        machine.write("/proc/driver/nvidia/version", text)
        assert machine.check_apart("MS-DRIVER-01").seen == f"kernel module {version}"


def test_left_parked(runtime_dir):
    """What a memscaler that is gone left parked is a failure with its remedy, to nobody too: the journal is readable."""
    Journal(runtime_dir / "journal").record(Identity(0, "GPU-5eed", "", ""), "memory-clock", 405)
    finding = only(doctor(runtime_dir, "MS-GPU-05"), "MS-GPU-05")
    assert (finding["result"], finding["remedy"]) == ("FAIL", "sudo memscaler restore")
    assert "GPU-5eed (memory-clock)" in finding["seen"]


def test_gpus_that_the_configuration_names(runtime_dir):
    """One that is not there is told with its line, as `run` does, with exit code 78 there."""
    file = runtime_dir / "config.toml"
    file.write_text('[[watch]]\nport = 8080\ngpus = ["gpu0", "gpu7"]\n')
    finding = only(doctor(runtime_dir, "MS-CONFIG-04", "--config", str(file), "--simulate", "a40"), "MS-CONFIG-04")
    assert (finding["result"], f"{file}:3: 'gpu7' is no GPU" in finding["seen"]) == ("FAIL", True)
    result = memscaler(
        "run", "--config", str(file), "--simulate", "a40", "--runtime-dir", str(runtime_dir), "--metrics", "off"
    )
    assert result.returncode == 78
    assert f"{file}:3: 'gpu7' is no GPU of this machine" in result.stderr
    file.write_text('[[watch]]\nport = 8080\ngpus = ["gpu0"]\n[gpu.gpu5]\nlever = "auto"\n')
    finding = only(doctor(runtime_dir, "MS-CONFIG-04", "--config", str(file), "--simulate", "a40"), "MS-CONFIG-04")
    assert (finding["result"], f"{file}:4: 'gpu5'" in finding["seen"]) == ("FAIL", True)
    file.write_text('[[watch]]\nport = 8080\ngpus = ["gpu0"]\n')
    assert (
        only(doctor(runtime_dir, "MS-CONFIG-04", "--config", str(file), "--simulate", "a40"), "MS-CONFIG-04")["result"]
        == "PASS"
    )


def test_a_forced_lever_that_is_not_there(runtime_dir):
    """The configuration asks for what the card cannot: a failure, because it would stay unmanaged."""
    found = doctor(runtime_dir, "MS-GPU-03", "--simulate", "p40", env={"MEMSCALER_LEVER": "memory-clock"})
    assert (only(found, "MS-GPU-03")["result"], "leave this GPU out" in only(found, "MS-GPU-03")["remedy"]) == (
        "FAIL",
        True,
    )


def test_without_nvapi(runtime_dir, boards):
    """Only the card that needs it is worse off."""
    driver = boards("a40", "p40")
    driver.inject("NvAPI_Initialize", code=-1)
    apis = by_subject(doctor(runtime_dir, "MS-DRIVER-04", "--simulate", "a40,p40"), "MS-DRIVER-04")
    assert (apis["gpu0"]["result"], apis["gpu1"]["result"]) == ("PASS", "UNKNOWN")
    driver.clear_faults()
    driver.inject("NvAPI_GPU_SetForcePstate", code=-104)
    driver.inject("NvAPI_Initialize", code=-104)
    apis = by_subject(doctor(runtime_dir, "MS-DRIVER-04", "--simulate", "a40,p40"), "MS-DRIVER-04")
    assert (apis["gpu1"]["result"], "it would need NVAPI" in apis["gpu1"]["seen"]) == ("WARN", True)
