"""Opens that each set of hooks loses beside another tracer. Needs root, two CPUs, and python3-bpfcc.

    python bench/lost_opens.py [--connections 30000] [--json FILE]

The setting is an ordinary server's, made small: packets are handled in interrupts (receive packet steering on lo, in a
namespace of its own), two processes make system calls without end, and another BPF program counts system calls. The
kernel skips a perf-attached tracepoint program while another one runs on that CPU; it does not skip sockops programs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=30000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for with_rival in (False, True):
        for hooks in ("tracepoint", "both"):
            name = f"{hooks}, {'another tracer' if with_rival else 'alone'}"
            results[name] = row = measure(hooks, options.connections, with_rival=with_rival)
            print(f"{name:28}", "  ".join(f"{key} {value:.0f}" for key, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
