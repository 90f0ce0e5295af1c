"""`memscaler park`, `pause`, `resume`, `release` and `reload`: what an operator tells the running daemon."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Any

import typer

from memscaler.cli.options import Gpus, Json, Reason, RuntimeDir
from memscaler.cli.output import columns, plain, print_json, show, span

PARKED = "parked"
FAILED = 1
START_S = 30.0


def park(gpus: Gpus = None, runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Park now, without waiting for the idle time. A GPU that works, is held or cannot be parked is not.

    Takes some seconds. The exit code is 1 if one of the GPUs is not parked; the reason stands beside it.
    """
    document = _change(runtime_dir, "park", gpus=gpus or [])
    if as_json:
        print_json(document)
    else:
        show(columns([tuple(map(plain, (gpu["gpu"], gpu["state"], gpu["reason"]))) for gpu in document["gpus"]]))
    if any(gpu["state"] != PARKED for gpu in document["gpus"]):
        raise typer.Exit(FAILED)


def pause(
    for_time: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 2h. Default: until `memscaler resume`."),
    ] = None,
    reason: Reason = "",
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Keep every GPU awake, those that come later too."""
    for_s = duration_s("--for", for_time, "see `memscaler pause --help`")
    document = _change(runtime_dir, "pause", for_s=for_s, reason=reason)
    left_s = document["expires_in_s"]
    until = "until `memscaler resume`" if left_s is None else f"for {span(left_s)}"
    _tell(document, as_json, f"paused {until}: every GPU stays awake")


def resume(runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Govern again, after `memscaler pause` or `memscaler release`. Holds stay."""
    document = _change(runtime_dir, "resume")
    _wait_until_it_governs(runtime_dir)
    _tell(document, as_json, "memscaler governs")


def release(reason: Reason = "", runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Wake every GPU and let go of the driver, so that it can be upgraded, until `memscaler resume`."""
    document = _change(runtime_dir, "release", reason=reason)
    _tell(document, as_json, "every GPU is awake and the driver is let go of, until `memscaler resume`")


def reload(runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Read the configuration anew. It is checked first and applied as a whole or not at all (exit code 78)."""
    document = _change(runtime_dir, "reload")
    changes = [plain(change) for change in document.get("changes", [])]
    _tell(document, as_json, "\n".join(["reloaded" if changes else "reloaded, nothing has changed", *changes]))


def _wait_until_it_governs(runtime_dir: str | None) -> None:
    """After a release the daemon begins anew in its process, and cannot be asked for a second. Raise MemscalerError."""
    from memscaler.cli.client import Client
    from memscaler.core.errors import MemscalerError

    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        with suppress(MemscalerError):
            if Client(runtime_dir).status()["mode"] == "governing":
                return
        time.sleep(0.1)
    raise MemscalerError("it does not govern yet", hint="see its log")


def duration_s(option: str, text: str | None, hint: str) -> float | None:
    """Seconds of an option like --for; None if it is not given. Raise UsageError."""
    from memscaler.config import values
    from memscaler.core.errors import UsageError
    from memscaler.daemon.requests import SHORTEST_S

    try:
        return None if text is None else values.duration_s(SHORTEST_S)(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", hint=hint) from error


def _change(runtime_dir: str | None, what: str, **wanted: object) -> dict[str, Any]:
    from memscaler.cli.client import Client

    return Client(runtime_dir).change(what, **wanted)


def _tell(document: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(document)
    else:
        show(text)
