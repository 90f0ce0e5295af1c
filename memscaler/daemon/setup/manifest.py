"""What setup has written, so that it finds it again: to renew it, and to remove that and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.files import read_own

PLACE = "var/lib/memscaler/setup.json"
SCHEMA = 1
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """files: path -> checksums that it may have. folders: those that were made. group, user: made by setup.

    started: the fingerprint of the installation that was started last.
    """

    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    group: bool = False
    user: bool = False
    started: str = ""

    def is_ours(self, path: str, content: bytes) -> bool:
        """Whether this is what setup has written there."""
        return checksum(content) in self.files.get(path, ())

    def text(self) -> str:
        """As it is written."""
        files = {path: list(sums) for path, sums in sorted(self.files.items())}
        told = {"schema": SCHEMA, "files": files, "folders": list(self.folders)}
        told |= {"group": self.group, "user": self.user, "started": self.started}
        return json.dumps(told, indent=1) + "\n"


def checksum(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def load(root: Path) -> Manifest | None:
    """None: setup has written nothing. Raise MemscalerError if it cannot be read: then nobody knows what is ours."""
    path = root / PLACE
    try:
        told = json.loads(read_own(path, MOST_BYTES))
        files = {str(name): tuple(map(str, sums)) for name, sums in told["files"].items()}
        folders = tuple(map(str, told["folders"]))
        _check_paths((*files, *folders))
        return Manifest(files, folders, bool(told["group"]), bool(told.get("user")), str(told["started"]))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise PermissionMissing(f"{path}: {error.strerror}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = f"look at the files by hand, then remove {path}"
        raise MemscalerError(f"{path} is damaged: {error}", hint=hint) from error


def _check_paths(names: Iterable[str]) -> None:
    """Raise ValueError for one that setup would not have written."""
    for name in names:
        if not name.startswith("/") or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is no path of setup")
