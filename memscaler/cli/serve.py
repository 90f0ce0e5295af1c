"""`memscaler serve`: a model planned onto the GPUs, served by llama.cpp, and governed from the first second."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from memscaler.cli.options import Config, Json, RuntimeDir, Simulate, setting
from memscaler.cli.serve_words import NO_DOWNLOAD
from memscaler.core.errors import MemscalerError, UsageError

if TYPE_CHECKING:  # heavy; `--help` needs none of it
    from memscaler.cli.serve_beside import Governing, Governor
    from memscaler.config.schema import Settings
    from memscaler.planner.devices import Device
    from memscaler.servers.layout import Layout
    from memscaler.servers.serving import Wanted

FURTHER = "memscaler.further"  # where ServeCommand leaves what stands behind "--"
HINT = "see `memscaler serve --help`"
_URL = re.compile(r"[a-z]{2,10}:/")  # a path has lost one of its slashes
BY_SIGNAL = 128
QUIET = "warning"  # what it does from second to second is in `memscaler status`
CONTEXT, PORT, RESERVE_MIB = 4096, 8080, 1024


class ServeCommand(TyperCommand):
    """Parts the arguments at "--": behind it are llama-server's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave them for serve()."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[FURTHER] = tuple(args[at + 1 :])
            args = args[:at]
        from memscaler.cli.serve_words import translated

        ours = {
            name: not getattr(option, "is_flag", False)
            for option in self.get_params(ctx)
            if option.param_type_name == "option"
            for name in (*option.opts, *option.secondary_opts)
        }
        return super().parse_args(ctx, translated(args, ours))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """For the first line of the help."""
        return [*super().collect_usage_pieces(ctx), "[-- LLAMA-SERVER-ARG...]"]


