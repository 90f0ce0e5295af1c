"""A real llama.cpp server in a process of its own. It ends when its standard input does, so it cannot be left behind.

As a program: `python -m demo.llama MODEL` listens on a free port and prints its address.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

CONTEXT = 8192
SLOTS = 2


class Llama:
    """One server."""

    def __init__(self, model: Path, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demo.llama", str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).resolve().parent.parent,
            )
        self._log = log
        self.port = 0

    def wait_listening(self) -> None:
        """Raise RuntimeError with the end of the server's log if it does not start."""
        assert self._process.stdout is not None
        address = self._process.stdout.readline().decode().strip()
        if not address:
            raise RuntimeError(f"llama.cpp does not start:\n{self._log.read_text(errors='replace')[-2000:]}")
        self.port = urlsplit(address).port or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve(model: str) -> None:
    """Serve until standard input ends."""
    import xllamacpp  # type: ignore[import-untyped]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = CONTEXT * SLOTS
    parameters.n_parallel = SLOTS
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.endpoint_metrics = True
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    serve(sys.argv[1])
