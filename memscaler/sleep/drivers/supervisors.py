"""Described servers, stopped and started through the control socket of the supervisor that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from memscaler.core.servers import ServerState
from memscaler.kernel.processes import Processes
from memscaler.servers import places
from memscaler.sleep.drivers.protocol import Call, Gone, Later, Look, Memo, Stuck, Target, Undone, Where
from memscaler.sleep.drivers.talk import LONGEST_PROBE_S, POLL_S, Answer, ask_unix, why

Folders = Callable[[], Iterable[Path]]
Refused = Callable[[str], None]  # a sentence; "": it is over
_AT_REST = (ServerState.STOPPED, ServerState.FAILED)
_MEND = (
    "restart memscaler, which gives up that right for good if it is started without a [[stage]], or start it as a "
    "member of the group of that socket"
)
_START = "start memscaler-servers, or that supervisor, again; `memscaler servers list` tells"
ASLEEP = "asleep"  # how the reason begins of what we have stopped
_REASON = f"{ASLEEP} until its next client; `memscaler wake` starts it"


def usual_folders() -> Iterable[Path]:
    """Where supervisors may run."""
    return [folder for folder, _ in places.runtime_dirs()]


def quietly(_sentence: str) -> None:
    """Nobody is told."""


class Supervisors:
    """One way to stop a server, of those in stop_server.py."""

    BY: ClassVar[str] = "supervisor"

    def __init__(self, folders: Folders = usual_folders, refused: Refused = quietly) -> None:
        """refused: told when a supervisor may not be asked, which an operator has to mend."""
        self._folders, self._tell_refused = folders, refused

    def possible(self, server: Target, call: Call) -> str:
        _, report = self._find(server, call)
        if report["state"] == ServerState.DISABLED:
            return f"{server.name} is disabled by an operator"
        if report["state"] in _AT_REST:
            return f"{server.name} is {report['state']} already, which is not our doing"
        if report["state"] != ServerState.READY:
            raise Later(f"{server.name} is {report['state']}")
        return ""

    def memo(self, server: Target, call: Call) -> dict[str, Any]:
        folder, _ = self._find(server, call)
        return {"socket": str(folder / places.SOCKET), "name": server.name}

    def stop(self, memo: Memo, call: Call) -> None:
        now = self._state(memo, call, Later)
        if now in (*_AT_REST, ServerState.DISABLED):
            return
        if call.abandoned():
            raise Undone("somebody came before it was stopped")
        self._ask(memo, "stop", call, Stuck, reason=_REASON)  # it may have been heard, whatever is answered
        while self._state(memo, call, Stuck) not in (*_AT_REST, ServerState.DISABLED):
            if call.abandoned():
                self.start(memo, Call(call.until_s))
                raise Undone("somebody came while it was being stopped")
            _wait(call, f"{memo['name']} does not end")

    def start(self, memo: Memo, call: Call) -> None:
        now = self._state(memo, call, Stuck)
        if now == ServerState.DISABLED:
            raise Gone(f"{memo['name']} has been disabled by an operator", hint=_enable(memo))
        if now == ServerState.READY:
            return
        if now == ServerState.STOPPED and not self.look(memo, call).text.startswith(ASLEEP):
            what_to_do = f"memscaler servers start {memo['name']}"
            raise Gone(f"{memo['name']} has been stopped by an operator, or has ended by itself", hint=what_to_do)
        if now in (*_AT_REST, ServerState.STOPPING):
            self._ask(memo, "start", call, Stuck)
        while (now := self._state(memo, call, Stuck)) != ServerState.READY:
            if now == ServerState.FAILED:
                reason = str(self._report(memo, call)["reason"]).removeprefix("cannot be started: ")
                raise Stuck(f"{memo['name']} cannot be started: {reason}")
            if now == ServerState.DISABLED:
                raise Gone(f"{memo['name']} has been disabled by an operator", hint=_enable(memo))
            _wait(call, f"{memo['name']} is not ready yet")

    def look(self, memo: Memo, call: Call) -> Look:
        try:
            report = self._report(memo, call)
        except Gone as error:
            return Look(Where.GONE, str(error))
        except (Later, OSError) as error:
            return Look(Where.UNKNOWN, str(error) if isinstance(error, Later) else why(error))
        state = report["state"]
        text = str(report.get("reason") or "")
        if state in (*_AT_REST, ServerState.DISABLED):
            return Look(Where.DOWN, text)
        return Look(Where.UP if state == ServerState.READY else Where.BETWEEN, text or f"it is {state}")

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _find(self, server: Target, call: Call) -> tuple[Path, dict[str, Any]]:
        """The supervisor that runs what listens there: one of another user may have a server of the same name."""
        found, refused = [], None
        for folder in self._folders():
            with suppress(OSError):
                try:
                    answer = _ask(folder / places.SOCKET, "GET", "/v1/servers", call)
                except PermissionError:  # root without its rights, and not of the socket's group, as the unit's is
                    refused = folder
                    raise
                found += [(folder, each) for each in _reports(answer) if each["name"] == server.name]
        mine = [each for each in found if _listens(each[1], server)]
        if not mine and refused is not None:
            why = f"memscaler may not ask the supervisor in {refused}, so {server.name} cannot be stopped"
            self._tell_refused(f"{why}: {_MEND}")
            raise Later(why, hint=_MEND)
        if not mine:
            raise Later(f"no supervisor that answers runs {server.name} on port {server.port}", hint=_START)
        self._tell_refused("")
        return mine[0]

    def _report(self, memo: Memo, call: Call) -> dict[str, Any]:
        """Raise Later, Gone, OSError."""
        answer = _ask(Path(memo["socket"]), "GET", "/v1/servers", call)
        if not answer.ok:
            raise Later(f"the supervisor of {memo['name']} answers with status {answer.status}")
        for each in _reports(answer):
            if each["name"] == memo["name"]:
                return each
        raise Gone(f"nobody describes {memo['name']} any more")

    def _state(self, memo: Memo, call: Call, doubt: type[Later | Stuck]) -> str:
        try:
            return str(self._report(memo, call)["state"])
        except OSError as error:
            raise doubt(f"the supervisor of {memo['name']} does not answer: {why(error)}", hint=_START) from error
        except Later as error:
            raise doubt(str(error), hint=error.hint) from error

    def _ask(self, memo: Memo, verb: str, call: Call, doubt: type[Later | Stuck], **more: str) -> None:
        try:
            answer = _ask(Path(memo["socket"]), "POST", f"/v1/{verb}", call, {"servers": [memo["name"]], **more})
        except OSError as error:
            raise doubt(f"the supervisor of {memo['name']} does not answer: {why(error)}", hint=_START) from error
        if not answer.ok:
            said = answer.document().get("error") or f"status {answer.status}"
            raise doubt(f"the supervisor refuses to {verb} {memo['name']}: {said}")


def _ask(path: Path, method: str, route: str, call: Call, body: dict[str, object] | None = None) -> Answer:
    return ask_unix(path, method, route, min(call.until_s, time.monotonic() + 4 * LONGEST_PROBE_S), body)


def _enable(memo: Memo) -> str:
    return f"memscaler servers enable {memo['name']}"


def _reports(answer: Answer) -> list[dict[str, Any]]:
    servers = answer.document().get("servers")
    there = [each for each in servers if isinstance(each, dict)] if isinstance(servers, list) else []
    return [each for each in there if "name" in each and "state" in each]


def _listens(report: dict[str, Any], server: Target) -> bool:
    if report.get("port") != server.port:
        return False
    pid = report.get("pid")
    if not server.pids or not isinstance(pid, int):
        return not server.pids or report["state"] in _AT_REST
    processes = Processes.look()
    return pid in server.pids or pid in processes.ancestors(server.pids)


def _wait(call: Call, problem: str) -> None:
    if call.left_s <= POLL_S:
        raise Stuck(f"{problem}: the time is over")
    time.sleep(POLL_S)
