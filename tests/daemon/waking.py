"""How often a daemon wakes up, counted beside other tests of this kernel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from bench.processes import usage
from tests.governor import Governor

LOOKS_PER_S, WAKE_UPS_OF_A_LOOK = 2, 10  # memscaler/daemon/scout.py


def wake_ups(governor: Governor, act: Callable[[], None]) -> float:
    """Of the daemon during `act`, less what it may spend on the sockets that other tests here begin to listen on."""
    changed = listeners_changed(governor)
    time.sleep(3)  # clocks are read back, and sampled once more
    since_s, before = time.monotonic(), usage(governor.pid)
    act()
    switches = usage(governor.pid).since(before).switches
    looks = min(listeners_changed(governor) - changed, LOOKS_PER_S * (time.monotonic() - since_s) + 1)
    return switches - WAKE_UPS_OF_A_LOOK * looks


def listeners_changed(governor: Governor) -> float:
    """In every network namespace of this kernel."""
    found = re.search(r"^memscaler_listeners_changed_total (\S+)$", governor.metrics(), re.MULTILINE)
    assert found
    return float(found[1])
