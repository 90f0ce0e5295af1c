"""CUDA_VISIBLE_DEVICES as CUDA reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
BUS_ORDER = "PCI_BUS_ID"

_NUMBER = re.compile(r"\+?(\d+)")
_PREFIX = re.compile(r"(GPU|MIG)-")


def environment(uuids: Sequence[str]) -> dict[str, str]:
    """What shows exactly these GPUs to a program, in this order."""
    return {ORDER_VARIABLE: BUS_ORDER, VARIABLE: ",".join(uuids)}


def by_number(mask: str) -> bool:
    """True if the GPUs are named by their numbers."""
    return _NUMBER.match(mask.strip()) is not None


def devices(mask: str, known: Sequence[tuple[int, str]]) -> tuple[tuple[str, ...], list[str]]:
    """The UUIDs of the GPUs that are visible, in order, and sentences about what hides others.

    known: index and UUID of each GPU. The first entry decides whether all are numbers or UUIDs; an entry that is not
    valid hides itself and all later ones; one GPU named twice hides all.
    """
    entries = mask.split(",")
    if mask.strip() == "":
        return (), [f"{VARIABLE} is empty: it hides every GPU"]
    chosen: list[str] = []
    for place, entry in enumerate(each.strip() for each in entries):
        uuid, problem = _by_number(entry, known) if by_number(mask) else _by_uuid(entry, known)
        if problem:
            later = len(entries) - place - 1
            hides = f", and hides the {later} after it" if later else ""
            return tuple(chosen), [f"{VARIABLE}={mask}: {entry!r} {problem}{hides}"]
        if uuid in chosen:
            return (), [f"{VARIABLE}={mask}: {entry!r} names a GPU a second time, with which CUDA shows none"]
        chosen.append(uuid)
    return tuple(chosen), []


def _by_number(entry: str, known: Sequence[tuple[int, str]]) -> tuple[str, str]:
    found = _NUMBER.match(entry)  # CUDA reads the digits at the beginning, whatever follows
    if found is None:
        return "", "is no number, as the first one is"
    for index, uuid in known:
        if index == int(found[1]):
            return uuid, ""
    return "", "is no GPU that can be used"


def _by_uuid(entry: str, known: Sequence[tuple[int, str]]) -> tuple[str, str]:
    kind = _PREFIX.match(entry)
    if kind is None:
        return "", "is neither a number nor the beginning of a GPU's UUID"
    if kind[1] == "MIG":
        return "", "is a MIG instance, which is not planned for"
    matching = [uuid for _, uuid in known if uuid.startswith(entry)]
    if len(matching) == 1:
        return matching[0], ""
    return "", "means several GPUs" if matching else "is no GPU that can be used"
