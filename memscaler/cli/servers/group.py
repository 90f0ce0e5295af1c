"""The table of the commands; what a line names is imported when it is used."""

from __future__ import annotations

import typer

from memscaler.cli.lazy import PLAIN, Entry, LazyGroup

COMMANDS = {
    "list": Entry("memscaler.cli.servers.look:list_servers", "Show the servers: states, ports, GPUs, restarts."),
    "show": Entry("memscaler.cli.servers.look:show_server", "Show all about one server."),
    "logs": Entry("memscaler.cli.servers.logs:logs", "Show what a server writes."),
    "apply": Entry("memscaler.cli.servers.apply:apply", "Make what runs like the descriptions: only what differs."),
    "reload": Entry("memscaler.cli.servers.apply:reload", "Read the descriptions anew, and say what differs."),
    "start": Entry("memscaler.cli.servers.steer:start", "Start servers, also those that failed."),
    "stop": Entry("memscaler.cli.servers.steer:stop", "Stop servers until somebody starts them."),
    "restart": Entry("memscaler.cli.servers.steer:restart", "Stop servers and start them again."),
    "enable": Entry("memscaler.cli.servers.steer:enable", "Start servers, now and whenever the supervisor starts."),
    "disable": Entry("memscaler.cli.servers.steer:disable", "Stop servers, and leave them so."),
    "import": Entry("memscaler.cli.servers.importing:import_gppm", "Turn gppm's YAML files into descriptions."),
    "run": Entry("memscaler.cli.servers.run:run", "The supervisor: start the servers, and keep them running."),
}


class _Servers(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    cls=_Servers,
    no_args_is_help=True,
    help="Run model servers as they are described in [[server]] tables and below servers.d, and steer them by name.",
    epilog="Begin with docs/servers.md. `memscaler config check` checks the descriptions.",
    **PLAIN,
)


@app.callback()
def _servers() -> None:
    """Run model servers as they are described in [[server]] tables and below servers.d, and steer them by name."""
