"""`memscaler suspend`: the whole machine, now, not now, or again when it is quiet."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Any

import typer

from memscaler.cli.options import Json, Reason, RuntimeDir
from memscaler.cli.output import labelled, plain, print_json, show, span
from memscaler.core.errors import MemscalerError, UsageError

HINT = "see `memscaler suspend --help`"
UP = "up"
BEGINS_S = 30.0  # for the status to tell of what was agreed
WAIT_S = 3600.0  # awake: stopping and checkpointing servers has deadlines, and so has the suspend
POLL_S = 0.5
_FORMATS = ("%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Suspend the whole machine, or keep it up.")


@app.command("now", short_help="Suspend now, with an alarm if one is wanted.")
def now(
    wake_at: Annotated[
        str | None,
        typer.Option("--wake-at", metavar="TIME", help="Wake up by itself then: 07:30, or 2027-01-31 07:30."),
    ] = None,
    wake_in: Annotated[
        str | None, typer.Option("--wake-in", metavar="TIME", help="Wake up by itself after 90s, 30m, 8h.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also while clients are connected, or somebody inhibits sleep.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has slept, or has not.")] = True,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Stop or checkpoint the servers as the configuration says, suspend the machine, and bring them back afterwards.

    Users, load, traffic and the times of `never` are not asked: you are. Clients and locks against sleep are, but
    for --force. Whatever goes wrong, the servers come back. The exit code is 1 if the machine has not slept.
    """
    from memscaler.cli.client import Client

    client = Client(runtime_dir)
    wanted = {"force": force, "wake_unix_s": _wake_unix_s(wake_at, wake_in)}
    before = _machine(client.status()) if wait else {}
    document = client.change("suspend", do="suspend", **wanted)
    if not wait:
        _tell(document, as_json, "agreed: the servers are taken down, then the machine is suspended")
        return
    if not as_json:
        show("agreed: the servers are taken down, then the machine is suspended")
    after = _outcome(client, before)
    slept = after.get("suspends", 0) > before.get("suspends", 0)
    if as_json:
        print_json({"slept": slept, "machine": after})
    elif slept:
        show(plain(after["last"]))
    if not slept:
        if as_json:
            raise typer.Exit(1)
        raise MemscalerError(f"the machine has not slept: {after.get('last', '')}", hint="the servers come back")


@app.command("never", short_help="Keep the machine up, whatever the configuration says.")
def never(
    for_time: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 2h. Default: until `memscaler suspend allow`."),
    ] = None,
    reason: Reason = "",
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Keep the machine up: until `memscaler suspend allow`, or for a time; it is forgotten when the machine boots.

    A suspend for which servers are being taken down is called off. Servers still sleep as the other stages say.
    """
    from memscaler.cli.client import Client
    from memscaler.cli.steer import duration_s

    for_s = duration_s("--for", for_time, HINT)
    document = Client(runtime_dir).change("suspend", do="never", for_s=for_s, reason=reason)
    until = "until `memscaler suspend allow`" if for_s is None else f"for {span(for_s)}"
    _tell(document, as_json, f"the machine stays up {until}")


@app.command("allow", short_help="End what `never` began.")
def allow(runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Suspend the machine again when it is quiet, as configured."""
    from memscaler.cli.client import Client

    document = Client(runtime_dir).change("suspend", do="allow")
    ended = document.get("ended")
    _tell(document, as_json, f"ended: {plain(ended)}" if ended else "nothing kept it up but what is configured")


@app.command("status", short_help="What keeps the machine up, and when it sleeps next.")
def status(runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Show whether the machine is to be suspended, when, what keeps it up, and how the last time went."""
    from memscaler.cli.client import Client
    from memscaler.cli.sleep_text import machine_texts

    machine = _machine(Client(runtime_dir).status())
    if as_json:
        print_json({"machine": machine or None})
        return
    if not machine:
        show("no [[stage]] is configured: the machine is not suspended")
        return
    texts = machine_texts(machine)
    if not machine["wanted"]:
        told = 'is suspended by `memscaler suspend now` only: no [[stage]] has do = "suspend"'
        texts.insert(0, ("machine:", told))
        texts += [("now:", f"it cannot be: {plain(why)}") for why in machine["why_not"]]
    show("\n".join(line for label, text in texts for line in labelled(label, text)))


def _machine(document: dict[str, Any]) -> dict[str, Any]:
    """{} where there is no stage at all."""
    sleep = document.get("sleep") or {}
    machine: dict[str, Any] = sleep.get("machine") or {}
    return machine


def _outcome(client: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Of what was agreed: the machine when it is up, with its servers. Raise MemscalerError if that takes for ever."""
    begun_s = time.monotonic()
    has_begun = False
    while time.monotonic() < begun_s + WAIT_S:
        with suppress(MemscalerError):  # right after a resume it may have other things to do
            machine = _machine(client.status())
            has_begun = has_begun or machine.get("rung") != UP
            changed = any(machine.get(key) != before.get(key) for key in ("suspends", "failed", "last"))
            late = time.monotonic() > begun_s + BEGINS_S
            if machine.get("rung") == UP and (changed or has_begun or late):
                return machine
        time.sleep(POLL_S)
    raise MemscalerError("it is not over yet", hint="see `memscaler suspend status` and the log")


def _wake_unix_s(wake_at: str | None, wake_in: str | None) -> float | None:
    """Of --wake-at or --wake-in, seconds since 1970. Raise UsageError."""
    from memscaler.cli.steer import duration_s

    if wake_at is not None and wake_in is not None:
        raise UsageError("--wake-at and --wake-in: one of them", hint=HINT)
    in_s = duration_s("--wake-in", wake_in, HINT)
    if in_s is not None:
        return time.time() + in_s
    return None if wake_at is None else moment(wake_at, time.time())


def moment(text: str, now_unix_s: float) -> float:
    """A local time: of today or tomorrow if it has no date. Raise UsageError."""
    import datetime as dt

    today = dt.datetime.fromtimestamp(now_unix_s)  # noqa: DTZ006  # local time is what people mean
    for layout in _FORMATS:
        with suppress(ValueError):
            found = dt.datetime.strptime(text.strip(), layout)  # noqa: DTZ007  # the same
            if layout == _FORMATS[0]:
                found = dt.datetime.combine(today.date(), found.time())
                found += dt.timedelta(days=found <= today)
            if found <= today:
                raise UsageError(f"--wake-at: {text!r} is over", hint=HINT)
            return found.timestamp()
    raise UsageError(f"--wake-at: {text!r} is no time (write 07:30, or 2027-01-31 07:30)", hint=HINT)


def _tell(document: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(document)
    else:
        show(text)
