"""Checks of the kernel side: by the functions with which the loader finds out what it can attach."""

from __future__ import annotations

import platform

from memscaler import resources
from memscaler.core.errors import KernelUnavailable
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import NEEDS_ROOT, Verdict, failed, passed, unknown, warned
from memscaler.kernel import attachment, loader
from memscaler.kernel.ledger import require_sock_diag

IMPORT_S = 10.0  # for each python
LOCKDOWN = "/sys/kernel/security/lockdown"


def version(context: Context) -> Verdict:
    """New enough for the tracepoint, on a machine that the loader knows."""
    release = context.text("/proc/sys/kernel/osrelease") or platform.release()
    known = f"Linux {release} on {platform.machine()}"
    if loader.kernel_version(release) < loader.OLDEST_KERNEL:
        return failed(known, f"memscaler needs Linux {_dotted(loader.OLDEST_KERNEL)} or newer: upgrade the kernel")
    if platform.machine() not in loader.SYS_BPF:
        return failed(known, f"memscaler knows {', '.join(loader.SYS_BPF)}")
    return passed(known)


def btf(context: Context) -> Verdict:
    """Without it network namespaces are not told apart."""
    remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y (that of every larger distribution since 2021)"
    path = context.at(loader.BTF)
    if not path.exists():
        return warned(f"no {loader.BTF}: {loader.ONE_NAMESPACE}, and {loader.NO_TOUCHES}", remedy)
    offsets = loader.kernel_offsets(str(path))
    if loader.byte_offsets(offsets) is None:
        return warned(f"{loader.BTF} does not tell what is needed: {loader.NO_TOUCHES}", remedy)
    if loader.netns_offsets(offsets) is None:
        return warned(f"this kernel does not tell namespaces: {loader.ONE_NAMESPACE}", "Linux 5.14 or newer")
    return passed(f"{loader.BTF} tells what is needed")


def tracepoint(context: Context) -> Verdict:
    """The tracepoint's format is read from tracefs, which the loader mounts if it may."""
    match loader.tracepoint_state(str(context.root)):
        case "ready":
            return passed(f"{loader.TRACEPOINT} is there, and its format can be read")
        case "absent":
            return failed(f"this kernel has no tracepoint {loader.TRACEPOINT}", f"a kernel with {_needs()}")
        case "denied":
            return unknown(f"{loader.TRACEFS} may not be read")
    if "tracefs" not in context.text("/proc/filesystems").split():
        return failed("this kernel has no tracefs", f"a kernel with {_needs()}")
    seen = f"tracefs is not mounted on {loader.TRACEFS}; memscaler mounts it if it may"
    return warned(seen, f"sudo mount -t tracefs nodev {loader.TRACEFS}")


def bcc(context: Context) -> Verdict:
    """Some python has to import it; ours, the distribution's, or the configured one."""
    wanted = str(context.settings.loader_python or "")
    reasons = []
    for python in attachment.pythons(wanted):
        try:
            found = attachment.bcc_version(python, IMPORT_S)
        except KernelUnavailable as error:
            reasons.append(str(error))
        else:
            return passed(f"bcc {found}, imported by {python}")
    remedy = context.distribution.bcc()
    return failed("; ".join(reasons), f'{remedy}; or loader_python = "auto" in the configuration' if wanted else remedy)


def permitted(context: Context) -> Verdict:
    """Whether this process may load programs: lockdown, capabilities, perf_event_paranoid."""
    if "[confidentiality]" in context.text(LOCKDOWN):
        seen = "the kernel is locked down (confidentiality): nobody may trace it"
        return failed(seen, "boot without lockdown=confidentiality")
    level = context.text("/proc/sys/kernel/unprivileged_bpf_disabled") or "?"
    try:
        loader.check_permission()
    except loader.LoadError as error:
        seen = f"this process may not: {error}"
        return failed(seen, error.answer["hint"]) if context.is_root else unknown(f"not as this user: {error}")
    return passed(f"this process may load BPF programs (unprivileged_bpf_disabled = {level})")


def cgroup(context: Context) -> Verdict:
    """The hook that misses no connection is attached to the root of cgroup v2."""
    try:
        path = loader.cgroup2_root(str(context.root))
    except OSError:
        return unknown("/proc/self/mounts cannot be read", "is /proc mounted?")
    if path is not None:
        return passed(f"the root of cgroup v2 is mounted on {path}")
    remedy = (
        "boot with systemd.unified_cgroup_hierarchy=1, or: sudo mkdir -p /sys/fs/cgroup/unified && "
        "sudo mount -t cgroup2 none /sys/fs/cgroup/unified; a container needs the host's root (--cgroupns=host)"
    )
    return warned(f"no root of cgroup v2: {loader.CAN_MISS}, and {loader.NO_DATA}", remedy)


def ring_buffer(context: Context) -> Verdict:
    """By it the kernel rings the bell; before Linux 5.8 the counters are polled."""
    release = context.text("/proc/sys/kernel/osrelease") or platform.release()
    if loader.kernel_version(release) < loader.RING_BUFFER:
        return warned(f"a kernel before {_dotted(loader.RING_BUFFER)}: {loader.NO_RING}", "Linux 5.8 or newer")
    return passed("this kernel has BPF ring buffers")


def sock_diag(context: Context) -> Verdict:
    """The list of sockets decides whether a GPU is parked."""
    del context
    try:
        require_sock_diag()
    except KernelUnavailable as error:
        return failed(str(error), f"sudo {error.hint}; built in it is CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG")
    return passed("the kernel lists its TCP sockets (inet_diag)")


def loads(context: Context) -> Verdict:
    """The real programs through the real loader; they are gone again when this returns."""
    if not (context.is_root and context.probe):
        return unknown("not tried", NEEDS_ROOT.replace("doctor", "doctor --probe"))
    python = str(context.settings.loader_python or "")
    try:
        attached = attachment.load(resources.bpf_dir(), loader_python=python)
    except KernelUnavailable as error:
        return failed(str(error), error.hint or "memscaler run --log-level debug tells more")
    attached.close()
    hooks = " and ".join(sorted({"tracepoint", "sockops"} & attached.fds.keys()))
    seen = f"loaded and attached: {hooks}; {attached.headers} headers, {attached.python}"
    if attached.notices:
        return warned(f"{seen}; {'; '.join(attached.notices)}", "what is missing is told by the other MS-KERNEL checks")
    return passed(seen)


def _needs() -> str:
    return loader.TRACEPOINT_NEEDS.removeprefix("it needs ")


def _dotted(number: tuple[int, int]) -> str:
    return ".".join(map(str, number))
