"""The tables of `memscaler gpuctl`."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memscaler.cli.output import WIDTH, columns, plain, span
from memscaler.config.amounts import bytes_text
from memscaler.config.knobs import spoken
from memscaler.core.gpuctl import Knob
from memscaler.core.knobs import DIRECTIONS

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.world import Row, Seen

NONE = "-"
NAME_WIDTH = 15  # the kernel keeps no more of a command's name
PLACE_WIDTH = 24
GPU_WIDTH = 12
RULE = "*"
UNMANAGED_BYTES = 1 << 30  # a CUDA context alone is some hundred megabytes that GVM does not manage
GVM_COLUMNS = ("LIMIT", "SWAP", "PRIORITY", "KERNELS")


def table(seen: Seen) -> str:
    """The processes, and what there is to know of the table."""
    parts = []
    if seen.rows:
        heads = ("PID", "GPU", "NAME", "UNIT/CONTAINER", "MEMORY", *(() if seen.gvm else GVM_COLUMNS[:3]), "FROZEN")
        heads += () if seen.gvm else GVM_COLUMNS[3:]
        parts.append(columns([heads, *(_cells(row, with_gvm=not seen.gvm) for row in seen.rows)]))
    else:
        parts.append("no process is on a GPU")
    notes = [_wrapped(note) for note in _notes(seen)]
    return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


def _cells(row: Row, *, with_gvm: bool) -> tuple[str, ...]:
    by_rule = {each.get("knob") for each in row.rules}

    def mark(text: str, knob: Knob) -> str:
        return text + RULE * (knob in by_rule)

    reading, subject = row.reading, row.subject
    managed = reading.memory_current_bytes if reading else None
    place = (subject.unit or subject.container) if subject else ""
    cells = [
        str(row.pid),
        cut(row.gpu, GPU_WIDTH),
        cut(subject.name if subject else "", NAME_WIDTH),
        cut(place, PLACE_WIDTH),
        _amount(row.used_bytes if managed is None else managed),
    ]
    if with_gvm:
        cells += [
            mark(_amount(reading.memory_limit_bytes if reading else None), Knob.MEMORY_LIMIT),
            _amount(reading.swap_bytes if reading else None),
            mark(_count(reading.compute_priority if reading else None), Knob.COMPUTE_PRIORITY),
        ]
    cells.append(mark("+".join(row.frozen) or NONE, Knob.COMPUTE_FREEZE))
    if with_gvm:
        counts = (reading.kernels_submitted, reading.kernels_ended, reading.kernels_pending) if reading else ()
        cells.append("/".join(map(_count, counts)) if any(each is not None for each in counts) else NONE)
    return tuple(cells)


def _notes(seen: Seen) -> list[str]:
    notes = []
    if seen.gvm:
        *most, last = map(str.lower, GVM_COLUMNS)
        notes.append(f"{', '.join(most)} and {last} cannot be had: {plain(seen.gvm)}")
        notes.append("memory is what the driver (NVML) says that a process has allocated there")
    else:
        notes.append(f"priority: {DIRECTIONS[Knob.COMPUTE_PRIORITY]}; kernels: submitted/ended/pending")
    if seen.nvml:
        notes.append(f"the driver does not tell who else is on its GPUs: {plain(seen.nvml)}")
    notes += [plain(each) for each in (*seen.late, seen.left) if each]
    notes += [note for row in seen.rows if (note := _unmanaged(row))]
    notes += dict.fromkeys(ruled(each) for row in seen.rows for each in row.rules)
    return notes


def _unmanaged(row: Row) -> str:
    """Where GVM sees less than there is, a limit does nothing."""
    managed = row.reading.memory_current_bytes if row.reading else None
    if managed is None or row.used_bytes is None or row.used_bytes - managed < UNMANAGED_BYTES:
        return ""
    return (
        f"{row.pid} has {bytes_text(row.used_bytes - managed)} on {plain(row.gpu)} that GVM does not manage, so "
        "memory.limit does not reach it: is GVM's layer in its LD_LIBRARY_PATH?"
    )


def ruled(each: Mapping[str, Any]) -> str:
    """What a rule does to a process: 'rule "batch waits" has set compute.freeze of 4711 to frozen, 12s ago'."""
    rule, knob, pid = plain(each.get("rule")), plain(each.get("knob")), plain(each.get("pid"))
    value, since_s, problem = _value(knob, each.get("value")), each.get("since_s"), plain(each.get("problem") or "")
    if since_s is None:
        return f'{RULE} rule "{rule}" wants {knob} of {pid} to be {value}' + (f": {problem}" if problem else "")
    ago = f'{RULE} rule "{rule}" has set {knob} of {pid} to {value}, {span(since_s)} ago'
    return f"{ago}: {problem}" if problem else ago


def _value(knob: str, value: object) -> str:
    known = knob in set(Knob) and isinstance(value, int)
    return spoken(Knob(knob), value) if known else plain(value)  # type: ignore[arg-type]


def directions(knobs: Collection[Knob]) -> list[str]:
    """Of these, what people get the wrong way round."""
    return [f"{knob}: {text}" for knob, text in DIRECTIONS.items() if knob in knobs]


def wrapped(notes: Sequence[str]) -> str:
    """Each a paragraph of 80 columns."""
    return "\n".join(_wrapped(note) for note in notes)


def _wrapped(note: str) -> str:
    return textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def cut(text: str, width: int = NAME_WIDTH) -> str:
    """What fits into a column."""
    text = plain(text) or NONE
    return text if len(text) <= width else text[: width - 3] + "..."


def _amount(count: int | None) -> str:
    return NONE if count is None else bytes_text(count)


def _count(count: int | None) -> str:
    return NONE if count is None else str(count)
