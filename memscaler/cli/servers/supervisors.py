"""The supervisors that run: one for each user that has servers. Where they are, and asking them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from memscaler.cli.client import Asker, Document
from memscaler.cli.output import plain
from memscaler.config.near import nearest
from memscaler.core.errors import DaemonNotRunning, MemscalerError, PermissionMissing, UsageError
from memscaler.servers import places

Report = Mapping[str, Any]


class SupervisorNotRunning(DaemonNotRunning):
    """No supervisor answers."""

    hint = "start it: sudo systemctl start memscaler-servers; or by hand, not as root: memscaler servers run"


class Supervisor(Asker):
    """Asks one. user: as its directory says, "" for one that is named by its directory."""

    WHO = "the supervisor"
    LIVES = "see its log: journalctl -u memscaler-servers"

    def __init__(self, folder: Path, user: str = "") -> None:
        super().__init__(folder / places.SOCKET)
        self.folder = folder
        self.user = user

    @property
    def may_change(self) -> bool:
        """Root may, and whose it is."""
        try:
            return os.geteuid() in (0, self._path.stat().st_uid)
        except OSError:
            return False

    def list(self) -> Document:
        """Its report."""
        return self.told("GET", "/v1/servers")

    def show(self, name: str) -> Document:
        """All about one server."""
        return self.told("GET", f"/v1/servers/{quote(name, safe='')}")

    def pending(self) -> dict[str, Sequence[str]]:
        """Name -> what `apply` would change; nothing while the descriptions are wrong, which is told elsewhere."""
        try:
            changes = self.told("GET", "/v1/pending")
        except MemscalerError:
            return {}
        removed = {name: ["no longer described"] for name in changes["removed"]}
        return {**changes["changed"], **removed}

    def change(self, what: str, **wanted: object) -> Document:
        """Ask for a change: the last part of its route, and the body's keys."""
        return self.told("POST", f"/v1/{what}", wanted)

    def _not_running(self) -> MemscalerError:
        return SupervisorNotRunning(f"the supervisor does not run: nobody listens on {self._path}")


def found(user: str | None, runtime_dir: str | None) -> list[Supervisor]:
    """Those whose sockets are there, perhaps of one that is gone; the one that is named in any case."""
    if runtime_dir is not None:
        return [Supervisor(Path(os.path.abspath(runtime_dir)))]  # noqa: PTH100  # resolve() would follow links
    folders = dict(places.runtime_dirs())
    if os.geteuid() == 0:
        folders |= {folder: name for folder, name in places.listening_dirs() if folder not in folders}
    there = [Supervisor(folder, name) for folder, name in folders.items() if user in (None, name)]
    return [each for each in there if _is_there(each.folder)]


def _is_there(folder: Path) -> bool:
    try:
        return (folder / places.SOCKET).exists()
    except OSError:  # another user's directory
        return False


def running(user: str | None, runtime_dir: str | None, *, to_change: bool = False) -> list[tuple[Supervisor, Document]]:
    """Those that answer, with their reports.

    Raise SupervisorNotRunning if there is none, PermissionMissing if none of those that run may be asked or changed.
    """
    answers, refusals = [], []
    for each in found(user, runtime_dir):
        try:
            answers.append((each, each.list()))
        except (DaemonNotRunning, PermissionMissing) as error:
            refusals.append(error)
    if not answers:
        raise _why_none(user, refusals)
    if not to_change:
        return answers
    ours = [(each, report) for each, report in answers if each.may_change]
    if not ours:
        whose = ", ".join(plain(report["user"]) for _, report in answers)
        raise PermissionMissing(f"only root and {whose} may change these servers", hint="sudo memscaler servers ...")
    return ours


def _why_none(user: str | None, refusals: Sequence[MemscalerError]) -> MemscalerError:
    denied = [error for error in refusals if isinstance(error, PermissionMissing)]
    if denied:
        return denied[0]
    if user not in (None, places.USER):
        hint = f"start it: sudo systemctl start memscaler-servers@{plain(user)}"
        return SupervisorNotRunning(f"no supervisor of user {plain(user)} runs", hint=hint)
    return SupervisorNotRunning("no supervisor runs") if not refusals else refusals[0]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Servers of one supervisor."""

    supervisor: Supervisor
    names: tuple[str, ...]

    def now(self) -> list[Report]:
        """How they are."""
        return [report for report in self.supervisor.list()["servers"] if report["name"] in self.names]


def chosen(
    names: Sequence[str],
    user: str | None,
    runtime_dir: str | None,
    *,
    everything: bool = False,
    to_change: bool = False,
) -> list[Chosen]:
    """Which supervisors run these servers. Raise UsageError, with the nearest name, for one that nobody runs."""
    if not names and not everything:
        raise UsageError("which servers?", hint="name some, or all of them with --all; see `memscaler servers list`")
    if names and everything:
        raise UsageError("--all and names exclude each other", hint="see `memscaler servers list`")
    answers = running(user, runtime_dir)
    known = [str(report["name"]) for _, document in answers for report in document["servers"]]
    for name in names:
        if name not in known:
            raise unknown(name, known)
    made = []
    for supervisor, document in answers:
        mine = tuple(name for name in _names(document["servers"]) if everything or name in names)
        if not mine:
            continue
        if to_change and not supervisor.may_change:
            if everything:
                continue
            sentence = f"only root and {plain(document['user'])} may change {', '.join(map(plain, mine))}"
            raise PermissionMissing(sentence, hint="sudo memscaler servers ...")
        made.append(Chosen(supervisor, mine))
    if everything and to_change and not made:
        running(user, runtime_dir, to_change=True)  # says why
    return made


def _names(reports: Iterable[Report]) -> list[str]:
    return [str(report["name"]) for report in reports]


def unknown(name: str, known: Sequence[str]) -> UsageError:
    """There is no such server."""
    near = nearest(name, known)
    listed = ", ".join(map(plain, known)) or "none; describe one and run `memscaler servers apply`"
    hint = f"did you mean {plain(near)}?" if near else f"known: {listed}"
    return UsageError(f"no such server: {plain(name)!r}", hint=hint)
