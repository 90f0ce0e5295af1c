"""Port specifications: which GPUs serve behind which port, as one word.

    8080                     the GPUs that the listener on 8080 uses
    8080:gpu0                GPU 0 of nvidia-smi
    8080:gpu0,gpu1           two GPUs
    8080:GPU-5c1b...         by UUID (a unique beginning is enough)
    8080:0000:3b:00.0,gpu1   by PCI address, mixed with others

A PCI address has colons of its own. The port never has, so the first colon ends the port, and only commas part GPUs.
Whether such a GPU exists is not asked here: that needs a driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_PORT = 65535

_INDEX = r"(?:gpu)?\d+"
_UUID = r"gpu-[0-9a-f-]{4,}"  # a beginning; a shorter one is rather a slip of the pen: gpu-1
_PCI = r"(?:[0-9a-f]{1,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-7]"
_GPU = re.compile(f"{_INDEX}|{_UUID}|{_PCI}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Watch:
    """A server port and the GPUs behind it, as the operator named them. No GPUs: those that the listener uses."""

    port: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.port}:{','.join(self.gpus)}" if self.gpus else str(self.port)


def parse_watch(spec: str) -> Watch:
    """The watch that `spec` means. Raise ValueError with a sentence for the operator."""
    port, colon, gpus = spec.strip().partition(":")
    number = parse_port(port)
    return Watch(number, parse_gpus(gpus.split(","), number) if colon else ())


def parse_port(text: str | int) -> int:
    """A TCP port. Raise ValueError if it is none."""
    digits = str(text).strip()
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{digits!r} is not a port number (write PORT or PORT:GPU, as in 8080:gpu0)")
    if not 1 <= int(digits) <= MAX_PORT:
        raise ValueError(f"port {digits} is out of range (1-{MAX_PORT})")
    return int(digits)


def parse_gpus(words: Iterable[str], port: int) -> tuple[str, ...]:
    """The GPUs named for a port. Raise ValueError for an empty, malformed or repeated name."""
    gpus: list[str] = []
    for word in words:
        gpu = word.strip()
        if not gpu:
            raise ValueError(f"port {port}: a GPU is empty (write {port}:gpu0 or {port}:gpu0,gpu1)")
        check_gpu(gpu, f"port {port}: ")
        if gpu.lower() in (known.lower() for known in gpus):
            raise ValueError(f"port {port}: {gpu} is named twice")
        gpus.append(gpu)
    return tuple(gpus)


def check_gpu(gpu: str, where: str = "") -> None:
    """Raise ValueError unless `gpu` looks like a GPU."""
    if not _GPU.fullmatch(gpu):
        raise ValueError(f"{where}{gpu!r} names no GPU (write gpu0, GPU-<uuid> or a PCI address such as 0000:3b:00.0)")


def check_distinct(watches: Iterable[Watch]) -> None:
    """Raise ValueError if a port is watched twice."""
    seen: dict[int, Watch] = {}
    for watch in watches:
        if watch.port in seen:
            raise ValueError(
                f"port {watch.port} is given twice ({seen[watch.port]} and {watch}); "
                f"name all its GPUs at once, as in {watch.port}:gpu0,gpu1"
            )
        seen[watch.port] = watch
