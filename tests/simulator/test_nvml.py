"""The simulated NVML through the unchanged nvidia-ml-py."""

import ctypes
import threading
import time

import pynvml as n
import pytest


def code_of(call, *arguments):
    """The NVML code a call ends with."""
    try:
        call(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0


def test_identity(nvml):
    """A board says who it is, and is found by index, UUID and bus id."""
    driver = nvml("a40", "p40")
    assert n.nvmlSystemGetDriverVersion() == "580.95.05"
    assert n.nvmlSystemGetCudaDriverVersion() == 13000
    assert n.nvmlDeviceGetCount() == 2
    for index, (name, architecture) in enumerate([("NVIDIA A40", 7), ("Tesla P40", 4)]):
        handle = n.nvmlDeviceGetHandleByIndex(index)
        pci = n.nvmlDeviceGetPciInfo(handle)
        assert ctypes.cast(handle, ctypes.c_void_p).value > 1 << 32
        assert (n.nvmlDeviceGetName(handle), n.nvmlDeviceGetArchitecture(handle)) == (name, architecture)
        assert n.nvmlDeviceGetUUID(handle) == driver.boards[index].uuid
        assert pci.busId == driver.boards[index].pci_bus_id
        for other in (
            n.nvmlDeviceGetHandleByUUID(driver.boards[index].uuid),
            n.nvmlDeviceGetHandleByPciBusId(pci.busIdLegacy.lower()),
        ):
            assert n.nvmlDeviceGetIndex(other) == index


def test_calls_need_initialisation(nvml):
    """Before the first init and after the last shutdown everything answers 1; inits are counted."""
    nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    n.nvmlInit()
    n.nvmlShutdown()
    assert n.nvmlDeviceGetName(handle) == "NVIDIA A40"
    n.nvmlShutdown()
    assert code_of(n.nvmlDeviceGetName, handle) == 1
    assert code_of(n.nvmlShutdown) == 1


def test_arguments_are_checked(nvml):
    """Wrong handles, indices and UUIDs get the codes of the real driver."""
    nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert code_of(n.nvmlDeviceGetHandleByIndex, 1) == 2
    assert code_of(n.nvmlDeviceGetHandleByUUID, "GPU-nope") == 6
    assert code_of(n.nvmlDeviceGetHandleByPciBusId, "0000:99:00.0") == 6
    assert code_of(n.nvmlDeviceGetName, ctypes.c_void_p(0x1234)) == 2
    assert code_of(n.nvmlDeviceGetName, ctypes.c_void_p(ctypes.cast(handle, ctypes.c_void_p).value + 1)) == 2


def test_size_probe(nvml):
    """Asking with too little room answers 7 and says how much is needed."""
    nvml("a40")
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    count = ctypes.c_uint(0)
    assert library.nvmlDeviceGetSupportedMemoryClocks(handle, ctypes.byref(count), None) == 7
    assert count.value == 2
    assert n.nvmlDeviceGetSupportedMemoryClocks(handle) == [7251, 405]
    graphics = n.nvmlDeviceGetSupportedGraphicsClocks(handle, 7251)
    assert (graphics[0], graphics[1], graphics[-1], len(graphics)) == (1740, 1725, 210, 103)
    assert n.nvmlDeviceGetSupportedGraphicsClocks(handle, 405)[0] == 420


def test_memory_lock_saves_and_reset_restores(nvml):
    """On an A40 the lowest memory clock takes 80 W to 18 W, and Reset brings it back."""
    board = nvml("a40").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert (board.memory_clock_mhz, board.power_w, board.parked, bool(board.locks)) == (7251, 80, False, False)
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    assert (board.memory_lock.low_mhz, board.memory_lock.high_mhz) == (405, 405)
    assert (n.nvmlDeviceGetClockInfo(handle, n.NVML_CLOCK_MEM), n.nvmlDeviceGetPerformanceState(handle)) == (405, 8)
    assert (board.memory_clock_mhz, board.power_w, board.parked) == (405, 18, True)
    n.nvmlDeviceResetMemoryLockedClocks(handle)
    assert (board.memory_clock_mhz, board.power_w, board.parked, board.memory_lock) == (7251, 80, False, None)


def test_lock_snaps_to_a_supported_clock(nvml):
    """A wish between two clocks is accepted, and runs at the one below."""
    board = nvml("l40s").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    n.nvmlDeviceSetMemoryLockedClocks(handle, 9500, 9500)
    assert board.memory_lock.high_mhz == 9001
    n.nvmlDeviceSetGpuLockedClocks(handle, 300, 407)
    assert (board.graphics_lock.low_mhz, board.graphics_lock.high_mhz) == (300, 405)


def test_graphics_lock(nvml):
    """HBM boards save by their graphics clock; the symbolic limits mean reset and must not be mixed with numbers."""
    board = nvml("a100").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert code_of(n.nvmlDeviceSetMemoryLockedClocks, handle, 1215, 1215) == 3
    n.nvmlDeviceSetGpuLockedClocks(handle, 210, 210)
    assert (board.graphics_clock_mhz, board.memory_clock_mhz, board.power_w) == (210, 1215, 55)
    assert code_of(n.nvmlDeviceSetGpuLockedClocks, handle, 210, 0xFFFFFF02) == 2
    n.nvmlDeviceSetGpuLockedClocks(handle, 0xFFFFFF02, 0xFFFFFF02)
    assert (board.graphics_clock_mhz, board.graphics_lock) == (1410, None)


@pytest.mark.parametrize(
    ("key", "memory", "graphics", "energy", "switch"),
    [
        ("p40", 3, 3, 3, 0),
        ("t4", 3, 0, 0, 0),
        ("v100", 3, 0, 0, 0),
        ("h100", 3, 0, 0, 1),
        ("rtx3090", 0, 0, 0, 2),
        ("vgpu", 3, 3, 3, 0),
    ],
)
def test_support_by_board(nvml, key, memory, graphics, energy, switch):
    """Each board accepts what its generation accepts."""
    nvml(key, mclk_fields=True)
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert code_of(n.nvmlDeviceSetMemoryLockedClocks, handle, 5000, 5001) == memory
    assert code_of(n.nvmlDeviceSetGpuLockedClocks, handle, 600, 600) == graphics
    assert code_of(n.nvmlDeviceGetTotalEnergyConsumption, handle) == energy
    assert n.nvmlDeviceGetFieldValues(handle, [298])[0].value.uiVal == switch
    assert n.nvmlDeviceGetVirtualizationMode(handle) == (2 if key == "vgpu" else 0)


def test_support_then_permission_then_arguments(nvml):
    """An unprivileged caller learns "not supported" before "no permission", and that before "invalid"."""
    nvml("p40", "a40", permission="deny")
    old, new = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert code_of(n.nvmlDeviceSetMemoryLockedClocks, old, 0, 0) == 3
    with pytest.raises(n.NVMLError_NoPermission):
        n.nvmlDeviceSetMemoryLockedClocks(new, 9, 1)


def test_wrong_lock_arguments(nvml):
    """Zero, and a minimum above the maximum, are invalid."""
    nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert [code_of(n.nvmlDeviceSetMemoryLockedClocks, handle, *pair) for pair in ((0, 0), (7251, 405))] == [2, 2]


def test_fields(nvml):
    """Fields answer one by one: what a driver does not know is NOT_SUPPORTED in its own record."""
    nvml("a40", "h100")
    a40, h100 = (
        n.nvmlDeviceGetFieldValues(n.nvmlDeviceGetHandleByIndex(i), [83, 186, 298, 299, 9999]) for i in range(2)
    )
    assert [value.nvmlReturn for value in a40] == [0, 0, 3, 3, 3]
    assert [value.nvmlReturn for value in h100] == [0, 0, 0, 0, 3]
    assert (a40[1].value.uiVal, h100[2].value.uiVal) == (80000, 1)


def test_minimum_switch_interval(nvml):
    """Field 299 is announced, and breaking it is counted."""
    board = nvml("a40", mclk_fields=True).boards[0]
    board.set_memory_switching(2, min_interval_ms=60_000)
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert n.nvmlDeviceGetFieldValues(handle, [299])[0].value.uiVal == 60_000
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    n.nvmlDeviceResetMemoryLockedClocks(handle)
    assert board.switches_too_soon == 1


def test_settle_time(nvml):
    """A clock changes after its settle time, not with the call."""
    board = nvml("a40").boards[0]
    board.set_settle(park_ms=60)
    handle = n.nvmlDeviceGetHandleByIndex(0)
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    assert (board.memory_clock_mhz, board.settling) == (7251, True)
    time.sleep(0.08)
    assert (board.memory_clock_mhz, board.settling) == (405, False)


def test_power_average_and_instant(nvml):
    """Ampere reports a one-second average, Pascal the present draw."""
    driver = nvml("a40", "p40")
    handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(2)]
    for board in driver.boards:
        board.set_utilization(100)
    assert n.nvmlDeviceGetPowerUsage(handles[0]) < 120_000
    assert driver.boards[0].power_w > 250
    assert n.nvmlDeviceGetPowerUsage(handles[1]) > 230_000
    time.sleep(1.05)
    assert n.nvmlDeviceGetPowerUsage(handles[0]) == pytest.approx(driver.boards[0].power_w * 1000, rel=0.01)


