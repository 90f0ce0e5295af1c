"""What can be told and set here, by what means, and what cannot and why: the one owner, for doctor, docs and refusals.

`facts` looks, `table` is pure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from memscaler.config.gpuctl import Gvm, How
from memscaler.core.errors import GpuError
from memscaler.core.gpuctl import Ability, Knob, Means
from memscaler.core.knobs import DEFAULTS, DIRECTIONS, GVM_ONLY
from memscaler.gvm import boards
from memscaler.gvm.freezing import Cgroups
from memscaler.gvm.turning import Here
from memscaler.kernel.processes import PROC

_KILL, _NICE, _DAC_OVERRIDE = 5, 23, 1  # include/uapi/linux/capability.h
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_MOST_CGROUPS = 200

# What is true of every machine of that kind.
_MANAGED = "counts managed memory only, so what GVM's layer in the process has turned into that: without it, 0"
_KERNELS = "counted by GVM's layer in the process; CUDA graphs and what it does not wrap are not counted"
_NO_LIMIT_WITHOUT = "no stock driver or kernel limits the device memory of a running process"
_NO_SWAP_WITHOUT = "no stock driver tells what it has moved to the host"
_NO_KERNELS_WITHOUT = "no stock driver counts the kernels of a process"
_NO_PRIORITY_WITHOUT = "no stock driver gives the contexts of a GPU unequal turns; cpu.nice and cpu.weight may help"
_NO_TOUCH = "what it has handed to the GPU already runs to its end there, and its device memory stays full"
_WHOLE_CGROUP = "by its cgroup only where all processes of that are meant"
_PREEMPTS = "takes its channels off the GPU; channels that are made while it is frozen run"
_AUTOGROUP = "autogroup is on: nice counts among the processes of one session (sched(7))"
_CPU_ONLY = "the CPU's only"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this machine. Each text is "" for yes, else why not, a sentence.

    gvm: its directory. gvm_write: its files may be written. nvml: the driver tells who is on its GPUs. cgroup: version
    2 is mounted, and may be written. weight: it has the cpu controller. signals, nice: may be set on others' processes.
    autogroup: nice counts within a session only.
    """

    gvm: str = ""
    gvm_write: str = ""
    nvml: str = ""
    cgroup: str = ""
    weight: str = ""
    signals: str = ""
    nice: str = ""
    autogroup: bool = False


def look(gvm: Gvm, nvml: str | None = None) -> tuple[Ability, ...]:
    """The table of this machine. nvml: as in Facts, if that is known already."""
    return table(facts(Here.look(gvm), nvml))


def facts(here: Here, nvml: str | None = None) -> Facts:
    """Look; nothing is changed."""
    held = _capabilities()
    gvm = here.tree.why_not()
    cgroup = _cgroup(here.cgroups)
    return Facts(
        gvm=gvm,
        gvm_write=gvm or _gvm_write(here.tree.processes, held),
        nvml=_nvml() if nvml is None else nvml,
        cgroup=cgroup,
        weight=cgroup or _weight(here.cgroups),
        signals="" if _KILL in held else "only root (CAP_KILL) may stop the processes of others",
        nice="" if _NICE in held else "only root (CAP_SYS_NICE) may change the priority of others' processes",
        autogroup=_read(PROC / "sys/kernel/sched_autogroup_enabled") == "1",
    )


# ---- pure -----------------------------------------------------------------------------------------------------------


def table(found: Facts) -> tuple[Ability, ...]:
    """All rows, in the order to be shown: what is told, then what is set."""
    gvm, nvml = not found.gvm, not found.nvml
    processes = "GVM and NVML" if gvm and nvml else "GVM" if gvm else "NVML" if nvml else ""
    memory = "GVM" if gvm else "NVML" if nvml else ""
    nobody = _both(found.gvm, found.nvml)
    return (
        Ability(
            "processes", source=processes, why_not="" if processes else nobody, lacks="" if processes else found.gvm
        ),
        Ability(
            "memory.current",
            source=memory,
            why_not="" if memory else nobody,
            note=_MANAGED if gvm else "all device memory of its contexts" if nvml else "",
            lacks="" if memory else found.gvm,
        ),
        _told("memory.swap.current", found, _NO_SWAP_WITHOUT),
        _told("kernels", found, _NO_KERNELS_WITHOUT, _KERNELS),
        _knob(Knob.MEMORY_LIMIT, found, f"{_MANAGED}; a lower limit moves memory out at once, which takes seconds"),
        _knob(
            Knob.COMPUTE_PRIORITY,
            found,
            f"{DIRECTIONS[Knob.COMPUTE_PRIORITY]}; {DEFAULTS[Knob.COMPUTE_PRIORITY]} is the default",
        ),
        _knob(Knob.COMPUTE_FREEZE, found, _freeze_note(found)),
        _knob(Knob.CPU_NICE, found, f"{DIRECTIONS[Knob.CPU_NICE]}; {_AUTOGROUP if found.autogroup else _CPU_ONLY}"),
        _knob(Knob.CPU_WEIGHT, found, f"{DIRECTIONS[Knob.CPU_WEIGHT]}; {_CPU_ONLY}; {_WHOLE_CGROUP}"),
    )


