"""What can be wrong with a knob of a process. One line and a hint each, as all of memscaler's errors."""

from __future__ import annotations

from memscaler.core.errors import MemscalerError


class KnobError(MemscalerError):
    """A knob could not be read or turned; which of the leaves says what that means."""


class Gone(KnobError):
    """The process has ended, or has left that GPU or cgroup: there is nothing to turn, and nothing to undo."""


class Refused(KnobError):
    """The kernel or the driver has said no. code: an errno, or the driver's NV_STATUS.

    changed: it keeps the new value all the same (GVM stores it before it tries): undo it.
    """

    def __init__(self, message: str, *, code: int = 0, changed: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.changed = changed


class NotAllowed(Refused):
    """Only root, or a unit with the right capabilities, may do that."""

    exit_code = 4
    hint = "run as root, or see docs/gpuctl.md for what the unit needs"


class Late(KnobError):
    """It has not returned in time, and goes on in a thread of its own: nobody knows yet how it ends."""


class Unsupported(KnobError):
    """That cannot be done here, and the message says why."""

    exit_code = 69
