"""Which levers a GPU has, in the order of what they save, and why: by what the driver says, never by the card's name.

    memory clock  two or more supported clocks, and the driver switches at run time (NVML field 298 is 2) or does not
                  say and the card is an Ampere or newer
    pstate        NVAPI knows the card, and the card has a low state to go to (two memory clocks, or P8)
    graphics      Volta or newer: the only lever where the memory clock is fixed (A100, H100)

What the driver says is a promise only. The actuator reads the clocks back and takes the next lever if nothing moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memscaler.core.errors import GpuError, GpuUnsupported, UsageError
from memscaler.gpu import levers
from memscaler.gpu.inventory import Device
from memscaler.gpu.levers import GRAPHICS_CLOCK, MEMORY_CLOCK, NAMES, PSTATE, Lever
from memscaler.gpu.probe import LOW_PSTATE, Capabilities

AUTO = "auto"
VGPU_GUEST = 2
VOLTA, AMPERE = 5, 7
SWITCH_TYPES = {0: "cannot switch the memory clock", 1: "switches the memory clock only when it is reloaded"}
AT_RUN_TIME = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """The levers to try, best first; why the first one; and why not the others: (lever, reason).

    unsure: there is no lever, but the driver failed to answer; asking again may tell more.
    """

    levers: tuple[Lever, ...]
    why: str
    refused: tuple[tuple[str, str], ...] = ()
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class _Verdict:
    """About one lever: why it can be tried (`lever` set), or why not. failed: the driver did not say whether."""

    name: str
    reason: str
    lever: Lever | None = None
    failed: bool = False


def choose(device: Device, lever: str = AUTO) -> Choice:
    """The levers of this GPU. Raise GpuUnsupported if the operator forces one that it does not have."""
    if lever not in (AUTO, *NAMES):
        raise UsageError(f"{lever!r} is no lever", hint=f"one of: {', '.join((AUTO, *NAMES))}")
    verdicts = _verdicts(device)
    if lever != AUTO:
        return _forced(device, next(verdict for verdict in verdicts if verdict.name == lever))
    chosen = [verdict for verdict in verdicts if verdict.lever is not None]
    refused = tuple((verdict.name, verdict.reason) for verdict in verdicts if verdict.lever is None)
    why = chosen[0].reason if chosen else _common(refused)
    failed = bool(device.capabilities.doubts) or any(verdict.failed for verdict in verdicts)
    unsure = not chosen and failed
    return Choice(tuple(verdict.lever for verdict in chosen if verdict.lever is not None), why, refused, unsure)


def _forced(device: Device, verdict: _Verdict) -> Choice:
    if verdict.lever is None:
        raise GpuUnsupported(
            f"gpu{device.identity.index} ({device.identity.name}) has no lever {verdict.name}: {verdict.reason}",
            hint='use lever = "auto", or leave this GPU out',
        )
    others = tuple((name, "another lever is configured") for name in NAMES if name != verdict.name)
    return Choice((verdict.lever,), f"configured; {verdict.reason}", others)


def _verdicts(device: Device) -> tuple[_Verdict, ...]:
    """One verdict for each lever, in the order in which they are to be tried."""
    able = device.capabilities
    obstacle = _obstacle(able)
    if obstacle:
        return tuple(_Verdict(name, obstacle) for name in NAMES)
    memory, pstate, graphics = _memory_clock(device), _pstate(device), _graphics_clock(device)
    # Where the memory clock can fall it is what costs; a forced state lowers it, a graphics lock does not.
    if memory.lever is not None or (able.architecture or 0) < AMPERE:
        return memory, pstate, graphics
    return memory, graphics, pstate


def _obstacle(able: Capabilities) -> str:
    doubts = dict(able.doubts)
    for doubt in (doubts.get("virtualization_mode"), doubts.get("mig")):
        if doubt:
            return f"nobody knows whether its clocks may be touched: {doubt}"
    if able.virtualization_mode == VGPU_GUEST:
        return "this is a vGPU guest: its clocks belong to the hypervisor"
    if able.mig:
        return "MIG is enabled: its instances share the clocks"
    return ""


def _memory_clock(device: Device) -> _Verdict:
    able = device.capabilities
    clocks = _clocks(able.memory_clocks_mhz)
    if not able.memory_clocks_mhz:
        return _Verdict(MEMORY_CLOCK, dict(able.doubts).get("memory_clocks_mhz", "the driver lists no memory clocks"))
    if len(able.memory_clocks_mhz) == 1:
        return _Verdict(MEMORY_CLOCK, f"the memory clock is fixed at {clocks}")
    if able.switch_type in SWITCH_TYPES:
        return _Verdict(MEMORY_CLOCK, f"the driver {SWITCH_TYPES[able.switch_type]}")
    if able.switch_type == AT_RUN_TIME:
        reason = f"{clocks} are supported and the driver switches at run time"
    elif (able.architecture or 0) >= AMPERE:
        reason = f"{clocks} are supported; the driver does not say how it switches, so the first park tries it"
    else:
        return _Verdict(MEMORY_CLOCK, "cards before Ampere cannot lock their memory clock")
    return _Verdict(MEMORY_CLOCK, reason, levers.memory_clock(device))


def _pstate(device: Device) -> _Verdict:
    able = device.capabilities
    if not able.has_low_pstate:
        return _Verdict(PSTATE, "the card has one performance state only")
    return _tried(PSTATE, lambda: levers.pstate(device), f"NVAPI can force performance state {LOW_PSTATE}")


def _graphics_clock(device: Device) -> _Verdict:
    able = device.capabilities
    if (able.architecture or 0) < VOLTA:
        return _Verdict(GRAPHICS_CLOCK, "cards before Volta cannot lock their graphics clock")
    if not able.graphics_clocks_mhz:
        doubts = dict(able.doubts)
        doubt = doubts.get("graphics_clocks_mhz") or doubts.get("memory_clocks_mhz")
        return _Verdict(GRAPHICS_CLOCK, doubt or "the driver lists no graphics clocks")
    fixed = f"the memory clock is fixed at {_clocks(able.memory_clocks_mhz)}; " * (len(able.memory_clocks_mhz) == 1)
    reason = f"{fixed}graphics clocks go down to {min(able.graphics_clocks_mhz)} MHz"
    return _Verdict(GRAPHICS_CLOCK, reason, levers.graphics_clock(device))


def _tried(name: str, build: Callable[[], Lever], reason: str) -> _Verdict:
    try:
        return _Verdict(name, reason, build())
    except GpuUnsupported as error:
        return _Verdict(name, str(error))
    except GpuError as error:
        return _Verdict(name, str(error), failed=True)


def _clocks(clocks_mhz: tuple[int, ...]) -> str:
    """For example "7251 and 405 MHz"."""
    *most, last = (str(clock) for clock in clocks_mhz or (0,))
    return f"{', '.join(most)} and {last} MHz" if most else f"{last} MHz"


def _common(refused: tuple[tuple[str, str], ...]) -> str:
    """One sentence about why there is no lever at all."""
    reasons = dict.fromkeys(reason for _, reason in refused)
    return reasons.popitem()[0] if len(reasons) == 1 else "; ".join(f"{name}: {reason}" for name, reason in refused)
