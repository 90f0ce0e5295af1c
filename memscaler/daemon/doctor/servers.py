"""Checks of the servers and of other programs: by the discovery and the list of rivals that the daemon uses."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator

from memscaler.config.render import literal
from memscaler.core.errors import MemscalerError
from memscaler.core.watch import HOST
from memscaler.daemon import rivals
from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.context import Context, NoAnswer
from memscaler.daemon.doctor.model import Verdict, passed, unknown, warned
from memscaler.daemon.servers import option, server_of

SLEEP = "--sleep-idle-seconds"
SLEEP_VARIABLE = b"LLAMA_ARG_SLEEP_IDLE_SECONDS="  # llama.cpp has one for each of its options
BOOST_SINCE = (580, 105, 8)
NO_SERVER = "no llama.cpp, llama-swap, Ollama, vLLM or SGLang server listens here"
_OFF = ("", "0", "-1")
# A unit of the system. Whoever has a manager of their own may call a cgroup below it like anything: ssh.service, too.
_SYSTEM_UNIT = re.compile(r"/system\.slice/((?!-)[A-Za-z0-9:_.@-]+\.service)")
_INSTEAD = re.compile(r"watch (\d+@container:[A-Za-z0-9_.-]+) instead")


def listeners(context: Context) -> Iterator[Verdict]:
    """Every server that is found, its GPUs, and whether its port is watched."""
    if not context.is_root:
        servers = _servers(context)
        seen = f"{len(servers)} server process{'es' * (len(servers) != 1)} seen, but not who listens where"
        yield unknown(f"{seen}: inconclusive without root", "sudo memscaler doctor")
        return
    watched = _watched(context)
    founds = context.founds()
    for found in founds:
        yield _listener(context, found, watched)
    if not founds:
        if watched:
            yield passed(f"{NO_SERVER}; the daemon watches {', '.join(str(port) for _, port in sorted(watched))}")
        elif context.settings.discover:
            yield passed(f"{NO_SERVER}; each will be watched when it does")
        else:
            yield warned(NO_SERVER, "name its port: memscaler run --port 8080:gpu0; see `memscaler ports`")


def _listener(context: Context, found: Found, watched: frozenset[tuple[str, int]] | None) -> Verdict:
    """watched: (scope, port) that the daemon watches; None: there is none, or it does not tell."""
    name = f"{found.port}@{found.scope}" if found.port and found.scope != str(HOST) else str(found.port or found.scope)
    about = found.why or found.problem or "watched by the configuration"
    gpus = ", ".join(found.watch.gpus) if found.watch else ""
    about += f"; named: {gpus}" if gpus else ""
    planned = found.watch is not None or context.settings.discover
    if not found.attach:
        remedy = _remedy(found)
        return warned(f"{about}; not watched: {found.problem}", remedy, name) if found.why else _waiting(found, name)
    if watched is not None and (found.scope, found.port) in watched:
        return passed(f"{about}; watched by the daemon", name)
    if not planned:
        table = f"[[watch]] port = {found.port}"
        table += f", scope = {literal(found.scope)}" if found.scope != str(HOST) else ""
        return warned(f"{about}; not watched", f"add {table} to the configuration, or discover = true", name)
    if watched is not None:
        return warned(f"{about}; the daemon does not watch it", "memscaler reload; then see `memscaler status`", name)
    return passed(f"{about}; the configuration watches it", name)


def _waiting(found: Found, name: str) -> Verdict:
    return warned(f"named, and not there: {found.problem}", "start the server, or correct the [[watch]] table", name)


def _remedy(found: Found) -> str:
    if "its children are watched" in found.problem:
        return "none is needed: discover = true watches its children"
    if instead := _INSTEAD.search(found.problem):
        return f"as it says: watch {shlex.quote(instead[1])} instead"
    if "no CUDA context" in found.problem:
        return "wait until it has loaded its model, or name its GPUs"
    return "see `memscaler ports`"


def _watched(context: Context) -> frozenset[tuple[str, int]] | None:
    try:
        watches = context.status()["watches"]
    except (MemscalerError, NoAnswer):
        return None
    return frozenset((str(watch["scope"] or HOST), int(watch["port"])) for watch in watches)


def boost(context: Context) -> Iterator[Verdict]:
    """CUDA_DISABLE_PERF_BOOST=1 does a part of what memscaler does."""
    pids = _serving(context)
    version = ""
    with contextlib.suppress(MemscalerError, NoAnswer):
        version = context.driver().driver_version
    for pid in sorted(pids):
        name = f"pid {pid}"
        variables = rivals.environment(pid, context.at("/proc"))
        if variables is None:
            yield unknown("its environment may not be read", subject=name)
        elif rivals.NO_BOOST in variables:
            remedy = "compare `memscaler gpus` with and without: where it suffices, parking gains nothing more"
            yield warned(f"has {rivals.NO_BOOST.decode()}: its clocks may fall by themselves", remedy, name)
        else:
            yield passed(f"does not have CUDA_DISABLE_PERF_BOOST; {_boost(version)}", name)
    if not pids:
        yield passed("no server runs that could have it")


def sleepers(context: Context) -> Iterator[Verdict]:
    """llama-server's own sleep, and llama-swap."""
    found = False
    for pid, kind in sorted(_servers(context).items()):
        name = f"pid {pid}"
        if kind == "llama-swap":
            found = True
            yield passed("llama-swap starts and ends servers; discover = true watches them as they come", name)
        idle = _sleep(context, pid)
        if idle not in _OFF:
            found = True
            remedy = f"leave {SLEEP} away if that wait hurts: a parked GPU keeps the model"
            yield warned(
                f"llama-server unloads its model after {idle} s; the next request waits for the load", remedy, name
            )
    if not found:
        yield passed("no llama-server that sleeps, and no llama-swap")


