"""What `memscaler serve` says while it starts, and once it serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memscaler.cli.output import INDENT, labelled, plain, show
from memscaler.servers.beside import Seen, advice, uncovered
from memscaler.servers.serving import Wanted, last_lines, url
from memscaler.servers.session import Order, ServerEnded, Session

if TYPE_CHECKING:
    from rich.status import Status

    from memscaler.servers.layout import Layout

ASK_S = 3.0
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would get the API key
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to say. log: where the server's is, "": here. is_governed: somebody watches the port."""

    wanted: Wanted
    layout: Layout
    log: str
    is_governed: bool


class Screen:
    """Progress in place on a terminal, a line for each step elsewhere; both on standard error."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.log = facts.log
        self._shown = ""
        self._status: Status | None = None
        self._in_place = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")

    def progress(self, text: str) -> None:
        """What is waited for now; "" for nothing more."""
        if self._in_place:
            try:
                self._spin(text)
            except OSError:  # the terminal is gone
                self._in_place, self._status = False, None
        elif (step := text.partition(",")[0]) != self._shown:
            self._shown = step
            if step:
                _tell(step)

    def ready(self, took_s: float) -> None:
        """Say where, what, and how to try it."""
        self.progress("")
        facts, address = self._facts, url(self._facts.wanted.host, self._facts.wanted.port)
        names = ", ".join(_models(address, facts.wanted.api_key)) or facts.wanted.model.name
        key = ' -H "Authorization: Bearer $LLAMA_API_KEY"' if facts.wanted.api_key else ""
        body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50})
        lines = [f"Serving {plain(names)} at {address}/v1, ready after {took_s:.1f} s"]
        for line in facts.layout.lines:
            lines += labelled("plan:", line)
        if facts.is_governed:
            lines += labelled("governed:", "its GPUs are parked when it is quiet; see memscaler status")
        lines += [f"{INDENT}log: {plain(facts.log)}"] * bool(facts.log)  # one line, to be copied
        lines += [
            "",
            f"curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
            f"  -d '{body}'",
        ]
        show("\n".join([*lines, "", "Ctrl-C ends it."]))
        sys.stdout.flush()

    def watched(self, seen: Seen | None) -> None:
        """What a governor that is not ours does about the port."""
        layout, port = self._facts.layout, self._facts.wanted.port
        if seen is None:
            self.warn(f"the memscaler that runs here has not found port {port}")
            print(f"hint: {advice(port, layout.gpus)}", file=sys.stderr, flush=True)
            return
        for uuid in uncovered(seen, layout.gpus):
            self.warn(f"the watch of port {port} does not drive {uuid}, which this server uses")

    def warn(self, text: str) -> None:
        """Something is not as it should be."""
        _tell(text)

    def _spin(self, text: str) -> None:
        if self._status is None:
            if not text:
                return
            from rich.console import Console

            self._status = Console(stderr=True).status(text)
            self._status.start()
        elif text:
            self._status.update(text)
        else:
            self._status.stop()
            self._status = None


def run(order: Order, screen: Screen) -> int:
    """The number of the signal that ended it. Raise MemscalerError, with the end of the server's log."""
    try:
        return asyncio.run(Session(order, screen).run())
    except ServerEnded as error:
        said = [] if order.output is None else last_lines(order.output)
        hint = f"all of it: {screen.log}" if said else "see what it says, above"
        raise ServerEnded("\n".join([str(error), *(f"  {plain(line)}" for line in said)]), hint=hint) from error


def _models(address: str, api_key: str) -> list[str]:
    """What the server calls its models; [] if it does not say."""
    request = urllib.request.Request(f"{address}/v1/models")  # noqa: S310  # http, made by us
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    try:
        with _DIRECTLY.open(request, timeout=ASK_S) as answer:
            return [str(model["id"]) for model in json.loads(answer.read(MOST_BYTES))["data"]]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError):
        return []


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there to read it; the server is served all the same
        print(f"memscaler: {text}", file=sys.stderr, flush=True)
