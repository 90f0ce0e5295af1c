"""The arbiter's process: puts the parts together. The governor starts it, as it starts its sleeper:

    python -P run.py SOCKET_FD URGENT_FD RUNTIME_DIR text|json [LOG_LEVEL]

Exit status 0: nothing is left that was set on anybody; 1: the journal says what is.
"""

from __future__ import annotations

import gc
import socket
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.child.process import live
from memscaler.gvm.arbiter import KIND, Arbiter
from memscaler.gvm.link import Link, encode

SWITCH_S = 0.0005  # between threads: a look at all processes must not hold up a wake


def main(arguments: list[str]) -> NoReturn:
    """Until the governor ends, or has gone."""

    async def life() -> bool:
        sys.setswitchinterval(SWITCH_S)
        gc.freeze()  # what is loaded stays: a collection would only look at it
        link, urgent = (socket.socket(fileno=int(fd)) for fd in arguments[:2])
        return await Arbiter(Link(link, encode), urgent, Path(arguments[2])).run()

    live(KIND.name, arguments[3], (*arguments, "info")[4], life)


if __name__ == "__main__":
    main(sys.argv[1:])
