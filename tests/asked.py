"""The other side of the control socket in tests: a thread that answers as the daemon's loop does."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from memscaler.daemon.control import ControlServer
from memscaler.daemon.requests import (
    SOCKET,
    Asked,
    HoldWanted,
    ParkWanted,
    PauseWanted,
    Request,
    ResumeWanted,
    Status,
    TiedEnded,
    UnholdWanted,
)

STATUS = {
    "mode": "governing",
    "version": "1.2.3",
    "pid": 123,
    "uptime_s": 93784.0,
    "driver_version": "570.86.15",
    "dry_run": False,
    "gpus": [],
    "watches": [],
    "waiting": [],
    "paused": None,
    "released": None,
    "ungoverned": [],
    "transitions": [],
    "rivals": [],
    "notices": [],
}


def answer(request: Request) -> dict[str, Any]:
    """What a daemon with one GPU might say."""
    match request:
        case Status():
            return STATUS
        case HoldWanted(gpus, for_s):
            return {"id": "5eed", "gpus": list(gpus) or ["gpu0"], "expires_in_s": for_s}
        case PauseWanted(for_s):
            return {"id": "5eed", "gpus": ["gpu0"], "expires_in_s": for_s}
        case UnholdWanted() | ResumeWanted():
            return {"ended": [{"id": "5eed", "owner": "root", "reason": "benchmark"}]}
        case ParkWanted():
            return {"gpus": [{"gpu": "gpu0", "state": "parked", "reason": ""}]}
        case _:
            return {}


class AnsweringLoop:
    """Takes what the server posts, in the order in which it comes. answer: may be exchanged; its errors are answers."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], dict[str, Any] | None] = answer
        self.asked: list[Asked] = []
        self.ended: list[str] = []
        self._mail: SimpleQueue[object] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def put(self, message: object) -> None:
        """For the server."""
        self._mail.put(message)

    @property
    def requests(self) -> list[Request]:
        """What was asked, without by whom."""
        return [asked.request for asked in self.asked]

    def close(self) -> None:
        """After everything that has been put."""
        self._mail.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._mail.get()) is not None:
            if isinstance(message, TiedEnded):
                self.ended.append(message.lease_id)
                continue
            assert isinstance(message, Asked)
            self.asked.append(message)
            try:
                document = self.answer(message.request)
            except Exception as error:  # noqa: BLE001  # a mistake of the loop is something to test, too
                message.answer.set_exception(error)
                continue
            if document is not None:  # else the test answers, or nobody
                message.answer.set_result(document)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket, which every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="memscaler-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def answering(folder: Path) -> Iterator[AnsweringLoop]:
    """A control socket in this runtime directory, and who answers there."""
    loop = AnsweringLoop()
    try:
        server = ControlServer(folder / SOCKET, loop.put)
        server.start()
        try:
            yield loop
        finally:
            server.stop()
    finally:
        loop.close()
