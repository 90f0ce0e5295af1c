"""What the libraries export, and how the structures lie in memory."""

import ctypes
import re
import subprocess
from pathlib import Path

import pynvml
import pytest

from memscaler.core.errors import SimulatorUnavailable, UsageError
from memscaler.simulator import build, builder, known_boards, parse_boards
from memscaler.simulator.binding import RawRecord, library

DAEMON = """
nvmlInitWithFlags nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion nvmlSystemGetNVMLVersion nvmlSystemGetCudaDriverVersion
nvmlSystemGetProcessName nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByUUID nvmlDeviceGetHandleByPciBusId_v2
nvmlDeviceGetName nvmlDeviceGetUUID nvmlDeviceGetPciInfo_v3 nvmlDeviceGetIndex nvmlDeviceGetMinorNumber nvmlDeviceGetArchitecture
nvmlDeviceGetBrand nvmlDeviceGetCudaComputeCapability nvmlDeviceGetSupportedMemoryClocks nvmlDeviceGetSupportedGraphicsClocks
nvmlDeviceGetClockInfo nvmlDeviceGetClock nvmlDeviceGetMaxClockInfo nvmlDeviceGetPerformanceState nvmlDeviceGetSupportedPerformanceStates
nvmlDeviceGetMinMaxClockOfPState nvmlDeviceSetMemoryLockedClocks nvmlDeviceResetMemoryLockedClocks nvmlDeviceSetGpuLockedClocks
nvmlDeviceResetGpuLockedClocks nvmlDeviceSetApplicationsClocks nvmlDeviceResetApplicationsClocks nvmlDeviceGetApplicationsClock
nvmlDeviceGetPowerUsage nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPowerManagementLimitConstraints nvmlDeviceSetPowerManagementLimit
nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetTotalEnergyConsumption nvmlDeviceGetFieldValues nvmlDeviceGetCurrentClocksEventReasons
nvmlDeviceGetCurrentClocksThrottleReasons nvmlDeviceGetUtilizationRates nvmlDeviceGetTemperature nvmlDeviceGetComputeRunningProcesses_v3
nvmlDeviceGetGraphicsRunningProcesses_v3 nvmlDeviceGetMPSComputeRunningProcesses_v3 nvmlDeviceGetProcessUtilization
nvmlDeviceGetPersistenceMode nvmlDeviceSetPersistenceMode nvmlDeviceGetMigMode nvmlDeviceIsMigDeviceHandle
nvmlDeviceGetVirtualizationMode nvmlDeviceGetMemoryInfo nvmlDeviceGetMemoryInfo_v2 nvmlEventSetCreate nvmlDeviceRegisterEvents
nvmlDeviceGetSupportedEventTypes nvmlEventSetWait_v2 nvmlEventSetFree
"""
EXPORTERS = """
nvmlDeviceGetBAR1MemoryInfo nvmlDeviceGetComputeMode nvmlDeviceGetEncoderUtilization nvmlDeviceGetDecoderUtilization nvmlDeviceGetFanSpeed
nvmlDeviceGetPcieThroughput nvmlDeviceGetSerial nvmlDeviceGetTotalEccErrors nvmlDeviceGetDisplayActive nvmlDeviceGetDisplayMode
nvmlDeviceGetDriverModel_v2 nvmlDeviceGetMaxMigDeviceCount nvmlDeviceGetMigDeviceHandleByIndex nvmlDeviceGetDeviceHandleFromMigDeviceHandle
nvmlDeviceGetGpuInstanceId nvmlDeviceGetComputeInstanceId nvmlDeviceGetTemperatureV
"""
PLAIN = """
nvmlInit nvmlInit_v2 nvmlDeviceGetCount nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByPciBusId nvmlDeviceGetPciInfo
nvmlDeviceGetPciInfo_v2 nvmlDeviceGetComputeRunningProcesses nvmlDeviceGetComputeRunningProcesses_v2 nvmlDeviceGetDriverModel nvmlEventSetWait
"""


def exported(library_file):
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", library_file], check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[-1].partition("@")[0] for line in lines.splitlines()}


