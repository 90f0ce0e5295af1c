"""From a description to what is executed: command line, environment, GPUs. What is wrong is said before the start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from memscaler.config.servers import Server
from memscaler.core.errors import GpuError, MemscalerError
from memscaler.daemon.servers import option
from memscaler.planner import visible
from memscaler.servers.child import CannotStart

_MODEL = ("-m", "--model")
# What systemd tells the supervisor is not meant for servers.
_OURS = frozenset({
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID", "LISTEN_FDS", "LISTEN_PID",
    "LISTEN_FDNAMES", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY",
    "SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be executed. gpus: UUIDs. model: path, "" if there is none to be seen."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    gpus: tuple[str, ...] = ()
    model: str = ""


def model_of(server: Server) -> str:
    """The model's path, also where only the command names it."""
    return server.model or option(server.command, *_MODEL)


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every server and hook starts from: ours, without what is for us."""
    return {name: value for name, value in environ.items() if name not in _OURS and not name.startswith("MEMSCALER_")}


def prepare(server: Server, environ: Mapping[str, str], home: Path) -> Prepared:
    """home: where servers run whose descriptions name no directory. Raise CannotStart with the reason.

    May ask the driver and read the model, so it may take seconds.
    """
    server = server if server.directory else replace(server, directory=str(home))
    environment = base_environment(environ)
    argv = server.command or _model_command(server)
    gpus: tuple[str, ...] = ()
    _check(server)
    try:
        if server.gpus:
            gpus = _placing().uuids(server.gpus)
            environment.update(visible.environment(gpus))
        environment.update(server.environment)
        if server.placed and server.model:
            placed = _placing().place(Path(server.directory) / server.model, server.options, environment)
            argv, gpus = (*argv, *placed.arguments), placed.gpus
            environment.update(placed.environment)
    except (MemscalerError, OSError) as error:
        hint = getattr(error, "hint", "")
        later = isinstance(error, GpuError)  # a driver may be loaded in a moment
        raise CannotStart(f"cannot be started: {error}" + (f" ({hint})" if hint else ""), later=later) from error
    return Prepared(_found(argv, environment), environment, server.directory, gpus, model_of(server))


def _placing() -> ModuleType:
    """The planner is loaded where it is needed only."""
    from memscaler.servers import placing

    return placing


def _model_command(server: Server) -> tuple[str, ...]:
    from memscaler.servers.programs import find_server

    try:
        program = find_server()
    except MemscalerError as error:
        raise CannotStart(f"cannot be started: {error} ({error.hint})") from error
    port = () if server.port is None or option(server.options, "--port") else ("--port", str(server.port))
    return (*program, "-m", server.model, *port, *server.options)


def _check(server: Server) -> None:
    """What would otherwise end in a crash loop."""
    model = model_of(server)
    if not Path(server.directory).is_dir():
        raise CannotStart(f"cannot be started: directory {server.directory}: no such directory")
    if model and (server.model or model.endswith(".gguf")):
        path = Path(server.directory) / model
        try:
            found = path.exists()
        except OSError:
            found = True  # not to be seen by this user
        if not found:
            raise CannotStart(f"cannot be started: model {path}: no such file")
        if not os.access(path, os.R_OK):
            raise CannotStart(f"cannot be started: model {path}: permission denied for this user")


def _found(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """PATH is the server's own, if its description has one."""
    if not argv or not argv[0]:
        raise CannotStart("cannot be started: its command is empty")
    if "/" in argv[0]:
        return tuple(argv)
    program = shutil.which(argv[0], path=environment.get("PATH"))
    if program is None:
        raise CannotStart(f"cannot be started: {argv[0]}: no such program in PATH")
    return (program, *argv[1:])
