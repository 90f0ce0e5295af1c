"""Several processes, one driver: what outlives whom, and real clients."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedDriver

INIT = "n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)\n"
LOCK = INIT + "n.nvmlDeviceSetMemoryLockedClocks(h, 405, 405)\n"


def test_a_lock_outlives_the_process_that_set_it(make, run):
    """While a server is resident the GPU stays initialised, and so does a lock."""
    driver = make("a40")
    run(driver, LOCK + "n.nvmlShutdown()")
    assert driver.boards[0].memory_clock_mhz == 405
    assert run(driver, INIT + "print(n.nvmlDeviceGetClockInfo(h, 2))").strip() == "405"


def test_a_lock_dies_with_the_last_client(make, run):
    """Nobody resident and no persistence: the last client takes the lock with it, however it ends."""
    polite, killed = make("a40", context=False), make("a40", context=False)
    run(polite, LOCK + "n.nvmlShutdown()")
    assert not polite.boards[0].locks
    with pytest.raises(subprocess.CalledProcessError):
        run(killed, LOCK + "os.kill(os.getpid(), 9)")
    assert not killed.boards[0].locks


def test_persistence_and_other_clients_keep_a_lock(make, run):
    """Persistence mode keeps it; so does any other open session."""
    persistent, shared = make("a40", context=False, persistence=True), make("a40", context=False)
    run(persistent, LOCK)
    assert persistent.boards[0].memory_lock is not None
    run(
        shared,
        LOCK
        + f"""
import subprocess
subprocess.run([sys.executable, "-c", {"import pynvml as n;" + LOCK!r}], check=True)
print(n.nvmlDeviceGetClockInfo(h, 2))
""",
    )
    assert shared.boards[0].memory_lock is None
    held = subprocess.Popen(
        [sys.executable, "-c", "import pynvml as n, time\n" + INIT + "print('in', flush=True); time.sleep(60)"],
        env={**os.environ, **shared.environment},
        stdout=subprocess.PIPE,
    )
    assert held.stdout.readline() == b"in\n"
    run(shared, LOCK)
    assert shared.boards[0].memory_lock is not None
    held.kill()
    held.wait()
    held.stdout.close()
    assert shared.boards[0].memory_lock is None


def test_leaving_context_takes_the_lock(make, run):
    """When the server goes and nobody else is there, the lock is forgotten."""
    driver = make("a40")
    run(driver, LOCK)
    driver.boards[0].set_context(False)
    assert (bool(driver.boards[0].locks), driver.boards[0].power_w) == (False, 18)


HAMMERS = """
import ctypes, random, signal
lib = ctypes.CDLL("libnvidia-ml.so.1")
def hammer():
    handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
    if lib.nvmlInit_v2() or lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)): os._exit(1)
    while True:
        if lib.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405) or lib.nvmlDeviceResetMemoryLockedClocks(handle): os._exit(1)
        if lib.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)): os._exit(1)
