"""What a check is, and what it may come to.

A check never says FAIL about what it could not see: without root, or when somebody does not answer, it says UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memscaler.daemon.doctor.context import Context

PAGE = "docs/troubleshooting.md"
DEADLINE_S = 5.0
DRIVER_DEADLINE_S = (
    8.0  # a GPU that hangs is given up after 5 s (gpu/inventory.py); the others are still to be told about
)
NO_DRIVER, SEE_DRIVER = "the driver cannot be asked about GPUs", "see MS-DRIVER-02"
NEEDS_ROOT = "inconclusive without root: sudo memscaler doctor"


class Result(StrEnum):
    """PASS: good. WARN: works, with less. FAIL: does not work. UNKNOWN: could not be seen."""

    PASS = "PASS"  # noqa: S105  # no password
    WARN = "WARN"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Verdict:
    """seen: one line. remedy: what to do, "" with PASS. subject: a GPU, a server; "": the machine."""

    result: Result
    seen: str
    remedy: str = ""
    subject: str = ""


Looked = Verdict | Iterable[Verdict]


@dataclass(frozen=True, slots=True)
class Check:
    """id: for ever the same. about: what it means, for docs/troubleshooting.md. probe: it does things, with --probe."""

    id: str
    title: str
    about: str
    look: Callable[[Context], Looked]
    deadline_s: float = DEADLINE_S
    probe: bool = False

    @property
    def docs(self) -> str:
        """Where more is told."""
        return f"{PAGE}#{self.id.lower()}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict of a check; one for all subjects of which the same is to be said."""

    id: str
    title: str
    subjects: tuple[str, ...]
    result: Result
    seen: str
    remedy: str
    docs: str


def passed(seen: str, subject: str = "") -> Verdict:
    """Good."""
    return Verdict(Result.PASS, seen, "", subject)


def warned(seen: str, remedy: str, subject: str = "") -> Verdict:
    """It works, with less than there could be."""
    return Verdict(Result.WARN, seen, remedy, subject)


def failed(seen: str, remedy: str, subject: str = "") -> Verdict:
    """It does not work."""
    return Verdict(Result.FAIL, seen, remedy, subject)


def unknown(seen: str, remedy: str = NEEDS_ROOT, subject: str = "") -> Verdict:
    """Nobody can tell."""
    return Verdict(Result.UNKNOWN, seen, remedy, subject)
