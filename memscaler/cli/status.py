"""`memscaler status`: what the running daemon knows, for people and for programs; once, or again and again."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from memscaler.cli.options import Gpus, Json, RuntimeDir

USUAL = "2s"
SHORTEST_S = 0.2
HINT = "see `memscaler status --help`"
_NO_TIME = re.compile(r"-|$|gpu|([0-9a-f]+:)?[0-9a-f]+:[0-9a-f]+[.]", re.IGNORECASE)  # an option, the end, a GPU


class StatusCommand(TyperCommand):
    """--watch may stand without its time: typer has no such options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the usual time behind a --watch that has none."""
        told: list[str] = []
        for at, arg in enumerate(args):
            told.append(arg)
            if arg in ("--watch", "-w") and _NO_TIME.match("".join(args[at + 1 : at + 2])):
                told.append(USUAL)
        return super().parse_args(ctx, told)


def status(
    gpus: Gpus = None,
    watch: Annotated[
        str | None,
        typer.Option("--watch", "-w", metavar="[TIME]", help="Again every TIME (2s) until Ctrl-C.", show_default=False),
    ] = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Show what the daemon does now: the GPUs, why and since when, what comes next, ports, what needs an operator.

    POWER and clocks are a second old at most; SAVED is an estimate, on this day and since the state directory is there.
    For root and members of group memscaler. With --json and --watch every line is a document.
    """
    from memscaler.cli import redraw
    from memscaler.cli.chosen import chosen
    from memscaler.cli.client import Client
    from memscaler.cli.output import print_json, show
    from memscaler.cli.paint import paint
    from memscaler.cli.status_text import status_text

    client, names, colour = Client(runtime_dir), gpus or [], paint()

    def look() -> dict[str, Any]:
        return _only(client.status(), names, chosen)

    if watch is not None:
        every_s = _every_s(watch)
        redraw.again(every_s, look, None if as_json else lambda told, width: status_text(told, colour, width))
    elif as_json:
        print_json(look())
    else:
        show(status_text(look(), colour, redraw.width()))


def _every_s(text: str) -> float:
    from memscaler.config import values
    from memscaler.core.errors import UsageError

    try:
        return values.duration_s(SHORTEST_S)(text)
    except ValueError as error:
        raise UsageError(f"--watch: {error}", hint=HINT) from error


def _only(document: dict[str, Any], names: list[str], choose: Any) -> dict[str, Any]:
    """What concerns these GPUs. Raise UsageError for one that is not there."""
    if not names:
        return document
    known = [*document["gpus"], *document["ungoverned"]]
    meant = choose(names, known)
    labels = {gpu["gpu"] for gpu in meant}
    document["gpus"] = [gpu for gpu in document["gpus"] if gpu in meant]
    document["ungoverned"] = [gpu for gpu in document["ungoverned"] if gpu in meant]
    document["watches"] = [watch for watch in document["watches"] if labels & set(watch["gpus"])]
    document["transitions"] = [each for each in document["transitions"] if each["gpu"] in labels]
    return document
