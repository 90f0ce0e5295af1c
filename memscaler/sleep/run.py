"""The sleeper's process: puts the parts together. The governor starts it, as it starts its guardian:

    python -P run.py SOCKET_FD RUNTIME_DIR text|json [LOG_LEVEL]

Exit status 0: nothing is left in a stage; 1: the journal says what is.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.child.process import live
from memscaler.sleep.link import Link, encode
from memscaler.sleep.sleeper import KIND, Sleeper


def main(arguments: list[str]) -> NoReturn:
    """Until the governor ends, or has gone."""

    async def life() -> bool:
        return await Sleeper(Link(socket.socket(fileno=int(arguments[0])), encode), Path(arguments[1])).run()

    live(KIND.name, arguments[2], (*arguments, "info")[3], life)


if __name__ == "__main__":
    main(sys.argv[1:])