for _ in range(50):
    pids = [os.fork(), 0]
    if not pids[0]: hammer()
    pids[1] = os.fork()
    if not pids[1]: hammer()
    for pid in pids:
        time.sleep(0.002 + random.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
n.nvmlInit()
print(n.nvmlDeviceGetTotalEnergyConsumption(n.nvmlDeviceGetHandleByIndex(0)))
"""


def test_killed_at_any_instant(make, run):
    """A hundred processes killed inside of Set calls leave a state in which everything works and adds up."""
    driver = make("a40", "p40")
    board = driver.boards[0]
    for _ in range(2):
        before = board.energy_j
        assert before <= float(run(driver, HAMMERS)) / 1000 + 0.001 <= board.energy_j + 0.001
        assert (board.memory_clock_mhz, board.power_w) in ((405, 18), (7251, 80))
    board.set_context(False)
    assert not board.locks
    board.set_context(True)
    assert board.power_w == 80
    assert len(driver.call_log()) > 1000


def test_unprivileged_process(make, run):
    """With the rule "euid" only root may write, and everybody may read."""
    driver = make("a40", permission="euid")
    code = """
print(n.nvmlDeviceGetClockInfo(h, 2))
try: n.nvmlDeviceResetMemoryLockedClocks(h); print(0)
except n.NVMLError as e: print(e.value)
"""
    assert run(driver, INIT + code).split() == ["7251", "0"]
    # only then: the interpreter and its packages may lie where nobody else can read
    assert run(driver, INIT + "os.seteuid(65534)\n" + code).split() == ["7251", "4"]


def test_fork(make, run):
    """A forked child goes on with its parent's session, under its own pid."""
    driver = make("a40")
    run(
        driver,
        INIT + "pid = os.fork()\nn.nvmlDeviceSetMemoryLockedClocks(h, 405, 405)\nif pid: os.wait()\nelse: os._exit(0)",
    )
    assert len({record.pid for record in driver.call_log("nvmlDeviceSetMemoryLockedClocks")}) == 2


NVAPI = """
import ctypes
api = ctypes.CDLL("libnvidia-api.so.1"); query = api.nvapi_QueryInterface
query.restype, query.argtypes = ctypes.c_void_p, [ctypes.c_uint32]
u32, p = ctypes.c_uint32, ctypes.c_void_p
def f(id, *types): return ctypes.CFUNCTYPE(ctypes.c_int, *types)(query(id))
init, unload, enum = f(0x0150E828), f(0xD22BDD7E), f(0xE5AC921F, p, p)
force, current, bus = f(0x025BFB10, p, u32, u32), f(0x927DA4F6, p, p), f(0x1BE0B8E5, p, p)
def handles():
    out, count = (p * 64)(), u32()
    assert enum(out, ctypes.byref(count)) == 0
    return [p(v) for v in out[: count.value]]
def value(function, handle):
    out = u32(); code = function(handle, ctypes.byref(out)); return code or out.value
"""


def test_nvapi_forces_a_pstate(make, run):
    """P8 takes a P40 from 50 W to 10 W, NVML agrees at once, and 16 gives it back."""
    driver = make("p40")
    run(driver, NVAPI + "init(); assert force(handles()[0], 8, 0) == 0; unload()")
    board = driver.boards[0]
    assert (board.forced_pstate, board.memory_clock_mhz, board.pstate, board.power_w) == (8, 405, 8, 10)
    assert run(driver, INIT + "print(n.nvmlDeviceGetPerformanceState(h), n.nvmlDeviceGetPowerUsage(h))").split() == [
        "8",
        "10000",
    ]
    run(
        driver,
        NVAPI
        + "init(); g = handles()[0]; assert value(current, g) == 8; assert force(g, 16, 0) == 0; assert value(current, g) == 0",
    )
    assert (board.forced_pstate, board.power_w) == (None, 50)


def test_nvapi_answers(make, run):
    """NVAPI's codes: not initialised, unknown ids, bad levels and handles, boards that refuse."""
    said = run(
        make("p40", "h100", "t4", "rtx3090"),
        NVAPI
        + """
out, count = (p * 64)(), u32()
print(enum(out, ctypes.byref(count)), query(0x12345678), init(), init())
p40, h100, t4, gf = handles()
print(force(p40, 17, 0), force(p40, 5, 0), force(p40, 5, 2), force(p40, 5, 1), force(p40, 16, 0), force(p(1), 8, 0), force(h100, 8, 0), force(t4, 8, 0), force(gf, 8, 0))
text = ctypes.create_string_buffer(64); f(0x6C2D048C, ctypes.c_int, p)(-104, text); print(text.value.decode())
info = (u32 * 1829)(0x11C94); print(f(0x6FF81213, p, p)(p40, info), info[2], info[5], info[5 + 114])
info[0] = 1; print(f(0x6FF81213, p, p)(p40, info))
print(unload(), unload(), unload())
""",
    ).split()
    assert said[:13] == ["-4", "None", "0", "0", "-5", "-107", "0", "0", "0", "-8", "-8", "-104", "0"]
    assert said[13:] == ["NVAPI_NOT_SUPPORTED", "0", "2", "0", "8", "-9", "0", "0", "-4"]


def test_nvapi_order_and_ambiguous_bus(make, run):
    """NVAPI may list boards in another order, and has no PCI domain to tell two of them apart."""
    driver = make("a40", "p40", nvapi_reversed=True)
    show = NVAPI + "init(); print(*[value(bus, g) for g in handles()])"
    assert run(driver, show).split() == [str(0x86), str(0x3B)]
    driver.boards[1].set_pci(bus=0x3B, domain=1)
    assert run(driver, show).split() == [str(0x3B)] * 2
    assert (
        run(driver, INIT + "print(n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId('00000001:3B:00.0')))").strip()
        == "1"
    )


def test_nvapi_faults(make, run):
    """Injection, loss and mismatch reach NVAPI too."""
    driver = make("p40")
    driver.boards[0].inject("NvAPI_GPU_SetForcePstate", ignore=True, times=1)
    driver.boards[0].inject("NvAPI_GPU_SetForcePstate", code=-137, after=1)
    assert run(driver, NVAPI + "init(); g = handles()[0]; print(force(g, 8, 0), force(g, 8, 0))").split() == [
        "0",
        "-137",
    ]
    assert driver.boards[0].forced_pstate is None
    driver.set_mismatch(True)
    assert run(driver, NVAPI + "print(init())").strip() == "-1"


def test_nvitop_shows_the_boards(make):
    """The real nvitop runs on it, unchanged."""
    driver = make("a40", "p40")
    driver.boards[0].set_utilization(42)
    shown = subprocess.run(
        [sys.executable, "-m", "nvitop", "-1"],
        env={**os.environ, **driver.environment, "COLUMNS": "120"},
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
    assert "580.95.05" in shown
    assert re.search(r"A40.*3B:00\.0", shown)
    assert re.search(r"P40.*86:00\.0", shown)
    assert "42%" in shown


CLIENT = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
typedef int (*any)();
int main(void) {
    void *api = dlopen("libnvidia-api.so.1", RTLD_LAZY);
    void *(*query)(uint32_t) = (void *(*)(uint32_t))dlsym(api, "nvapi_QueryInterface");
    any enumerate = (any)query(0xe5ac921f), bus_id = (any)query(0x1be0b8e5), force = (any)query(0x025bfb10);
    any initialize = (any)query(0x0150e828), unload = (any)query(0xd22bdd7e);
    void *gpus[64];
    uint32_t count = 0, bus;
    char name[256];
    if (initialize() || nvmlInit_v2() || enumerate(gpus, &count)) return 1;
    for (uint32_t i = 0; i < count; i++) {
        nvmlDevice_t device;
        nvmlPciInfo_t pci;
        nvmlUtilization_t busy;
        unsigned celsius;
        int code = nvmlDeviceGetHandleByIndex_v2(i, &device);
        if (code) { puts(nvmlErrorString(code)); return 1; }
        if (nvmlDeviceGetPciInfo_v3(device, &pci) || bus_id(gpus[i], &bus) || pci.bus != bus) return 2;
        if (nvmlDeviceGetName(device, name, 256) || nvmlDeviceGetTemperature(device, 0, &celsius)) return 3;
        if (nvmlDeviceGetUtilizationRates(device, &busy)) return 4;
        printf("%s %u %u %d\n", name, celsius, busy.gpu, force(gpus[i], busy.gpu ? 16 : 8, 0));
    }
    return unload() || nvmlShutdown();
}
"""


def test_a_c_client(make, tmp_path):
    """A program like nvidia-pstated, linked against the library, forces idle boards to P8."""
    driver = make("p40", "a40")
    driver.boards[1].set_utilization(7)
    from memscaler.simulator.builder import _find_header

    (tmp_path / "client.c").write_text(CLIENT)
    subprocess.run(
        [
            "cc",
            "-w",
            "-std=gnu11",
            "-I",
            _find_header().parent,
            "-o",
            tmp_path / "client",
            tmp_path / "client.c",
            driver.library_dir / "libnvidia-ml.so.1",
            "-ldl",
        ],
        check=True,
    )
    shown = subprocess.run(
        [tmp_path / "client"], env=driver.environment, check=True, capture_output=True, text=True
    ).stdout
    assert shown.splitlines() == ["Tesla P40 34 0 0", "NVIDIA A40 34 7 0"]
    assert [board.forced_pstate for board in driver.boards] == [8, None]


def test_two_remotes_see_the_same(make):
    """A second remote control in the same or another process sees what the first one did."""
    driver = make("a40")
    with SimulatedDriver.attach(driver.state_path) as other:
        other.boards[0].set_utilization(50)
        assert driver.boards[0].utilization_percent == 50
        assert other.boards[0].uuid == driver.boards[0].uuid
        assert json.dumps(driver.environment).count(str(driver.state_path)) == 1
        assert Path(driver.environment["LD_LIBRARY_PATH"].split(":")[0]).is_dir()
