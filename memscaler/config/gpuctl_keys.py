"""What may stand in a [[gpuctl]] table and in [gvm]: each key, its kind, its default and its help."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping

from memscaler.config import gpuctl, server_keys, stage_keys, values
from memscaler.config.amounts import SIZE
from memscaler.config.gpuctl import Match
from memscaler.config.near import meant, nearest
from memscaler.config.ports import check_gpu
from memscaler.config.tables import key
from memscaler.config.values import Kind
from memscaler.core.gpuctl import Knob
from memscaler.core.knobs import RANGES

Value = typing.TypeVar("Value")

SERVER = "server"  # the only kind without a text
KINDS: Mapping[str, gpuctl.Kind] = {each: each for each in typing.get_args(gpuctl.Kind)}
_UNIT_TYPES = (".service", ".scope", ".slice")
_WILD = ("*", "?", "]")
_EXAMPLES = '"unit:batch.service", "name:python*", "user:bob" or "server"'
_NAME = re.compile(server_keys.NAME_PATTERN)
_UUID = re.compile(r"GPU-[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_MOST_NUMBER = 10_000  # of GVM's directories: eight for each GPU


def _name(raw: object) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise ValueError(f"{raw!r} is no name of a rule (1 to 63 letters, digits and _ . -, the first no . or -)")
    return raw


def _watch(raw: object) -> str:
    text = stage_keys.a_server(raw)
    if text.isdecimal() or "@" in text:
        return text
    try:
        check_gpu(text)
    except ValueError:
        return text
    raise ValueError(f"{raw!r} is a GPU (write the port or the name of the server that uses it)")


def _watches(raw: object) -> tuple[str, ...]:
    return _each(raw, _watch)


def _each(raw: object, parse: Callable[[object], Value]) -> tuple[Value, ...]:
    """Of each entry of a list, each once; one that stands alone is a list, too. Raise ValueError with all bad ones."""
    words = raw if isinstance(raw, (list, tuple)) else [raw]
    found: dict[Value, None] = {}
    wrong: list[str] = []
    for word in words:
        try:
            found[parse(word)] = None
        except ValueError as error:
            wrong.append(str(error))
    _refuse(wrong)
    return tuple(found)


def _refuse(wrong: Iterable[str]) -> None:
    """All in one sentence: a key has one place in the file."""
    if text := "; ".join(dict.fromkeys(wrong)):
        raise ValueError(text)


def a_match(raw: object) -> Match:
    """Which processes: "unit:batch.service". Raise ValueError for what says nothing."""
    text = raw.strip() if isinstance(raw, str) else ""
    if text == SERVER:
        return Match("server")
    word, colon, rest = text.partition(":")
    kind = KINDS.get(word)
    if kind is None or kind == SERVER or not colon:
        near = nearest(word, KINDS)
        if kind == SERVER:
            watches = f" and watches = [{json.dumps(rest.strip())}]" if rest.strip() else ""
            raise ValueError(f"{raw!r}: a server is meant by the rule's watches: write 'server'{watches}")
        if colon:
            raise ValueError(f"{raw!r}: {word!r} is none of {', '.join(KINDS)}{meant(near and repr(near))}")
        guess = f"unit:{text}" if text.endswith(_UNIT_TYPES) else f"name:{text}" if text else ""
        raise ValueError(f"{raw!r} names no processes (write {repr(guess) if guess else _EXAMPLES})")
    if not rest.strip() or not rest.isprintable():
        raise ValueError(f"{raw!r}: what comes after the colon is no {kind}")
    return Match(kind, _CHECKS[kind](rest.strip()))


def _unit(text: str) -> str:
    if "/" in text:
        raise ValueError(f"{text!r} is no name of a systemd unit")
    return text if text.endswith((*_UNIT_TYPES, *_WILD)) else f"{text}.service"


def _path(text: str) -> str:
    if not text.startswith(("/", "*")):
        raise ValueError(f"{text!r} is no path from the root (write /opt/batch/* or */python3)")
    return text


def a_cgroup(text: str) -> str:
    """Its path, without the slash that a shell puts behind it. Raise ValueError for what is none."""
    if not text.startswith(("/", "*")):
        raise ValueError(f"{text!r} is no path of a cgroup (write /batch.slice, or /batch.slice/* for all below it)")
    return text.rstrip("/") or "/"


_CHECKS: Mapping[str, Callable[[str], str]] = {
    "unit": _unit,
    "name": str,
    "exe": _path,
    "user": str,
    "container": str,
    "cgroup": a_cgroup,
}


def _processes(raw: object) -> tuple[Match, ...]:
    return _each(raw, a_match)


def _between(least: int, most: int) -> Kind[int]:
    """Of a file, so a number and no text, with its sign."""

    def parse(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError(f"{raw!r} is not a whole number from {least} to {most}")
        if not least <= raw <= most:
            raise ValueError(f"{raw} is out of range ({least} to {most})")
        return raw

    return Kind(parse, {"type": "integer", "minimum": least, "maximum": most}, int)


def _gpu_map(raw: object) -> Mapping[int, str]:
    if not isinstance(raw, dict):
        raise ValueError('gpu_map is a table of numbers and UUIDs, as in gpu_map = {8 = "GPU-8f3a..."}')
    found: dict[int, str] = {}
    wrong: list[str] = []
    for number, uuid in raw.items():
        is_number = number.isascii() and number.isdecimal() and int(number) <= _MOST_NUMBER
        if not is_number:
            wrong.append(f"{number!r} is no number of a directory of GVM (0, 8, 16, ...)")
        if not isinstance(uuid, str) or not _UUID.fullmatch(uuid):
            wrong.append(f"{uuid!r} is no whole UUID of a GPU (`nvidia-smi -L` lists them)")
        elif uuid in found.values():
            wrong.append(f"{uuid} is there twice")
        elif is_number:
            found[int(number)] = uuid
    _refuse(wrong)
    return found


_TEXTS: Mapping[str, object] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_PORTS: Mapping[str, object] = {
    "anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": ["string", "integer"]}}]
}

GPUCTL_KEYS = (
    key("name", Kind(_name, {"type": "string", "pattern": f"^{server_keys.NAME_PATTERN}$"}), "",
        "What it is called, unlike all others: in status, the log and metrics."),
    key(
        "while",
        values.choice(*typing.get_args(gpuctl.When)),
        "busy",
        "busy: from a client's coming until release_after after its last work; quiet: while all GPUs of the server "
        "are parked.",
        field="when",
    ),
    key("watches", Kind(_watches, _PORTS, list), "",
        "For which servers: ports (8080, 8080@container:web) or names of [[server]] tables. Default: all."),
    key(
        "processes",
        Kind(_processes, _TEXTS, lambda found: list(map(str, found))),
        "",
        "What it is about, of the processes on these servers' GPUs: unit:batch.service, name:python3, "
        "exe:/opt/batch/run, user:bob, container:train, cgroup:/batch.slice (itself), cgroup:/batch.slice/* (all "
        "below it); shell wildcards are understood. server: those servers themselves.",
    ),
    key("freeze", values.switch, "false", "Stop them: with GVM their work on the GPU, else the processes (see how)."),
    key("memory_limit", SIZE, "",
        "The most device memory of each, the rest moves to the host: 6G, 512MiB, max. Needs GVM.",
        field="memory_limit_bytes"),
    key("compute_priority", _between(*RANGES[Knob.COMPUTE_PRIORITY]), "",
        "On the GPU, 0 to 15; lower is higher, 8 is usual. Needs GVM."),
    key("cpu_nice", _between(*RANGES[Knob.CPU_NICE]), "", "On the CPU, -20 to 19; lower is higher, 0 is usual."),
    key("cpu_weight", _between(*RANGES[Knob.CPU_WEIGHT]), "",
        "Share of the CPU of their cgroup, 1 to 10000; higher is more, 100 is usual."),
    key("how", values.choice(*typing.get_args(gpuctl.How)), "auto",
        "freeze: by gvm, cgroup (cgroup.freeze) or signal (SIGSTOP). auto: GVM where it is; else the cgroup if all of "
        "its processes are meant, else SIGSTOP."),
    key("release_after", values.duration_s(0), "5s", "busy: so long it stays after the last work.",
        field="release_after_s"),
    key("at_most", values.duration_or_off_s, "off",
        'So long at a time; then it lets go until the next time. "off": without end.', field="at_most_s"),
    key("look_every", values.duration_s(0.1), "2s",
        "How often it looks for processes that have come since, while it is in force.", field="look_every_s"),
)  # fmt: skip

GVM_KEYS = (
    key("root", values.path, "/sys/kernel/debug", "Where debugfs is mounted: GVM's files are below it."),
    key("proc_root", values.path, "/proc", "Where /proc of the host is.", field="proc"),
    key(
        "gpu_map",
        Kind(
            _gpu_map,
            {
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,5}$"},
                "additionalProperties": {"type": "string", "pattern": f"^{_UUID.pattern}$"},
            },
            lambda found: {str(number): uuid for number, uuid in found.items()},
        ),
        "",
        'The UUIDs of GVM\'s numbers for GPUs (0, 8, 16, ...), as in {8 = "GPU-8f3a..."}; only where the driver does '
        "not tell them itself.",
    ),
)
