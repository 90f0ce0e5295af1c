"""The stage stop-server: the server's process ends; it is started anew, and loads its model, when it is wanted.

    a described server        through its supervisor (supervisors.py)
    scope unit:NAME.service   through systemd (units.py)
    with force, another manager's: that unloads the model, and loads it at the next request by itself

A stopped server listens no longer, so nobody who connects can wake it: the gateway does, or `memscaler wake`. What a
manager has unloaded needs nobody: the manager listens still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from memscaler.config.stages import StageRule
from memscaler.core.stages import Stage
from memscaler.kernel.processes import start_time
from memscaler.sleep.drivers.managers import Manager, Managers
from memscaler.sleep.drivers.protocol import Call, Gone, Later, Look, Memo, Target, Where
from memscaler.sleep.drivers.supervisors import Supervisors
from memscaler.sleep.drivers.units import Units

BY_MANAGER = "manager"


class Way(Protocol):
    """One way to stop a server and start it again. What they raise: protocol.py."""

    BY: ClassVar[str]

    def possible(self, server: Target, call: Call) -> str: ...

    def memo(self, server: Target, call: Call) -> dict[str, Any]: ...

    def stop(self, memo: Memo, call: Call) -> None: ...

    def start(self, memo: Memo, call: Call) -> None: ...

    def look(self, memo: Memo, call: Call) -> Look: ...


class StopServer:
    """Driver of the stage."""

    stage = Stage.STOP_SERVER

    def __init__(self, supervisors: Supervisors, units: Units, managers: Managers) -> None:
        self._managers = managers
        self._unloading = Unloading(managers)
        self._ways: Mapping[str, Way] = {way.BY: way for way in (supervisors, units, self._unloading)}

    def possible(self, server: Target, rule: StageRule, call: Call) -> str:
        owner = self._managers.owner(server, call)
        if owner and not rule.force:
            return owner
        way = self._way(server, rule)
        return way if isinstance(way, str) else way.possible(server, call)

    def prepare(self, server: Target, rule: StageRule, call: Call) -> Memo:
        way = self._way(server, rule)
        if isinstance(way, str):
            raise Later(way)
        return {"driver": self.stage.value, "server": str(server), "by": way.BY, **way.memo(server, call)}

    def enter(self, memo: Memo, call: Call) -> None:
        self._ways[memo["by"]].stop(memo, call)

    def leave(self, memo: Memo, call: Call) -> None:
        self._ways[memo["by"]].start(memo, call)

    def look(self, memo: Memo, call: Call) -> Look:
        return self._ways[memo["by"]].look(memo, call)

    def _way(self, server: Target, rule: StageRule) -> Way | str:
        """The way to stop it, or why there is none."""
        if rule.force and server.pids and self._managers.of(server) is not None:
            return self._ways[BY_MANAGER]
        if server.name:
            return self._ways[Supervisors.BY]
        if server.scope.startswith("unit:"):
            return self._ways[Units.BY]
        return (
            f"nobody could start {server} again: describe it as a [[server]], or watch it as "
            f'"{server.port}@unit:NAME.service"'
        )


class Unloading:
    """By the manager that has loaded it."""

    BY: ClassVar[str] = BY_MANAGER

    def __init__(self, managers: Managers) -> None:
        self._managers = managers

    def possible(self, server: Target, call: Call) -> str:
        manager = self._managers.of(server)
        if manager is None:
            return f"nobody manages {server}"
        return "" if self._managers.loaded(manager, server, call) else f"{manager.kind} has nothing loaded"

    def memo(self, server: Target, call: Call) -> dict[str, Any]:
        manager = self._managers.of(server)
        if manager is None:
            raise Later(f"nobody manages {server} any more")
        models = [model.name for model in self._managers.loaded(manager, server, call)]
        return {"kind": manager.kind, "pid": manager.pid, "started": start_time(manager.pid), "models": models,
                "watched": manager.port, "key": server.key, "port": server.port, "scope": server.scope}  # fmt: skip

    def stop(self, memo: Memo, call: Call) -> None:
        manager, server = _manager(memo), _target(memo)
        for name in self._loaded(manager, server, memo, call):
            self._managers.unload(manager, server, name, call)

    def start(self, memo: Memo, call: Call) -> None:
        """Nothing is to be done: the next request does it."""
        _ = call
        _manager(memo)

    def look(self, memo: Memo, call: Call) -> Look:
        try:
            manager = _manager(memo)
            loaded = self._loaded(manager, _target(memo), memo, call)
        except Gone as error:
            return Look(Where.GONE, str(error))
        except Later as error:
            return Look(Where.UNKNOWN, str(error))
        return Look(Where.UP if loaded else Where.DOWN, f"{manager.kind} has {', '.join(loaded) or 'nothing'} loaded")

    def _loaded(self, manager: Manager, server: Target, memo: Memo, call: Call) -> list[str]:
        there = {model.name for model in self._managers.loaded(manager, server, call)}
        return [name for name in memo["models"] if name in there]


def _manager(memo: Memo) -> Manager:
    if start_time(int(memo["pid"])) != memo["started"]:
        raise Gone(f"{memo['kind']} (pid {memo['pid']}) has ended")
    return Manager(memo["kind"], int(memo["pid"]), int(memo["watched"]))


def _target(memo: Memo) -> Target:
    return Target(memo["key"], int(memo["port"]), memo["scope"], pids=(int(memo["pid"]),))
