"""From a description to what is executed: command line, environment, GPUs. What is wrong is said before the start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from memscaler.config.servers import Server
from memscaler.core.errors import GpuError, MemscalerError, in_a_line
from memscaler.daemon.servers import option, server_of
from memscaler.planner import visible
from memscaler.servers.child import CannotStart, passes
from memscaler.servers.state import Given

_MODEL = ("-m", "--model")
_FETCHED = frozenset({"-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"})  # -m: where it goes
_OF_LLAMA = frozenset({"llama-server", "llama serve", "server"})  # other programs read other models
_MAGIC = b"GGUF"
# What systemd tells the supervisor is not meant for servers.
_OURS = frozenset({
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID", "LISTEN_FDS", "LISTEN_PID",
    "LISTEN_FDNAMES", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY",
    "SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be executed. model: path, "" if there is none to be seen."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    given: Given = field(default_factory=Given)
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
    given = Given()
    _check(server)
    try:
        if server.gpus:
            given = Given(_placing().uuids(server.gpus), server.gpus)
            environment.update(visible.environment(given.gpus))
        environment.update(server.environment)
        if server.placed and server.model:
            placed = _placing().place(Path(server.directory) / server.model, server.options, environment)
            given = placed.given
            argv = (*argv, *given.arguments)
            environment.update(placed.environment)
    except (MemscalerError, OSError) as error:
        later = isinstance(error, GpuError)  # a driver may be loaded in a moment
        raise CannotStart(f"cannot be started: {in_a_line(error)}", later=later) from error
    return Prepared(_found(argv, environment), environment, server.directory, given, model_of(server))


def _placing() -> ModuleType:
    """The planner is loaded where it is needed only."""
    from memscaler.servers import placing

    return placing


def _model_command(server: Server) -> tuple[str, ...]:
    from memscaler.servers.programs import find_server

    try:
        program = find_server()
    except MemscalerError as error:
        raise CannotStart(f"cannot be started: {in_a_line(error)}") from error
    port = () if server.port is None or option(server.options, "--port") else ("--port", str(server.port))
    return (*program, "-m", server.model, *port, *server.options)


def _check(server: Server) -> None:
    """What would otherwise end in a crash loop."""
    if not Path(server.directory).is_dir():
        raise CannotStart(f"cannot be started: directory {server.directory}: no such directory")
    if not _reads_model(server):
        return
    path = Path(server.directory) / model_of(server)
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise CannotStart(f"cannot be started: model {path}: not a GGUF file")
    except FileNotFoundError as error:
        raise CannotStart(f"cannot be started: model {path}: no such file") from error
    except PermissionError as error:
        raise CannotStart(f"cannot be started: model {path}: permission denied for this user") from error
    except OSError as error:
        raise CannotStart(f"cannot be started: model {path}: {error.strerror}", later=passes(error)) from error


def _reads_model(server: Server) -> bool:
    """Whether there must be a GGUF file when it is started. One that is fetched is not there yet."""
    words = (*server.command, *server.options)
    if not model_of(server) or any(word.partition("=")[0] in _FETCHED for word in words):
        return False
    if server.model or model_of(server).endswith(".gguf"):
        return True
    found = server_of(server.command)
    return found is not None and found.program in _OF_LLAMA


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
