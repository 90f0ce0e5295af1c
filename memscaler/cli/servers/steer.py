"""`memscaler servers start`, `stop`, `restart`, `enable` and `disable`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from memscaler.cli.options import Json
from memscaler.cli.output import plain
from memscaler.cli.servers.options import All, Names, NoWait, SupervisorDir, User

if TYPE_CHECKING:
    from memscaler.cli.servers.supervisors import Chosen

OF_ENABLED = frozenset({"start", "restart"})  # what a disabled server refuses


def _command(what: str, told: str) -> Callable[..., None]:
    """All of these take the same words. told: its help."""

    def command(
        names: Names = None,
        everything: All = False,
        no_wait: NoWait = False,
        user: User = None,
        runtime_dir: SupervisorDir = None,
        as_json: Json = False,
    ) -> None:
        _do(what, names, everything, no_wait, user, runtime_dir, as_json)

    command.__doc__ = told
    return command


start = _command(
    "start",
    "Start servers, also those that failed, and wait until they are ready. The exit code is 1 if one fails.",
)
stop = _command(
    "stop",
    "Stop servers, with their hooks and all that they have started, until `start` or the supervisor's next start.",
)
restart = _command(
    "restart",
    "Stop servers, start them again, and wait until they are ready. The exit code is 1 if one fails.",
)
enable = _command(
    "enable",
    "Start servers now and whenever their supervisor starts, whatever `enabled` in their descriptions says.",
)
disable = _command(
    "disable",
    "Stop servers, and leave them so when their supervisor starts, whatever `enabled` in their descriptions says.",
)


def _do(
    what: str,
    names: list[str] | None,
    everything: bool,
    no_wait: bool,
    user: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    from memscaler.cli.servers.progress import settled, tell
    from memscaler.cli.servers.supervisors import chosen

    meant = chosen(names or [], user, runtime_dir, everything=everything, to_change=True)
    if everything and what in OF_ENABLED:
        meant = _enabled(meant)
    for each in meant:
        each.supervisor.change(what, servers=each.names)
    if no_wait:
        reports = [report for each in meant for report in each.now()]
    else:
        reports = settled([(each.supervisor, each.names) for each in meant], silent=as_json)
    pending = {name: fields for each in meant for name, fields in each.supervisor.pending().items()}
    tell({}, [{**report, "pending": pending.get(report["name"], [])} for report in reports], as_json=as_json)


def _enabled(meant: Sequence[Chosen]) -> list[Chosen]:
    """Without the servers that are disabled, which are told."""
    left, off = [], []
    for each in meant:
        mine = {report["name"] for report in each.now() if report["state"] == "disabled"}
        off += [name for name in each.names if name in mine]
        if names := tuple(name for name in each.names if name not in mine):
            left.append(replace(each, names=names))
    if off:
        listed = " ".join(map(plain, off))
        print(f"memscaler: left out, for they are disabled: {listed}; memscaler servers enable NAME", file=sys.stderr)
    return left
