"""The GPUs that a model could be placed on, and how much of each may be taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from memscaler.core.errors import GpuError, MemscalerError, UsageError
from memscaler.core.snapshot import Identity
from memscaler.planner import visible
from memscaler.planner.sizes import GIB, size

Order = Literal["free_desc", "total_desc", "index"]
ORDERS: tuple[Order, ...] = ("free_desc", "total_desc", "index")
HYPOTHETICAL = "hypothetical-"  # how the UUID of a GPU begins that nobody has


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as NVML sees it now. index: NVML's, which is PCI bus order."""

    index: int
    uuid: str
    name: str
    pci: str
    total_bytes: int
    free_bytes: int

    @property
    def hypothetical(self) -> bool:
        return self.uuid.startswith(HYPOTHETICAL)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a GPU may be taken, and which is filled first.

    reserve_bytes: left free on each: for the CUDA context (some 300-500 MiB) and what the driver's estimate lacks.
    minimum_bytes: a GPU with less than this above its reserve is not used at all.
    """

    reserve_bytes: int = GIB
    minimum_bytes: int = GIB
    order: Order = "free_desc"


@dataclass(frozen=True, slots=True)
class Offer:
    """A GPU and what may be taken of it, 0 if it is not to be used."""

    device: Device
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs that can be used, and sentences about those that cannot."""

    devices: tuple[Device, ...]
    notes: tuple[str, ...] = ()


class NoRoom(MemscalerError):
    """There are GPUs, and not one has memory to give."""

    exit_code = 2


def look(simulate: Sequence[str] = (), runtime_dir: Path | None = None) -> tuple[Device, ...]:
    """The GPUs of this machine and their memory now. Reads only, needs no rights. Raise DriverUnavailable."""
    return survey(simulate, runtime_dir).devices


def survey(simulate: Sequence[str] = (), runtime_dir: Path | None = None) -> Survey:
    """As `look`, with those that cannot be used. simulate: boards, unless the caller has started a simulation."""
    from memscaler.gpu import nvml
    from memscaler.gpu.inventory import open_driver

    if simulate:
        from memscaler.simulator import start

        start(simulate, runtime_dir or Path("/run/memscaler"))
    devices, notes = [], []
    with open_driver() as driver:
        notes += [f"gpu{lost.index} is lost: {lost.reason}" for lost in driver.lost]
        for gpu in driver.gpus:
            who = gpu.identity
            try:
                total, free = nvml.memory_bytes(gpu.handle)
            except GpuError as error:
                notes.append(f"gpu{who.index} does not tell its memory: {error}")
                continue
            if gpu.capabilities.mig:
                notes.append(f"gpu{who.index} is cut into MIG instances, which are not planned for")
                continue
            devices.append(Device(who.index, who.uuid, who.name, who.pci_bus_id, total, free))
    return Survey(tuple(devices), tuple(notes))


def hypothetical(sizes_bytes: Sequence[int]) -> tuple[Device, ...]:
    """GPUs of these sizes with nothing on them, for planning what to buy."""
    return tuple(
        Device(index, f"{HYPOTHETICAL}{index}", "hypothetical", "", each, each)
        for index, each in enumerate(sizes_bytes)
    )


def choose(found: Survey, environ: Mapping[str, str], only: Iterable[str] | None = None) -> Survey:
    """Those that may be used, in the order in which they were named.

    only: `--devices`, as `resolve` of memscaler.gpu understands them; else CUDA_VISIBLE_DEVICES counts, if it is set.
    Raise UsageError for one of `only` that is not there.
    """
    if only is not None:
        return replace(found, devices=_named(found.devices, only))
    mask = environ.get(visible.VARIABLE)
    if mask is None:
        return found
    in_bus_order = environ.get(visible.ORDER_VARIABLE) == visible.BUS_ORDER
    seen, notes = visible.devices(mask, [(gpu.index, gpu.uuid) for gpu in found.devices])
    chosen = tuple(next(gpu for gpu in found.devices if gpu.uuid == uuid) for uuid in seen)
    if not in_bus_order and visible.by_number(mask) and len({gpu.name for gpu in found.devices}) > 1:
        notes.append(
            f"{visible.VARIABLE}={mask} was read in PCI bus order; CUDA may count different GPUs in another order "
            f"without {visible.ORDER_VARIABLE}={visible.BUS_ORDER}"
        )
    return Survey(chosen, (*found.notes, *notes))


def offers(devices: Sequence[Device], budget: Budget) -> tuple[Offer, ...]:
    """What each gives, in the order in which they are filled; those that give nothing are last."""
    keys = {
        "free_desc": lambda gpu: -gpu.free_bytes,
        "total_desc": lambda gpu: -gpu.total_bytes,
        "index": lambda gpu: gpu.index,
    }
    made = [Offer(gpu, _budget_bytes(gpu, budget)) for gpu in sorted(devices, key=keys[budget.order])]
    return (*(each for each in made if each.budget_bytes), *(each for each in made if not each.budget_bytes))


def require_room(devices: Sequence[Device], budget: Budget) -> None:
    """Raise NoRoom, with advice, if no GPU gives anything."""
    if any(offer.budget_bytes for offer in offers(devices, budget)):
        return
    if not devices:
        raise NoRoom("no GPU may be used", hint=f"see --devices and {visible.VARIABLE}; `memscaler gpus` lists them")
    best = max(devices, key=lambda gpu: gpu.free_bytes)
    raise NoRoom(
        f"no GPU has memory to give: gpu{best.index} has the most free, {size(best.free_bytes)}, of which "
        f"{size(budget.reserve_bytes)} are reserved and at least {size(budget.minimum_bytes)} must be left",
        hint="stop what uses the GPUs (`memscaler ports`), or lower --reserve-mib or --min-budget-mib",
    )


def refuse_reserve(devices: Sequence[Device], budget: Budget) -> None:
    """Raise UsageError for a reserve, more than the usual, that takes all of every GPU, however empty."""
    largest = max(devices, key=lambda gpu: gpu.total_bytes, default=None)
    if largest is not None and budget.reserve_bytes >= max(largest.total_bytes, GIB + 1):
        raise UsageError(
            f"--reserve-mib: {size(budget.reserve_bytes)} of each GPU are reserved, and that is all: "
            f"gpu{largest.index} has {size(largest.total_bytes)}",
            hint="lower --reserve-mib; 1024 is usual",
        )


def _budget_bytes(gpu: Device, budget: Budget) -> int:
    left = gpu.free_bytes - budget.reserve_bytes
    return left if left >= max(budget.minimum_bytes, 1) else 0


def _named(devices: Sequence[Device], only: Iterable[str]) -> tuple[Device, ...]:
    from memscaler.gpu.inventory import means

    chosen: list[Device] = []
    for spec in only:
        wanted = spec.strip().lower()
        matching = [gpu for gpu in devices if means(wanted, Identity(gpu.index, gpu.uuid, gpu.pci, gpu.name))]
        if len(matching) != 1:
            problem = "means several GPUs" if matching else "is no GPU that can be used"
            known = "; ".join(f"gpu{gpu.index} {gpu.pci} {gpu.uuid}" for gpu in devices)
            raise UsageError(f"{spec!r} {problem}", hint=f"known: {known or 'none'}")
        if matching[0] in chosen:
            raise UsageError(f"{spec!r}: this GPU is named twice", hint="name each once")
        chosen += matching
    return tuple(chosen)