def test_nvml_exports_every_listed_symbol_and_nothing_private():
    """The NVML library has what the daemon, the exporters and C clients look up, and hides its insides."""
    names = exported(build() / "libnvidia-ml.so.1")
    assert set((DAEMON + EXPORTERS + PLAIN).split()) <= names
    assert all(name.startswith("nvml") for name in names)
    assert not names & {"nvmlDeviceGetConfComputeMemSizeInfo", "nvmlDeviceGetRunningProcessDetailList"}


def test_nvapi_exports_one_symbol():
    """The NVAPI library exports nvapi_QueryInterface only."""
    assert exported(build() / "libnvidia-api.so.1") == {"nvapi_QueryInterface"}


def test_sonames_are_the_real_ones():
    """A loaded library is found by its soname, so that has to be right."""
    for name in ("libnvidia-ml.so.1", "libnvidia-api.so.1"):
        dynamic = subprocess.run(["readelf", "-d", build() / name], check=True, capture_output=True, text=True).stdout
        assert re.search(r"SONAME.*\[" + re.escape(name) + r"\]", dynamic)


@pytest.mark.parametrize(
    ("c_name", "python_type", "size"),
    [
        ("nvmlPciInfo_t", pynvml.nvmlPciInfo_t, 68),
        ("nvmlMemory_t", pynvml.c_nvmlMemory_t, 24),
        ("nvmlMemory_v2_t", pynvml.c_nvmlMemory_v2_t, 40),
        ("nvmlUtilization_t", pynvml.c_nvmlUtilization_t, 8),
        ("nvmlProcessInfo_t", pynvml.c_nvmlProcessInfo_v3_t, 24),
        ("nvmlEventData_t", pynvml.c_nvmlEventData_t, 32),
        ("nvmlFieldValue_t", pynvml.c_nvmlFieldValue_t, 40),
        ("nvmlProcessUtilizationSample_t", pynvml.c_nvmlProcessUtilizationSample_t, 32),
        ("nvmlBAR1Memory_t", pynvml.c_nvmlBAR1Memory_t, 24),
        ("sim_record", RawRecord, 56),
    ],
)
def test_layouts_agree(c_name, python_type, size):
    """A structure has the same size in C, in ctypes and in the notes."""
    assert library(build()).memscaler_sim_sizeof(c_name.encode()) == ctypes.sizeof(python_type) == size


def test_every_unknown_board_is_refused_with_the_known_ones():
    """A wrong name is a usage error that lists the right ones."""
    assert {"a40", "p40", "l40s", "rtx3090", "a100", "h100", "t4", "vgpu", "v100", "a100-mig"} == set(known_boards())
    assert parse_boards(" A40, p40") == ("a40", "p40")
    with pytest.raises(UsageError, match="a41") as raised:
        parse_boards("a40,a41")
    assert "a40, p40" in raised.value.hint


def test_an_older_library_lacks_the_symbol(make, run):
    """A symbol left out at build time is really absent: pynvml answers 13."""
    folder = build(without=["nvmlDeviceSetMemoryLockedClocks"])
    assert exported(build() / "libnvidia-ml.so.1") - exported(folder / "libnvidia-ml.so.1") == {
        "nvmlDeviceSetMemoryLockedClocks"
    }
    driver = make("a40", library_dir=folder)
    said = run(
        driver,
        """
n.nvmlInit()
try: n.nvmlDeviceSetMemoryLockedClocks(n.nvmlDeviceGetHandleByIndex(0), 405, 405)
except n.NVMLError_FunctionNotFound as e: print(e.value)
""",
    )
    assert said.split() == ["13"]


def test_builder_says_what_is_missing(monkeypatch, tmp_path):
    """Without a compiler the error names the package to install."""
    monkeypatch.setattr(builder, "_built", {})  # of what was built before nothing is looked up again
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(SimulatorUnavailable) as raised:
        build()
    assert raised.value.hint == "apt install gcc"


def test_builder_reports_a_failed_compilation_in_one_line(tmp_path, monkeypatch):
    """A header that does not fit gives one line, and leaves nothing behind."""
    header = tmp_path / "nvml.h"
    header.write_text("#error not today\n")
    monkeypatch.setenv("MEMSCALER_NVML_H", str(header))
    with pytest.raises(SimulatorUnavailable) as raised:
        build(tmp_path / "cache")
    assert "not today" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(Path(tmp_path / "cache").iterdir()) == []