def _sleep(context: Context, pid: int) -> str:
    told = option(context.processes().argv(pid), SLEEP)
    variables = rivals.environment(pid, context.at("/proc")) or []
    by_variable = next((each for each in variables if each.startswith(SLEEP_VARIABLE)), b"")
    return told or by_variable.removeprefix(SLEEP_VARIABLE).decode(errors="replace")


def others(context: Context) -> Iterator[Verdict]:
    """Programs that set clocks, too."""
    found = rivals.find((), context.at("/proc"))
    for rival in found:
        unit = _unit(context.processes().cgroup(rival.pid))
        remedy = f"sudo systemctl disable --now {unit}" if unit else f"end it: sudo kill {rival.pid}"
        yield warned(f"{rival.name} (pid {rival.pid}) {rival.what}", f"{remedy}; or leave its GPUs to it", rival.name)
    if not found:
        yield passed("no other program that sets clocks")


def _unit(cgroup: str) -> str:
    """The unit of the system that this is, "" if it is anything else."""
    unit = _SYSTEM_UNIT.fullmatch(cgroup)
    return shlex.quote(unit[1]) if unit else ""


def _servers(context: Context) -> dict[int, str]:
    """Process id -> kind, by the command lines, which everybody may read."""
    processes = context.processes()
    known = ((pid, server_of(processes.argv(pid), processes.comm(pid))) for pid in processes.pids)
    return {pid: server.kind for pid, server in known if server is not None}


def _serving(context: Context) -> frozenset[int]:
    """Servers, and whoever has a context on a GPU and is seen here."""
    users: frozenset[int] = frozenset()
    with contextlib.suppress(NoAnswer):  # what a server's environment says does not depend on the driver
        users = users.union(*context.contexts().values())
    return frozenset(_servers(context)) | users.intersection(context.processes().pids)


def _boost(version: str) -> str:
    if not version:
        return "which driver there is cannot be told"
    known = _number(version) >= BOOST_SINCE
    return "this driver knows it, it may be worth a try" if known else f"driver {version} does not know it"


def _number(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()
