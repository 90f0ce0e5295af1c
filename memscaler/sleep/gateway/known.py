"""Whether somebody brings a gateway's `server` back: by the configuration, and by the governor that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memscaler.config.schema import Settings
from memscaler.core.errors import MemscalerError
from memscaler.core.watch import HOST
from memscaler.sleep.gateway.governor import Governor

_TOLD = 8


def ask(control: Path) -> tuple[Mapping[str, Any] | None, str]:
    """What the governor says; or None, and a sentence with what to do."""
    try:
        return asyncio.run(Governor(control).status()), ""
    except MemscalerError as error:
        match error.__cause__:
            case FileNotFoundError() | NotADirectoryError():
                return None, f"no governor runs here ({control}): sudo systemctl start memscaler"
            case ConnectionRefusedError():
                return None, (
                    f"the governor's socket {control} is stale, nobody answers there: sudo systemctl restart memscaler"
                )
            case PermissionError():
                return None, f"{control} may not be asked by this user: sudo, or a member of group memscaler"
            case _:
                return None, f"{error}: systemctl status memscaler, and its log"


def judge(server: str, settings: Settings, told: Mapping[str, Any] | None) -> tuple[str, str]:
    """A problem and a warning, "" for none. told: what the governor says; None: nothing."""
    configured, running = _configured(settings), _running(told) if told is not None else frozenset()
    if server in running:
        return "", ""
    if server in configured or (settings.discover and server.partition("@")[0].isdecimal()):
        if told is None:
            return "", ""
        return "", f"the governor that runs does not know server {server} (yet): start it, or sudo memscaler reload"
    known = _choices(settings, told or {})
    more = ", ..." if len(known) > _TOLD else ""
    there = f"there are {', '.join(known[:_TOLD])}{more}" if known else "there are none"
    return f"no [[server]] is called {server}, and no such port is watched ({there}): correct `server`", ""


def _choices(settings: Settings, told: Mapping[str, Any]) -> list[str]:
    """What `server` may be, each server once: by its name, or by its port if it has none."""
    found: dict[str, str] = {}
    for watch in settings.watches:
        place = str(watch.port) if watch.scope == HOST else f"{watch.port}@{watch.scope}"
        found[place] = place
    for each in (*_tables(told, "watches"), *_servers(told)):
        if each.get("port"):
            place = str(each["port"]) + (f"@{each['scope']}" if each.get("scope") not in (None, str(HOST)) else "")
            found.setdefault(place, place)
            name = str(each.get("name") or "")
            found[place] = name if name and not name.partition("@")[0].isdecimal() else found[place]
    for server in settings.servers:
        if server.enabled:
            found[str(server.port or server.name)] = server.name
    return sorted(set(found.values()), key=lambda word: (word.partition("@")[0].isdecimal(), word))


def _configured(settings: Settings) -> frozenset[str]:
    words = {str(port) for each in settings.servers if each.enabled for port in (each.name, each.port) if port}
    for watch in settings.watches:
        words |= {str(watch.port), f"{watch.port}@{watch.scope}"} if watch.scope != HOST else {str(watch.port)}
        words |= set(watch.gpus)
    return frozenset(words)


def _running(told: Mapping[str, Any]) -> frozenset[str]:
    words: set[str] = set()
    for each in (*_tables(told, "watches"), *_servers(told)):
        words |= {str(each.get("name") or ""), str(each.get("port") or "")}
        words |= {f"{each['port']}@{each['scope']}"} if each.get("port") and each.get("scope") else set()
        words |= set(map(str, each.get("gpus") or ()))
    return frozenset(words - {""})


def _servers(told: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    sleep = told.get("sleep")
    return _tables(sleep, "servers") if isinstance(sleep, dict) else ()


def _tables(document: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    found = document.get(key)
    return tuple(each for each in found if isinstance(each, dict)) if isinstance(found, list) else ()
