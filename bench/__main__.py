"""Measure what memscaler promises, on this machine. Exit status 1 if a promise is clearly not kept.

Usage, as root: python -m bench [NAME...] [--quick] [--first] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

from bench.figures import Figure, table

NAMES = (
    "wake_latency",
    "footprint",
    "throughput",
    "overhead",
    "bpf_cost",
    "lost_opens",
    "stop_time",
    "restore_time",
    "cli_start",
    "gateway",
    "gpuctl",
    "policy",
)
WITHOUT_ROOT = {"gateway", "policy"}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="smaller amounts: a look, not a figure to quote")
    parser.add_argument(
        "--first", action="store_true", help="everything measured at nice -19: where others use the machine too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if os.geteuid() != 0 and not (options.names and WITHOUT_ROOT.issuperset(options.names)):
        parser.error("the kernel side and the levers need root")
    return options


def machine() -> dict[str, object]:
    """Where this was measured."""
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def measure(name: str, *, quick: bool) -> list[Figure]:
    """Run one bench and print its table."""
    module = importlib.import_module(f"bench.{name}")
    about = machine()
    started = time.monotonic()
    figures: list[Figure] = module.bench(quick=quick)
    took_s = time.monotonic() - started
    print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}")
    print(f"({took_s:.0f} s; Linux {about['kernel']}, {about['cpus']} CPUs, load at the start {about['load']})")
    print(table(figures), flush=True)
    return figures


def main() -> int:
    """All that is asked for, one after the other."""
    options = parse()
    if options.first:
        os.nice(-19)
    found = {name: measure(name, quick=options.quick) for name in options.names or NAMES}
    broken = [f"{name}: {each.name}" for name, all_of in found.items() for each in all_of if each.verdict == "BROKEN"]
    if options.json:
        benches = {name: [each.as_dict() for each in figures] for name, figures in found.items()}
        options.json.write_text(json.dumps({"machine": machine(), "benches": benches}, indent=1) + "\n")
    print("\nnot kept:\n  " + "\n  ".join(broken) if broken else "\nno promise is clearly broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
