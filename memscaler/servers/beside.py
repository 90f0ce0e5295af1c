"""The governor beside a server: what a status document says about its port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memscaler.config.ports import parse_watch
from memscaler.core.watch import HOST

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A watch of the governor. gpus: UUIDs that it drives; () where it says none yet."""

    gpus: tuple[str, ...]


def watch_of(document: Document, port: int) -> Seen | None:
    """What the governor does about a port of this machine; None: it does not know it."""
    uuids = {gpu["gpu"]: gpu["uuid"] for gpu in document.get("gpus", ())}
    for watch in document.get("watches", ()):
        if watch.get("port") == port and watch.get("scope") == str(HOST):
            return Seen(tuple(uuids.get(name, name) for name in watch.get("gpus", ())))
    for waiting in document.get("waiting", ()):
        try:
            watch = parse_watch(str(waiting.get("watch", "")))
        except ValueError:
            continue
        if watch.port == port and watch.scope == HOST:
            return Seen(())
    return None


def uncovered(seen: Seen, uuids: Sequence[str]) -> tuple[str, ...]:
    """GPUs of the server that its watch does not drive."""
    return tuple(uuid for uuid in uuids if seen.gpus and uuid not in seen.gpus)


def not_governing(document: Document) -> str:
    """Why it parks nothing now; "" if it does."""
    if document.get("dry_run"):
        return "it only looks (dry run)"
    return {"paused": "it is paused", "released": "it has let go of the driver"}.get(str(document.get("mode")), "")


def advice(port: int, gpus: Sequence[str]) -> str:
    """What to do so that a governor that runs knows the port. One that was given its ports by flags reads no tables."""
    named = ", ".join(f'"{gpu}"' for gpu in gpus)
    table = f"[[watch]]\\nport = {port}\\n" + (f"gpus = [{named}]\\n" if gpus else "")
    return (
        "sudo mkdir -p /etc/memscaler/conf.d && "
        f"printf '{table}' | sudo tee /etc/memscaler/conf.d/serve-{port}.toml && sudo memscaler reload; "
        "where it is that of another `serve`, or was started with --port: end it and describe both servers "
        "(docs/servers.md), or --ungoverned"
    )
