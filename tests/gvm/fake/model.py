"""What GVM's patched driver knows and answers, without a file system: kernel-open/nvidia-uvm/gvm_debugfs.c, in Python.

Names as in the driver: a *space* is an open /dev/nvidia-uvm, it belongs to the thread that opened it; a *group* is what
GVM keeps for one such thread id and one GPU; a *channel* is something that a freeze or a priority is applied to, once.
"""

from __future__ import annotations

import errno
import mmap
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

NO_LIMIT = 2**64 - 1
EVICTION_BYTES_PER_S = 3.4e9  # what GVM's authors measured for stock UVM
SLOT = 8  # UVM_PARENT_ID_MAX_SUB_PROCESSORS: the second GPU is "8"
MODES = {
    "memory.limit": 0o644,
    "memory.current": 0o444,
    "memory.swap.current": 0o444,
    "compute.priority": 0o644,
    "compute.freeze": 0o644,
    "gcgroup.stat": 0o444,
}


class Work:
    """A channel's work, shared with the process that does it: numbers in a mapped file.

    ended: kernels; last_ns: when the last one ended, on the monotonic clock; submitted; off: 1 while the GPU must not
    run them; ready: the process has begun; counted: by GVM's layer in the process, which does not see them all.
    """

    FIELDS = ("ended", "last_ns", "submitted", "off", "ready", "counted")

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    @classmethod
    def create(cls, path: Path) -> Work:
        path.write_bytes(bytes(4096))
        return cls(path)

    def __getattr__(self, name: str) -> int:
        if name not in Work.FIELDS:
            raise AttributeError(name)
        return int(struct.unpack_from("Q", self._map, 8 * Work.FIELDS.index(name))[0])

    def put(self, name: str, value: int) -> None:
        struct.pack_into("Q", self._map, 8 * Work.FIELDS.index(name), value)


@dataclass(slots=True)
class Channel:
    """Registered with the GPU, and what was last applied to it."""

    work: Work | None = None
    frozen: int = 0
    priority: int = 8

    def apply_freeze(self, value: int) -> None:
        self.frozen = value
        if self.work is not None:
            self.work.put("off", value)


@dataclass(slots=True)
class Group:
    """One directory <tid>/<number>."""

    limit: int = NO_LIMIT
    current: int = 0
    swap: int = 0
    priority: int = 8
    freeze: int = 0
    registered: int = 0
    writers: int = 0  # in a write of memory.limit
    gone: bool = False  # its dentry
    channels: list[Channel] = field(default_factory=list)
    submitted: int = 0  # beside what its channels' processes tell
    ended: int = 0


@dataclass(slots=True)
class Space:
    """All that belongs to one thread id."""

    opened: int = 0
    groups: dict[int, Group] = field(default_factory=dict)
    ghost: bool = False  # the dentries are there, the va_space is not: a moment of every end


@dataclass(slots=True)
class Trap:
    """What the next operations on a path shall do instead of, or after, what they usually do.

    on: list, look (lookup, stat), open, read, write. path: shell wildcards, of "<tid>/<number>/<file>". error: the
    errno to give; status: an NV_STATUS that write(2) shall return though the value was stored; vanish: this thread
    id's entries go after it; delay_s: first.
    """

    on: str
    path: str
    times: int = 1
    error: int = 0
    status: int = 0
    vanish: int = 0
    delay_s: float = 0.0


