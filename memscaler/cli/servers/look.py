"""`memscaler servers list` and `show`: how the servers are."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memscaler.cli.options import Config, Json
from memscaler.cli.output import WIDTH, plain, print_json, show, span
from memscaler.cli.servers.options import SupervisorDir, User

if TYPE_CHECKING:
    from memscaler.config.servers import Server

NONE_DESCRIBED = "no server is described: write one below /etc/memscaler/servers.d, see docs/servers.md"
NOT_APPLIED = "not applied yet: memscaler servers apply"
LABEL_WIDTH = 12

Report = dict[str, Any]


def list_servers(
    user: User = None, config: Config = None, runtime_dir: SupervisorDir = None, as_json: Json = False
) -> None:
    """Show all servers: those that supervisors run, and those that are described and run by nobody."""
    from memscaler.cli.servers.governor import nobody_watches
    from memscaler.cli.servers.text import NOT_RUNNING

    documents = _documents(user, runtime_dir)
    reports = [
        {**report, "supervisor": each["user"], "pending": each["pending"].get(report["name"], [])}
        for each in documents
        for report in each["servers"]
    ]
    described, problem = _described(config)
    known = {report["name"] for report in reports}
    running = {each["user"] for each in documents}
    left = _left(runtime_dir)
    for server in described:
        if server.name not in known and user in (None, server.user, _supervisor_of(server)):
            kept = _is_kept(server, running, described)
            if kept:
                reports.append(_bare(server, NOT_RUNNING, NOT_APPLIED))
            else:
                reports.append(_unattended(server, left))
    if as_json:
        supervisors = [{key: each[key] for key in ("user", "pid", "started_unix_s")} for each in documents]
        print_json({"supervisors": supervisors, "servers": reports, "problem": problem})
        return
    _tell(reports, problem, nobody_watches(reports), user)


def show_server(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a server.", show_default=False)],
    user: User = None,
    runtime_dir: SupervisorDir = None,
    as_json: Json = False,
) -> None:
    """Show how a server is, what it was started as, and what `apply` would change about it."""
    from memscaler.cli.servers.supervisors import chosen

    (found,) = chosen([name], user, runtime_dir)
    document = found.supervisor.show(name)
    if as_json:
        print_json(document)
    else:
        show(_details(document))


def _documents(user: str | None, runtime_dir: str | None) -> list[Report]:
    """Of those that answer, with what is pending; none runs: []. Raise PermissionMissing if none may be asked."""
    from memscaler.cli.servers.supervisors import SupervisorNotRunning, running

    try:
        return [{**document, "pending": each.pending()} for each, document in running(user, runtime_dir)]
    except SupervisorNotRunning:
        return []


def _described(config: Any) -> tuple[Sequence[Server], str]:
    """What the configuration describes, or why it does not."""
    import os

    from memscaler.config.load import load
    from memscaler.core.errors import MemscalerError

    try:
        return load({}, os.environ, config).servers, ""
    except (MemscalerError, OSError) as error:
        return (), f"the descriptions cannot be read: {plain(str(error).splitlines()[0])}"


def _is_kept(server: Server, running: set[str], described: Sequence[Server]) -> bool:
    """Whether its supervisor runs; that of servers without a user may be anybody's, who has started it by hand."""
    of_users = {each.user for each in described if each.user}
    return _supervisor_of(server) in running or (not server.user and bool(running - of_users))


def _supervisor_of(server: Server) -> str:
    from memscaler.servers.places import USER

    return server.user or USER


Left = Mapping[str, tuple[int | None, bool]]


def _left(runtime_dir: str | None) -> Left:
    """Name -> pid of its process that a supervisor has left running, 0 if it is gone; and whether by hand."""
    from memscaler.kernel.processes import start_time
    from memscaler.servers import places, state

    found: dict[str, tuple[int | None, bool]] = {}
    for folder, by_hand in places.state_dirs(runtime_dir):
        try:
            records = state.load(folder)
        except state.Corrupt:  # or another user's
            continue
        for record in records:
            ran = record.process
            found[record.server.name] = (ran.pid if start_time(ran.pid) == ran.started else 0, by_hand)
    return found


