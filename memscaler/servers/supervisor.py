"""Keeps the servers of one user as they are described: starts, adopts, compares, reports.

Used in the thread of a running event loop. What takes long is begun here, not waited for; `report` tells how it goes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from memscaler.config.servers import Server
from memscaler.core.errors import MemscalerError, UsageError
from memscaler.core.servers import REPORT, SCHEMA, ServerState, SupervisorReport
from memscaler.servers import child, decide, logs, marks, state
from memscaler.servers.charge import Charge, Surroundings
from memscaler.servers.places import Places, own_user
from memscaler.servers.state import Corrupt, Given, Record

WRITE_AGAIN_S = 10.0
_FAILING = frozenset({ServerState.FAILED, ServerState.WAITING})
STALE = "its description has changed since it was started; `memscaler servers apply` restarts it"
UNKNOWN = "nobody describes it any more; `memscaler servers apply` ends it"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs from what was described, or started, before: names. changed: which fields. restarted: of these."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    restarted: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


class Supervisor:
    """changed: told of every change. stream: of the journal."""

    def __init__(
        self,
        places: Places,
        *,
        changed: Callable[[], None] | None = None,
        stream: Path = logs.STREAM,
    ) -> None:
        self._places = places
        self._user = own_user()
        self._started_unix_s = time.time()
        self._charges: dict[str, Charge] = {}
        self._switches: dict[str, bool] = {}
        self._tell = changed
        self._soon: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._rotation = logs.Rotation()
        self._around = Surroundings(
            places, self._rotation, self._changed, self._save, asyncio.Lock(), self._others_loaded, stream
        )
        self._moved = asyncio.Event()
        self._sweeps: dict[str, asyncio.Task[None]] = {}
        self._told: SupervisorReport | None = None
        self._saved: dict[str, Record] | None = None
        self._closing = self._over = False

    # ---- from the start to the end ------------------------------------------------------------------------------

    def open(self, servers: Iterable[Server], lost: Collection[str] = ()) -> Changes:
        """Adopt what an earlier supervisor has left running, and start what is missing. Nothing is restarted.

        lost: marks of what lives. What the earlier supervisor had no time to write down is ended.
        """
        described = {server.name: server for server in servers}
        try:
            self._switches = state.load_switches(self._places.state)
        except Corrupt as error:
            log.warning("switches.unreadable", file=str(self._places.state / state.SWITCHES), err=str(error))
        records = self._records()
        for record in records or ():
            self._adopt(record, described.get(record.server.name))
        if records is not None:
            self._end_lost(set(lost) - {ran.mark for each in records for ran in (each.process, *each.hooks)})
        changes = self._take(described, gently=True)
        self._write()
        return changes

    async def close(self) -> None:
        """End all servers, at the same time, and wait for that."""
        self._closing = True
        there = list(self._charges.values())
        for charge in there:
            if charge.running or charge.standing.state is ServerState.WAITING:
                charge.post(decide.Stop(reason="the supervisor ends"))
        await asyncio.gather(*(charge.at_rest.wait() for charge in there), *self._sweeps.values())
        self._finish()
        (self._places.runtime / REPORT).unlink(missing_ok=True)

    def hurry(self) -> None:
        """While it closes: wait for nobody."""
        for charge in self._charges.values():
            charge.kill()

    def leave(self) -> None:
        """End without them: the next supervisor adopts them."""
        self._finish()  # first: who has forgotten its hooks would write that there are none
        for charge in self._charges.values():
            charge.forget()

    def _finish(self) -> None:
        self._write()
        self._over = True
        for handle in (self._soon, self._retry):
            if handle is not None:
                handle.cancel()
        self._rotation.close()

    def _records(self) -> tuple[Record, ...] | None:
        """None: not known."""
        try:
            return state.load(self._places.state)
        except Corrupt as error:
            hint = "servers that still run are not touched: a port of theirs will be found taken; end them by hand"
            file = str(self._places.state / state.STATE)
            log.error("state.unreadable", file=file, err=str(error), hint=hint)
            return None

    def _adopt(self, record: Record, described: Server | None) -> None:
        name = record.server.name
        charge = Charge(described or record.server, self._around)
        if charge.adopt(record):
            self._charges[name] = charge
            return
        log.warning("server.ended", server=name, pid=record.process.pid, how="while no supervisor was there")
        self._sweeps[name] = asyncio.get_running_loop().create_task(self._sweep(charge, record))

    async def _sweep(self, left: Charge, record: Record) -> None:
        await left.sweep(record)
        self._swept(record.server.name)

    def _end_lost(self, lost: Iterable[str]) -> None:
        by_name: dict[str, list[str]] = {}
        for mark in lost:
            by_name.setdefault(marks.name_of(mark), []).append(mark)
        for name, theirs in by_name.items():
            log.warning("server.lost", server=name, hint="started by an earlier supervisor and not written down: ended")
            before = self._sweeps.get(name)
            self._sweeps[name] = asyncio.get_running_loop().create_task(self._sweep_lost(name, theirs, before))

    async def _sweep_lost(self, name: str, lost: Iterable[str], before: asyncio.Task[None] | None) -> None:
        for mark in lost:
            await child.clear_strays(mark)
        if before is not None:
            await before
        self._swept(name)

    def _swept(self, name: str) -> None:
        """Only now there may be another one: what was left may have had its port, or its GPU's memory."""
        if self._sweeps[name] is not asyncio.current_task():
            return  # another sweep waits for this one
        del self._sweeps[name]
        if not self._closing and (charge := self._charges.get(name)) is not None and not charge.leaving:
            self._start_if_enabled(charge)

    # ---- what is described ---------------------------------------------------------------------------------------

    def apply(self, servers: Iterable[Server], *, dry_run: bool = False) -> Changes:
        """Make it so: only what differs is touched. dry_run: only say what differs."""
        self._refuse_at_the_end()
        described = {server.name: server for server in servers}
        if dry_run:
            return self._compare(described)
        changes = self._take(described, gently=False)
        log.info(
            "servers.applied",
            added=changes.added,
            removed=changes.removed,
            changed=tuple(changes.changed),
            restarted=changes.restarted,
        )
        return changes

    def _compare(self, described: Mapping[str, Server]) -> Changes:
        there = {name: charge for name, charge in self._charges.items() if not charge.leaving}
        changed = {
            name: fields
            for name, server in described.items()
            if name in there and (fields := there[name].differs(server))
        }
        return Changes(
            added=tuple(name for name in described if name not in there),
            removed=tuple(name for name in there if name not in described),
            changed=changed,
            restarted=tuple(name for name, fields in changed.items() if there[name].needs_restart(described[name])),
            unchanged=tuple(name for name in described if name in there and name not in changed),
        )

    def _take(self, described: Mapping[str, Server], *, gently: bool) -> Changes:
        changes = self._compare(described)
        for name in changes.removed:
            if gently and self._charges[name].standing.state is not ServerState.STOPPING:
                self._charges[name].note = UNKNOWN
                log.warning("server.unknown", server=name, hint=UNKNOWN)
            else:
                self._remove(self._charges[name])
        for name in changes.changed:
            self._change(self._charges[name], described[name], gently=gently)
        for name in changes.added:
            self._add(described[name])
        for name in changes.unchanged:
            charge = self._charges[name]
            charge.server = described[name]
            if not self.enabled(charge.server) and charge.running:  # it was being stopped when our predecessor ended
                self._start_if_enabled(charge)
        self._changed()
        return changes

    def _add(self, server: Server) -> None:
        charge = self._charges.get(server.name)
        if charge is None:
            charge = self._charges[server.name] = Charge(server, self._around)
        charge.server, charge.leaving = server, False
        if server.name not in self._sweeps:
            self._start_if_enabled(charge)

    def _start_if_enabled(self, charge: Charge) -> None:
        if self.enabled(charge.server):
            charge.post(decide.Start())
        else:
            charge.post(decide.Stop(ServerState.DISABLED, self._why_disabled(charge.server)))

    def _remove(self, charge: Charge) -> None:
        charge.leaving = True
        self._switches.pop(charge.server.name, None)
        charge.post(decide.Stop(reason="nobody describes it any more"))

    def _change(self, charge: Charge, server: Server, *, gently: bool) -> None:
        was_enabled, restart = self.enabled(charge.server), charge.needs_restart(server)
        charge.server = server
        enabled = self.enabled(server)
        if gently and (restart or not enabled):
            charge.note = STALE
            log.warning("server.stale", server=server.name, hint=STALE)
        elif not enabled:
            self._start_if_enabled(charge)
        elif charge.running:
            if restart:
                charge.post(decide.Restart("its description has changed"))
            else:
                charge.adjust()
        elif restart or not was_enabled or charge.standing.state in _FAILING:
            charge.post(decide.Start())

    async def _others_loaded(self, name: str) -> None:
        """Until no other server is about to take memory of GPUs."""
        while any(charge.loads for other, charge in self._charges.items() if other != name):
            await self._moved.wait()

    def enabled(self, server: Server) -> bool:
        """An operator's word goes before the description's."""
        return self._switches.get(server.name, server.enabled)

    def _why_disabled(self, server: Server) -> str:
        return "" if not server.enabled else "by an operator: `memscaler servers enable` undoes it"

    # ---- what operators ask for ----------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Also one that has failed. Raise UsageError."""
        self.require_enabled(name).post(decide.Start())

    def stop(self, name: str, reason: str = "") -> None:
        """Until somebody starts it, or the supervisor itself is started anew. Raise UsageError."""
        charge = self._one(name)
        if charge.standing.state is not ServerState.DISABLED:
            charge.post(decide.Stop(reason=reason or "stopped by an operator"))

    def restart(self, name: str) -> None:
        """As its description was when it was last applied. Raise UsageError."""
        self.require_enabled(name).post(decide.Restart("an operator wants it"))

    def enable(self, name: str) -> None:
        """From now on, whatever its description says. Raise UsageError, MemscalerError if it cannot be charge."""
        self._switch(self._one(name), on=True)

    def disable(self, name: str) -> None:
        """The opposite."""
        self._switch(self._one(name), on=False)

    def _switch(self, charge: Charge, *, on: bool) -> None:
        switches = {**self._switches, charge.server.name: on}
        if on == charge.server.enabled:
            del switches[charge.server.name]
        try:
            state.save_switches(self._places.state, switches)
        except OSError as error:
            raise MemscalerError(f"cannot write {self._places.state / state.SWITCHES}: {error.strerror}") from error
        self._switches = switches
        self._start_if_enabled(charge)

    def _refuse_at_the_end(self) -> None:
        if self._closing:
            raise MemscalerError("the supervisor is ending", hint="ask the next one")

    def _one(self, name: str) -> Charge:
        self._refuse_at_the_end()
        charge = self._charges.get(name)
        if charge is None or charge.leaving:
            known = ", ".join(self._charges) or "none"
            raise UsageError(f"there is no server {name}", hint=f"there are: {known}")
        return charge

    def require_enabled(self, name: str) -> Charge:
        """It is there and may run. Raise UsageError."""
        charge = self._one(name)
        if not self.enabled(charge.server):
            raise UsageError(f"server {name} is disabled", hint=f"memscaler servers enable {name}")
        return charge

    def description(self, name: str) -> Server:
        """As its process was started; as described, if there is none. Raise UsageError."""
        charge = self._one(name)
        return charge.launched or charge.server

    def given(self, name: str) -> Given:
        """What its process got at its start. Raise UsageError."""
        return self._one(name).given

    def pending(self, name: str) -> tuple[str, ...]:
        """The fields that are described otherwise than what runs. Raise UsageError."""
        charge = self._one(name)
        return charge.differs(charge.server)

    def log_place(self, name: str) -> logs.Place:
        """Where its output is. Raise UsageError."""
        return self._one(name).log_place

    # ---- what is told --------------------------------------------------------------------------------------------

    def report(self) -> SupervisorReport:
        servers = tuple(charge.report for _, charge in sorted(self._charges.items()))
        return SupervisorReport(self._user, os.getpid(), self._started_unix_s, servers)

    def _changed(self) -> None:
        """Many at once are told together."""
        self._moved.set()
        self._moved = asyncio.Event()
        if self._soon is None and not self._over:
            self._soon = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._soon = None
        if self._over:
            return
        for name, charge in list(self._charges.items()):
            if charge.leaving and not charge.running:
                del self._charges[name]
                log.info("server.removed", server=name)
        self._save()
        report = self.report()
        if report == self._told:
            return
        document = {"schema": SCHEMA, **asdict(report)}
        try:
            state.replace(self._places.runtime / REPORT, json.dumps(document).encode() + b"\n", 0o644)
        except OSError as error:
            log.warning("report.write_failed", err=str(error))
            self._again()
        self._told = report
        if self._tell is not None:
            self._tell()

    def _save(self) -> None:
        if self._over:
            return
        records = {name: record for name, charge in self._charges.items() if (record := charge.record) is not None}
        if records == self._saved:
            return
        try:
            state.save(self._places.state, records)
            self._saved = records
        except OSError as error:
            hint = "servers started now are not found again if the supervisor is killed"
            log.error("state.write_failed", err=str(error), hint=hint)
            self._again()

    def _again(self) -> None:
        """The disk may have room in a while; nothing else may happen until then."""
        if not self._over and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(WRITE_AGAIN_S, self._write_again)

    def _write_again(self) -> None:
        self._retry = self._told = None
        self._write()
