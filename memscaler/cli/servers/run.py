"""`memscaler servers run`: the supervisor in the foreground."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.options import Config, Simulate, setting

if TYPE_CHECKING:
    from memscaler.config.schema import Settings
    from memscaler.servers.control import ControlServer
    from memscaler.servers.places import Places
    from memscaler.servers.run import Running


def run(
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="USER",
            help="Run the servers that are described with this user. Default: those without one; in a unit its own.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: Annotated[
        str | None,
        typer.Option(
            "--runtime-dir",
            metavar="DIR",
            help="Control socket and report. Default: $XDG_RUNTIME_DIR/memscaler-servers; in a unit its own.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[str | None, setting("log_format", "--log-format", metavar="FORMAT")] = None,
    log_level: Annotated[str | None, setting("log_level", "--log-level", metavar="LEVEL")] = None,
) -> None:
    """Start the servers that are described, and keep them running. Ctrl-C stops them all and ends. Never as root.

    Usually a unit does it: sudo systemctl enable --now memscaler-servers. Servers survive its crash and its restart.
    """
    from memscaler.servers import places
    from memscaler.servers import run as supervisor

    supervisor.refuse_root()

    from memscaler.cli.simulated import at_home
    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.config.load import load
    from memscaler.observe.log import configure

    own = places.own(os.environ, runtime_dir)
    environ = places.without_own(os.environ)
    flags = {"simulate": simulate, "log_format": log_format, "log_level": log_level}

    def read() -> Settings:
        return load(flags, environ, config)

    settings = read()
    configure(settings.log_format, settings.log_level, os.environ)
    start_simulation(settings.simulate, at_home(settings, own.runtime).runtime_dir)
    started = dataclasses.replace(settings, simulate=())  # what is started is found again, without a word
    whose = places.whose(os.environ) if user is None else user
    supervisor.run(started, read, own, user=whose, control=lambda running: _control(own, running))


def _control(own: Places, running: Running) -> ControlServer:
    from memscaler.servers.control import ControlServer
    from memscaler.servers.places import SOCKET
    from memscaler.servers.steering import Steering

    return ControlServer(own.runtime / SOCKET, Steering(running.supervisor, running.reread).answer)
