"""Checks of the driver and of each GPU: by the inventory and the choice of levers that the daemon uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from memscaler.core.errors import ConfigError, GpuError, GpuPermission, GpuUnsupported, UsageError
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import NO_DRIVER, SEE_DRIVER, Verdict, failed, passed, unknown, warned
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.targets import find_named, wanted_lever
from memscaler.gpu import nvml, nvml_calls
from memscaler.gpu.capability import VGPU_GUEST, Choice, choose
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import MEMORY_CLOCK

MODULE = "/proc/driver/nvidia/version"
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"
SIMULATED = "simulated boards: no kernel module is needed"
LIBRARY_MISSING = 12
_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_LIBRARY = re.compile(r"/libnvidia-ml\.so\.(\d+(?:\.\d+)+)$", re.MULTILINE)


def module(context: Context) -> Verdict:
    """NVIDIA's kernel module is loaded, or why it is not."""
    if context.simulated:
        return passed(SIMULATED)
    if loaded := context.text(MODULE):
        return passed(f"kernel module {_module_version(loaded)}")
    if _opened(context) is not None:
        return passed("not to be seen from here, but the driver answers")
    cards = [path for path in sorted(context.at("/sys/bus/pci/devices").glob("*")) if _is_nvidia(path)]
    if not cards:
        return failed("no NVIDIA GPU on the PCI bus", "try memscaler without one: memscaler doctor --simulate a40,p40")
    installed = any(context.at(f"/usr/src/{name}").exists() for name in ("nvidia", "nvidia-current"))
    remedy = (
        "sudo modprobe nvidia" if installed else f"sudo modprobe nvidia; if there is no such module: {_driver(context)}"
    )
    return failed(f"the kernel module is not loaded, and there is a GPU ({cards[0].name})", remedy)


def library(context: Context) -> Verdict:
    """NVML loads and initialises."""
    try:
        driver = context.driver()
    except GpuError as error:
        if isinstance(error, GpuPermission) and not context.is_root:
            return unknown(str(error))
        return failed(str(error), _driver(context) if error.code == LIBRARY_MISSING else error.hint)
    version = nvml.library_version()
    return passed(f"NVML {version or 'of an unknown version'}, driver {driver.driver_version or 'unknown'}")


def match(context: Context) -> Verdict:
    """The library and the kernel module are of one version."""
    kernel = _module_version(context.text(MODULE))
    try:
        driver = context.driver()
    except GpuError as error:
        if error.code == nvml_calls.MISMATCH:
            return failed(f"library and kernel module differ (module {kernel or 'unknown'})", error.hint)
        return unknown(NO_DRIVER, SEE_DRIVER)
    if context.simulated:
        return passed(SIMULATED)
    found = _LIBRARY.search(Path("/proc/self/maps").read_text(errors="replace"))
    library_version = found[1] if found else driver.driver_version
    if kernel and library_version and kernel != library_version:
        return failed(f"library {library_version}, kernel module {kernel}", "reboot, or reload the kernel module")
    return passed(f"both are {library_version or kernel}")


def pstates(context: Context) -> Iterator[Verdict]:
    """NVAPI, where a GPU has no better lever."""
    for device in _devices(context):
        name = _name(device)
        if not device.capabilities.has_low_pstate:
            yield passed("not needed: the card has one performance state only", name)
            continue
        try:
            device.pstate_control()
        except GpuError as error:
            yield _without_nvapi(context, device, error)
        else:
            yield passed("NVAPI knows it", name)


def _without_nvapi(context: Context, device: Device, error: GpuError) -> Verdict:
    name, choice = _name(device), choose(device)
    if any(lever.name == MEMORY_CLOCK for lever in choice.levers):
        return passed(f"not needed: the memory clock can be locked ({error})", name)
    if choice.levers:
        return passed(f"not needed: there is another lever ({error})", name)
    remedy = context.distribution.nvapi() if "cannot be loaded" in str(error) else "see MS-GPU-03"
    return (
        warned(f"it would need NVAPI: {error}", remedy, name)
        if isinstance(error, GpuUnsupported)
        else unknown(str(error), error.hint or "see `dmesg | grep -i nvrm`", name)
    )


# ---- each GPU -------------------------------------------------------------------------------------------------------


def answers(context: Context) -> Iterator[Verdict]:
    """NVML counts it, and it answers."""
    driver = _opened(context)
    if driver is None:
        yield unknown(NO_DRIVER, SEE_DRIVER)
        return
    for lost in driver.lost:
        yield failed(
            lost.reason, "see `dmesg | grep -i xid`; a reset or a reboot may bring it back", f"gpu{lost.index}"
        )
    for device in driver.gpus:
        yield passed(device.identity.name, _name(device))
    if not driver.gpus and not driver.lost:
        yield failed("the driver has no GPU", "see `nvidia-smi -L`; a container needs --gpus all")


