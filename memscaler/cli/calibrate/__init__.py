"""`memscaler calibrate`: what parking is worth on this machine, by parking and waking each GPU a few times."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.interrupts import leave, woken_first
from memscaler.cli.options import Config, Json, RuntimeDir, Simulate, setting
from memscaler.cli.output import print_json, show
from memscaler.cli.steer import duration_s
from memscaler.core.errors import PermissionMissing, UsageError

if TYPE_CHECKING:  # these open the driver's binding; `--help` shall not
    from memscaler.daemon.calibrate.measure import Result
    from memscaler.daemon.calibrate.worker import Worker
    from memscaler.daemon.doctor.context import Context

ROUNDS, MOST_ROUNDS = 5, 100
HOLD, MOST_HOLD_S = "4s", 60.0
HINT = "see `memscaler calibrate --help`"


def calibrate(  # each is an option
    gpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GPU",
            help="gpu0 or 0, a beginning of its UUID, or its PCI address.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every GPU that the configuration governs.")] = False,
    rounds: Annotated[
        int,
        typer.Option("--rounds", metavar="N", min=1, max=MOST_ROUNDS, help="How often each GPU is parked and woken."),
    ] = ROUNDS,
    hold: Annotated[
        str,
        typer.Option("--hold", metavar="TIME", help="How long a round stays parked, and awake; at least 1s."),
    ] = HOLD,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the last round of a GPU: an .svg or .png file; with several GPUs their names are added.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[list[str] | None, setting("watch", "--port", "-p", metavar="PORT[@SCOPE][:GPU,...]")] = None,
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Measure what parking saves and costs on this machine: watts awake, parked and bare, times of a park and a wake.

    For root, with a model loaded and nobody asking it. A GPU that works, or to whose servers somebody is connected, is
    left alone; one that is parked is woken at the first sign of either. The figures are kept for the energy account and
    for decisions. While the daemon governs, it has to let go: memscaler release, and memscaler resume afterwards.
    """
    if os.geteuid():
        raise PermissionMissing("parking GPUs needs root", hint="sudo memscaler calibrate ...")

    from memscaler.cli import plots
    from memscaler.daemon.calibrate.worker import Hung, Worker

    hold_s = duration_s("--hold", hold, HINT)
    if hold_s is None or hold_s > MOST_HOLD_S:
        raise UsageError(f"--hold {hold}: at most {MOST_HOLD_S:g} s", hint=HINT)
    if bool(gpus) == every:
        raise UsageError("name the GPUs, or --all" if not gpus else "either GPUs or --all", hint="calibrate gpu0")
    if plot is not None:
        plots.check(plot)
    flags = {"watch": port, "simulate": simulate, "runtime_dir": runtime_dir}
    context, worker = _prepared(Worker, tuple(gpus or ()), rounds, hold_s, config, flags)
    found: list[Result] = []
    with woken_first(context, worker, lambda: _last_word(context, worker, found)):
        try:
            _collect(worker, found, as_json=as_json)
        except Hung as error:
            from memscaler.cli.errors import tell

            tell(error)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        from memscaler.cli.calibrate.text import document
        from memscaler.history.calibration import FILE

        file = context.settings.kept_in / FILE
        ok = not worker.hung and all(not each.problem for each in found)
        print_json({"ok": ok, "file": str(file), "gpus": [document(each) for each in found]})
    leave(context, worker, max([int(worker.hung), *(each.exit_code for each in found)]))


def _prepared(
    make: type[Worker],
    gpus: tuple[str, ...],
    rounds: int,
    hold_s: float,
    config: Path | None,
    flags: Mapping[str, object],
) -> tuple[Context, Worker]:
    """Raise ConfigError, PermissionMissing, or what the simulated driver fails with."""
    from memscaler.cli.doctor import context_of
    from memscaler.config.load import load
    from memscaler.daemon.calibrate.measure import Wanted

    load(flags, os.environ, config)  # which lever and which servers must not be guessed
    context = context_of(flags, config, probe=True)
    return context, make(context, Wanted(gpus, rounds, hold_s))


def _collect(worker: Worker, found: list[Result], *, as_json: bool) -> None:
    """Each result is shown as it comes, and progress where somebody looks."""
    from memscaler.cli.calibrate.text import text

    watched, first = sys.stderr.isatty(), True
    for told in worker.run():
        if isinstance(told, str):
            if watched:
                print(told, file=sys.stderr, flush=True)
            continue
        found.append(told)
        if not as_json:
            show(text(told) if first else f"\n{text(told)}")
            sys.stdout.flush()
        first = False


def _last_word(context: Context, worker: Worker, found: list[Result]) -> str:
    """After an interrupt, when the work has ended or was left behind."""
    from memscaler.daemon.journals import JOURNAL
    from memscaler.gpu.journal import Journal

    found += worker.rest()
    written = [f"gpu{each.identity.index}" for each in found if each.calibration is not None]
    others = [f"gpu{each.identity.index}" for each in found if each.calibration is None]
    if worker.hung or Journal(context.settings.runtime_dir / JOURNAL).entries_of(os.getpid()):
        return "interrupted, and a GPU may be parked still; its guardian wakes it, else: sudo memscaler restore"
    awake = f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} awake" if others else "nothing is parked"
    kept = f"what was measured of {', '.join(written)} was written" if written else "nothing was written"
    return f"interrupted; {awake}, {kept}"


def _draw(path: Path, found: list[Result]) -> None:
    from memscaler.cli.calibrate.plot import draw

    shown = [each for each in found if each.last is not None]
    for each in shown:
        name = f"gpu{each.identity.index}"
        file = path if len(shown) == 1 else path.with_stem(f"{path.stem}-{name}")
        if each.last is not None:
            draw(file, f"{name}, {each.identity.name}", each.last)
