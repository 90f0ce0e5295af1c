"""One simulated GPU, seen and moved from outside: what is in force on it, who uses it, and what goes wrong on it."""

from __future__ import annotations

from dataclasses import dataclass

from memscaler.simulator.binding import Remote

_AUTOMATIC = 16  # NVAPI: the driver decides
_XID = 0x8  # nvmlEventTypeXidCriticalError
_DROPS_WHEN_IDLE = 1 << 7  # driver/state.h
_SHOWS_DISPLAY = 1 << 10


@dataclass(frozen=True, slots=True)
class Lock:
    """A clock lock in force, in MHz, after snapping to supported clocks."""

    low_mhz: int
    high_mhz: int


@dataclass(frozen=True, slots=True)
class Locks:
    """Everything that holds a board's clocks: None where there is no such lock."""

    memory_lock: Lock | None
    graphics_lock: Lock | None
    forced_pstate: int | None

    def __bool__(self) -> bool:
        return not (self.memory_lock is None and self.graphics_lock is None and self.forced_pstate is None)


class SimulatedBoard:
    """One board. Every property is read anew from the shared state, through the same C code that answers NVML."""

    def __init__(self, remote: Remote, index: int) -> None:
        self._remote = remote
        self.index = index

    def __repr__(self) -> str:
        return f"<{self.key} {self.index}: {self.memory_clock_mhz}/{self.graphics_clock_mhz} MHz, {self.power_w:.0f} W>"

    def _int(self, key: str) -> int:
        return int(self._remote.get(self.index, key))

    def _set(self, key: str, value: int) -> None:
        self._remote.set(self.index, key, value)

    # ---- identity

    @property
    def key(self) -> str:
        """The catalogue's name of the board: a40, p40, ..."""
        return self._remote.text(self.index, "key")

    @property
    def name(self) -> str:
        """The product name, as NVML reports it."""
        return self._remote.text(self.index, "name")

    @property
    def uuid(self) -> str:
        """GPU-..., always the same for the same board at the same index."""
        return self._remote.text(self.index, "uuid")

    @property
    def memory_bytes(self) -> int:
        """Size of the board's memory."""
        return self._remote.memory_bytes(self.index)

    @property
    def pci_bus_id(self) -> str:
        """As NVML prints it: 00000000:3B:00.0."""
        return f"{self._int('pci_domain'):08X}:{self._int('pci_bus'):02X}:00.0"

    # ---- what is in force now

    @property
    def memory_clock_mhz(self) -> int:
        """The memory clock that runs now; a change shows after its settle time."""
        return self._int("memory_mhz")

    @property
    def graphics_clock_mhz(self) -> int:
        """The graphics (SM) clock that runs now."""
        return self._int("graphics_mhz")

    @property
    def pstate(self) -> int:
        """0 (fastest) to 15."""
        return self._int("pstate")

    @property
    def power_w(self) -> float:
        """Instantaneous draw in watts (NVML's own reading is a one-second average on many boards)."""
        return self._remote.get(self.index, "power_mw") / 1000

    @property
    def energy_j(self) -> float:
        """Joules since the driver was loaded; also on boards whose NVML has no counter."""
        return self._remote.get(self.index, "energy_mj") / 1000

    @property
    def parked(self) -> bool:
        """True while the clocks that run are below those the board would choose by itself."""
        return bool(self._int("slow"))

    is_slow = parked

    @property
    def settling(self) -> bool:
        """True between a change of the clocks and its effect."""
        return bool(self._int("settling"))

    @property
    def memory_lock(self) -> Lock | None:
        """The memory clock lock in force."""
        return self._lock("memory_lock")

    @property
    def graphics_lock(self) -> Lock | None:
        """The graphics clock lock in force."""
        return self._lock("graphics_lock")

    @property
    def forced_pstate(self) -> int | None:
        """The P-state NVAPI forced, None when the driver decides."""
        forced = self._int("forced_pstate")
        return None if forced == _AUTOMATIC else forced

    @property
    def locks(self) -> Locks:
        """All locks; false when there is none."""
        return Locks(self.memory_lock, self.graphics_lock, self.forced_pstate)

    def _lock(self, name: str) -> Lock | None:
        high = self._int(f"{name}_max_mhz")
        return Lock(self._int(f"{name}_min_mhz"), high) if high else None

    @property
    def power_limit_w(self) -> float:
        """The power limit in force, in watts."""
        return self._int("limit_mw") / 1000

    @property
    def persistence(self) -> bool:
        """Persistence mode: without it the last client takes the locks with it."""
        return bool(self._int("persistence"))

    @property
    def switches_too_soon(self) -> int:
        """Memory clock switches closer together than NVML field 299 allows."""
        return self._int("mclk_too_soon")

    # ---- who uses it

    @property
    def utilization_percent(self) -> int:
        """Busy share: what was set, or the sum over the processes if that is more."""
        return self._int("utilization_percent")

    def set_utilization(self, percent: int, memory_percent: int = 0) -> None:
        """Make the board busy (0-100 %): maximum clocks within the locks, and the power that goes with them."""
        self._set("memory_utilization_percent", memory_percent)
        self._set("utilization_percent", percent)

    @property
    def context(self) -> bool:
        """Is a server resident that NVML does not list as a process."""
        return bool(self._int("context"))

    def set_context(self, resident: bool, used_bytes: int | None = None) -> None:  # noqa: FBT001
        """A resident server pins the clocks high; used_bytes defaults to 60 % of the memory."""
        used = int(self.memory_bytes * 0.6) if used_bytes is None else used_bytes
        self._set("context_bytes", used if resident else 0)
        self._set("context", int(resident))

    def add_process(
        self, pid: int, used_bytes: int = 1 << 30, *, sm_percent: int = 0, kind: int = 0, name: str = ""
    ) -> None:
        """List a process (or change it). kind: 0 compute, 1 graphics, 2 MPS. It stays until removed, alive or not."""
        self._remote.put_process(self.index, pid, used_bytes, sm_percent, kind, name)

    def remove_process(self, pid: int) -> None:
        """Unlist a process. Raise SimulatorError if it is not there."""
        self._remote.drop_process(self.index, pid)

    @property
    def temperature_c(self) -> int:
        """Degrees Celsius; it is what was set, it does not follow the power."""
        return self._int("temperature_c")

    @temperature_c.setter
    def temperature_c(self, degrees: int) -> None:
        self._set("temperature_c", degrees)

    # ---- what kind of board it is; for before the first client

    def set_pci(self, *, bus: int, domain: int = 0) -> None:
        """Where it sits. Two domains with the same bus are ambiguous to NVAPI."""
        self._set("pci_domain", domain)
        self._set("pci_bus", bus)

    def set_settle(self, *, park_ms: float | None = None, wake_ms: float | None = None) -> None:
        """Milliseconds between a call and its effect on the clocks, downwards and upwards."""
        for key, value in (("settle_park_us", park_ms), ("settle_wake_us", wake_ms)):
            if value is not None:
                self._set(key, round(value * 1000))

    def set_mig(self, instances: int) -> None:
        """Switch MIG on with that many instances, or off with 0."""
        self._set("mig_instances", instances)

    def set_drops_when_idle(self, drops: bool) -> None:  # noqa: FBT001
        """Whether the clocks fall by themselves although a context is resident, as on many GeForce boards."""
        flags = self._int("flags")
        self._set("flags", flags | _DROPS_WHEN_IDLE if drops else flags & ~_DROPS_WHEN_IDLE)

    def set_display(self, active: bool) -> None:  # noqa: FBT001
        """Whether a screen hangs on it."""
        flags = self._int("flags")
        self._set("flags", flags | _SHOWS_DISPLAY if active else flags & ~_SHOWS_DISPLAY)

    def set_memory_switching(self, kind: int, min_interval_ms: int = 0) -> None:
        """NVML fields 298 (0 not supported, 1 deferred, 2 at run time) and 299."""
        self._set("mclk_switch_type", kind)
        self._set("mclk_min_interval_ms", min_interval_ms)

    # ---- what goes wrong

    def inject(
        self,
        symbol: str,
        *,
        code: int | None = None,
        delay_ms: int = 0,
        hang: bool = False,
        ignore: bool = False,
        after: int = 0,
        times: int | None = None,
    ) -> None:
        """Let a driver function (or "*") fail on this board, until cleared or `times` calls were struck.

        code: what it returns instead of working. delay_ms: how long it takes. hang: it does not return until the
        fault is cleared. ignore: it returns success and does nothing. after: so many calls are let through first.
        """
        number = -1 if symbol == "*" else self._remote.symbol(symbol)
        self._remote.inject(self.index, number, code, delay_ms, (hang, ignore), (after, times or 0))

    def clear_faults(self, symbol: str | None = None) -> None:
        """Remove this board's faults, and let hanging calls go on."""
        self._remote.clear(self.index, -1 if symbol is None else self._remote.symbol(symbol))

    def lose(self) -> None:
        """Fall off the bus: NVML answers 15 to everything about this board."""
        self._set("lost", 1)

    def restore(self) -> None:
        """Be back on the bus."""
        self._set("lost", 0)

    def xid(self, number: int = 79) -> None:
        """Report an Xid error as an NVML event."""
        self._remote.event(self.index, _XID, number)

    def event(self, kind: int, data: int = 0) -> None:
        """Report any NVML event type (0x4000 GPU unavailable, 0x8000 recovery action)."""
        self._remote.event(self.index, kind, data)
