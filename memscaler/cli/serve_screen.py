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

from memscaler.cli.output import INDENT, labelled, plain, show, span
from memscaler.core.text import fine_energy
from memscaler.servers.beside import Document, Seen, advice, uncovered
from memscaler.servers.health import Door, unverified
from memscaler.servers.serving import Wanted, last_lines, url
from memscaler.servers.session import Order, Saved, ServerEnded, Session

if TYPE_CHECKING:
    from rich.status import Status

    from memscaler.servers.layout import Layout

ASK_S = 3.0
LOOK_EVERY_S = 2.0  # at the state, on a terminal
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to say. log: where the server's is, "": here. is_governed: somebody watches the port."""

    wanted: Wanted
    door: Door
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
        self.look_every_s = LOOK_EVERY_S if self._in_place else None
        self._state = ""

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
        facts, address = self._facts, url(self._facts.door)
        names = ", ".join(_models(address, facts.wanted.api_key)) or facts.wanted.model.name
        key = ' -H "Authorization: Bearer $LLAMA_API_KEY"' if facts.wanted.api_key else ""
        body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50})
        lines = [f"Serving {plain(names)} at {address}/v1, ready after {took_s:.1f} s"]
        for line in facts.layout.lines:
            lines += labelled("plan:", line)
        if facts.is_governed:
            lines += labelled("governed:", "its GPUs are parked when it is quiet; see memscaler status")
        lines += [f"{INDENT}log: {plain(facts.log)}"] * bool(facts.log)  # one line, to be copied
        curl = "curl --insecure" if facts.door.encrypted else "curl"
        lines += [
            "",
            f"{curl} {address}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
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
        self._show_state("")
        _tell(text)

    def state(self, document: Document) -> None:
        """In the last line of a terminal: what each GPU of the server does."""
        mine = [gpu for gpu in document.get("gpus", ()) if gpu["uuid"] in self._facts.layout.gpus]
        self._show_state(", ".join(_state(gpu) for gpu in mine))

    def saved(self, saved: Saved) -> None:
        """The last word."""
        self._show_state("")
        parked = f"parked for {span(saved.parked_s)}" if saved.parked_s else "not parked"
        gained = f", which saved about {fine_energy(saved.energy_j)}" if saved.parked_s else ""
        _tell(f"its GPUs were {parked} in {span(saved.at_s)}{gained}")

    def _show_state(self, text: str) -> None:
        if self._in_place and text != self._state:
            self._state = text
            with contextlib.suppress(OSError):
                print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

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
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # a proxy would get the API key
    if address.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=unverified()))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=ASK_S) as answer:
            return [str(model["id"]) for model in json.loads(answer.read(MOST_BYTES))["data"]]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError):
        return []


def _state(gpu: Document) -> str:
    watts = "" if gpu["power_w"] is None else f", {gpu['power_w']:.0f} W"
    return f"{plain(gpu['gpu'])} {plain(gpu['state'])}{watts}"


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there to read it; the server is served all the same
        print(f"memscaler: {text}", file=sys.stderr, flush=True)
