"""Who governs the port of `memscaler serve`: a memscaler that runs already, or one beside the server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memscaler.cli import govern
from memscaler.cli.client import Client, Document
from memscaler.config.schema import Settings
from memscaler.core.errors import DaemonNotRunning, MemscalerError, PermissionMissing
from memscaler.servers.beside import advice, correction, not_governing, uncovered, watch_of, whose


@dataclass(frozen=True, slots=True)
class Governing:
    """own: a governor is to be started. client: asks the one that runs. known: it watches the port."""

    own: bool = False
    client: Client | None = None
    known: bool = False

    @property
    def ask(self) -> Callable[[], Document] | None:
        """Its status."""
        return None if self.client is None else self.client.status

    def hold(self, gpus: Sequence[str], reason: str) -> Callable[[], AbstractContextManager[object]] | None:
        """Keeps GPUs awake as long as its context."""
        return None if self.client is None else partial(self.client.held, gpus=list(gpus), reason=reason)


def beside(port: int, gpus: Sequence[str], settings: Settings, *, dry_run: bool) -> Governing:
    """Who will govern the port. Raise PermissionMissing or MemscalerError with what to do if nobody would."""
    client = Client(str(settings.runtime_dir))
    try:
        document = client.status()
    except DaemonNotRunning:
        if os.geteuid() and not dry_run:
            hint = f"sudo {_as_typed()}, or: sudo systemctl start memscaler, or: --ungoverned"
            raise PermissionMissing("no memscaler runs here, and parking GPUs needs root", hint=hint) from None
        return Governing(own=True, client=client)
    except PermissionMissing as error:
        hint = "join group memscaler, or use sudo; --ungoverned serves whether it watches the port or not"
        raise PermissionMissing("a memscaler runs here, and you may not ask it", hint=hint) from error
    seen = watch_of(document, port)
    if seen is None and not document.get("discover", settings.discover):  # older ones do not tell
        problem = f"a memscaler runs here (pid {document['pid']}) that does not watch port {port}: "
        problem += "it could park this server's GPUs while they work"
        if not dry_run:
            raise MemscalerError(problem, hint=advice(port, gpus, whose(document["pid"])))
        warn(problem)
    if lacks := uncovered(seen, gpus) if seen else ():
        problem = f"the memscaler that runs here (pid {document['pid']}) watches port {port} for other GPUs than "
        problem += f"{', '.join(lacks)}, which the plan uses: it could park these while they work"
        if not dry_run:
            raise MemscalerError(problem, hint=correction(port, lacks, whose(document["pid"])))
        warn(problem)
    if idle := not_governing(document):
        warn(f"the memscaler that runs here parks nothing: {idle}")
    return Governing(client=client, known=seen is not None)


def _as_typed() -> str:
    return shlex.join(["memscaler", *sys.argv[1:]])


@dataclass(frozen=True, slots=True)
class Governor:
    """One of our own. flags: those of `memscaler run` that are given."""

    port: int
    gpus: Sequence[str]
    flags: Mapping[str, str | None]
    config: Path | None

    @property
    def command(self) -> tuple[str, ...]:
        """As `memscaler run` starts it, without the command line in between."""
        flags = {**self.flags, "watch": [self._watch]}
        config = None if self.config is None else str(self.config)
        return (sys.executable, "-P", govern.__file__, json.dumps({"flags": flags, "config": config}))

    @property
    def typed(self) -> tuple[str, ...]:
        """What one would type for it."""
        given = {f"--{key.replace('_', '-')}": value for key, value in self.flags.items() if value}
        if self.config is not None:
            given["--config"] = str(self.config)
        return ("memscaler", "run", "--port", self._watch, *(word for pair in given.items() for word in pair))

    @property
    def _watch(self) -> str:
        return f"{self.port}:{','.join(self.gpus)}"


def warn(text: str) -> None:
    """Something that a person should know."""
    print(f"memscaler: {text}", file=sys.stderr, flush=True)
