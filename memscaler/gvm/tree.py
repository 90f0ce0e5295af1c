"""GVM's directory in debugfs: who is on which GPU, what is set on him, and how to set it.

    ROOT/nvidia-uvm/processes/TID/NUMBER/{memory.limit,memory.current,memory.swap.current,compute.priority,
                                          compute.freeze,gcgroup.stat}

TID is the thread that opened the driver, mostly but not always its process's first; NUMBER counts GPUs in the order of
their first use, in steps of 8. Entries vanish at any moment: when a process ends, and when it lets go of a GPU. Then
they come again with the driver's defaults. Any call here may wait for the driver, which may be moving gigabytes out of
a GPU: nothing that must be quick may call it, but `write_knob` of a freeze.
See https://github.com/ovg-project/gvm-nvidia-driver-modules.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from memscaler.config.gpuctl import Gvm
from memscaler.core.gpuctl import GvmReading, Knob
from memscaler.core.knobs import BEYOND_README, PER_GPU, RANGES
from memscaler.gvm.errors import Gone, NotAllowed, Refused
from memscaler.gvm.processes import process_of

KNOBS = tuple(knob for knob in Knob if knob in PER_GPU)

_CURRENT, _SWAP, _STAT = "memory.current", "memory.swap.current", "gcgroup.stat"
_READ_BYTES = 4096
_VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EIO, errno.ENODEV})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LINK = re.compile(r"(?:UVM-)?(GPU-[0-9a-fA-F-]+)(?:/\d+)?")
_NUMBER = re.compile(r"\d{1,20}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory: a process on a GPU. pid: of tid's process, or tid if that cannot be told (the thread has ended).

    uuid: "" if nobody knows which GPU that is.
    """

    pid: int
    tid: int
    number: int
    uuid: str
    path: Path


@dataclass(frozen=True, slots=True)
class Tree:
    """Where GVM is, or would be."""

    gvm: Gvm

    @property
    def processes(self) -> Path:
        """The directory of all processes: GVM is there if this is."""
        return self.gvm.root / "nvidia-uvm" / "processes"

    def why_not(self) -> str:
        """Why there is no GVM, a sentence; "" if it is there (A1)."""
        try:
            with os.scandir(self.processes):
                return ""
        except OSError as error:
            if error.errno in _DENIED:
                return f"{self.processes} may only be looked at by root"
            if error.errno not in _VANISHED:
                return f"{self.processes} cannot be read: {error.strerror}"
        if not _has_entries(self.gvm.root):
            return f"nothing is mounted at {self.gvm.root}, so GVM's driver cannot be seen"
        return f"GVM's driver is not loaded: there is no {self.processes}"

    def uuid(self, number: int) -> str:
        """Of the GPU of the directory with this number: by the driver's own table, else as configured (A2)."""
        link = self.gvm.proc / "driver/nvidia-uvm/gpus" / str(number + 1)
        try:
            told = _LINK.fullmatch(str(link.readlink()))
        except OSError:
            told = None
        return told[1] if told else self.gvm.gpu_map.get(number, "")

    def entries(self, pids: Collection[int] | None = None) -> tuple[Entry, ...]:
        """All that are there now, of these processes only if given; () without GVM. Vanished ones are left out."""
        found, uuids = [], dict[int, str]()
        for tid, path in _numbered(self.processes):
            pid = process_of(tid, self.gvm.proc) or tid
            if pids is not None and pid not in pids:
                continue
            for number, folder in _numbered(path):
                if number not in uuids:
                    uuids[number] = self.uuid(number)
                found.append(Entry(pid, tid, number, uuids[number], folder))
        return tuple(found)

    def reading(self, entry: Entry) -> GvmReading:
        """All that it tells. What cannot be read is None. name is left "". Raise Gone if nothing can be."""
        knobs = {knob: _number_or_none(entry.path / knob) for knob in KNOBS}
        current, swap = (_number_or_none(entry.path / name) for name in (_CURRENT, _SWAP))
        stat = _stat(entry.path / _STAT)
        if not stat and current is swap is None and not any(value is not None for value in knobs.values()):
            raise Gone(f"process {entry.pid} has left GPU {entry.uuid or entry.number}")
        return GvmReading(
            entry.pid,
            entry.tid,
            entry.number,
            entry.uuid,
            memory_current_bytes=current,
            memory_limit_bytes=knobs[Knob.MEMORY_LIMIT],
            swap_bytes=swap,
            compute_priority=knobs[Knob.COMPUTE_PRIORITY],
            compute_freeze=knobs[Knob.COMPUTE_FREEZE],
            kernels_submitted=stat.get("nr_submitted_kernels"),
            kernels_ended=stat.get("nr_ended_kernels"),
            kernels_pending=stat.get("nr_pending_kernels"),
        )

    def readings(self, pids: Collection[int] | None = None) -> tuple[GvmReading, ...]:
        """Of all entries, of these processes only if given."""
        found = []
        for entry in self.entries(pids):
            try:
                found.append(self.reading(entry))
            except Gone:
                continue
        return tuple(found)


