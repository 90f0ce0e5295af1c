"""The governor beside a server: what a status document says about its port, and who started that governor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from memscaler.config.ports import parse_watch
from memscaler.core.servers import RUNNING
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


class Whose(StrEnum):
    """What gave a governor its ports."""

    FILES = "files"
    FLAGS = "flags"  # it reads no tables for them, whatever is written and reloaded
    SERVE = "serve"  # the same, and it ends with that server


def whose(pid: int, proc: Path = Path("/proc")) -> Whose:
    """By the command lines of the governor and its parent; FILES where they cannot be read."""
    try:
        flags = json.loads(_words(proc, pid)[-1])["flags"]
        parent = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        by_serve = "serve" in _words(proc, parent)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return Whose.FILES
    if not isinstance(flags, dict) or not flags.get("watch"):
        return Whose.FILES
    return Whose.SERVE if by_serve else Whose.FLAGS


def _words(proc: Path, pid: int) -> list[str]:
    return (proc / str(pid) / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")


def advice(port: int, gpus: Sequence[str], who: Whose = Whose.FILES) -> str:
    """What to do so that a governor that runs knows the port."""
    if who is Whose.SERVE:
        return (
            "it is that of another `memscaler serve`, for its port alone: end that one and describe both servers "
            "(docs/servers.md), or --ungoverned"
        )
    if who is Whose.FLAGS:
        return (
            "it was started with --port, and reads no other ports: end it and start it again with "
            f"--port {port} as well, or describe the servers (docs/servers.md), or --ungoverned"
        )
    named = ", ".join(f'"{gpu}"' for gpu in gpus)
    table = f"[[watch]]\\nport = {port}\\n" + (f"gpus = [{named}]\\n" if gpus else "")
    return (
        "sudo mkdir -p /etc/memscaler/conf.d && "
        f"printf '{table}' | sudo tee /etc/memscaler/conf.d/serve-{port}.toml && sudo memscaler reload; "
        "or --ungoverned"
    )


def correction(port: int, lacks: Sequence[str], who: Whose) -> str:
    """What to do so that the watch of a port drives these GPUs, too."""
    if who is Whose.FILES:
        mend = f"add them to the gpus of port {port} in the configuration, then sudo memscaler reload"
    else:
        mend = f"end it and start it again with --port {port}:{','.join(lacks)}"
    return f"{mend}; or serve on the GPUs of that watch with --devices, or --ungoverned"


# ---- servers that supervisors run ------------------------------------------------------------------------------------


def unwatched(document: Document, servers: Iterable[Document]) -> list[Document]:
    """Those of these servers that run and whose port the governor of this status does not know.

    None where it cannot be told, or finds servers by itself.
    """
    if "watches" not in document or document.get("discover") or document.get("mode") == "released":
        return []
    return [
        each
        for each in servers
        if each.get("port") and each.get("state") in RUNNING and watch_of(document, int(each["port"])) is None
    ]


def nobody_watches(server: Document, who: Whose) -> str:
    """A sentence, with what to do."""
    remedy = "sudo memscaler reload" if who is Whose.FILES else "end the memscaler that was given its ports by --port"
    return f"nobody watches port {server['port']} of server {server['name']}, its GPUs may be parked: {remedy}"
