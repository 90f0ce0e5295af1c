"""How far a server is with loading its model, as the kernel sees it: what it has read, or mapped into its memory."""

from __future__ import annotations

import re
import threading
from pathlib import Path

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_GB = 1e9
ALMOST = 99  # what is read may not be all that has to be done


class Loading:
    """Of one process. Nothing is said of a model whose file cannot be seen."""

    def __init__(self, pid: int, model: Path) -> None:
        self._pid = pid
        self._size = 0
        self._most = 0
        # The file may lie on a machine that does not answer.
        threading.Thread(target=self._measure, args=(model,), name="model size", daemon=True).start()

    def _measure(self, model: Path) -> None:
        self._size = _size(model)

    def told(self, text: str) -> str:
        """The server's own words, and the figure: "loading model, 43 % of 7.4 GB read"."""
        if not self._size:
            return text
        self._most = max(self._most, _mapped(self._pid), _read(self._pid))
        percent = min(self._most * 100 // self._size, ALMOST)
        return f"{text}, {percent} % of {self._size / _GB:.1f} GB read" if percent else text


def _size(model: Path) -> int:
    """With all its parts."""
    try:
        if _PART.search(model.name):
            parts = model.parent.glob(_PART.sub("", model.name) + "-*-of-*.gguf")
            return sum(part.stat().st_size for part in parts)
        return model.stat().st_size if model.is_file() else 0
    except OSError:
        return 0


def _mapped(pid: int) -> int:
    """Bytes of files in its memory: of a model that is mapped (mmap)."""
    return _field(f"/proc/{pid}/status", "RssFile:") * 1024


def _read(pid: int) -> int:
    """Bytes that it has read: of a model that is not mapped."""
    return _field(f"/proc/{pid}/io", "rchar:")


def _field(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
