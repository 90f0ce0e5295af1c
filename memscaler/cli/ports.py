"""`memscaler ports`: which servers listen where, on which GPUs they are, what would be watched and why."""

from __future__ import annotations

import os
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from memscaler.cli.options import Config, Json, RuntimeDir, Simulate, setting
from memscaler.cli.output import WIDTH, columns, labelled, print_json

if TYPE_CHECKING:  # these open the driver's binding; `--help` shall not
    from collections.abc import Sequence

    from memscaler.config.ports import Watch
    from memscaler.daemon.discovery import Found
    from memscaler.gpu.inventory import Driver

NONE = "-"
SCOPE_WIDTH = 24
MOST_GPUS = 2
NOT_FOUND = "the memscaler that runs (pid {}) does not watch it: nobody named it, or it has not been found yet"
NOTHING = "no llama.cpp, llama-swap, Ollama, vLLM or SGLang server listens here, and no port is named"


def ports(
    port: Annotated[list[str] | None, setting("watch", "--port", "-p", metavar="PORT[@SCOPE][:GPU,...]")] = None,
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Show the servers that listen on this machine, in containers too, their GPUs, and what `run` would watch.

    Changes nothing and needs no daemon; where one runs, it says what that watches. The ports that you name come first;
    the others are found out.
    """
    from memscaler.config.load import load
    from memscaler.core.errors import PermissionMissing

    settings = load({"watch": port, "simulate": simulate, "runtime_dir": runtime_dir}, os.environ, config)
    if os.geteuid() != 0:
        raise PermissionMissing("only root can see which processes of others listen where")

    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.daemon import targets
    from memscaler.daemon.discovery import look
    from memscaler.gpu.inventory import open_driver

    start_simulation(settings.simulate, settings.runtime_dir)
    with open_driver() as driver:
        contexts = targets.contexts(driver)
        names = {device.identity.uuid: f"gpu{device.identity.index}" for device in driver.gpus}
        found = look(settings.watches, discover=True, gpu_processes=contexts, name_gpu=names.__getitem__, thorough=True)
        gpus = {each: _gpus(each, driver) for each in found}
    found, gpus = _as_governed(found, gpus, str(settings.runtime_dir))
    if as_json:
        print_json({"ports": [_document(each, gpus[each]) for each in found]})
    elif found:
        print(_text(found, [[names[uuid] for uuid in gpus[each]] for each in found]))
    else:
        print(textwrap.fill(f"{NOTHING}; name one with `memscaler run --port 8080:gpu0`", WIDTH))


def _gpus(found: Found, driver: Driver) -> tuple[str, ...]:
    """UUIDs: those that the operator has named, else those that were found. Raise UsageError if one is not there."""
    from memscaler.gpu.inventory import resolve

    if found.watch is None or not found.watch.gpus:
        return found.gpus
    named = (resolve(name, driver.gpus, driver.lost) for name in found.watch.gpus)
    return tuple(dict.fromkeys(device.identity.uuid for device in named))


def _as_governed(
    found: tuple[Found, ...], gpus: dict[Found, tuple[str, ...]], runtime_dir: str
) -> tuple[tuple[Found, ...], dict[Found, tuple[str, ...]]]:
    """The same, but watched is what the memscaler that runs watches, where one runs."""
    from memscaler.cli.client import Client
    from memscaler.core.errors import MemscalerError
    from memscaler.core.watch import HOST
    from memscaler.servers.beside import Whose, whose

    try:
        document = Client(runtime_dir).status()
        watched = {(str(watch["scope"] or HOST), watch["port"]) for watch in document["watches"]}
    except (MemscalerError, KeyError):  # the second: of another version
        return found, gpus
    remedy = "sudo memscaler reload" if whose(document["pid"]) is Whose.FILES else "it was given its ports by --port"
    problem = f"the memscaler that runs (pid {document['pid']}) does not watch it: {remedy}"
    made = {}
    for each in found:
        is_watched = (each.scope, each.port) in watched
        told = each
        if each.attach and not is_watched:
            told = replace(each, attach=False, problem=problem if each.watch else NOT_FOUND.format(document["pid"]))
        elif is_watched and not each.attach:
            told = replace(each, attach=True)
        made[told] = gpus[each]
    return tuple(made), made


def _document(found: Found, gpus: Sequence[str]) -> dict[str, object]:
    return {
        "port": found.port or None,
        "scope": found.scope,
        "spec": _spec(found.watch),
        "server": found.server or None,
        "pids": found.pids,
        "addresses": found.addresses,
        "gpus": gpus,
        "netns": {"path": found.netns_path, "inode": found.netns_inode or None},
        "watched": found.attach,
        "why": found.why,
        "problem": found.problem or None,
    }


def _spec(watch: Watch | None) -> str | None:
    return None if watch is None else str(watch)


def _text(founds: Sequence[Found], gpus: Sequence[Sequence[str]]) -> str:
    rows = (_row(found, names) for found, names in zip(founds, gpus, strict=True))
    table = columns([("PORT", "SCOPE", "SERVER", "PID", "GPUS", "WATCHED"), *rows])
    return "\n\n".join([table, *(_details(found) for found in founds)])


def _row(found: Found, gpus: Sequence[str]) -> tuple[str, ...]:
    """Short enough for 80 columns; what is cut is in the details."""
    scope = found.scope
    more = f" +{len(found.pids) - 1}" if len(found.pids) > 1 else ""
    return (
        str(found.port or NONE),
        scope if len(scope) <= SCOPE_WIDTH else scope[: SCOPE_WIDTH - 3] + "...",
        found.server or NONE,
        f"{found.pids[0]}{more}" if found.pids else NONE,
        (",".join(gpus) or NONE) if len(gpus) <= MOST_GPUS else f"{len(gpus)} GPUs",
        ("yes, named" if found.watch else "yes, found") if found.attach else "no",
    )


def _details(found: Found) -> str:
    name = found.watch or (f"{found.port}@{found.scope}" if found.port else found.scope)
    lines = [f"{name}  {', '.join(found.addresses)}".rstrip()]
    lines += labelled("why:", found.why)
    lines += labelled("note:" if found.attach else "not watched:", found.problem)
    return "\n".join(lines)
