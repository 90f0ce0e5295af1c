"""From `kill -9` of the daemon to the return of the driver call that wakes the last of three parked boards."""

from __future__ import annotations

import os
import signal
import time

from bench.figures import Figure, spread
from bench.governors import governor_on, wait_awake, wait_parked
from tests.governor import alive, eventually, listener

BOARDS = "a40,p40,a100"
UNDO = ("nvmlDeviceResetMemoryLockedClocks", "nvmlDeviceResetGpuLockedClocks", "NvAPI_GPU_SetForcePstate")
LIMIT_MS = 200.0


def restore_ms() -> float:
    """One death, by the simulator's call log."""
    with listener() as server, governor_on(server, BOARDS) as governor:
        wait_parked(governor)
        time.sleep(0.3)  # everything has settled
        driver, guardian_pid = governor.driver, governor.guardian_pid
        mark = driver.log_mark()
        killed_ns = time.monotonic_ns()
        os.kill(governor.pid, signal.SIGKILL)
        wait_awake(governor, within_s=10)
        eventually(lambda: not alive(guardian_pid), what="the guardian's end")
        calls = [call for call in driver.call_log(UNDO, after=mark) if call.code == 0]
        assert {call.gpu for call in calls} == {0, 1, 2}, calls
        assert governor.pid not in {call.pid for call in calls}
        return max(call.return_ns or 0 for call in calls) / 1e6 - killed_ns / 1e6


def bench(*, quick: bool) -> list[Figure]:
    """Median and maximum."""
    values = [restore_ms() for _ in range(5 if quick else 20)]
    return spread("kill -9 -> every board awake", values, "ms", (LIMIT_MS, LIMIT_MS))