class Positive(Exception):
    """write(2) shall return this number, whatever was written."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def parse_number(data: bytes) -> int:
    """As kstrtoul reads it, base 10; OSError as the kernel."""
    if len(data) >= 32:
        raise OSError(errno.EINVAL, "too long")
    text = data.split(b"\0", 1)[0].removeprefix(b"+")
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    if not digits:
        raise OSError(errno.EINVAL, "no number")
    if int(digits) > NO_LIMIT:
        raise OSError(errno.ERANGE, "too large")
    if text[len(digits) :] not in (b"", b"\n"):
        raise OSError(errno.EINVAL, "more than a number")
    return int(digits)


class Model:
    """The driver's state. Every method may be called from any thread."""

    def __init__(self, named: Callable[[int, str], None] = lambda _number, _uuid: None) -> None:
        """named: called when a GPU got its number."""
        self.spaces: dict[int, Space] = {}
        self.slots: list[str] = []
        self.traps: list[Trap] = []
        self.log: list[tuple[int, int, int, str, str]] = []  # monotonic ns, tid, number, file, what was written
        self.eviction_bytes_per_s = EVICTION_BYTES_PER_S
        self._named = named
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)

    # ---- what processes do

    def open_space(self, tid: int) -> None:
        with self._lock:
            space = self.spaces.setdefault(tid, Space())
            if space.opened == 0:
                space.ghost = False
            space.opened += 1

    def close_space(self, tid: int, registered: list[int]) -> None:
        """An open file is closed: by the process, or by the kernel at its end."""
        for number in registered:
            self.unregister(tid, number)
        with self._lock:
            space = self.spaces.get(tid)
            if space is None:
                return
            space.opened -= 1
            if space.opened <= 0:
                self._remove(tid)

    def number_of(self, uuid: str) -> int:
        """A GPU's number: its slot is the first free one when it was first used by anybody."""
        with self._lock:
            if uuid not in self.slots:
                self.slots.append(uuid)
                self._named(SLOT * (len(self.slots) - 1), uuid)
            return SLOT * self.slots.index(uuid)

    def register(self, tid: int, number: int) -> None:
        with self._lock:
            self.spaces[tid].groups.setdefault(number, Group()).registered += 1

    def unregister(self, tid: int, number: int) -> None:
        with self._lock:
            space = self.spaces.get(tid)
            group = space.groups.get(number) if space else None
            if space is None or group is None:
                return
            while group.writers:  # va_space_destroy waits for them
                self._quiet.wait(0.05)
            group.registered -= 1
            if group.registered <= 0:
                group.gone = True
                space.groups.pop(number, None)

    def channel(self, tid: int, number: int, work: Work | None) -> None:
        """A new channel group: it inherits nothing."""
        with self._lock:
            self.spaces[tid].groups[number].channels.append(Channel(work))

    def allocate(self, tid: int, number: int, count: int) -> None:
        """Managed memory; what is above the limit lies in the host's."""
        with self._lock:
            group = self.spaces[tid].groups[number]
            whole = group.current + group.swap + count
            group.current = min(whole, group.limit)
            group.swap = whole - group.current

    def launch(self, tid: int, number: int, submitted: int, ended: int) -> None:
        with self._lock:
            group = self.spaces[tid].groups[number]
            group.submitted += submitted
            group.ended += ended

    # ---- what tests do

    def vanish(self, tid: int) -> None:
        with self._lock:
            self._remove(tid)

    def ghost(self, tid: int) -> None:
        with self._lock:
            self.spaces[tid].ghost = True

    def unload(self) -> None:
        with self._lock:
            for tid in list(self.spaces):
                self._remove(tid)

    def _remove(self, tid: int) -> None:
        space = self.spaces.pop(tid, None)
        if space is not None:
            for group in space.groups.values():
                group.gone = True

    def spring(self, on: str, path: str) -> Trap | None:
        """The trap that is set for this operation, once less; its delay is over."""
        with self._lock:
            trap = next((trap for trap in self.traps if trap.on == on and fnmatch(path, trap.path)), None)
            if trap is not None:
                trap.times -= 1
                if trap.times <= 0:
                    self.traps.remove(trap)
        if trap is None:
            return None
        time.sleep(trap.delay_s)
        if trap.error:
            raise OSError(trap.error, "trap")
        return trap

    def after(self, trap: Trap | None) -> None:
        """What a trap does when the operation is done."""
        if trap is not None and trap.vanish:
            self.vanish(trap.vanish)

    # ---- what the files answer

    def tids(self) -> list[int]:
        with self._lock:
            return sorted(self.spaces, key=lambda tid: hash((tid, "order")))  # the driver's order is a hash table's

    def group(self, tid: int, number: int) -> Group:
        with self._lock:
            try:
                return self.spaces[tid].groups[number]
            except KeyError:
                raise OSError(errno.ENOENT, "no such group") from None

    def read(self, tid: int, number: int, group: Group, name: str) -> str:
        """The text of one file that was opened as that of this group."""
        with self._lock:
            self._alive(tid, number, group)
            if name == "gcgroup.stat":
                counted = [each.work for each in group.channels if each.work and each.work.counted]
                submitted = group.submitted + sum(work.submitted for work in counted)
                ended = group.ended + sum(work.ended for work in counted)
                return (
                    f"nr_submitted_kernels: {submitted}\nnr_ended_kernels: {ended}\n"
                    f"nr_pending_kernels: {max(0, submitted - ended)}\n"
                )
            value = {
                "memory.limit": group.limit,
                "memory.current": group.current,
                "memory.swap.current": group.swap,
                "compute.priority": group.priority,
                "compute.freeze": group.freeze,
            }[name]
            return f"{value}\n"

    def write(self, tid: int, number: int, group: Group, name: str, data: bytes) -> None:
        """OSError or Positive, if it does not simply succeed."""
        with self._lock:
            self.log.append((time.monotonic_ns(), tid, number, name, data.decode("latin-1")))
            if group.gone:
                raise OSError(errno.EIO, "its dentry is gone")
        if MODES[name] == 0o444:
            raise OSError(errno.EINVAL, "no write handler")
        value = parse_number(data)
        with self._lock:
            self._alive(tid, number, group)
        trap = self.spring("write", f"{tid}/{number}/{name}")
        status = trap.status if trap else 0
        if name == "memory.limit":
            self._limit(group, value)
        elif name == "compute.priority":
            self._priority(group, value, status)
        else:
            self._freeze(group, value, status)
        self.after(trap)

    def _alive(self, tid: int, number: int, group: Group) -> None:
        space = self.spaces.get(tid)
        if group.gone or space is None or space.groups.get(number) is not group:
            raise OSError(errno.EIO, "its dentry is gone")
        if space.ghost:
            raise OSError(errno.ENOENT, "no va_space")

    def _limit(self, group: Group, value: int) -> None:
        """Eviction is synchronous; the limit is stored when it is done."""
        with self._lock:
            over = max(0, group.current - value)
            group.writers += 1
        try:
            time.sleep(over / self.eviction_bytes_per_s)
        finally:
            with self._lock:
                group.writers -= 1
                moved = min(over, group.current)
                group.current -= moved
                group.swap += moved
                group.limit = value
                self._quiet.notify_all()

    def _priority(self, group: Group, value: int, status: int) -> None:
        if value > 16:
            raise OSError(errno.EINVAL, "0..16")
        with self._lock:
            group.priority = value  # also when what follows fails
            if status:
                raise OSError(errno.EINVAL, "RM refused")
            for channel in group.channels:
                channel.priority = value

    def _freeze(self, group: Group, value: int, status: int) -> None:
        if value > 1:
            raise OSError(errno.EINVAL, "0 or 1")
        with self._lock:
            group.freeze = value  # also when what follows fails
            if status:
                raise Positive(status)
            for channel in group.channels:
                channel.apply_freeze(value)
