"""`memscaler wake` and `memscaler sleep`: servers out of their deeper stages, and into them, without waiting."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memscaler.cli.options import Json, RuntimeDir
from memscaler.cli.output import columns, plain, print_json, show

PATIENCE_S = 1300.0  # the daemon gives up after 20 min

Servers = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SERVER]...", help="Names of servers, ports or GPUs. Default: all.", show_default=False),
]


def wake(servers: Servers = None, runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Bring servers back out of every deeper stage, and wait until they can answer. They may sleep again later.

    Members of group memscaler may do so, too. Clients need it for servers that are stopped only: nobody listens there.
    """
    document = _ask(runtime_dir, "wake", servers=servers or [])
    if as_json:
        print_json(document)
        return
    told = document.get("servers", [])
    rows = [(plain(each["name"]), "up", f"was in {each['was']}" if each.get("was") else "was up") for each in told]
    show(columns(rows) if rows else "there is no server")


def sleep(
    servers: Servers = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage", metavar="STAGE", help="server-sleep, checkpoint or stop-server. Default: the next one."
        ),
    ] = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Take servers down to a configured stage now, without waiting for its time. A client brings them back as ever.

    A server that somebody uses stays up. The exit code is 1 if one that was named, or the only one, is not asleep then.
    """
    document = _ask(runtime_dir, "sleep", servers=servers or [], stage=_stage(stage))
    if as_json:
        print_json(document)
        return
    rows = [(plain(each["name"]), plain(each["stage"] or "up")) for each in document.get("servers", [])]
    show(columns(rows) if rows else "there is no server")


def _stage(word: str | None) -> str | None:
    """Raise UsageError for what is no stage of a server."""
    from memscaler.core.errors import UsageError
    from memscaler.daemon.sleep_requests import STAGES

    known = [stage for stage in STAGES if stage != "suspend"]
    if word == "suspend":
        raise UsageError("--stage: suspend is the machine's", hint="memscaler suspend now")
    if word is not None and word not in known:
        raise UsageError(f"--stage: {word!r} is none of {', '.join(known)}", hint="see `memscaler sleep --help`")
    return word


def _ask(runtime_dir: str | None, what: str, **wanted: object) -> dict[str, Any]:
    from memscaler.cli.client import Client

    return Client(runtime_dir, PATIENCE_S).change(what, **wanted)
