"""The arbiter's process: puts the parts together. The governor starts it, as it starts its sleeper:

    python -P run.py SOCKET_FD URGENT_FD RUNTIME_DIR text|json [LOG_LEVEL]

Exit status 0: nothing is left that was set on anybody; 1: the journal says what is.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.gvm.arbiter import Arbiter
from memscaler.gvm.link import Link, encode
from memscaler.observe.log import configure

SWITCH_S = 0.0005  # between threads: a look at all processes must not hold up a wake


def main(arguments: list[str]) -> int:
    """Until the governor ends, or has gone."""
    # Who stops a unit or presses Ctrl-C means the governor, who then says `end`, or is gone: both are heard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    link, urgent = (socket.socket(fileno=int(fd)) for fd in arguments[:2])
    configure("json" if arguments[3] == "json" else "console", (*arguments, "info")[4], os.environ)
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what is loaded stays: a collection would only look at it

    async def run() -> bool:
        return await Arbiter(Link(link, encode), urgent, Path(arguments[2])).run()

    well = asyncio.run(run())
    sys.stderr.flush()
    os._exit(0 if well else 1)  # a thread may hang in a driver: nobody waits for it


if __name__ == "__main__":
    main(sys.argv[1:])
