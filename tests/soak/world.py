"""What is soaked: 8 boards, 64 watches that share them in several ways, and the configurations that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BOARDS = ("a40", "a40", "a100", "p40", "l40s", "h100", "t4", "v100")
HALVES = (range(4), range(4, 8))  # no port has GPUs of both, so that one is quiet while the other one is not
SPARED = (0, 4)  # boards whose driver works all the time
WATCHES = 64
IDLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Watched:
    """A port, the indexes of its boards, and whether open connections on which nothing is said count."""

    port: int
    gpus: tuple[int, ...]
    by_connections: bool


def watches(ports: Iterable[int]) -> tuple[Watched, ...]:
    """Half of them have a board for themselves, the others share: two, three or all four of a half."""
    found = []
    for nth, port in enumerate(ports):
        first, half = nth % 8, HALVES[nth % 8 // 4]
        many = 1 if nth < 32 else 2 if nth < 48 else 3 if nth < 56 else 4
        gpus = tuple(sorted(half[(first + step) % 4] for step in range(many)))
        found.append(Watched(port, gpus, by_connections=nth // 8 % 2 == 0))
    return tuple(found)


def configuration(watched: Iterable[Watched], *, idle_s: float = IDLE_S) -> str:
    """The file."""
    lines = [
        f'idle_after = "{idle_s}s"',
        'min_dwell = "50ms"',
        'retry_after = "1s"',
        'conflict_pause = "1s"',
        'sample_every = "2s"',
    ]
    for each in watched:
        quiet = "no-connections" if each.by_connections else "no-traffic"
        gpus = ", ".join(f'"gpu{index}"' for index in each.gpus)
        lines += ["[[watch]]", f"port = {each.port}", f"gpus = [{gpus}]", f'quiet = "{quiet}"']
        lines += ['touch = "off"'] if each.by_connections else []
    return "\n".join(lines) + "\n"
