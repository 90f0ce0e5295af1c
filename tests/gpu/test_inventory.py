"""Which GPUs are found, and how they are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.core.errors import DriverUnavailable, GpuCallFailed, GpuLost, GpuPermission, UsageError
from memscaler.gpu.capability import choose
from memscaler.gpu.inventory import open_driver, resolve
from tests.gpu.benches import Simulate

ROOT = Path(__file__).parents[2]


def test_identity_and_reading(simulate: Simulate) -> None:
    """Each GPU has its index, UUID, bus and name, and a reading in base units."""
    machine = simulate("a40", "p40")
    machine.serve(0)
    driver = machine.driver()
    a40, p40 = driver.gpus
    assert (a40.identity.index, a40.identity.name) == (0, "NVIDIA A40")
    assert a40.identity.uuid.startswith("GPU-")
    assert a40.identity.pci_bus_id == "00000000:3B:00.0"
    assert driver.driver_version
    reading = a40.reading()
    assert (reading.memory_clock_mhz, reading.pstate, reading.utilization_ratio) == (7251, 0, 0.0)
    assert 1 < (reading.power_w or 0) < 300
    assert reading.energy_j is not None
    assert p40.reading().energy_j is None


def test_what_a_card_does_not_tell_is_none(simulate: Simulate) -> None:
    """A call that fails leaves its field empty, and only that field."""
    machine = simulate("a40")
    driver = machine.driver()
    machine.boards[0].inject("nvmlDeviceGetPowerUsage", code=999)
    machine.boards[0].inject("nvmlDeviceGetTemperature", code=4)
    reading = driver.gpus[0].reading()
    assert (reading.power_w, reading.temperature_c) == (None, None)
    assert reading.memory_clock_mhz is not None


def test_a_driver_that_tells_nothing_has_failed(simulate: Simulate) -> None:
    """A reading without a single value is a failure, and utilisation that should be told is not taken for none."""
    machine = simulate("a40")
    driver = machine.driver()
    machine.boards[0].inject("*", code=999)
    with pytest.raises(GpuCallFailed):
        driver.gpus[0].reading_unless(lambda: False)
    assert driver.gpus[0].reading().power_w is None
    with pytest.raises(GpuCallFailed):
        driver.gpus[0].utilization_ratio()


def test_a_clock_of_nothing_is_no_clock(simulate: Simulate) -> None:
    """0 MHz would be lower than any lock, and so prove that every park works and no wake does."""
    machine = simulate("a40")
    driver = machine.driver()
    machine.boards[0].inject("nvmlDeviceGetClockInfo", ignore=True)
    assert driver.gpus[0].reading().memory_clock_mhz is None


@pytest.mark.parametrize("call", ["nvmlDeviceGetPciInfo", "nvmlDeviceGetName"])
@pytest.mark.parametrize("how", [{"code": 999}, {"ignore": True}])
def test_what_is_only_for_people_costs_no_gpu(simulate: Simulate, call: str, how: dict[str, int]) -> None:
    """Without a name or a bus a GPU can be parked as well; only NVAPI would need the bus."""
    machine = simulate("a40")
    machine.boards[0].inject(call, **how)
    (gpu,) = machine.driver().gpus
    assert "memory-clock" in [lever.name for lever in choose(gpu).levers]
    with pytest.raises(UsageError):
        resolve("3c:00.0", [gpu])


def test_without_a_uuid_a_gpu_is_lost(simulate: Simulate) -> None:
    """Nothing could be written into the journal about it."""
    machine = simulate("a40", "p40")
    machine.boards[0].inject("nvmlDeviceGetUUID", ignore=True)
    driver = machine.driver()
    assert [gpu.identity.index for gpu in driver.gpus] == [1]
    assert "no UUID" in driver.lost[0].reason


def test_driver_that_cannot_count(simulate: Simulate) -> None:
    """A driver that opens and then fails is as unusable as one that does not open, and is left closed."""
    machine = simulate("a40")
    machine.simulated.inject("nvmlDeviceGetCount", code=999)
    with pytest.raises(DriverUnavailable):
        open_driver()
    assert machine.simulated.call_log("nvmlShutdown")


def test_one_broken_gpu_does_not_stop_the_others(simulate: Simulate) -> None:
    """A GPU that fell off the bus is listed with the reason."""
    machine = simulate("a40", "p40")
    machine.boards[0].lose()
    driver = machine.driver()
    assert [gpu.identity.name for gpu in driver.gpus] == ["Tesla P40"]
    assert [lost.index for lost in driver.lost] == [0]
    assert "NVML 15" in driver.lost[0].reason
    with pytest.raises(UsageError) as error:
        resolve("gpu0", driver.gpus, driver.lost)
    assert "gpu0 (lost" in error.value.hint


def test_reading_a_lost_gpu_says_so(simulate: Simulate) -> None:
    """A GPU that is lost later raises instead of telling nothing."""
    machine = simulate("a40")
    driver = machine.driver()
    machine.boards[0].lose()
    with pytest.raises(GpuLost):
        driver.gpus[0].reading()


@pytest.mark.parametrize("spec", ["1", "gpu1", "GPU1", "0000:86:00.0", "00000000:86:00.0", "86:00.0", "0:86:0.0"])
def test_resolve(simulate: Simulate, spec: str) -> None:
    """Index, bus of any width and case name a GPU."""
    driver = simulate("a40", "p40").driver()
    assert resolve(spec, driver.gpus) is driver.gpus[1]


def test_resolve_by_uuid(simulate: Simulate) -> None:
    """A UUID may be cut short as long as it is the only one of its kind."""
    driver = simulate("a40", "p40").driver()
    uuid = driver.gpus[1].identity.uuid
    assert resolve(uuid, driver.gpus) is driver.gpus[1]
    assert resolve(uuid[:8].lower(), driver.gpus) is driver.gpus[1]
    with pytest.raises(UsageError, match="no GPU"):
        resolve("GPU-", driver.gpus)


@pytest.mark.parametrize("spec", ["2", "gpu9", "GPU-nothing", "0001:86:00.0", "a40", ""])
def test_resolve_unknown(simulate: Simulate, spec: str) -> None:
    """An unknown GPU is answered with the known ones."""
    driver = simulate("a40", "p40").driver()
    with pytest.raises(UsageError) as error:
        resolve(spec, driver.gpus)
    assert driver.gpus[0].identity.uuid in error.value.hint


@pytest.mark.parametrize(("code", "remedy"), [(9, "modprobe"), (17, "/dev/nvidia"), (18, "reboot"), (999, "restart")])
def test_no_driver(simulate: Simulate, code: int, remedy: str) -> None:
    """Each way in which the driver can be missing has its own remedy."""
    simulate("a40").simulated.inject("nvmlInit", code=code)
    with pytest.raises(DriverUnavailable) as error:
        open_driver()
    assert remedy in error.value.hint
    assert (error.value.code, error.value.exit_code) == (code, 69)


def test_driver_not_permitted(simulate: Simulate) -> None:
    """A driver that refuses this user is a question of permission."""
    simulate("a40").simulated.inject("nvmlInit", code=4)
    with pytest.raises(GpuPermission):
        open_driver()


def test_no_library() -> None:
    """A machine without the driver's library is told how to go on; one that has it opens."""
    code = "from memscaler.core.errors import *\nfrom memscaler.gpu.inventory import *\ntry: open_driver()\n"
    code += "except DriverUnavailable as error: print(error.code, error.hint)"
    bare = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bare, cwd=ROOT, check=True, timeout=20
    )
    assert done.stdout.startswith("12 install the NVIDIA driver") or not done.stdout