# ---- files ----------------------------------------------------------------------------------------------------------


def read_knob(path: Path | str, knob: Knob) -> int:
    """What is set there: of GVM's directory for a process on a GPU. NO_LIMIT: none. Raise KnobError."""
    file = f"{path}/{knob}"
    try:
        return parse_number(_read(file))
    except OSError as error:
        _raise(error, file)
    except ValueError as error:
        raise Refused(f"{file}: {error}") from error


def write_knob(path: Path | str, knob: Knob, value: int) -> None:
    """Set it, and see that it is so. Raise KnobError. memory.limit may take seconds."""
    lowest, highest = RANGES[knob]
    if not lowest <= value <= (BEYOND_README if knob is Knob.COMPUTE_PRIORITY else highest):
        raise Refused(f"{knob} is {lowest} to {highest}, not {value}", code=errno.EINVAL)
    data = b"%d\n" % value
    file = f"{path}/{knob}"
    try:
        status = _write(file, data)
    except OSError as error:
        if knob is Knob.COMPUTE_PRIORITY and error.errno == errno.EINVAL:  # it is in range: GVM has it stored already
            raise Refused(f"{file}: the driver refuses {value}", code=errno.EINVAL, changed=True) from error
        _raise(error, file)
    if status != len(data):  # what the driver's firmware says comes out of write(2) as it is (A5)
        raise Refused(f"{file}: the driver says NV_STATUS {status:#x} to {value}", code=status, changed=True)
    if knob is not Knob.COMPUTE_FREEZE and (found := read_knob(path, knob)) != value:
        raise Refused(f"{file}: {value} was written, and it says {found}", changed=True)


def parse_number(text: str) -> int:
    """A file with one number (A4). Raise ValueError."""
    word = text.removesuffix("\n")
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{word[:40]!r} is no number")
    return int(word)


def parse_stat(text: str) -> dict[str, int]:
    """gcgroup.stat: "nr_pending_kernels: 5" in each line. Keys that nobody knows are kept, odd lines are not (A4)."""
    found = {}
    for line in text.splitlines():
        key, colon, word = line.partition(":")
        if colon and _NUMBER.fullmatch(word.strip()):
            found[key.strip()] = int(word)
    return found


def _write(file: str, data: bytes) -> int:
    """One write(2) to a file that was just opened, and what that returned."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def _read(file: str) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _READ_BYTES).decode("ascii", "replace")
    finally:
        os.close(fd)


def _raise(error: OSError, file: str) -> NoReturn:
    code = error.errno or 0
    if code in _VANISHED and not (code == errno.EIO and os.path.exists(file)):  # noqa: PTH110 - file is text
        raise Gone(f"{file} is there no more") from error
    if code in _DENIED:
        raise NotAllowed(f"{file}: {error.strerror}", code=code) from error
    raise Refused(f"{file}: {error.strerror}", code=code) from error


def _number_or_none(file: Path) -> int | None:
    try:
        return parse_number(_read(str(file)))
    except (OSError, ValueError):
        return None


def _stat(file: Path) -> Mapping[str, int]:
    try:
        return parse_stat(_read(str(file)))
    except OSError:
        return {}


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The directories whose names are numbers, by number; none if it has vanished, or may not be looked at."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.name.isascii() and each.name.isdecimal()]
    except OSError:
        return []
    return sorted((int(name), folder / name) for name in names)


def _has_entries(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
