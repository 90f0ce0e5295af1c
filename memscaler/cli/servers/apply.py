"""`memscaler servers apply` and `reload`: what the descriptions say against what runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memscaler.cli.options import Json
from memscaler.cli.output import plain, show
from memscaler.cli.servers.options import NoWait, SupervisorDir, User

if TYPE_CHECKING:
    from memscaler.cli.servers.supervisors import Supervisor

NOTHING = "nothing differs: the servers are as they are described"
TELL_GOVERNOR = "the governor watches the ports as they were: sudo memscaler reload"

Changes = Mapping[str, Any]


def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what differs and change nothing.")] = False,
    no_wait: NoWait = False,
    user: User = None,
    runtime_dir: SupervisorDir = None,
    as_json: Json = False,
) -> None:
    """Read the descriptions anew, say what differs from what runs, and do that; other servers are not touched.

    They are checked first and applied as a whole or not at all (exit code 78). New servers are started, those whose
    description is gone are stopped, changed ones are started anew. The exit code is 1 if one of these fails.
    """
    from memscaler.cli.output import print_json
    from memscaler.cli.servers.progress import settled, tell

    told = _ask("apply", user, runtime_dir, dry_run=dry_run)
    if dry_run:
        _show_plan(told, as_json=as_json)
        return
    if not as_json:
        show(_text(told))
    touched = [(supervisor, names) for supervisor, changes in told if (names := _touched(changes))]
    # before the servers are ready: what connects to them then is seen
    word = _tell_governor(told) if touched or _governor_lacks(told) else None
    if not as_json and word:
        show(word)
    if no_wait or not touched:
        if as_json:
            print_json({**_document(told), "governor": word, "servers": []})
        return
    reports = settled(touched, silent=as_json)
    tell({**_document(told), "governor": word}, reports, as_json=as_json)


def reload(user: User = None, runtime_dir: SupervisorDir = None, as_json: Json = False) -> None:
    """Read the descriptions anew and say what differs from what runs; no server is touched. `apply` does it."""
    _show_plan(_ask("reload", user, runtime_dir), as_json=as_json)


Told = Sequence[tuple["Supervisor", Changes]]


def _ask(what: str, user: str | None, runtime_dir: str | None, **wanted: object) -> Told:
    from memscaler.cli.servers.supervisors import running

    return [(each, each.change(what, **wanted)) for each, _ in running(user, runtime_dir, to_change=True)]


def _show_plan(told: Told, *, as_json: bool) -> None:
    from memscaler.cli.output import print_json

    if as_json:
        print_json(_document(told))
    else:
        show(_text(told))


def _document(told: Told) -> dict[str, Any]:
    """What differs at all supervisors together; names are unlike all others."""
    return {
        "added": [name for _, changes in told for name in changes["added"]],
        "removed": [name for _, changes in told for name in changes["removed"]],
        "changed": {name: what for _, changes in told for name, what in changes["changed"].items()},
        "dry_run": all(changes["dry_run"] for _, changes in told),
    }


def _touched(changes: Changes) -> tuple[str, ...]:
    return (*changes["added"], *changes["removed"], *changes["changed"])


def _text(told: Told) -> str:
    lines = []
    for _, changes in told:
        lines += [f"add     {plain(name)}" for name in changes["added"]]
        lines += [f"remove  {plain(name)}" for name in changes["removed"]]
        lines += [f"change  {plain(name)}: {', '.join(map(plain, what))}" for name, what in changes["changed"].items()]
    return "\n".join(lines or [NOTHING])


def _governor_lacks(told: Told) -> list[str]:
    """Sentences about servers whose ports the governor does not watch."""
    from memscaler.cli.servers.governor import nobody_watches

    return nobody_watches([report for supervisor, _ in told for report in supervisor.list()["servers"]])


def _tell_governor(told: Told) -> str | None:
    """Ports are watched as they were when the governor last read the configuration. None: no governor runs."""
    from memscaler.cli.client import Asker
    from memscaler.cli.options import settings_anyway
    from memscaler.config.schema import CONTROL_SOCKET
    from memscaler.core.errors import DaemonNotRunning, MemscalerError

    os.environ.pop("RUNTIME_DIRECTORY", None)  # of the supervisor's unit, as its ExecReload
    socket = settings_anyway({}).runtime_dir / CONTROL_SOCKET
    if os.geteuid() != 0:
        try:
            is_there = socket.exists()
        except OSError:
            is_there = True
        return TELL_GOVERNOR if is_there else None
    try:
        Asker(socket).told("POST", "/v1/reload", {})
    except DaemonNotRunning:
        return None
    except MemscalerError as error:
        return f"the governor does not reload: {plain(str(error).splitlines()[0])}; sudo memscaler reload"
    if left := _governor_lacks(told):
        return f"the governor has reloaded, and still {'; '.join(left)}"
    return "the governor has reloaded: it watches the ports as they are now"