def test_energy_is_monotonic_and_the_integral_of_power(nvml):
    """The counter grows by watts times seconds over every change of state."""
    board = nvml("a40").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    board.set_settle(park_ms=30, wake_ms=30)
    readings, expected = [], 0.0
    start_j = board.energy_j
    for change in (
        None,
        lambda: n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405),
        lambda: n.nvmlDeviceResetMemoryLockedClocks(handle),
    ):
        if change:
            change()
        until = time.monotonic() + 0.15
        before = time.monotonic()
        while before < until:
            watts = board.power_w
            readings.append(n.nvmlDeviceGetTotalEnergyConsumption(handle))
            now = time.monotonic()
            expected += watts * (now - before)
            before = now
    assert readings == sorted(readings)
    assert board.energy_j - start_j == pytest.approx(expected, rel=0.15)  # the machine may have been busy in between
    assert readings[-1] <= board.energy_j * 1000 <= n.nvmlDeviceGetTotalEnergyConsumption(handle) + 1  # whole mJ


def test_utilisation_and_power_limit(nvml):
    """A busy board runs at its maximum within lock and limit."""
    board = nvml("a40").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    board.set_utilization(100, memory_percent=40)
    rates = n.nvmlDeviceGetUtilizationRates(handle)
    assert (rates.gpu, rates.memory, board.power_w, board.graphics_clock_mhz) == (100, 40, 290, 1740)
    n.nvmlDeviceSetPowerManagementLimit(handle, 200_000)
    assert (board.power_w, n.nvmlDeviceGetCurrentClocksEventReasons(handle) & 4) == (200, 4)
    assert code_of(n.nvmlDeviceSetPowerManagementLimit, handle, 99_999) == 2
    n.nvmlDeviceSetGpuLockedClocks(handle, 210, 900)
    assert board.graphics_clock_mhz == 900