def persistence(context: Context) -> Iterator[Verdict]:
    """Without it the driver forgets everything with the last client, and its next start takes seconds."""
    for device in _devices(context):
        mode = device.persistence_mode()
        if mode is None:
            yield unknown("the driver does not tell", "`nvidia-smi -q` may tell more", _name(device))
        elif mode:
            yield passed("on", _name(device))
        else:
            remedy = "sudo systemctl enable --now nvidia-persistenced, or: sudo nvidia-smi -pm 1"
            yield warned("off: the first client after the last one waits for the driver", remedy, _name(device))


def lever(context: Context) -> Iterator[Verdict]:
    """How it would be parked, by what the driver says about it."""
    driver = _opened(context)
    for device in _devices(context):
        try:
            wanted = wanted_lever(device, driver, context.settings) if driver else ""
            choice = choose(device, wanted)
        except GpuUnsupported as error:
            yield failed(str(error), error.hint, _name(device))
        except UsageError:  # MS-CONFIG-04 tells
            yield _lever(device, choose(device))
        else:
            yield _lever(device, choice)


def _lever(device: Device, choice: Choice) -> Verdict:
    if choice.levers:
        return passed(f"{choice.levers[0].name}: {choice.why}", _name(device))
    if choice.unsure:
        return unknown(choice.why, "the driver failed to answer: see `dmesg | grep -i nvrm`", _name(device))
    if device.capabilities.mig:
        remedy = f"sudo nvidia-smi -i {device.identity.index} -mig 0, if nobody needs its instances; or leave it out"
    elif device.capabilities.virtualization_mode == VGPU_GUEST:
        remedy = "run memscaler on the hypervisor"
    else:
        remedy = "leave this GPU out: memscaler cannot park it"
    return warned(f"none: {choice.why}", remedy, _name(device))


def display(context: Context) -> Iterator[Verdict]:
    """A screen keeps clocks up, and may flicker when they change."""
    for device in _devices(context):
        active = device.display_active()
        if active is None:
            yield unknown(
                "the driver does not tell whether a display is attached", "`nvidia-smi -q -d DISPLAY`", _name(device)
            )
        elif active:
            remedy = "put the desktop on another card, or name only other GPUs in the [[watch]] tables"
            yield warned("a display is active on it: it may flicker when clocks change", remedy, _name(device))
        else:
            yield passed("no display", _name(device))


def left_parked(context: Context) -> Verdict:
    """The journal names what is parked; without a daemon nobody would wake it."""
    entries = Journal(context.settings.runtime_dir / JOURNAL).entries()
    if not entries:
        return passed("nothing is left parked")
    listed = ", ".join(f"{entry.uuid} ({entry.lever})" for entry in entries)
    match context.daemon():
        case "":
            return failed(f"left parked by a memscaler that is gone: {listed}", "sudo memscaler restore")
        case None:
            return unknown(f"parked: {listed}; whether a daemon governs cannot be told")
        case pid:
            return passed(f"parked by the running daemon (pid {pid}): {len(entries)}")


def named(context: Context) -> Verdict:
    """Every GPU that the configuration names is there."""
    driver = _opened(context)
    if driver is None:
        return unknown(NO_DRIVER, SEE_DRIVER)
    try:
        find_named(context.settings, driver)
        for device in driver.gpus:
            wanted_lever(device, driver, context.settings)
    except ConfigError as error:
        return failed(str(error), error.hint)
    except UsageError as error:
        where = next((context.settings.origins[key] for key in context.settings.origins if key.startswith("gpu.")), "")
        return failed(f"{where}: {error}" if where else str(error), error.hint)
    count = sum(len(watch.gpus) for watch in context.settings.watches) + len(context.settings.gpus)
    return passed(f"{count} names, all known" if count else "it names none")


def _opened(context: Context) -> Driver | None:
    try:
        return context.driver()
    except GpuError:
        return None


def _devices(context: Context) -> Iterator[Device]:
    """None if the driver cannot be asked: MS-DRIVER-02 and MS-GPU-01 tell."""
    driver = _opened(context)
    yield from driver.gpus if driver else ()


def _name(device: Device) -> str:
    return f"gpu{device.identity.index}"


def _module_version(text: str) -> str:
    found = _VERSION.search(text)
    return found[1] if found else ""


def _is_nvidia(path: Path) -> bool:
    try:
        vendor, kind = (path / "vendor").read_text().strip(), (path / "class").read_text().strip()
    except OSError:
        return False
    return vendor == NVIDIA and kind.startswith(DISPLAY_CLASS)


def _driver(context: Context) -> str:
    return context.distribution.driver()