def refusal(knob: Knob, found: Facts, how: How = "auto") -> str:
    """Why this knob cannot be turned on any process of others' here; "" if it can."""
    return "" if means(knob, found, how) else _why_not(knob, found, how)


def means(knob: Knob, found: Facts, how: How = "auto") -> tuple[Means, ...]:
    """By what this knob can be turned here, the best first."""
    if knob is Knob.COMPUTE_FREEZE:
        whys = {Means.GVM: found.gvm_write, Means.CGROUP: found.cgroup, Means.SIGNAL: found.signals}
        return tuple(each for each, why in whys.items() if not why and how in ("auto", each))
    if knob in GVM_ONLY:
        return () if found.gvm_write else (Means.GVM,)
    if knob is Knob.CPU_NICE:
        return () if found.nice else (Means.NICE,)
    return () if found.weight else (Means.CGROUP,)


def _why_not(knob: Knob, found: Facts, how: How) -> str:
    match knob:
        case Knob.MEMORY_LIMIT:
            return f"{_NO_LIMIT_WITHOUT}, and {found.gvm}" if found.gvm else found.gvm_write
        case Knob.COMPUTE_PRIORITY:
            return f"{_NO_PRIORITY_WITHOUT}; {found.gvm}" if found.gvm else found.gvm_write
        case Knob.CPU_NICE:
            return found.nice
        case Knob.CPU_WEIGHT:
            return found.weight
    whys = {"gvm": found.gvm_write, "cgroup": found.cgroup, "signal": found.signals}
    return whys[how] if how != "auto" else _both(*whys.values())


def _knob(knob: Knob, found: Facts, note: str) -> Ability:
    able = means(knob, found)
    source = "GVM" if not found.gvm and knob not in (Knob.CPU_NICE, Knob.CPU_WEIGHT) else "the kernel"
    if knob in GVM_ONLY and found.gvm:
        source = ""
    made = Ability(str(knob), means=able, source=source)
    if able:
        return replace(made, note=note)
    return replace(made, why_not=_why_not(knob, found, "auto"), lacks=found.gvm_write if knob in GVM_ONLY else "")


def _freeze_note(found: Facts) -> str:
    if not found.gvm_write:
        return _PREEMPTS
    return f"the process stands still on the CPU: {_NO_TOUCH}" + f"; {_WHOLE_CGROUP}" * (not found.cgroup)


def _told(what: str, found: Facts, without: str, note: str = "") -> Ability:
    if found.gvm:
        return Ability(what, why_not=f"{without}, and {found.gvm}", lacks=found.gvm)
    return Ability(what, source="GVM", note=note)


def _both(*whys: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, whys)))


# ---- looking --------------------------------------------------------------------------------------------------------


def _nvml() -> str:
    try:
        boards.look()
    except GpuError as error:
        return str(error)
    return ""


def _gvm_write(processes: Path, held: frozenset[int]) -> str:
    if "[none]" not in (_read(_LOCKDOWN) or "[none]"):
        return "the kernel is locked down (Secure Boot): debugfs cannot be written"
    if not os.access(processes, os.W_OK, effective_ids=True):
        return f"{processes} may not be written" + (" by other users than root" if _DAC_OVERRIDE not in held else "")
    return ""


def _cgroup(cgroups: Cgroups | None) -> str:
    if cgroups is None:
        return "cgroup version 2 is not mounted"
    # The root has neither cgroup.freeze nor cpu.weight, and any other cgroup is as good as the next.
    if not os.access(cgroups.mount / "cgroup.procs", os.W_OK, effective_ids=True):
        return f"{cgroups.mount} may not be written here"
    freezers = [folder / "cgroup.freeze" for folder in _some(cgroups.mount)]
    if freezers and not any(file.exists() for file in freezers):
        return "this kernel cannot freeze cgroups of version 2 (Linux 5.2 can)"
    return ""


def _some(mount: Path) -> list[Path]:
    try:
        return [Path(each.path) for each in os.scandir(mount) if each.is_dir(follow_symlinks=False)][:_MOST_CGROUPS]
    except OSError:
        return []


def no_weight(cgroups: Cgroups | None) -> str:
    """Why no cgroup has a cpu.weight here, whoever asks; "" if one may."""
    return "cgroup version 2 is not mounted" if cgroups is None else _weight(cgroups)


def _weight(cgroups: Cgroups | None) -> str:
    controllers = _read(cgroups.mount / "cgroup.controllers").split() if cgroups is not None else []
    return "" if "cpu" in controllers else "cgroup version 2 has no cpu controller here (version 1 has it)"


def _capabilities() -> frozenset[int]:
    """Of this process, by number."""
    word = _read(Path("/proc/self/status")).partition("CapEff:")[2].split()[:1]
    held = int(word[0], 16) if word else 0
    return frozenset(bit for bit in range(64) if held >> bit & 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
