r"""Port specifications: which server, and which GPUs serve behind it, as one word.

    8080                            the GPUs that the listener on 8080 uses
    8080:gpu0                       GPU 0 of nvidia-smi
    8080:gpu0,gpu1                  two GPUs
    8080:GPU-5c1b...                by UUID (a unique beginning is enough)
    8080:0000:3b:00.0,gpu1          by PCI address, mixed with others
    8080@container:web:gpu0         in the network of a container, by name or id
    8080@unit:llama@a.service:gpu0  in that of a systemd unit
    8080@pid:1234, 8080@netns:/run/netns/a, 8080@netns:a (as `ip netns` calls it)

Ports have neither "@" nor ":", so the first "@" begins the scope. A scope's name may have both, and a PCI address has
colons: the GPUs begin behind the first colon behind which everything reads as a list of GPUs.
Whether such a scope or GPU exists is not asked here: that needs a system.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from memscaler.core.watch import HOST, SCOPE_KINDS, Scope

MAX_PORT = 65535
UNKNOWN = "PORT"  # stands for a port that is no port
MAX_PID = 1 << 22
MAX_COLONS = 255  # behind the "@": each may be the one where the GPUs begin
MAX_CHARS = 8192  # behind the "@"; a path may have 4096

_INDEX = r"(?:[Gg][Pp][Uu])?[0-9]+"
_UUID = r"[Gg][Pp][Uu]-[0-9a-fA-F-]{4,}"  # a beginning; a shorter one is rather a slip of the pen: gpu-1
_PCI = r"(?:[0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}\.[0-7]"
GPU_PATTERN = f"^(?:{_INDEX}|{_UUID}|{_PCI})$"  # without flags: it stands in the JSON Schema, too
_GPU = re.compile(GPU_PATTERN)

_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")  # what docker, podman, containerd and incus allow
_UNIT = re.compile(r"[A-Za-z0-9_\\@-][A-Za-z0-9:_.\\@-]{0,254}")
_UNIT_TYPES = (".service", ".scope", ".slice")  # those that hold processes
_OTHER_UNIT_TYPES = (".socket", ".mount", ".automount", ".target", ".timer", ".path", ".device", ".swap")

_ALIASES = {
    "container": ("docker", "podman", "containerd", "nerdctl", "incus", "lxc", "nspawn", "ctr"),
    "unit": ("systemd", "service", "slice"),
    "netns": ("ns", "net", "namespace", "network"),
    "pid": ("process", "proc"),
}


@dataclass(frozen=True, slots=True)
class Watch:
    """A server port, where it is, and the GPUs behind it as the operator named them. No GPUs: those the listener uses.

    str() is the specification, which reads back as the same watch.
    """

    port: int
    gpus: tuple[str, ...] = ()
    scope: Scope = HOST

    def __str__(self) -> str:
        place = "" if self.scope == HOST else f"@{self.scope}"
        gpus = f":{','.join(self.gpus)}" if self.gpus else ""
        return f"{self.port}{place}{gpus}"


def parse_watch(spec: str) -> Watch:
    """The watch that `spec` means. Raise ValueError with a sentence for the operator."""
    head, at, place = spec.strip().partition("@")
    port, colon, gpus = head.partition(":")
    if not at:
        number = parse_port(port)
        return Watch(number, parse_gpus(gpus.split(","), str(number)) if colon else ())
    if colon:
        raise ValueError(f"{spec.strip()!r} has its GPUs before the scope (write {port}@{place}:{gpus})")
    number = parse_port(port)
    scope, words = _place(place, number)
    watch = Watch(number, scope=scope)
    return Watch(number, parse_gpus(words, str(watch)), scope) if words else watch


def parse_port(text: str | int) -> int:
    """A TCP port. Raise ValueError if it is none."""
    digits = str(text).strip()
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{digits!r} is not a port number (write PORT or PORT:GPU, as in 8080:gpu0)")
    if not 1 <= int(digits) <= MAX_PORT:
        raise ValueError(f"port {digits} is out of range (1-{MAX_PORT})")
    return int(digits)


def parse_gpus(words: Iterable[str], behind: str) -> tuple[str, ...]:
    """The GPUs named `behind` a port and its scope. Raise ValueError for an empty, malformed or repeated name."""
    where = "" if behind == UNKNOWN else f"port {behind}: "
    gpus: dict[str, str] = {}
    for word in words:
        gpu = word.strip()
        if not gpu:
            raise ValueError(f"{where}a GPU is empty (write {behind}:gpu0 or {behind}:gpu0,gpu1)")
        check_gpu(gpu, where)
        if gpu.lower() in gpus:
            raise ValueError(f"{where}{gpu} is named twice")
        gpus[gpu.lower()] = gpu
    return tuple(gpus.values())


def check_gpu(gpu: str, where: str = "") -> None:
    """Raise ValueError unless `gpu` looks like a GPU."""
    if not _GPU.fullmatch(gpu):
        raise ValueError(f"{where}{gpu!r} names no GPU (write gpu0, GPU-<uuid> or a PCI address such as 0000:3b:00.0)")


def parse_scope(text: str, port: int | None) -> Scope:
    """A scope without GPUs, as the file has it: "container:web" or "host". Raise ValueError with a sentence.

    port: for the sentence; None: nobody knows.
    """
    scope, words = _place(text.strip(), port)
    if words:
        gpus = ", ".join(f'"{word.strip()}"' for word in words)
        raise ValueError(f"{_of(port)}{text.strip()!r} names GPUs (write them as gpus = [{gpus}])")
    return scope


def check_reads_back(watch: Watch) -> None:
    """Raise ValueError if what the watch is called in logs and on the command line would be read as another one.

    As `netns:/run/a:3b` with the GPU 00:00.0, which is the GPU 3b:00:00.0 of `netns:/run/a`.
    """
    other = parse_watch(str(watch))
    if other != watch:
        read = f"{', '.join(other.gpus)} of {other.scope}"
        raise ValueError(f"port {watch.port}: {watch} reads as {read} (give the namespace a name without colons)")


def check_distinct(watches: Iterable[Watch]) -> None:
    """Raise ValueError if a port is watched twice in one place."""
    seen: dict[tuple[Scope, int], Watch] = {}
    for watch in watches:
        first = seen.setdefault((watch.scope, watch.port), watch)
        if first is not watch:
            bare = Watch(watch.port, scope=watch.scope)
            raise ValueError(
                f"port {bare} is given twice ({first} and {watch}); name all its GPUs at once, as in {bare}:gpu0,gpu1"
            )


# ---- scopes ---------------------------------------------------------------------------------------------------------


def _of(port: int | None) -> str:
    """The beginning of a sentence about this port."""
    return "" if port is None else f"port {port}: "


def _place(text: str, port: int | None) -> tuple[Scope, list[str]]:
    """What stands behind the "@": the scope, and the words of the GPU list."""
    kind, colon, rest = text.partition(":")
    if text.count(":") > MAX_COLONS or len(text) > MAX_CHARS:
        raise ValueError(f"{_of(port)}{text[:40]!r}... is too long for a scope and its GPUs")
    if kind == str(HOST):
        return HOST, rest.split(",") if colon else []
    if kind not in _NAME:
        raise ValueError(f"{_of(port)}{_no_kind(kind, text, port or 8080)}")
    if not rest:
        raise ValueError(f"{_of(port)}{text!r} lacks a name (write {_EXAMPLE[kind]})")
    cuts = [(rest[: colon.start()], rest[colon.end() :]) for colon in re.finditer(":", rest)]
    good = [(scope, tail) for name, tail in cuts if (scope := _scope(kind, name))]
    for scope, tail in good:
        if _are_gpus(tail):
            return scope, tail.split(",")
    if whole := _scope(kind, rest):
        return whole, []
    if good:  # a name, and behind it what must have been meant as GPUs: the caller says what is wrong with them
        return good[0][0], good[0][1].split(",")
    name = next((name for name, tail in cuts if _are_gpus(tail)), rest)
    raise ValueError(f"{_of(port)}{_complaint(kind, name)}")


def _scope(kind: str, name: str) -> Scope | None:
    try:
        return Scope(kind, _NAME[kind](name))
    except ValueError:
        return None


def _complaint(kind: str, name: str) -> str:
    """What is wrong with a name that is no such name."""
    try:
        return _NAME[kind](name)
    except ValueError as error:
        return str(error)


def _are_gpus(text: str) -> bool:
    return all(_GPU.fullmatch(word.strip()) for word in text.split(","))


def _no_kind(kind: str, text: str, port: int) -> str:
    known = f"{', '.join(SCOPE_KINDS)} or {HOST}"
    if kind and _are_gpus(kind):
        return f"{text!r} is no scope (GPUs stand behind a colon: {port}:{text})"
    if kind.startswith("/"):
        return f"{text!r} is no scope (did you mean 'netns:{text}'?)"
    near = [right for right, names in _ALIASES.items() if kind.lower() in (right, *names)]
    near = near or difflib.get_close_matches(kind.lower(), [*SCOPE_KINDS, str(HOST)], n=1)
    if near:
        return f"{kind!r} is no kind of scope (did you mean {near[0]!r}? There are {known})"
    return f"{text!r} is no scope (write KIND:NAME, as in {port}@container:web; kinds are {known})"


def _pid(name: str) -> str:
    if not (name.isascii() and name.isdigit() and 1 <= int(name) <= MAX_PID):
        raise ValueError(f"{name!r} is no process id (1-{MAX_PID})")
    return str(int(name))


def _container(name: str) -> str:
    if not _CONTAINER.fullmatch(name):
        raise ValueError(f"{name!r} is no name or id of a container (letters, digits and _ . -)")
    return name


def _unit(name: str) -> str:
    """With its type, .service if it has none, as systemctl has it. One with a colon needs it, to be told from GPUs."""
    full = name if name.endswith(_UNIT_TYPES) or ":" in name else name + _UNIT_TYPES[0]
    if not (_UNIT.fullmatch(full) and full.endswith(_UNIT_TYPES)):
        raise ValueError(f"{name!r} is no name of a systemd unit (as in llama.service or llama@a.service)")
    if name.endswith(_OTHER_UNIT_TYPES):
        raise ValueError(f"{name!r} is a unit without processes (name a {', '.join(_UNIT_TYPES)})")
    if "@." in full:
        raise ValueError(f"{name!r} is a template (name an instance, as in {full.replace('@.', '@a.', 1)})")
    return full


def _netns(name: str) -> str:
    """A path from / on, or a name as `ip netns` has it."""
    if not name.isprintable() or " " in name:
        raise ValueError(f"{name!r} is no name of a network namespace: it has blanks or control characters")
    if {".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is no name of a network namespace: . and .. lead elsewhere")
    path = re.sub("/+", "/", name)
    if not path or path.endswith("/") or path.find("/") > 0:
        raise ValueError(f"{name!r} is no network namespace (write a path from / on, or a name of `ip netns`)")
    _, colon, behind = path.partition(":")
    for part in re.split("[:,]", behind) if colon else ():
        if _is_almost_gpu(part):
            raise ValueError(f"{name!r} is no name of a network namespace: {part!r} behind the colon reads like a GPU")
    return path


def _is_almost_gpu(word: str) -> bool:
    """A GPU, or what one becomes by a slip of the pen: gup0, gpu, 00.8, nothing."""
    if not word or _are_gpus(word) or re.fullmatch(r"[0-9a-f]{1,2}\.[0-9a-f]", word, re.IGNORECASE):
        return True
    parts = re.fullmatch(r"([a-z]+)[-_#]?(\d*)", word.lower())
    if parts is None:
        return False
    likeness = difflib.SequenceMatcher(None, parts[1], "gpu").ratio()
    return set(parts[1]) == set("gpu") or (bool(parts[2]) and likeness >= 0.6)  # noqa: PLR2004 - two letters of three


_NAME: Mapping[str, Callable[[str], str]] = {"netns": _netns, "pid": _pid, "unit": _unit, "container": _container}
_EXAMPLE = {
    "netns": "netns:/run/netns/a or netns:a",
    "pid": "pid:1234",
    "unit": "unit:llama.service",
    "container": "container:web",
}
