"""Which program serves models here."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from memscaler.adding import how_to_add
from memscaler.core.errors import Unavailable

ENGINE = Path(__file__).with_name("engine.py")
ADDED = how_to_add("xllamacpp>=2025.1")
HINT = "install llama.cpp (its llama-server must be on the PATH)" + (f", or: {ADDED}" if ADDED else "")


def find_server(path: str | None = None) -> tuple[str, ...]:
    """The words before a server's flags: llama-server, `llama serve`, or our own engine. path: instead of PATH.

    Raise Unavailable with what to install.
    """
    program = shutil.which("llama-server", path=path)
    if program:
        return (program,)
    program = shutil.which("llama", path=path)
    if program:
        return (program, "serve")
    if importlib.util.find_spec("xllamacpp") is not None:
        # -P: modules come from where memscaler is installed, never from the folder that it happens to be started in
        return (sys.executable, "-P", str(ENGINE))
    raise Unavailable("there is no llama.cpp server on this machine", hint=HINT)
