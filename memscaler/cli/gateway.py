"""`memscaler gateway`: listens where clients connect, and wakes what is behind it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memscaler.cli.options import Config, Json, RuntimeDir, setting

if TYPE_CHECKING:  # heavy; `--help` needs none of it
    from collections.abc import Callable, Mapping

    from memscaler.config.schema import Settings
    from memscaler.config.stages import Gateway
    from memscaler.config.values import Address
    from memscaler.sleep.gateway.check import Surroundings

Value = TypeVar("Value")
METRICS = "127.0.0.1:9824"
DRAIN = "30s"


def gateway(
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="ADDRESS", help="Where clients connect: HOST:PORT.", show_default=False),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ADDRESS", help="The server behind it: HOST:PORT.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="For the log and the metrics.", show_default=False)
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="NAME|PORT",
            help="The server of this machine behind it: the governor is asked to bring it back.",
            show_default=False,
        ),
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option(
            "--mac",
            metavar="MAC",
            help="The hardware address of the machine behind it: it is woken by magic packets.",
            show_default=False,
        ),
    ] = None,
    wake_to: Annotated[
        str | None,
        typer.Option(
            "--wake-to",
            metavar="ADDRESS",
            help="Where those go. Default: to everybody on the network of the machine.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="http|tcp", help="tcp: no byte is ever looked at. Default: http."),
    ] = None,
    ready: Annotated[
        str | None,
        typer.Option(
            "--ready",
            metavar="PATH|off",
            help="What must answer 200 after a wake, before clients are let through. Default: /health.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="TIME", help="How long a client is held at most. Default: 2m."),
    ] = None,
    hold: Annotated[
        bool | None,
        typer.Option("--hold/--no-hold", help="Hold clients while it wakes, or tell them to come back (503)."),
    ] = None,
    wake_timeout: Annotated[
        str | None,
        typer.Option("--wake-timeout", metavar="TIME", help="A wake that takes longer has failed. Default: 3m."),
    ] = None,
    no_wake_path: Annotated[
        list[str] | None,
        typer.Option(
            "--no-wake-path", metavar="PATH", help="Requests that wake nothing. Repeatable.", show_default=False
        ),
    ] = None,
    no_wake_from: Annotated[
        list[str] | None,
        typer.Option(
            "--no-wake-from", metavar="PREFIX", help="Clients that wake nothing. Repeatable.", show_default=False
        ),
    ] = None,
    metrics: Annotated[str, typer.Option("--metrics", metavar="ADDRESS|off", help="Where the metrics are.")] = METRICS,
    drain: Annotated[
        str, typer.Option("--drain", metavar="TIME", help="At the end connections may take so long to end.")
    ] = DRAIN,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Pass on, but wake nothing: only tell what would be done.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what each gateway would find, and listen nowhere.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
    runtime_dir: RuntimeDir = None,
    log_format: Annotated[str | None, setting("log_format", "--log-format", metavar="FORMAT")] = None,
    log_level: Annotated[str | None, setting("log_level", "--log-level", metavar="LEVEL")] = None,
) -> None:
    """Listen where clients connect, hold them while what is behind wakes, and pass everything through untouched.

    The gateways are those of the configuration ([[gateway]] tables), or the one that --listen and --to describe. Needs
    no root. A machine is woken by magic packets (--mac), a stopped server by its governor (--server). SIGHUP reads the
    configuration anew. The page about it: docs/gateway.md.
    """
    from memscaler.config.load import load
    from memscaler.config.schema import CONTROL_SOCKET
    from memscaler.core.errors import UsageError
    from memscaler.observe.log import configure

    told = {
        "listen": listen,
        "to": to,
        "name": name,
        "server": server,
        "mac": mac,
        "wake_to": wake_to,
        "protocol": protocol,
        "ready": ready,
        "wait": wait,
        "hold": hold,
        "wake_timeout": wake_timeout,
        "no_wake_paths": no_wake_path or None,
        "no_wake_from": no_wake_from or None,
    }
    described = {key: value for key, value in told.items() if value is not None}
    flags = {"runtime_dir": runtime_dir, "log_format": log_format, "log_level": log_level}

    def read() -> Settings:
        return load(flags, os.environ, config)

    settings = read()
    one = _of_flags(described) if described else None
    gateways = (one,) if one else settings.gateways
    if not gateways:
        raise UsageError(
            "no gateway is described", hint="memscaler gateway --listen :8080 --to HOST:PORT, or [[gateway]]"
        )
    control = settings.runtime_dir / CONTROL_SOCKET
    if check:
        from memscaler.sleep.gateway.check import Surroundings

        _check(Surroundings(gateways, settings, control, listen or "", str(config or "")), as_json=as_json)
        return

    from memscaler.sleep.gateway.run import Order, run

    configure(settings.log_format, settings.log_level, os.environ)

    def reread() -> tuple[Gateway, ...]:
        if one:
            return (one,)
        now = read()
        _tell_doubts(now.gateways, now)
        return now.gateways

    _tell_doubts(gateways, settings)
    run(
        Order(
            gateways=gateways,
            reread=reread,
            control=control,
            metrics=_metrics(metrics),
            drain_s=_drain_s(drain),
            dry_run=dry_run,
        )
    )


def _tell_doubts(gateways: tuple[Gateway, ...], settings: Settings) -> None:
    """In the log: what hardly anybody wants, and yet works after a fashion."""
    import structlog

    from memscaler.config.gateway_doubts import doubts_of
    from memscaler.sleep.gateway.world import name_of

    for each in gateways:
        for sentence in doubts_of(each, settings):
            structlog.get_logger().warning("gateway.doubtful", gateway=name_of(each), why=sentence)


def _of_flags(described: Mapping[str, object]) -> Gateway:
    """Raise UsageError."""
    from memscaler.config import gateway_tables
    from memscaler.core.errors import UsageError

    problems: list[str] = []
    found = gateway_tables.read(described, _flag, problems)
    if found is None:
        raise UsageError("; ".join(problems), hint="see `memscaler gateway --help`")
    return found


def _flag(*where: str | int) -> str:
    """Where a value came from, for messages."""
    if not where:
        return "the command line"
    key = str(where[0])
    return "--" + {"no_wake_paths": "no-wake-path"}.get(key, key.replace("_", "-"))


def _metrics(text: str) -> Address | None:
    from memscaler.config.values import address_or_off

    return _parsed("--metrics", lambda: address_or_off(text))


def _drain_s(text: str) -> float:
    from memscaler.config.values import duration_s

    return _parsed("--drain", lambda: duration_s(0)(text))


def _parsed(flag: str, parse: Callable[[], Value]) -> Value:
    from memscaler.core.errors import UsageError

    try:
        return parse()
    except ValueError as error:
        raise UsageError(f"{flag}: {error}", hint="see `memscaler gateway --help`") from error


def _check(around: Surroundings, *, as_json: bool) -> None:
    """Exit code 1 if one of them cannot work."""
    from memscaler.cli.output import print_json, show
    from memscaler.sleep.gateway.check import check

    findings = check(around)
    if as_json:
        print_json({"gateways": [finding.document() for finding in findings]})
    else:
        lines = []
        for finding in findings:
            lines.append(f"gateway {finding.gateway}")
            lines += [f"  PROBLEM {text}" for text in finding.problems]
            lines += [f"  WARNING {text}" for text in finding.warnings]
            lines += [f"  {text}" for text in finding.facts]
        show("\n".join(lines))
    if any(finding.problems for finding in findings):
        raise typer.Exit(1)
