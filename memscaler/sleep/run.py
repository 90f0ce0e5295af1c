"""The sleeper's process: puts the parts together. The governor starts it, as it starts its guardian:

    python -P run.py SOCKET_FD RUNTIME_DIR text|json [LOG_LEVEL]

Exit status 0: nothing is left in a stage; 1: the journal says what is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.sleep.lines import speak, watch_loop
from memscaler.sleep.link import Link, encode
from memscaler.sleep.sleeper import Sleeper


def main(arguments: list[str]) -> int:
    """Until the governor ends, or has gone."""
    # Who stops a unit or presses Ctrl-C means the governor, who then says `end`, or is gone: both are heard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fd, runtime_dir = int(arguments[0]), Path(arguments[1])
    speak(arguments[2], (*arguments, "info")[3])

    async def run() -> bool:
        watch_loop()
        return await Sleeper(Link(socket.socket(fileno=fd), encode), runtime_dir).run()

    well = asyncio.run(run())
    sys.stderr.flush()
    os._exit(0 if well else 1)  # a driver's thread may hang: nobody waits for it


if __name__ == "__main__":
    main(sys.argv[1:])
