"""Leases: what operators have asked for until some time, or until somebody dies. They survive a restart of the daemon.

A lease keeps GPUs awake. Its end is kept in CLOCK_BOOTTIME, which goes on while the machine sleeps: two hours are two
hours of the operator's day. The file is in the runtime directory, so a reboot forgets it, and it names its boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memscaler.core.model import FOR_EVER_NS, SECOND_NS
from memscaler.files import read_own
from memscaler.gpu.journal import BOOT_ID
from memscaler.kernel.processes import start_time

FILE = "leases.json"
HOLD, PAUSE, TIED = "hold", "pause", "tied"
MAX_LEASES = 256
MAX_REASON = 200
LATEST_S = 1e9  # no lease is for 30 years
MOST_BYTES = 4 << 20  # of the file


@dataclass(frozen=True, slots=True)
class Lease:
    """One of them.

    kind: "hold"; "tied" (a hold that ends with a process); "pause" (every GPU, those that come later too).
    gpus: UUIDs; none: all. owner: who asked, for people. expires_s: CLOCK_BOOTTIME in seconds, None: when it is ended.
    pid, pid_started: of a tied one's process, and that process's start time (proc(5), field 22).
    """

    id: str
    kind: str
    gpus: tuple[str, ...]
    owner: str
    reason: str
    expires_s: float | None = None
    pid: int = 0
    pid_started: int = 0

    def covers(self, gpu: str) -> bool:
        """True if it keeps this GPU awake."""
        return not self.gpus or gpu in self.gpus

    def left_s(self) -> float | None:
        """None: no end is known."""
        return None if self.expires_s is None else max(0.0, self.expires_s - now_s())

    def expires_ns(self) -> int:
        """In CLOCK_MONOTONIC, as the governor counts; right until the machine is suspended."""
        left_s = self.left_s()
        return FOR_EVER_NS if left_s is None else time.monotonic_ns() + round(left_s * SECOND_NS)

    def is_over(self) -> bool:
        """True if its time is up, or its process is gone."""
        if self.expires_s is not None and self.expires_s <= now_s():
            return True
        return self.kind == TIED and start_time(self.pid) != self.pid_started


class Leases:
    """All that are in force. A new one is on disk before it is known. Used by the loop's thread.

    One that ends does so whether that can be written down or not; `write_again` tries anew.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._boot_id = BOOT_ID.read_text().strip()
        self._leases: dict[str, Lease] = {}
        self._unwritten = False
        self.problem = ""
        """Why what was there could not be taken over; "" if it could."""
        self._load()

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def get(self, lease_id: str) -> Lease | None:
        return self._leases.get(lease_id)

    def add(self, kind: str, gpus: Iterable[str], owner: str, reason: str, for_s: float | None, pid: int = 0) -> Lease:
        """A new one. Raise OSError if it cannot be written down, ValueError if there are too many."""
        if len(self._leases) >= MAX_LEASES:
            raise ValueError(f"there are {MAX_LEASES} leases already")
        lease = Lease(
            secrets.token_hex(4),
            kind,
            tuple(gpus),
            owner,
            reason[:MAX_REASON],
            None if for_s is None else now_s() + for_s,
            pid,
            start_time(pid) or 0 if pid else 0,
        )
        leases = {**self._leases, lease.id: lease}
        self._write(leases)
        self._leases = leases
        return lease

    def end(self, ids: Iterable[str]) -> tuple[Lease, ...]:
        """Those that were in force."""
        ended = {lease_id: self._leases[lease_id] for lease_id in ids if lease_id in self._leases}
        if ended:
            self._keep({lease_id: lease for lease_id, lease in self._leases.items() if lease_id not in ended})
        return tuple(ended.values())

    def forget_gpus(self, gone: Iterable[str], of: Iterable[str] | None = None) -> None:
        """These GPUs are not held any more, by the leases of these ids or by none at all."""
        without, concerned = set(gone), None if of is None else set(of)
        kept = {}
        for lease in self:
            if not lease.gpus or (concerned is not None and lease.id not in concerned):
                kept[lease.id] = lease
            elif gpus := tuple(gpu for gpu in lease.gpus if gpu not in without):
                kept[lease.id] = replace(lease, gpus=gpus)
        if kept != self._leases:
            self._keep(kept)

    def next_end_ns(self) -> int:
        """When to look for one that is over, in CLOCK_MONOTONIC; 0: no time is known."""
        return min((lease.expires_ns() for lease in self if lease.expires_s is not None), default=0)

    # ---- the file -------------------------------------------------------------------------------------------------

    def _keep(self, leases: Mapping[str, Lease]) -> None:
        self._leases, self._unwritten = dict(leases), True
        self.write_again()

    def write_again(self) -> None:
        """What could not be written down when it happened."""
        if self._unwritten:
            with contextlib.suppress(OSError):
                self._write(self._leases)

    def _write(self, leases: Mapping[str, Lease]) -> None:
        document = {"boot_id": self._boot_id, "leases": [asdict(lease) for lease in leases.values()]}
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(document, file)
        draft.replace(self._path)
        self._unwritten = False

    def _load(self) -> None:
        try:
            found = json.loads(read_own(self._path, MOST_BYTES))
            if found["boot_id"] == self._boot_id:
                leases = [_read(entry) for entry in found["leases"][:MAX_LEASES]]
                self._leases = {lease.id: lease for lease in leases if not lease.is_over()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self.problem = f"{self._path}: {type(error).__name__}: {error}"


def now_s() -> float:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read(entry: Mapping[str, Any]) -> Lease:
    lease = Lease(
        str(entry["id"]),
        str(entry["kind"]),
        tuple(str(gpu) for gpu in entry["gpus"]),
        str(entry["owner"]),
        str(entry["reason"])[:MAX_REASON],
        None if entry["expires_s"] is None else float(entry["expires_s"]),
        int(entry["pid"]),
        int(entry["pid_started"]),
    )
    if lease.kind not in (HOLD, PAUSE, TIED) or not (lease.expires_s is None or abs(lease.expires_s) < LATEST_S):
        raise ValueError(f"{entry!r} is no lease")
    return lease
