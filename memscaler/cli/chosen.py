"""Which of the GPUs in a document of the daemon an operator means; written as for `memscaler hold`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memscaler.cli.output import plain
from memscaler.core.errors import UsageError

SHORTEST_UUID = len("GPU-0000")
_PCI = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE)

Entry = Mapping[str, Any]


def chosen(specs: Sequence[str], gpus: Sequence[Entry]) -> list[Entry]:
    """Those that are meant, in their order; all where none is named. Raise UsageError, which lists what there is."""
    if not specs:
        return list(gpus)
    meant = [_meant(spec, gpus) for spec in specs]
    return [gpu for gpu in gpus if any(gpu is each for each in meant)]


def _meant(spec: str, gpus: Sequence[Entry]) -> Entry:
    found = [gpu for gpu in gpus if means(spec.strip().lower(), gpu)]
    if len(found) == 1:
        return found[0]
    listed = [" ".join(plain(gpu[key]) for key in ("gpu", "pci_bus_id", "uuid") if gpu.get(key)) for gpu in gpus]
    problem = "means several GPUs" if found else "is none of the GPUs that memscaler knows"
    raise UsageError(f"{plain(spec)!r} {problem}", hint=f"known: {'; '.join(listed) or 'none'}")


def means(spec: str, gpu: Entry) -> bool:
    """True if an operator may mean this GPU by `spec`, in small letters."""
    name, uuid = str(gpu["gpu"]), str(gpu["uuid"]).lower()
    if spec in (name, name.removeprefix("gpu")):
        return True
    if spec.startswith("gpu-") and len(spec) >= SHORTEST_UUID:
        return uuid.startswith(spec)
    return (at := _pci(spec)) is not None and at == _pci(str(gpu.get("pci_bus_id", "")))


def _pci(text: str) -> tuple[int, ...] | None:
    """Domain (0 where it is left out), bus, device and function; None if it is no PCI address."""
    found = _PCI.fullmatch(text)
    return None if found is None else tuple(int(part or "0", 16) for part in found.groups())
