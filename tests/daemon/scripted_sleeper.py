"""A sleeper whose part the test plays: the governor is the real one, and so is its child; what that says, the test says.

As a program this is three things: the command line with another sleeper, the governor's image with it, and that sleeper,
which passes every message on to the test's socket, and the test's to the governor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RELAY = "SCRIPTED_SLEEPER"  # a variable: where the test listens
MOST = 1 << 18


class Scripted:
    """The test's side. Each sleeper that the governor starts comes as a connection."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(30)
        self._end: socket.socket | None = None
        self._number = 100
        self.pid = 0
        self.heard: list[dict[str, Any]] = []

    def come(self) -> None:
        """The governor has started the next one."""
        before, (self._end, _) = self._end, self._listener.accept()
        if before is not None:
            before.close()
        self._end.settimeout(30)
        self.pid = struct.unpack("iII", self._end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.heard.clear()

    def say(self, word: str, **what: Any) -> int:
        """Returns its id, if it has none, a new one."""
        if word in ("guard", "look", "announce"):
            self._number += 1
            what = {"id": self._number, **what}
        self.say_raw(json.dumps({word: what}).encode())
        return int(what.get("id", 0))

    def say_raw(self, data: bytes) -> None:
        assert self._end is not None
        self._end.send(data)

    def hear(self) -> dict[str, Any]:
        """The next message. Raise TimeoutError."""
        assert self._end is not None
        data = self._end.recv(MOST)
        assert data, "the governor has closed the socket"
        self.heard.append(json.loads(data))
        return self.heard[-1]

    def until(self, word: str, is_meant: Any = lambda _: True) -> Any:
        """The next message of that kind that is meant."""
        while True:
            message = self.hear()
            if word in message and is_meant(message[word]):
                return message[word]

    def answered(self, number: int) -> Any:
        """The picture that answers a question."""
        return self.until("seen", lambda seen: seen["id"] == number)

    def nothing_for(self, seconds: float) -> bool:
        """True if nothing is said meanwhile."""
        assert self._end is not None
        return not select.select([self._end], [], [], seconds)[0]

    def bye(self) -> None:
        """The sleeper ends."""
        assert self._end is not None
        self._end.close()
        self._end = None

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
        self._listener.close()


@contextlib.contextmanager
def scripted(folder: Path) -> Iterator[Scripted]:
    """Listens for the sleepers of a governor with `launch` before its command and `environment` in its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    sleeper = Scripted(folder / "relay")
    try:
        yield sleeper
    finally:
        sleeper.close()


def launch() -> tuple[str, ...]:
    """What to put before `python -m memscaler run ...`."""
    return (sys.executable, __file__)


def environment(folder: Path) -> dict[str, str]:
    """What tells the sleeper where the test is."""
    return {RELAY: str(folder / "relay")}


def server(seen: Any, key: str) -> Any:
    """One server of a picture; {"gpus": None} and so on where it is not there."""
    return next((each for each in seen["servers"] if each["key"] == key), defaultdict(lambda: None))


# ---- as a program ---------------------------------------------------------------------------------------------------


def _command_line(arguments: list[str]) -> None:
    from memscaler.cli import govern
    from memscaler.cli.main import main

    govern.__file__ = __file__
    sys.argv = ["memscaler", *arguments]
    main()


def _governor() -> None:
    from memscaler.cli import govern

    govern.SLEEPER = Path(__file__)
    sys.modules["rich"] = None  # type: ignore[assignment]
    govern.main()


def _relay(fd: int) -> None:
    governor = socket.socket(fileno=fd)
    test = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    test.connect(os.environ[RELAY])
    other = {governor: test, test: governor}
    while True:
        for end in select.select([governor, test], [], [])[0]:
            data = end.recv(MOST)
            if not data:
                sys.exit(0)
            other[end].send(data)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    if sys.argv[1].startswith("{"):
        _governor()
    elif sys.argv[1].isdecimal():
        _relay(int(sys.argv[1]))
    else:
        _command_line(sys.argv[4:])
