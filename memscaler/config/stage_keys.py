"""What may stand in a [[stage]] table and in [suspend]: each key, its kind, its default and its help."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memscaler.config import hours, server_keys, values
from memscaler.config.ports import check_gpu, parse_watch
from memscaler.config.tables import key
from memscaler.config.values import Kind
from memscaler.core.stages import LADDER, Stage

_NAME = re.compile(server_keys.NAME_PATTERN)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMG]?)(?:i?B(?:/s)?)?")
_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_MOST_CPUS = 4096.0
_WORDS: Mapping[str, object] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "integer"]}}]
}


def a_server(raw: object) -> str:
    """The name of a server, its port ("8080", "8080@container:web") or a GPU. Raise ValueError for what is none.

    Whether there is such a one is not asked here.
    """
    text = str(raw).strip() if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    if "@" in text or text.isdecimal():
        watch = parse_watch(text)
        if watch.gpus:
            raise ValueError(f"{text!r} names a port and GPUs (write one of them)")
        return str(watch)
    if not _NAME.fullmatch(text):
        try:
            check_gpu(text)
        except ValueError:
            raise ValueError(f'{raw!r} is no server (write its name, its port as "8080", or a GPU as "gpu0")') from None
    return text


def _servers(raw: object) -> tuple[str, ...]:
    words = raw if isinstance(raw, (list, tuple)) else [raw]
    return tuple(dict.fromkeys(a_server(each) for each in words))


def _cpus(raw: object) -> float:
    if raw is False or raw == "off":
        return 0.0
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 <= raw <= _MOST_CPUS:
        raise ValueError(f'{raw!r} is no number of CPUs (write 0.5, or "off")')
    return float(raw)


def _rate(raw: object) -> float:
    """Bytes in a second."""
    if raw is False or raw == "off":
        return 0.0
    found = _SIZE.fullmatch(str(raw).strip())
    if isinstance(raw, bool) or found is None:
        raise ValueError(f'{raw!r} is no rate (write "100 kB/s", a number of bytes per second, or "off")')
    return float(found[1]) * _UNITS[found[2]]


def write_rate(bytes_per_s: float) -> object:
    """In the largest unit that makes it a whole number."""
    for unit in ("G", "M", "k"):
        if bytes_per_s and not bytes_per_s % _UNITS[unit]:
            return f"{bytes_per_s / _UNITS[unit]:.0f} {unit}B/s"
    return f"{bytes_per_s!r} B/s" if bytes_per_s else "off"


def _commands(raw: object) -> tuple[tuple[str, ...], ...]:
    if not isinstance(raw, list):
        raise ValueError('a list of commands, as in busy = ["systemctl -q is-active backup.service"]')
    return tuple(server_keys.arguments(each) for each in raw)


def _program(raw: object) -> str:
    return str(values.path(raw))


_STAGES = tuple(map(str, LADDER))
_STAGE = values.choice(*_STAGES)
_OFF_OR_NUMBER = {"enum": ["off", False]}
WINDOWS = Kind(hours.parse_windows, values.LIST, lambda found: list(map(str, found)))

STAGE_KEYS = (
    key("after", values.duration_s(0.1), "", "The quiet time after which it is entered; more for each deeper stage.",
        field="after_s"),
    key("do", Kind(lambda raw: Stage(_STAGE(raw)), _STAGE.schema), "", f"The stage: {', '.join(_STAGES)}.",
        field="stage"),
    key(
        "servers",
        Kind(_servers, _WORDS, list),
        "",
        "Only for these: names of [[server]] tables, ports (8080, 8080@container:web) or GPUs (gpu0). What names a "
        "server goes before what is for all. Default: all.",
    ),
    key("level", values.whole(1, 2), "1",
        "server-sleep: 1 keeps vLLM's weights in host memory, 2 drops them (the server has to load them again)."),
    key("force", values.switch, "false",
        "Also where another program (llama-swap, Ollama, a router) manages the same server."),
    key(
        "wake_on",
        values.choice("connection", "work"),
        "connection",
        "What leaves the stage: the first connection, or only one that is more than a touch.",
    ),
    key("program", Kind(_program, {"type": "string", "pattern": "^/"}), "",
        "checkpoint: the path of cuda-checkpoint. Default: looked for."),
    key("enter_timeout", values.duration_s(1), "3m", "Time that entering may take; then it has failed and is undone.",
        field="enter_timeout_s"),
    key("leave_timeout", values.duration_s(1), "10m", "Time that leaving may take; then the server is stuck, which is "
        "told, and leaving is tried again.", field="leave_timeout_s"),
)  # fmt: skip

SUSPEND_KEYS = (
    key(
        "servers",
        values.choice("stop-server", "checkpoint", "keep"),
        "stop-server",
        "What is done before to the servers that run: stop-server, checkpoint or keep.",
    ),
    key(
        "users",
        values.choice("any", "active", "ignore"),
        "active",
        "Logged-in users that keep the machine up: any, those that are active, or none (ignore).",
    ),
    key("ssh", values.switch, "true", "Open SSH sessions keep it up."),
    key("inhibitors", values.switch, "true", "Locks of logind against sleep (systemd-inhibit) keep it up."),
    key(
        "cpu_load",
        Kind(_cpus, {"anyOf": [{"type": "number", "minimum": 0, "maximum": _MOST_CPUS}, _OFF_OR_NUMBER]},
             lambda load: load or "off"),
        "0.5",
        'So many CPUs at work keep it up; "off": not looked at.',
    ),
    key(
        "network",
        Kind(_rate, {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}, {"const": False}]}, write_rate),
        "100 kB/s",
        'So much traffic, of all interfaces but loopback, keeps it up; "off": not looked at.',
        field="network_bytes_per_s",
    ),
    key(
        "busy",
        Kind(_commands, {"type": "array", "items": _WORDS}, lambda found: list(map(list, found))),
        "",
        "Commands that keep it up while one of them ends with 0. They run as root.",
    ),
    key("never", WINDOWS, "", 'Times of the week at which it is not suspended, e.g. "Mon-Fri 09:00-18:00".'),
    key("wake_at", WINDOWS, "", "Times of the week at which it is up: an alarm wakes it when one begins."),
    key("timeout", values.duration_s(1), "60s",
        "Time that it has to go down once logind has agreed; then its servers come back.", field="timeout_s"),
    key("min_awake", values.duration_s(0), "2m", "The shortest time between a resume and the next suspend.",
        field="min_awake_s"),
)  # fmt: skip
