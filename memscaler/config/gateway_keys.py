"""What may stand in a [[gateway]] table: each key, its kind, its default and its help."""

from __future__ import annotations

import re

from memscaler.config import server_keys, stage_keys, values
from memscaler.config.ports import MAX_PORT
from memscaler.config.tables import key
from memscaler.config.values import Address, Kind

_MAC = re.compile("[0-9a-f]{2}(?:[:-]?[0-9a-f]{2}){5}")
_PATH = re.compile("/[!-~]{0,255}")
_DISCARD = 9  # where magic packets are sent by custom
_MAC_SCHEMA = {"type": "string", "pattern": "^[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}$"}


def _address(raw: object, *, least: int = 1) -> Address:
    text = str(raw).strip()
    try:
        address = values.address_or_off(raw) if isinstance(raw, str) else None
    except ValueError:
        address = None
    if address is None or not least <= address.port <= MAX_PORT:
        raise ValueError(f"{text!r} is no address (write HOST:PORT, as in 0.0.0.0:8080 or [::]:8080)")
    return address


def _listen(raw: object) -> Address:
    """Port 0: the system chooses."""
    return _address(raw, least=0)


def _wake_to(raw: object) -> Address:
    text = str(raw).strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if isinstance(raw, str) and bare and (":" not in text or bare.count(":") > 1) and (":" not in bare or bare != text):
        return Address(bare, _DISCARD)
    return _address(raw)


def _mac(raw: object) -> str:
    """Six bytes in hex, colons between them."""
    text = str(raw).strip().lower()
    if not isinstance(raw, str) or not _MAC.fullmatch(text):
        raise ValueError(f"{raw!r} is no hardware address (write 00:11:22:aa:bb:cc)")
    digits = re.sub("[:-]", "", text)
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def _secure_on(raw: object) -> str:
    """Raise ValueError without the password in the sentence."""
    try:
        return _mac(raw)
    except ValueError:
        raise ValueError("it is a password of six bytes, written like a hardware address") from None


def _ready(raw: object) -> str:
    if raw is False or raw == "off":
        return ""
    if not isinstance(raw, str) or not _PATH.fullmatch(raw):
        raise ValueError(f'{raw!r} is no path (write "/health" or "off")')
    return raw


def _paths(raw: object) -> tuple[str, ...]:
    texts = raw if isinstance(raw, list) else [raw]
    return tuple(dict.fromkeys(map(_path, texts)))


def _path(raw: object) -> str:
    if not isinstance(raw, str) or not _PATH.fullmatch(raw):
        raise ValueError(f'{raw!r} is no path (write "/health")')
    return raw


_ADDRESS = {"type": "string", "pattern": "^.+:[0-9]+$"}

GATEWAY_KEYS = (
    key("listen", Kind(_listen, _ADDRESS), "", "Where clients connect: HOST:PORT."),
    key("to", Kind(_address, _ADDRESS), "", "The server behind it: HOST:PORT."),
    key("name", server_keys.NAME, "", "What it is called in the log and in metrics. Default: the listening port."),
    key(
        "server",
        Kind(stage_keys.a_server, {"type": ["string", "integer"]}),
        "",
        "The server of this machine behind it, by name or port: the governor is asked to bring it back.",
    ),
    key("mac", Kind(_mac, _MAC_SCHEMA), "", "The hardware address of the machine behind it: it is woken by packets."),
    key("secure_on", Kind(_secure_on, _MAC_SCHEMA), "", "The SecureOn password of that machine's card, if it has one."),
    key(
        "wake_to",
        Kind(_wake_to, {"type": "string"}),
        "",
        f"Where packets that wake a machine go: HOST or HOST:PORT, port {_DISCARD} by custom. Default: everybody.",
    ),
    key(
        "protocol",
        values.choice("http", "tcp"),
        "http",
        "http: clients that cannot wait get a 503; tcp: no byte is ever looked at.",
    ),
    key(
        "ready",
        Kind(_ready, {"anyOf": [{"type": "string", "pattern": "^(/[!-~]*|off)$"}, {"const": False}]},
             lambda path: path or "off"),
        "/health",
        'What has to answer 200 after a wake, before clients are let through; "off" (with tcp always): it listens.',
    ),
    key("wait", values.duration_s(0), "2m", "The longest time that a client is held.", field="wait_s"),
    key("hold", values.switch, "true", "false: clients of a sleeping server get a 503 at once, and it is woken."),
    key("retry_after", values.duration_s(1), "15s", "What a 503 tells in Retry-After.", field="retry_after_s"),
    key("wake_timeout", values.duration_s(1), "3m", "A wake that takes longer has failed.", field="wake_timeout_s"),
    key("wake_pause", values.duration_s(0), "10s", "The pause after a wake that has failed.", field="wake_pause_s"),
    key("no_wake_paths", Kind(_paths, values.LIST, list), "", 'http: requests that wake nothing, e.g. ["/health"].'),
    key("no_wake_from", values.prefixes, "", "Clients that wake nothing, e.g. 10.0.0.5 or 10.1.0.0/16."),
    key("most_waiting", values.whole(1, 1_000_000), "1000", "The most clients that are held at the same time."),
    key("connect_timeout", values.duration_s(0.01), "2s", "Time that one attempt to connect may take.",
        field="connect_timeout_s"),
)  # fmt: skip
