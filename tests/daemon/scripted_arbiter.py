"""An arbiter whose part the test plays, as scripted_sleeper.py: the governor is the real one, and so is its child.

The child passes on two sockets: the link, and the urgent channel, on which the test answers for it or does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.daemon.scripted_sleeper import MOST, Scripted

RELAY = "SCRIPTED_ARBITER"  # a variable: where the test listens


class ScriptedArbiter(Scripted):
    """The test's side."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._urgent_listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._urgent_listener.bind(f"{path}.urgent")
        self._urgent_listener.listen()
        self._urgent_listener.settimeout(30)
        self._urgent: socket.socket | None = None

    def come(self) -> None:
        super().come()
        before, (self._urgent, _) = self._urgent, self._urgent_listener.accept()
        if before is not None:
            before.close()
        self._urgent.settimeout(30)

    def tell(self, first: tuple[str, ...] = (), *, gvm: bool = False, **more: Any) -> None:
        """How things are."""
        self.say("gpuctl", first=list(first), gvm=gvm, **more)

    def asked(self) -> dict[str, Any]:
        """The next question of an actuator. Raise TimeoutError."""
        assert self._urgent is not None
        return dict(json.loads(self._urgent.recv(MOST)))

    def answer(self, question: dict[str, Any], **more: Any) -> None:
        """It is done."""
        assert self._urgent is not None
        self._urgent.send(json.dumps({"n": question["n"], **more}).encode())

    def nobody_asks_for(self, seconds: float) -> bool:
        """True if no actuator asks anything meanwhile."""
        assert self._urgent is not None
        return not select.select([self._urgent], [], [], seconds)[0]

    def close(self) -> None:
        if self._urgent is not None:
            self._urgent.close()
        self._urgent_listener.close()
        super().close()


@contextlib.contextmanager
def scripted(folder: Path) -> Iterator[ScriptedArbiter]:
    """Listens for the arbiters of a governor with `launch` before its command and `environment` in its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    arbiter = ScriptedArbiter(folder / "relay")
    try:
        yield arbiter
    finally:
        arbiter.close()


def launch() -> tuple[str, ...]:
    """What to put before `python -m memscaler run ...`."""
    return (sys.executable, __file__)


def environment(folder: Path) -> dict[str, str]:
    """What tells the arbiter where the test is."""
    return {RELAY: str(folder / "relay")}


# ---- as a program ---------------------------------------------------------------------------------------------------


def _command_line(arguments: list[str]) -> None:
    from memscaler.cli import govern
    from memscaler.cli.main import main

    govern.__file__ = __file__
    sys.argv = ["memscaler", *arguments]
    main()


def _governor() -> None:
    from memscaler.cli import govern

    govern.ARBITER = Path(__file__)
    sys.modules["rich"] = None  # type: ignore[assignment]
    govern.main()


def _relay(link: int, urgent: int) -> None:
    other = {}
    for fd, path in ((link, os.environ[RELAY]), (urgent, f"{os.environ[RELAY]}.urgent")):
        governor = socket.socket(fileno=fd)
        test = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        test.connect(path)
        other |= {governor: test, test: governor}
    while True:
        for end in select.select(list(other), [], [])[0]:
            data = end.recv(MOST)
            if not data:
                sys.exit(0)
            other[end].send(data)


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        _governor()
    elif sys.argv[1].isdecimal():
        _relay(int(sys.argv[1]), int(sys.argv[2]))
    else:
        _command_line(sys.argv[4:])