def serve(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A GGUF file, as with --model.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "--model-path", "-m", metavar="FILE", help="A GGUF file.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="PORT", min=0, max=65535, help="Where to listen; 0: any free port.")
    ] = PORT,
    n_ctx: Annotated[
        int,
        typer.Option(
            "--n-ctx", "-c", metavar="N", min=0, help="Tokens of context, of all slots; 0: the model's own length."
        ),
    ] = CONTEXT,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", min=0, help="Requests at once; 0: llama-server's own choice.")
    ] = 0,
    cache_type_k: Annotated[str, typer.Option("--cache-type-k", metavar="TYPE", help="Of the cache's keys.")] = "f16",
    cache_type_v: Annotated[
        str, typer.Option("--cache-type-v", metavar="TYPE", help="Of the cache's values: f16, q8_0, q4_0, ...")
    ] = "f16",
    n_batch: Annotated[int, typer.Option("--n-batch", metavar="N", min=1, help="Tokens of a batch.")] = 2048,
    n_ubatch: Annotated[int, typer.Option("--n-ubatch", metavar="N", min=1, help="Tokens of a step.")] = 512,
    mmproj: Annotated[
        Path | None, typer.Option("--mmproj", metavar="FILE", help="Projector for images.", show_default=False)
    ] = None,
    alias: Annotated[
        str,
        typer.Option(
            "--alias", metavar="NAME", help="What the API calls the model. Default: as the file.", show_default=False
        ),
    ] = "",
    api_key: Annotated[
        str,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="LLAMA_API_KEY",
            show_envvar=False,
            help="What clients must present. Better as LLAMA_API_KEY: everybody can read a command line.",
            show_default=False,
        ),
    ] = "",
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="GPU,...", help="The GPUs to use. Default: all.", show_default=False),
    ] = None,
    reserve_mib: Annotated[
        int, typer.Option("--reserve-mib", metavar="MIB", min=0, help="What stays free on each GPU.")
    ] = RESERVE_MIB,
    smart_split: Annotated[
        bool,
        typer.Option("--smart-split/--no-smart-split", help="Plan each layer's GPU, or leave it to llama.cpp."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Serve also what does not fit whole.")] = False,
    ungoverned: Annotated[bool, typer.Option("--ungoverned", help="Serve without a governor.")] = False,
    idle_after: Annotated[str | None, setting("idle_after", "--idle-after", metavar="TIME")] = None,
    log: Annotated[
        str,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Where the server's log goes; - is here. Default: a temporary file.",
            show_default=False,
        ),
    ] = "",
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level",
            metavar="LEVEL",
            help="What the governor says here: debug, info, warning or error. Default: warning.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the command lines, start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve a model with llama.cpp, placed on the GPUs by the planner, and govern it from the first second.

    The server is llama-server of the PATH, `llama serve`, or the engine of memscaler[serve]; what stands behind -- is
    for it. Parking GPUs needs root: with sudo the governor runs as root, and the server as whoever called sudo. Where a
    memscaler runs already, that one governs. Ctrl-C ends the server and wakes all. Exit code: 128 and the signal's
    number if one ended it, 1 if the server ended by itself, 2 if the model does not fit.
    """
    from memscaler.cli.serve_beside import Governing, Governor, beside
    from memscaler.cli.simulated import at_home
    from memscaler.config.load import load
    from memscaler.servers import serving

    model = _one(file, model)
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run", hint="a server's answers are JSON; memscaler status --json")
    further = context.meta.get(FURTHER, ())
    serving.check_further(further, placed=smart_split)
    serving.check_host(host)
    flags = {"simulate": simulate, "runtime_dir": runtime_dir, "idle_after": idle_after, "log_level": log_level}
    settings = at_home(load(flags, os.environ, config))
    if settings.origins.get("log_level", "default") == "default":
        flags["log_level"] = QUIET
    size: dict[str, str | int] = {
        "-c": n_ctx,
        "-np": parallel,
        "-b": n_batch,
        "-ub": n_ubatch,
        "-ctk": cache_type_k,
        "-ctv": cache_type_v,
    }
    wanted = serving.Wanted(
        model=_readable(model),
        host=host,
        port=_port(host, port, dry_run=dry_run),
        size=serving.size_words(size),
        alias=alias or serving.name_of(model),
        projector=str(_readable(mmproj)) if mmproj else "",
        api_key=api_key,
        further=further,
    )
    layout = _layout(wanted, _devices(settings, devices), reserve_mib if smart_split else None, force=force)
    is_governed = bool(layout.gpus) and not ungoverned
    governing = beside(wanted.port, layout.gpus, settings, dry_run=dry_run) if is_governed else Governing()
    governor = Governor(wanted.port, layout.gpus, flags, config) if governing.own else None
    if dry_run:
        _show(wanted, layout, governor, as_json=as_json)
    else:
        raise typer.Exit(BY_SIGNAL + _run(wanted, layout, governing, governor, log))


def _layout(wanted: Wanted, there: Sequence[Device], reserve_mib: int | None, *, force: bool) -> Layout:
    """reserve_mib None: llama.cpp places the model itself, as it does where there is only the CPU."""
    from memscaler.planner.devices import Budget
    from memscaler.planner.gguf import read_model
    from memscaler.planner.sizes import MIB
    from memscaler.servers.layout import left_to_llama, planned

    projector = Path(wanted.projector) if wanted.projector else None
    if reserve_mib is not None and not there:
        read_model(wanted.model, projector)  # what is wrong with it is said now, and better than the server does
    if reserve_mib is None or not there:
        return left_to_llama(there)
    return planned(wanted.model, projector, wanted.demand, there, Budget(reserve_mib * MIB), force=force)


def _run(wanted: Wanted, layout: Layout, governing: Governing, governor: Governor | None, log: str) -> int:
    """Serve. The number of the signal that ended it."""
    from memscaler.cli.serve_beside import warn
    from memscaler.cli.serve_screen import Facts, Screen, run
    from memscaler.servers import serving
    from memscaler.servers.caller import caller, environment_of
    from memscaler.servers.programs import find_server
    from memscaler.servers.session import Order

    for name in serving.contradicting(os.environ, layout):
        warn(f"{name} is left out: it would change the plan; llama-server's arguments go behind --")
    user = caller(os.environ)
    if user is None and os.geteuid() == 0:
        warn("the server runs as root, for nobody called sudo")
    variables = serving.environment(environment_of(user, os.environ), wanted, layout)
    door = serving.door_of(wanted, variables)
    with serving.log_of(log, wanted.port, user) as (output, log_path):
        order = Order(
            server=serving.command(find_server(), wanted, layout),
            environment=variables,
            door=door,
            user=user,
            governor=governor.command if governor else None,
            ask=governing.ask,
            known=governing.known,
            hold=governing.hold(layout.gpus, f"memscaler serve loads {wanted.model.name}"),
            output=output,
            gpus=layout.gpus,
        )
        return run(order, Screen(Facts(wanted, door, layout, log_path, is_governed=governing.own or governing.known)))


def _one(*named: Path | None) -> Path:
    """The model. Raise UsageError for none, and for two."""
    given = dict.fromkeys(path for path in named if path is not None)
    if not given:
        raise UsageError("no model", hint="memscaler serve --model FILE.gguf")
    if len(given) > 1:
        raise UsageError(f"two models: {' and '.join(map(str, given))}", hint="one server serves one model")
    model = next(iter(given))
    if _URL.match(str(model)):
        raise UsageError(f"{model}: serve takes a model that is here, and downloads none", hint=NO_DOWNLOAD)
    return model


def _readable(path: Path) -> Path:
    """As an absolute path. Raise UsageError if the server could not read it."""
    from memscaler.servers.caller import caller
    from memscaler.servers.serving import check_readable

    check_readable(path, caller(os.environ))
    return path.absolute()


def _port(host: str, port: int, *, dry_run: bool) -> int:
    """One that is free; a dry run takes none, and only says so. Raise MemscalerError."""
    from memscaler.cli.serve_beside import warn
    from memscaler.servers.listening import free_port

    try:
        return free_port(host, port)
    except MemscalerError as error:
        if not dry_run:
            raise
        warn(f"{error}; without --dry-run it refuses")
        return port


def _devices(settings: Settings, devices: str | None) -> tuple[Device, ...]:
    """Those that may be used; none where there is no driver: then the CPU serves."""
    from memscaler.cli.serve_beside import warn
    from memscaler.cli.simulated import simulate
    from memscaler.core.errors import DriverUnavailable
    from memscaler.planner.devices import choose, survey

    simulate(settings.simulate, settings.runtime_dir)
    try:
        found = choose(survey(), os.environ, devices.split(",") if devices else None)
    except DriverUnavailable as error:
        if devices:
            raise
        warn(f"no GPU can be used: {error}; the CPU serves")
        return ()
    for note in found.notes:
        warn(note)
    return found.devices


def _show(wanted: Wanted, layout: Layout, governor: Governor | None, *, as_json: bool) -> None:
    """The dry run."""
    from memscaler.cli.output import print_json, show
    from memscaler.servers import serving
    from memscaler.servers.programs import find_server

    server = serving.command(find_server(), wanted, layout)
    told = serving.environment({}, wanted, layout)
    told |= {serving.API_KEY: "..."} if wanted.api_key else {}
    if as_json:
        typed = governor.typed if governor else None
        print_json({"plan": layout.document, "governor": typed, "server": server, "environment": told})
        return
    lines = [*layout.lines, ""]
    if governor is not None:
        lines.append(shlex.join(governor.typed))
    lines.append(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in told.items()), shlex.join(server)]))
    show("\n".join(lines))