def _unattended(server: Server, left: Left) -> Report:
    """Its supervisor does not run. What that has left is told where it is known."""
    from memscaler.cli.servers.text import UNATTENDED

    unit = f"memscaler-servers@{server.user}" if server.user else "memscaler-servers"
    pid, by_hand = left.get(server.name, (None, False))  # None: not known
    how = "memscaler servers run" if by_hand else f"sudo systemctl start {unit}"
    process = f"; its process runs on (pid {pid}), and is adopted then" if pid else "; its process has ended"
    reason = f"its supervisor does not run: {how}" + (process if pid is not None else "")
    return _bare(server, UNATTENDED, reason) | {"pid": pid or None}


def _bare(server: Server, state: str, reason: str) -> Report:
    """A report for one that nobody runs."""
    told: Report = {"name": server.name, "state": state, "since_unix_s": None, "pid": None, "port": server.port}
    told |= {"gpus": list(server.gpus), "user": server.user, "model": server.model, "restarts": 0, "reason": reason}
    names = ["auto"] if server.placed else list(server.gpus)
    return told | {"ended": "", "starts_unix_s": None, "supervisor": None, "names": names, "pending": []}


def _tell(reports: Sequence[Report], problem: str, notes: Sequence[str], user: str | None) -> None:
    from memscaler.cli.paint import paint
    from memscaler.cli.servers.text import table

    if reports:
        show(table(reports, paint(), time.time()))
    for note in notes:
        show(textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if problem:
        show(problem)
    elif not reports:
        show(
            NONE_DESCRIBED
            if user is None
            else f"no supervisor of user {plain(user)} runs, and no server is described for it"
        )


# ---- one -----------------------------------------------------------------------------------------------------------


def _details(document: Mapping[str, Any]) -> str:
    from memscaler.cli.servers.text import why

    report, told, planned = document["report"], document["description"], document.get("planned", {})
    now = time.time()
    state = f"{plain(report['state'])} for {span(now - report['since_unix_s'])}"
    pairs = [
        ("state", f"{state}, pid {plain(report['pid'])}" if report["pid"] else state),
        ("why", why(report, now)),
        ("port", plain(report["port"] or "")),
        ("gpus", _gpus(report, told)),
        *(("planned", plain(line)) for line in planned.get("layers", ())),
        ("arguments", _words(planned.get("arguments", ()))),
        ("model", plain(report["model"])),
        ("command", _words(told["command"])),
        ("options", _words(told["options"])),
        ("variables", ", ".join(map(plain, told["environment"]))),
        ("directory", plain(told["directory"])),
        ("user", plain(report["user"])),
        ("restarts", f"{plain(report['restarts'])}, {plain(told['restart'])}"),
        ("ended", plain(report["ended"])),
        ("hooks", ", ".join(map(plain, told["hooks"]))),
        ("log", _log(document["log"])),
        ("described", plain(told["origin"])),
        ("pending", _pending(document["pending"])),
    ]
    return "\n".join([plain(report["name"]), *(f"  {label:{LABEL_WIDTH}}{text}" for label, text in pairs if text)])


def _gpus(report: Report, told: Report) -> str:
    """As the operator calls them, and their UUIDs; "auto" is before what the planner has chosen."""
    names, uuids = report.get("names") or report["gpus"], report["gpus"]
    pairs = [f"{plain(name)} ({plain(uuid)})" for name, uuid in zip(names, uuids, strict=False)]
    listed = ", ".join(pairs) or ", ".join(map(plain, names))
    return f"auto: {listed}" if told["placed"] and pairs else listed


def _log(place: Mapping[str, str]) -> str:
    return plain(place["path"] or f"journalctl -t {place['identifier']}")


def _words(words: Iterable[str]) -> str:
    import shlex

    return plain(shlex.join(map(str, words)))


def _pending(changes: Iterable[str]) -> str:
    listed = ", ".join(map(plain, changes))
    return f"{listed} (memscaler servers apply)" if listed else ""
