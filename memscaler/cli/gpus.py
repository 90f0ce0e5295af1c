"""`memscaler gpus`: what is there, what each GPU does now, which lever would be used and why, what parking would do."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memscaler.cli.options import Config, Json, RuntimeDir, Simulate
from memscaler.cli.output import columns, labelled, print_json

if TYPE_CHECKING:  # these open the driver's binding; `--help` shall not
    from memscaler.config.schema import Settings
    from memscaler.core.snapshot import GpuReading, Identity
    from memscaler.gpu.inventory import Device, Driver, LostDevice
    from memscaler.gpu.journal import Entry, Journal
    from memscaler.gpu.levers import Lever

UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, for printing. lever "": none; parking: what a park would do now; lock: what the journal has."""

    identity: Identity
    reading: GpuReading
    lever: str
    target: int | None
    parking: str
    why: str
    refused: tuple[tuple[str, str], ...]
    lock: Entry | None


def gpus(
    config: Config = None, simulate: Simulate = None, runtime_dir: RuntimeDir = None, as_json: Json = False
) -> None:
    """Show the GPUs: clocks, power, the lever that would be used and why, and what parking would do."""
    from memscaler.cli.simulated import at_home
    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.config.load import load
    from memscaler.daemon.journals import JOURNAL
    from memscaler.gpu.inventory import open_driver
    from memscaler.gpu.journal import Journal

    settings = at_home(load({"simulate": simulate, "runtime_dir": runtime_dir}, os.environ, config))
    start_simulation(settings.simulate, settings.runtime_dir)
    journal = Journal(settings.runtime_dir / JOURNAL)
    with open_driver() as driver:
        cards, lost = _look(driver, settings, journal)
        version = driver.driver_version
    if as_json:
        print_json({"driver_version": version, "gpus": [_document(card) for card in cards], "lost": lost})
    else:
        print(_text(version, cards, lost))


# ---- asking ---------------------------------------------------------------------------------------------------------


def _look(driver: Driver, settings: Settings, journal: Journal) -> tuple[tuple[Card, ...], tuple[LostDevice, ...]]:
    """Those that answer and those that do not: one broken GPU must not hide the others."""
    from memscaler.core.errors import GpuError
    from memscaler.daemon.targets import wanted_lever
    from memscaler.gpu.inventory import LostDevice

    cards, lost = [], list(driver.lost)
    for device in driver.gpus:
        try:
            cards.append(_card(device, wanted_lever(device, driver, settings), journal))
        except GpuError as error:
            lost.append(LostDevice(device.identity.index, str(error)))
    return tuple(cards), tuple(lost)


def _card(device: Device, wanted: str, journal: Journal) -> Card:
    from memscaler.core.errors import GpuUnsupported
    from memscaler.gpu.capability import choose

    reading, lock = device.reading(), journal.entry(device.identity.uuid)
    try:
        choice = choose(device, wanted)
    except GpuUnsupported as error:
        return Card(device.identity, reading, "", None, "nothing", str(error), (), lock)
    if not choice.levers:
        return Card(device.identity, reading, "", None, "nothing", choice.why, choice.refused, lock)
    lever = choice.levers[0]
    parking = _parking(lever, reading)
    return Card(device.identity, reading, lever.name, lever.target, parking, choice.why, choice.refused, lock)


def _parking(lever: Lever, reading: GpuReading) -> str:
    """For example "memory clock 7251 -> 405 MHz"."""
    if lever.name == "pstate":
        now, low = ("P?" if reading.pstate is None else f"P{reading.pstate}"), f"P{lever.target}"
        return f"stays in {low}" if now == low else f"performance state {now} -> {low}"
    what = lever.name.replace("-", " ")
    now_mhz = reading.memory_clock_mhz if lever.name == "memory-clock" else reading.graphics_clock_mhz
    if now_mhz is not None and now_mhz <= lever.target:
        return f"{what} is at {now_mhz} MHz already"
    return f"{what} {'?' if now_mhz is None else now_mhz} -> {lever.target} MHz"


# ---- telling --------------------------------------------------------------------------------------------------------


def _document(card: Card) -> dict[str, object]:
    who = card.identity
    return {
        "index": who.index,
        "uuid": who.uuid,
        "pci_bus_id": who.pci_bus_id,
        "name": who.name,
        "reading": card.reading,
        "lever": card.lever or None,
        "target": card.target,
        "parking": card.parking,
        "why": card.why,
        "refused": [{"lever": lever, "reason": reason} for lever, reason in card.refused],
        "lock": card.lock,
    }


def _text(driver_version: str, cards: tuple[Card, ...], lost: tuple[LostDevice, ...]) -> str:
    rows = [("GPU", "NAME", "POWER", "MEMORY", "GRAPHICS", "STATE", "LEVER"), *(_row(card) for card in cards)]
    parts = [columns(rows)]
    parts += [_details(card) for card in cards]
    parts += [f"gpu{gpu.index}  LOST: {gpu.reason}" for gpu in lost]
    return "\n\n".join([*parts, f"driver {driver_version}"])


def _row(card: Card) -> tuple[str, ...]:
    now = card.reading
    return (
        f"gpu{card.identity.index}",
        textwrap.shorten(card.identity.name.removeprefix("NVIDIA "), 24, placeholder="..."),
        UNKNOWN if now.power_w is None else f"{now.power_w:.1f} W",
        _mhz(now.memory_clock_mhz),
        _mhz(now.graphics_clock_mhz),
        UNKNOWN if now.pstate is None else f"P{now.pstate}",
        card.lever or "none",
    )


def _details(card: Card) -> str:
    lines = [f"gpu{card.identity.index}  {card.identity.uuid}  {card.identity.pci_bus_id}"]
    lines += labelled("parking:", card.parking)
    lines += labelled("why:", card.why)
    if card.lever:  # else `why` has them all
        for lever, reason in card.refused:
            lines += labelled(f"not {lever}:", reason)
    if card.lock is not None:
        lines += labelled("parked by memscaler:", f"{card.lock.lever} at {card.lock.target}; see `memscaler restore`")
    return "\n".join(lines)


def _mhz(clock_mhz: int | None) -> str:
    return UNKNOWN if clock_mhz is None else f"{clock_mhz} MHz"
