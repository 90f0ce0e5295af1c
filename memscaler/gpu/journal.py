"""The journal: which lever is applied to which GPU, on disk before the driver is called.

Locks outlive the process that set them. One small file per GPU says what is to be undone, whoever comes to undo it.
A file is replaced as a whole, so a reader never sees half of one; what it cannot read means "undo everything".
"""

from __future__ import annotations

import fnmatch
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from memscaler.core.errors import PermissionMissing
from memscaler.core.snapshot import Identity
from memscaler.files import read_own

UNKNOWN_LEVER = "unknown"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PATTERN = "GPU-*.json"
MOST_BYTES = 64 * 1024  # of an entry; those we write have 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One lever that is applied, or about to be. at: seconds since 1970; target: MHz or a performance state.

    pid: the process that wrote this, 0 if nobody knows.
    """

    uuid: str
    pci_bus_id: str
    lever: str
    target: int
    boot_id: str
    at: float
    pid: int = 0


class Journal:
    """The entries in one directory, which is made if it is missing."""

    def __init__(self, directory: Path | str, boot_id: str | None = None) -> None:
        self.directory = Path(directory)
        self._boot_id = BOOT_ID.read_text().strip() if boot_id is None else boot_id

    def record(self, gpu: Identity, lever: str, target: int) -> Entry:
        """Write down that this lever is about to be applied. Raise OSError if it cannot be; then do not apply it."""
        entry = Entry(gpu.uuid, gpu.pci_bus_id, lever, target, self._boot_id, time.time(), os.getpid())
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o755)  # whatever the umask, like the files below
        path = self._path(gpu.uuid)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)  # `memscaler gpus` reads it without root
            json.dump(asdict(entry), file)
        draft.replace(path)
        return entry

    def release(self, uuid: str) -> None:
        """Forget it: the lever is undone."""
        self._path(uuid).unlink(missing_ok=True)

    def release_entry(self, entry: Entry) -> None:
        """Forget this very entry, not one that somebody has written meanwhile."""
        if self.entry(entry.uuid) == entry:
            self.release(entry.uuid)

    def entries(self) -> tuple[Entry, ...]:
        """What is applied. Entries of an earlier boot are void: no lock survives a reboot.

        Raise PermissionMissing if the directory may not be read: that is not the same as empty.
        """
        try:
            names = sorted(path.name for path in self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except PermissionError as error:
            raise PermissionMissing(f"cannot read {self.directory}") from error
        found = (self._read(self.directory / name) for name in names if fnmatch.fnmatch(name, PATTERN))
        return tuple(entry for entry in found if entry is not None and entry.boot_id == self._boot_id)

    def entries_of(self, pid: int | None) -> tuple[Entry, ...]:
        """Those that a process wrote; of any for None."""
        return tuple(entry for entry in self.entries() if pid in (None, entry.pid))

    def entry(self, uuid: str) -> Entry | None:
        return next((entry for entry in self.entries() if entry.uuid == uuid), None)

    def _read(self, path: Path) -> Entry | None:
        try:
            found = json.loads(read_own(path, MOST_BYTES))
            return Entry(
                uuid=path.stem,
                pci_bus_id=str(found["pci_bus_id"]),
                lever=str(found["lever"]),
                target=int(found["target"]),
                boot_id=str(found["boot_id"]),
                at=float(found["at"]),
                pid=int(found.get("pid", 0)),
            )
        except FileNotFoundError:  # released since the directory was listed
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return Entry(path.stem, "", UNKNOWN_LEVER, 0, self._boot_id, 0.0)

    def _path(self, uuid: str) -> Path:
        return self.directory / f"{uuid}.json"
