"""`memscaler doctor`: what this machine has and lacks, and the exact remedy for what it lacks."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memscaler.cli.interrupts import leave, woken_first
from memscaler.cli.options import Config, Json, RuntimeDir, Simulate, settings_without_file
from memscaler.cli.output import WIDTH, plain, print_json, show

if TYPE_CHECKING:  # these open the driver's binding; `--help` shall not
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from memscaler.cli.paint import Paint
    from memscaler.config.load import Examined
    from memscaler.core.gpuctl import Ability
    from memscaler.daemon.doctor.context import Context
    from memscaler.daemon.doctor.model import Finding

FAILED = 1
STYLES = {"PASS": "ok", "WARN": "unsure", "FAIL": "bad", "UNKNOWN": "faint"}
INDENT = " " * 9


def doctor(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Only these: MS-KERNEL-04, or MS-GPU for a group.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="The same, repeatable.", show_default=False)
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Try it: load the kernel programs, park and wake each idle GPU that the configuration governs (root). "
            "That resets clocks which somebody else has locked there.",
        ),
    ] = False,
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Check whether this machine has what memscaler needs, and say what to do where it has not.

    Works without root: what only root can see is UNKNOWN. The exit code is 1 if a check says FAIL. Each check has an
    id, under which docs/troubleshooting.md tells more.
    """
    from memscaler.cli.paint import paint
    from memscaler.daemon.doctor.runner import Runner, chosen

    checks = chosen([*(ids or []), *(only or [])], probe=probe)
    context = context_of({"simulate": simulate, "runtime_dir": runtime_dir}, config, probe=probe)
    runner, findings = Runner(context), []
    with woken_first(context, runner):
        for finding in runner.run(checks):
            findings.append(finding)
            if not as_json:
                _show_earlier(findings, paint())
    if not as_json:
        _show_earlier([*findings, None], paint())
    counts = Counter(str(finding.result) for finding in findings)
    if as_json:
        print_json({"ok": not counts["FAIL"], "checks": [_document(each) for each in findings], "counts": dict(counts)})
    else:
        show(_summary(counts, probe=probe))
    leave(context, runner, FAILED if counts["FAIL"] else 0)


def context_of(flags: Mapping[str, Any], config: Path | None, *, probe: bool) -> Context:
    """Where and as whom to look, with the configuration as far as it is good. probe: things may be tried."""
    from memscaler.cli.client import Client
    from memscaler.cli.simulated import at_home, simulate
    from memscaler.config.load import examine
    from memscaler.core.errors import PermissionMissing
    from memscaler.daemon.doctor.context import Context

    try:
        examined: Examined | None = examine(flags, os.environ, config)
    except PermissionMissing:
        examined = None
    # a file that others could have written must not tell root which program to run as loader_python
    good = examined.settings if examined and not examined.distrust else None
    settings = at_home(good or settings_without_file(flags))
    environment = simulate(settings.simulate, settings.runtime_dir)

    def ask() -> dict[str, Any]:
        return Client(str(settings.runtime_dir)).status()

    def look_abilities(nvml: str) -> Sequence[Ability]:
        from memscaler.gvm.capability import look

        return look(settings.gvm, nvml)

    return Context(
        settings,
        examined,
        os.environ,
        os.geteuid(),
        ask,
        environment=environment,
        probe=probe,
        look_abilities=look_abilities,
    )


def _document(finding: Finding) -> dict[str, object]:
    return {
        "id": finding.id,
        "title": finding.title,
        "subjects": list(finding.subjects),
        "result": str(finding.result),
        "seen": finding.seen,
        "remedy": finding.remedy,
        "docs": finding.docs,
    }


def _show_earlier(findings: Sequence[Finding | None], colour: Paint) -> None:
    """Show what came before the last one, unless that says the same: then they are shown together."""
    *earlier, last = findings
    same: list[Finding] = []
    for finding in reversed(earlier):
        if finding is None or (same and not _alike(finding, same[0])):
            break
        same.insert(0, finding)
    if same and (last is None or not _alike(same[0], last)):
        show(_text(same, colour))
        sys.stdout.flush()


def _alike(one: Finding, other: Finding) -> bool:
    """Two checks that say the same, as all do that the same daemon or driver would have to answer."""
    return one.result != "PASS" and (one.result, one.seen, one.remedy) == (other.result, other.seen, other.remedy)


def _text(same: Sequence[Finding], colour: Paint) -> str:
    first = same[0]
    ids = ", ".join(each.id for each in same)
    about = ", ".join(f"{each.title} {', '.join(each.subjects)}".rstrip() for each in same)
    head = f"{first.result:<8} {ids}  {plain(about)}: {plain(first.seen)}"
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=INDENT, break_on_hyphens=False)
    lines[0] = lines[0].replace(first.result, colour(STYLES[first.result], first.result), 1)
    if first.remedy:
        lines += textwrap.wrap(
            f"-> {plain(first.remedy)}",
            WIDTH,
            initial_indent=INDENT,
            subsequent_indent=INDENT + "   ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def _summary(counts: Counter[str], *, probe: bool) -> str:
    lines = ["", ", ".join(f"{counts[word]} {word}" for word in STYLES if counts[word])]
    if counts.total() > counts["PASS"]:
        lines.append("each id has a section in docs/troubleshooting.md")
    if not probe:
        lines.append("sudo memscaler doctor --probe tries the kernel programs and each idle GPU")
    return "\n".join(lines)
