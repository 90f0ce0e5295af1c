"""The loop of `memscaler top`: it draws, waits for keys, and lets other threads talk to the daemon."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console, Group

from memscaler.cli.client import Client
from memscaler.cli.output import plain, span
from memscaler.cli.top.terminal import BY_SIGNAL, Key, Terminal
from memscaler.cli.top.view import View, lines, try_out
from memscaler.core.errors import DaemonNotRunning, MemscalerError

EVERY_S = 1.0
HOLD_S = 3600.0
MESSAGE_S = 20.0
LATE_S = 5.0  # the daemon answers at once, or within a second; who has not by then is said not to
REASON = "memscaler top"

Document = dict[str, Any]


class App:
    """One screen. Raises MemscalerError if there is no daemon, or none that may be asked, at the beginning."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._console = Console()
        self._view = View(unicode="utf" in self._console.encoding.lower())
        self._terminal = Terminal()
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what other threads want done here
        self._look_now = threading.Event()
        self._ended = self._suspended = self._late = False
        self._message_until_s = self._looked_s = 0.0

    def run(self) -> int:
        """Until q; the exit code."""
        self._seen(self._status())
        threading.Thread(target=self._look, name="look", daemon=True).start()
        with self._terminal.watched():
            while not self._ended:
                with self._terminal.raw(), self._console.screen():
                    self._show()
                if self._suspended:
                    self._suspended = False
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self._looked_s = time.monotonic()  # nobody has asked meanwhile
        return BY_SIGNAL + self._terminal.ended_by if self._terminal.ended_by else 0

    def _show(self) -> None:
        """Until the end, or until it is suspended."""
        while not (self._ended or self._suspended):
            if time.monotonic() >= self._message_until_s:
                self._view.message = ""
            self._mind_the_time()
            self._draw()
            for key in self._terminal.wait(EVERY_S):
                self._obey(key)
            with suppress(Empty):
                while True:
                    self._news.get_nowait()()
            self._ended |= bool(self._terminal.ended_by) or self._terminal.hung_up

    def _draw(self) -> None:
        width, height = os.get_terminal_size()
        if width > 0 and height > 0:
            self._console.size = (width, height)
            self._console.update_screen(Group(*lines(self._view, width, height)))

    # ---- keys -----------------------------------------------------------------------------------------------------

    def _obey(self, key: str) -> None:
        view, gpu = self._view, self._view.selected_gpu()
        match key:
            case "q" | Key.INTERRUPT:
                self._ended = True
            case Key.SUSPEND:
                self._suspended = True
            case "?":
                view.helps = not view.helps
            case Key.ESCAPE:
                view.helps = False
            case "up" | "k":
                view.move(-1)
            case "down" | "j":
                view.move(1)
            case "P":
                self._pause()
            case "h" | "u" | "p" if gpu is not None:
                self._steer(key, plain(gpu["gpu"]), gpu["uuid"])

    def _steer(self, key: str, name: str, uuid: str) -> None:
        match key:
            case "h":
                held = f"{name} is held for {span(HOLD_S)}; u ends it"
                self._ask(f"{name}: hold ...", lambda _: held, "hold", gpus=[uuid], for_s=HOLD_S, reason=REASON)
            case "u":
                self._ask(f"{name}: unhold ...", lambda told: _unheld(name, told), "unhold", gpus=[uuid])
            case "p":
                self._ask(f"{name}: park ...", _parked, "park", gpus=[uuid])

    def _pause(self) -> None:
        match (self._view.document or {}).get("mode"):
            case "paused":
                self._ask("go on ...", lambda _: "memscaler governs again", "resume")
            case "governing":
                told = f"every GPU is kept awake for {span(HOLD_S)}; P again ends it"
                self._ask("pause ...", lambda _: told, "pause", for_s=HOLD_S, reason=REASON)
            case "released":
                self._say("the driver is let go of: `memscaler resume` goes on")

    def _ask(self, doing: str, say: Callable[[Document], str], what: str, **wanted: object) -> None:
        """In a thread of its own: a park takes seconds. Whatever comes of it stands in the line of messages."""
        self._say(doing)

        def work() -> None:
            try:
                message = say(self._client.change(what, **wanted))
            except MemscalerError as error:
                message = " ".join(str(error).split()) + (f" ({error.hint})" if error.hint else "")
            except Exception as error:  # noqa: BLE001  # whatever it is, it is to be shown, not to be printed
                message = f"the daemon's answer cannot be understood: {type(error).__name__}: {error}"
            self._tell(lambda: self._say(message))
            self._look_now.set()

        threading.Thread(target=work, name=what, daemon=True).start()

    def _say(self, message: str) -> None:
        self._view.message, self._message_until_s = plain(message), time.monotonic() + MESSAGE_S

    # ---- the daemon -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """A thread: ask once a second, and at once after something was changed."""
        while True:
            self._look_now.wait(EVERY_S)
            self._look_now.clear()
            try:
                document = self._status()
            except Exception as error:  # noqa: BLE001  # a thread that ends would leave old figures that look live
                self._tell(lambda error=error: self._missed(error))  # type: ignore[misc]
            else:
                self._tell(lambda document=document: self._seen(document))  # type: ignore[misc]

    def _status(self) -> Document:
        """One that can be shown."""
        document = self._client.status()
        try:
            try_out(document)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise MemscalerError(f"the daemon's answer cannot be shown: {what}", hint="restart it") from error
        return document

    def _mind_the_time(self) -> None:
        """A look may take long: what is shown meanwhile is old."""
        late_s = time.monotonic() - self._looked_s
        if late_s >= LATE_S and (self._late or not self._view.problem):
            self._late, self._view.problem = True, f"the daemon has not answered for {span(late_s)}"

    def _tell(self, news: Callable[[], None]) -> None:
        self._news.put(news)
        self._terminal.wake()

    def _seen(self, document: Document) -> None:
        self._looked_s, self._late = time.monotonic(), False
        self._view.document, self._view.problem = document, ""
        self._view.histories.add(document)

    def _missed(self, error: Exception) -> None:
        self._looked_s, self._late = time.monotonic(), False
        self._view.histories.add_gap()
        waits = "; waiting for it" if isinstance(error, DaemonNotRunning) else ""
        what = str(error) if isinstance(error, MemscalerError) else f"{type(error).__name__}: {error}"
        self._view.problem = plain(" ".join(what.split())) + waits


def _unheld(name: str, told: Document) -> str:
    count = len(told["ended"])
    return f"{name}: {count} hold{'s' * (count != 1)} ended" if count else f"{name} was not held"


def _parked(told: Document) -> str:
    return "; ".join(
        f"{gpu['gpu']}: {gpu['state']}" + f", {gpu['reason']}" * bool(gpu["reason"]) for gpu in told["gpus"]
    )
