"""`memscaler hold` and `unhold`: GPUs that stay awake, for a time, until told otherwise, or while a command runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from memscaler.cli.options import Gpus, Json, Reason, RuntimeDir
from memscaler.cli.output import plain, print_json, show, span
from memscaler.cli.steer import duration_s
from memscaler.core.errors import UsageError

COMMAND = "memscaler.command"  # where HoldCommand leaves what stands behind "--"
HINT = "see `memscaler hold --help`"


class HoldCommand(TyperCommand):
    """Parts the arguments at "--": behind it a command begins, which may have options of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave the command for hold()."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """For the first line of the help."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND [ARG]...]"]


def hold(
    context: typer.Context,
    gpus: Gpus = None,
    for_time: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="How long at most: 90s, 30m, 2h. Default: until unhold, or as long as COMMAND runs.",
        ),
    ] = None,
    reason: Reason = "",
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Keep GPUs awake: for a time, until `memscaler unhold`, or while COMMAND runs.

    With COMMAND the hold begins before it starts and ends with it, or with this process. The exit code is that of
    COMMAND: 128 and the signal's number if one ended it, 127 if there is no such command. It gets the signals INT,
    TERM, HUP and QUIT that this process gets.
    """
    for_s = duration_s("--for", for_time, HINT)
    wanted = {"gpus": gpus or [], "for_s": for_s, "reason": reason}
    command = context.meta.get(COMMAND)
    if command is None:
        _hold(runtime_dir, as_json, wanted)
        return
    if not command:
        raise UsageError("no command behind --", hint=HINT)
    if as_json:
        raise UsageError("with a command, standard output is the command's: no --json", hint=HINT)
    from memscaler.cli.held import run_held

    raise typer.Exit(run_held(runtime_dir, command, wanted))


def unhold(
    gpus: Gpus = None,
    hold_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="Only the hold with this id; see status.", show_default=False)
    ] = "",
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """End what `memscaler hold` began, on some GPUs or on all, whoever began it."""
    from memscaler.cli.client import Client

    document = Client(runtime_dir).change("unhold", gpus=gpus or [], id=hold_id)
    if as_json:
        print_json(document)
        return
    for ended in document["ended"]:
        reason = f" ({plain(ended['reason'])})" if ended["reason"] else ""
        show(f"ended: hold {plain(ended['id'])} of {plain(ended['owner'])}{reason}")
    if not document["ended"]:
        show("nothing was held")


def _hold(runtime_dir: str | None, as_json: bool, wanted: dict[str, Any]) -> None:
    from memscaler.cli.client import Client

    try:
        document = Client(runtime_dir).change("hold", **wanted)
    except UsageError as error:
        if len(wanted["gpus"]) > 1:  # one of them may be meant as a command
            raise UsageError(str(error), hint=f"{error.hint}; a command to run stands behind --") from error
        raise
    if as_json:
        print_json(document)
        return
    left_s, lease = document["expires_in_s"], plain(document["id"])
    until = f"until `memscaler unhold --id {lease}`" if left_s is None else f"for {span(left_s)} (id {lease})"
    show(f"{', '.join(map(plain, document['gpus'])) or 'no GPU'}: held {until}")
