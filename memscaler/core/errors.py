"""One tree of errors; each leaf carries the exit code and the hint that the command line prints.

Exit codes are documented API: 0 ok, 1 failed, 2 usage, 3 daemon not running, 4 no permission,
69 no usable kernel feature or GPU, 78 bad configuration.
"""

from __future__ import annotations

from collections.abc import Mapping


class MemscalerError(Exception):
    """Anything memscaler reports to a person: one line that says what is wrong, and a hint that says what to do."""

    exit_code = 1
    hint = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


def in_a_line(error: Exception) -> str:
    """With its hint, if it has one, where that has no line of its own."""
    hint = getattr(error, "hint", "")
    return f"{error} ({hint})" if hint else str(error)


class Failed(MemscalerError):
    """What was asked has been tried, and has failed. document: what is known of it, for programs."""

    def __init__(self, message: str, *, hint: str | None = None, document: Mapping[str, object] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.document = dict(document or {})


class UsageError(MemscalerError):
    """A wrong argument on the command line. Without a hint of its own it names the help of the command that was run."""

    exit_code = 2


class ConfigError(MemscalerError):
    """A wrong value or an unknown key in a configuration file or in the environment."""

    exit_code = 78


class DaemonRunning(MemscalerError):
    """Another memscaler governs this machine already; `pid` is its process."""

    hint = "stop it first (`systemctl stop memscaler`), or give this one another --runtime-dir in a test"

    def __init__(self, pid: str, *, hint: str | None = None) -> None:
        super().__init__(f"memscaler runs already (pid {pid})", hint=hint)
        self.pid = pid


class Calibrating(MemscalerError):
    """`memscaler calibrate` parks and wakes GPUs, beside nobody; `pid` is its process."""

    hint = "try again when it has ended"

    def __init__(self, pid: str) -> None:
        super().__init__(f"GPUs are being calibrated (pid {pid})")
        self.pid = pid


class DaemonNotRunning(MemscalerError):
    """Nobody answers at the control socket."""

    exit_code = 3
    hint = "start it: systemctl start memscaler, or sudo memscaler run ..."


class PermissionMissing(MemscalerError):
    """This process may not do what was asked."""

    exit_code = 4
    hint = "run as root: sudo memscaler ..."


class Unavailable(MemscalerError):
    """This machine lacks something that memscaler cannot work without."""

    exit_code = 69


class KernelUnavailable(Unavailable):
    """The kernel side could not be loaded."""


class SimulatorUnavailable(Unavailable):
    """The simulated driver could not be built or loaded."""


class GpuError(MemscalerError):
    """A driver call failed. `code` is the driver's own number (NVML positive, NVAPI negative)."""

    def __init__(self, message: str, *, code: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class GpuUnsupported(GpuError):
    """This GPU or driver does not offer the call (NVML 3 or 13; NVAPI -3, -104, -107)."""


class GpuPermission(GpuError):
    """The driver refuses the call to this user (NVML 4; NVAPI -137)."""

    exit_code = 4
    hint = "run as root, or grant CAP_SYS_ADMIN"


class GpuLost(GpuError):
    """The GPU is gone (NVML 15: fallen off the bus; 16: reset required)."""


class GpuCallFailed(GpuError):
    """Any other code of the driver."""


class DriverUnavailable(GpuError, Unavailable):
    """No NVIDIA driver, or one that does not fit its library (NVML 9, 12, 17, 18 at initialisation)."""

    exit_code = 69
