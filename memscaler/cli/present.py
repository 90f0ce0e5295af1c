"""GPUs that a configuration names and this machine has not, by what the kernel's files say: no driver is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memscaler.cli.chosen import means
from memscaler.config.schema import Settings

LISTED = Path("/proc/driver/nvidia/gpus")  # a folder for each, called by its PCI address
_LINE = re.compile(r"^(GPU UUID|GPU Excluded):[ \t]*(\S+)", re.MULTILINE)

Entry = Mapping[str, str]


def absent(settings: Settings) -> list[str]:
    """A sentence for each that is not there; none where the driver is not loaded."""
    there = _simulated(settings) or _listed()
    if not there:
        return []
    listed = ", ".join(each["gpu"] for each in there)
    return [
        f"{origin}: {name!r} is no GPU of this machine (there {'is' if len(there) == 1 else 'are'} {listed})"
        for name, origin in dict.fromkeys(_named(settings))
        if not any(means(name.strip().lower(), each) for each in there) and not _is_unclear(name, there)
    ]


def unsure(settings: Settings) -> str:
    """A sentence if GPUs are named and nobody can say whether they are there; else ""."""
    names = list(dict.fromkeys(name for name, _ in _named(settings)))
    if not names or settings.simulate or _listed():
        return ""
    return f"no NVIDIA driver is loaded, so nobody knows whether there is {', '.join(names)}"


def _named(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every name of a GPU, and where it stands."""
    for watch in settings.watches:
        place = settings.origins.get(f"watch.{replace(watch, gpus=())}", settings.origins["watch"])
        yield from ((name, place) for name in watch.gpus)
    for name in settings.gpus:
        yield name, settings.origins.get(f"gpu.{name}", "")
    for server in settings.servers:
        yield from ((name, server.origin) for name in server.gpus)


def _simulated(settings: Settings) -> list[Entry]:
    return [{"gpu": f"gpu{index}", "uuid": "?", "pci_bus_id": "?"} for index in range(len(settings.simulate))]


def _listed() -> list[Entry]:
    """In the driver's order, which is that of the bus."""
    try:
        folders = sorted(LISTED.iterdir(), key=lambda each: [int(part, 16) for part in re.split("[:.]", each.name)])
        told = [
            (each.name, dict(_LINE.findall((each / "information").read_text(errors="replace")))) for each in folders
        ]
    except (OSError, ValueError):
        return []
    seen = [(address, facts.get("GPU UUID", "?")) for address, facts in told if facts.get("GPU Excluded") != "Yes"]
    return [{"gpu": f"gpu{n}", "uuid": uuid, "pci_bus_id": address} for n, (address, uuid) in enumerate(seen)]


def _is_unclear(name: str, there: Sequence[Entry]) -> bool:
    """A UUID, or an address, of GPUs that do not tell theirs: GPU-????????-... until the first program uses them."""
    key = "uuid" if name.lower().startswith("gpu-") else "pci_bus_id" if ":" in name else ""
    return bool(key) and any("?" in each[key] for each in there)
