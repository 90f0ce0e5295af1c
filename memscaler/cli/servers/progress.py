"""Waiting for servers: a live table on a terminal, nothing elsewhere. Whoever stops waiting stops nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from memscaler.cli.output import print_json, show
from memscaler.cli.paint import is_terminal, paint
from memscaler.cli.servers.text import SETTLED, table

if TYPE_CHECKING:
    from memscaler.cli.servers.supervisors import Supervisor

FAILED = 1
LIVES_ON = "memscaler: the supervisor goes on without you; `memscaler servers list` tells how it goes"

Report = Mapping[str, Any]
Draw = Callable[[Sequence[Report]], None]


def settled(waits: Sequence[tuple[Supervisor, Sequence[str]]], *, silent: bool) -> list[Report]:
    """How these servers are when nothing more is under way, in their order. silent: not even on a terminal."""
    done: list[Report] = []
    try:
        with _drawing(silent=silent) as draw:
            for supervisor, names in waits:
                reports: list[Report] = []
                for reports in _until_settled(supervisor, frozenset(names)):
                    draw([*done, *reports])
                done += reports
    except KeyboardInterrupt:
        print(LIVES_ON, file=sys.stderr)
        raise
    return done


def _until_settled(supervisor: Supervisor, names: frozenset[str]) -> Iterator[list[Report]]:
    """Ends when they are settled, or gone. Raise MemscalerError if the supervisor ends before."""
    from memscaler.core.errors import MemscalerError

    with supervisor.lines("/v1/follow") as documents:
        for document in documents:
            mine = [each for each in document["servers"] if each["name"] in names]
            yield mine
            if all(each["state"] in SETTLED for each in mine):
                return
    raise MemscalerError("the supervisor has ended", hint=supervisor.LIVES)


@contextmanager
def _drawing(*, silent: bool) -> Iterator[Draw]:
    """On a terminal the table, in place."""
    if silent or not is_terminal():
        yield lambda _reports: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    colour = paint()
    with Live(console=Console(highlight=False), refresh_per_second=8, transient=True) as live:
        yield lambda reports: live.update(Text.from_ansi(table(reports, colour, time.time())))


def tell(document: dict[str, Any], reports: Sequence[Report], *, as_json: bool) -> None:
    """The end of the story. Exit with 1 if a server failed."""
    if as_json:
        print_json({**document, "servers": reports})
    elif reports:
        show(table(reports, paint(), time.time()))
    if any(report["state"] == "failed" for report in reports):
        raise typer.Exit(FAILED)
