"""Opens that each set of hooks loses beside another tracer. Needs root, two CPUs, and python3-bpfcc.

    python -m bench lost_opens, or for other amounts: python -m bench.lost_opens [--connections 30000]

The setting is an ordinary server's, made small: packets are handled in interrupts (receive packet steering on lo, in a
namespace of its own), two processes make system calls without end, and another BPF program counts system calls. The
kernel skips a perf-attached tracepoint program while another one runs on that CPU; it does not skip sockops programs.
"""

from __future__ import annotations

import argparse
import contextlib
import time

from bench.figures import Figure, table
from tests.kernel.rivals import TRACER, busy, handle_packets_in_interrupts, open_and_close, rival
from tests.kernel.worlds import Port, world_of

PROCESSES = 3


def measure(hooks: str, connections: int, *, with_rival: bool) -> dict[str, float]:
    """One run: what was lost, and what one reconciliation put right."""
    with world_of(hooks) as world, contextlib.ExitStack() as kept:
        handle_packets_in_interrupts(world.netns)
        port = Port(world)
        kept.enter_context(busy())
        if with_rival:
            kept.enter_context(rival(TRACER))
        each = connections // PROCESSES
        started = time.monotonic()
        open_and_close(world.netns, port.number, PROCESSES, each)
        seconds = time.monotonic() - started
        slot = world.ledger.counters.read(port.watch.slot)
        stale = port.live
        world.ledger.reconcile(port.watch)
        total = each * PROCESSES
        return {
            "connections": total,
            "per_s": total / seconds,
            "lost_opens": total - max(slot.seen_by_sockops, slot.seen_by_tracepoint),
            "lost_by_tracepoint": total - slot.seen_by_tracepoint,
            "recursion_misses": world.attached.recursion_misses()["tracepoint"],
            "live_before_reconciling": stale,
            "live_after_reconciling": port.live,
        }


def figures(variant: str, row: dict[str, float]) -> list[Figure]:
    """What is promised: both hooks together lose no open, and one reconciliation leaves no stale entry."""
    total = f"{row['connections']:.0f}"
    limit = 0 if variant.startswith("both") else None
    return [
        Figure(f"{variant}: opens lost of {total}", row["lost_opens"], limit=limit),
        Figure(f"{variant}: unseen by the tracepoint", row["lost_by_tracepoint"]),
        Figure(f"{variant}: stale before reconciling", row["live_before_reconciling"]),
        Figure(f"{variant}: stale after reconciling", row["live_after_reconciling"], limit=0),
        Figure(f"{variant}: connections/s", row["per_s"], "/s"),
    ]


def run(connections: int) -> list[Figure]:
    """All variants."""
    found = []
    for with_rival in (False, True):
        for hooks in ("tracepoint", "both"):
            variant = f"{hooks}, {'another tracer' if with_rival else 'alone'}"
            found += figures(variant, measure(hooks, connections, with_rival=with_rival))
    return found


def bench(*, quick: bool) -> list[Figure]:
    """As `python -m bench` calls it."""
    return run(6000 if quick else 30000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=30000)
    print(table(run(parser.parse_args().connections)))


if __name__ == "__main__":
    main()