def test_without_context_the_board_idles_by_itself(nvml):
    """Nobody resident: lowest clocks, nothing held back."""
    board = nvml("a40", context=False).boards[0]
    assert (board.memory_clock_mhz, board.power_w, board.parked) == (405, 18, False)
    board.add_process(4711, 3 << 30, name="server")
    assert (board.memory_clock_mhz, board.power_w) == (7251, 80)
    board.remove_process(4711)
    assert board.memory_clock_mhz == 405


def test_a_board_that_drops_by_itself(nvml):
    """An idle RTX 3090 with a resident context is already low, and rises with work."""
    board = nvml("rtx3090").boards[0]
    assert (board.memory_clock_mhz, board.power_w, board.pstate) == (405, 24, 8)
    board.set_utilization(50)
    assert board.memory_clock_mhz == 9501
    board.set_utilization(0)
    board.set_drops_when_idle(False)
    assert (board.memory_clock_mhz, board.pstate) == (9501, 2)


def test_processes(nvml):
    """Processes, their memory and their share of the time are listed."""
    board = nvml("a40").boards[0]
    handle = n.nvmlDeviceGetHandleByIndex(0)
    assert n.nvmlDeviceGetComputeRunningProcesses(handle) == []
    assert code_of(n.nvmlDeviceGetProcessUtilization, handle, 0) == 6
    board.add_process(4711, 3 << 30, sm_percent=30, name="llama-server")
    board.add_process(4712, 1 << 20, kind=1)
    (process,) = n.nvmlDeviceGetComputeRunningProcesses(handle)
    assert (process.pid, process.usedGpuMemory) == (4711, 3 << 30)
    assert n.nvmlDeviceGetGraphicsRunningProcesses(handle)[0].pid == 4712
    assert {sample.pid: sample.smUtil for sample in n.nvmlDeviceGetProcessUtilization(handle, 0)} == {4711: 30, 4712: 0}
    assert n.nvmlSystemGetProcessName(4711) == "llama-server"
    assert n.nvmlDeviceGetUtilizationRates(handle).gpu == 30
    assert n.nvmlDeviceGetMemoryInfo(handle).used > 3 << 30
    memory = n.nvmlDeviceGetMemoryInfo(handle, version=n.nvmlMemory_v2)
    assert memory.total == memory.used + memory.free + memory.reserved


