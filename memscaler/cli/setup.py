"""`memscaler setup`: from an installed memscaler to a service, and back."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.output import plain, show

if TYPE_CHECKING:
    from memscaler.daemon.setup.steps import Plan


def setup(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell every step and change nothing. Needs no root.")
    ] = False,
    discover: Annotated[
        bool, typer.Option("--discover", help="Into a new configuration: watch every LLM server that comes.")
    ] = False,
    port: Annotated[
        list[str] | None,
        typer.Option(
            "--port",
            "-p",
            metavar="PORT[@SCOPE][:GPU,...]",
            help="Into a new configuration: watch this port, as `run --port` does.",
            show_default=False,
        ),
    ] = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Neither enable nor start the service.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files in the way that setup has not written, or not like that.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Wake every GPU, stop the service, and remove what setup has written.")
    ] = False,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="With --remove: also the configuration, what was counted, and what was changed since."
        ),
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="Of an image: below this folder. Nothing is started."),
    ] = None,
) -> None:
    """Make a service of this installation: unit, group, configuration, completion, manual; enable and start it.

    For pipx and virtual environments; packages bring their own. Again after an upgrade: it does what is missing.
    """
    from memscaler.core.errors import PermissionMissing, UsageError
    from memscaler.daemon.setup import install, program, removal

    if purge and not remove:
        raise UsageError("--purge goes with --remove", hint="see `memscaler setup --help`")
    if os.geteuid() != 0 and not dry_run:
        own_root = f" --root {shlex.quote(str(root))}" if root else ""
        hint = f"sudo {program.program_path()} setup{own_root}; --dry-run needs no root"
        raise PermissionMissing("setup writes below /etc and /usr/local", hint=hint)
    wish = install.Wish(_root(root), not no_start, force, discover, _watches(port))
    made = removal.plan(wish, purge=purge) if remove else install.plan(wish, program.this_program())
    _go(made, dry_run=dry_run)


def _root(root: Path | None) -> Path:
    return Path("/") if root is None else Path(os.path.abspath(root))  # noqa: PTH100  # resolve() would follow links


def _watches(ports: list[str] | None) -> tuple[str, ...]:
    """Raise UsageError for one that is none."""
    from memscaler.config.schema import BY_KEY
    from memscaler.core.errors import UsageError

    try:
        return tuple(map(str, BY_KEY["watch"].parse(ports))) if ports else ()
    except ValueError as error:
        raise UsageError(f"--port: {error}") from error


def _go(made: Plan, *, dry_run: bool) -> None:
    if made.refusal and not dry_run:
        raise made.refusal
    for step in made.steps:
        show(plain(step.text))
        if not dry_run:
            sys.stdout.flush()  # a command's own words come behind
            step.do()
    for sentence in made.notes:
        show(f"note: {plain(sentence)}")
    if made.refusal:
        show(plain(f"without --dry-run it refuses: {made.refusal}; {made.refusal.hint}"))
    if dry_run:
        show("nothing was changed (--dry-run)")
    elif not made.steps:
        show("nothing to do")
