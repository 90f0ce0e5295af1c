"""What operators ask for (requests.py), done with the supervisor. In its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from memscaler.config.servers import Hook, Server
from memscaler.core.errors import MemscalerError
from memscaler.servers.aside import aside
from memscaler.servers.requests import (
    Apply,
    Disable,
    Enable,
    Follow,
    List,
    Pending,
    Reload,
    Request,
    Restart,
    Show,
    Start,
    Stop,
    Verb,
)
from memscaler.servers.supervisor import Supervisor

READ_S = 30.0

Document = dict[str, Any]
Describe = Callable[[], tuple[Server, ...]]


class Steering:
    """describe: reads the descriptions of this supervisor's servers, in a thread. Raise ConfigError."""

    def __init__(self, supervisor: Supervisor, describe: Describe) -> None:
        self._supervisor = supervisor
        self._describe = describe
        self._reading = asyncio.Lock()  # what is read first is applied first

    async def answer(self, request: Request) -> Document:
        """For the control socket. Raise MemscalerError."""
        match request:
            case List() | Follow():
                return asdict(self._supervisor.report())
            case Show(name):
                return await self._show(name)
            case Apply(dry_run):
                return await self.apply(dry_run=dry_run)
            case Reload() | Pending():
                return await self.apply(dry_run=True)
            case _:
                self._do(request)
                return {"servers": list(request.servers)}

    async def apply(self, *, dry_run: bool = False) -> Document:
        """Also what SIGHUP does. Raise ConfigError: then nothing is changed."""
        async with self._reading:
            try:
                async with asyncio.timeout(READ_S):
                    described = await aside(self._describe)
            except TimeoutError as error:
                raise MemscalerError(f"the configuration could not be read within {READ_S:g} s") from error
            changes = self._supervisor.apply(described, dry_run=dry_run)
        changed = {name: list(fields) for name, fields in changes.changed.items()}
        told = {"added": list(changes.added), "removed": list(changes.removed), "changed": changed}
        return {**told, "restarted": list(changes.restarted), "dry_run": dry_run}

    def _do(self, request: Verb) -> None:
        verbs: dict[type[Verb], Callable[[str], None]] = {
            Enable: self._supervisor.enable,
            Disable: self._supervisor.disable,
            Start: self._supervisor.start,
            Stop: partial(self._supervisor.stop, reason=request.reason if isinstance(request, Stop) else ""),
            Restart: self._supervisor.restart,
        }
        for name in request.servers:  # all or none: what cannot be done comes before the first deed
            self._supervisor.description(name)
            if isinstance(request, Start | Restart):
                self._supervisor.require_enabled(name)
        for name in request.servers:
            verbs[type(request)](name)

    async def _pending(self, name: str) -> list[str]:
        """What `apply` would change about it; if the descriptions are broken, by those that were read last."""
        try:
            changes = await self.apply(dry_run=True)
        except MemscalerError:
            return list(self._supervisor.pending(name))
        return ["no longer described"] if name in changes["removed"] else changes["changed"].get(name, [])

    async def _show(self, name: str) -> Document:
        self._supervisor.description(name)  # is it there?
        pending = await self._pending(name)
        place = self._supervisor.log_place(name)
        given = self._supervisor.given(name)
        report = next(each for each in self._supervisor.report().servers if each.name == name)
        return {
            "report": asdict(report),
            "description": described(self._supervisor.description(name)),
            "planned": {"arguments": list(given.arguments), "layers": list(given.layers)},
            "pending": pending,
            "log": {"identifier": place.identifier, "path": place.path},
        }


def described(server: Server) -> Document:
    """For whoever may look: values of variables may be secrets, and are left out; of hooks no more than names."""
    told = asdict(server)
    told["environment"] = [name for name, _ in server.environment]
    told["hooks"] = list(_names(server.hooks))
    return told


def _names(hooks: tuple[Hook, ...], above: str = "") -> list[str]:
    names = []
    for hook in hooks:
        names += [above + hook.name, *_names(hook.hooks, f"{above}{hook.name}.")]
    return names