def test_mig(nvml):
    """With MIG on, instances have handles of their own, on which nothing can be set."""
    nvml("a100-mig", "a40")
    handle, other = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert n.nvmlDeviceGetMigMode(handle) == [1, 1]
    assert code_of(n.nvmlDeviceGetMigMode, other) == 3
    instance = n.nvmlDeviceGetMigDeviceHandleByIndex(handle, 1)
    assert n.nvmlDeviceIsMigDeviceHandle(instance)
    assert n.nvmlDeviceGetUUID(instance).startswith("MIG-")
    assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)) == 0
    assert code_of(n.nvmlDeviceSetGpuLockedClocks, instance, 210, 210) == 3
    assert code_of(n.nvmlDeviceGetUtilizationRates, handle) == 3
    assert code_of(n.nvmlDeviceGetMigDeviceHandleByIndex, handle, 2) == 6


def test_application_clocks(nvml):
    """Pascal takes application clocks from its lists, GeForce takes none."""
    driver = nvml("p40", "rtx3090")
    old, geforce = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert code_of(n.nvmlDeviceSetApplicationsClocks, geforce, 9751, 210) == 3
    assert code_of(n.nvmlDeviceSetApplicationsClocks, old, 405, 545) == 2
    n.nvmlDeviceSetApplicationsClocks(old, 405, 544)
    assert (driver.boards[0].memory_clock_mhz, n.nvmlDeviceGetApplicationsClock(old, 2)) == (405, 405)
    n.nvmlDeviceResetApplicationsClocks(old)
    assert driver.boards[0].memory_clock_mhz == 3615


def test_events(nvml):
    """An event wait sleeps until its timeout, or until an event comes from another thread."""
    driver = nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    waiting = n.nvmlEventSetCreate()
    n.nvmlDeviceRegisterEvents(handle, n.nvmlEventTypeXidCriticalError, waiting)
    start = time.monotonic()
    assert code_of(n.nvmlEventSetWait_v2, waiting, 50) == 10
    assert 0.045 < time.monotonic() - start < 0.5
    timer = threading.Timer(0.05, driver.boards[0].xid, [79])
    timer.start()
    event = n.nvmlEventSetWait_v2(waiting, 5000)
    assert (event.eventType, event.eventData, n.nvmlDeviceGetIndex(event.device)) == (8, 79, 0)
    timer = threading.Timer(0.05, driver.boards[0].lose)
    timer.start()
    assert code_of(n.nvmlEventSetWait_v2, waiting, 5000) == 15
    timer.join()
    n.nvmlEventSetFree(waiting)
    assert code_of(n.nvmlEventSetWait_v2, waiting, 1) == 2


def test_error_texts(nvml):
    """Codes have the driver's own words."""
    nvml("a40")
    library = ctypes.CDLL("libnvidia-ml.so.1")
    library.nvmlErrorString.restype = ctypes.c_char_p
    assert [library.nvmlErrorString(code) for code in (0, 3, 4, 15, 18, 12345)] == [
        b"Success",
        b"Not Supported",
        b"Insufficient Permissions",
        b"GPU is lost",
        b"Driver/library version mismatch",
        b"Unknown Error",
    ]


def test_sensors_for_exporters(nvml):
    """What nvitop and exporters read besides."""
    board = nvml("a40", "rtx3090").boards[0]
    handle, geforce = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    board.temperature_c = 61
    assert n.nvmlDeviceGetTemperature(handle, 0) == n.nvmlDeviceGetTemperatureV(handle, 0) == 61
    assert n.nvmlDeviceGetBAR1MemoryInfo(handle).bar1Total == 64 << 30
    assert n.nvmlDeviceGetEncoderUtilization(handle)[0] == n.nvmlDeviceGetDecoderUtilization(handle)[0] == 0
    assert (code_of(n.nvmlDeviceGetFanSpeed, handle), code_of(n.nvmlDeviceGetFanSpeed, geforce)) == (3, 0)
    assert (len(n.nvmlDeviceGetSerial(handle)), code_of(n.nvmlDeviceGetSerial, geforce)) == (13, 3)
    assert n.nvmlDeviceGetCudaComputeCapability(handle) == (8, 6)
    assert n.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [100_000, 300_000]
    assert n.nvmlDeviceGetSupportedPerformanceStates(handle) == [0, 8]
    assert n.nvmlDeviceGetMinMaxClockOfPState(handle, 2, 8) == (405, 405)
    assert n.nvmlDeviceGetClock(handle, 1, 3) == n.nvmlDeviceGetMaxClockInfo(handle, 1) == 1740
    n.nvmlDeviceSetPersistenceMode(handle, 1)
    assert (n.nvmlDeviceGetPersistenceMode(handle), board.persistence) == (1, True)
