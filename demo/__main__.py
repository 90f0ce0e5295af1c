"""`python -m demo [--short] [--svg FILE]`: exit status 0 only if every expectation held."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from demo import needs

OK, FAILED, INTERRUPTED = 0, 1, 130
HONESTY = (
    "Real: the servers, the clients, the connections, the kernel program, the governor, and all times up to the "
    "return of the driver call. Simulated: the two GPUs. A C library stands in for NVIDIA's driver; its watts are what "
    "owners of such cards report. A GPU counts as busy while a completion runs on its server, because we say so: "
    "the model runs on the CPU."
)


def main() -> int:
    """Play, judge, and say so."""
    arguments = _arguments()
    lacks = needs.missing()
    if lacks:
        for lack in lacks:
            print(f"demo: missing: {lack}", file=sys.stderr)
        return FAILED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        with tempfile.TemporaryDirectory(prefix="memscaler-demo-") as folder:
            return _play(arguments, Path(folder))
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo", description="Two llama.cpp servers, one governor, two simulated GPUs."
    )
    parser.add_argument("--short", action="store_true", help="a shorter story with a shorter idle time")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the power of both GPUs over time into FILE")
    return parser.parse_args()


def _play(arguments: argparse.Namespace, folder: Path) -> int:
    from demo import picture
    from demo.expectations import all_checks
    from demo.screen import Screen
    from demo.script import FULL, SHORT, Demo

    start = time.monotonic()
    plan = SHORT if arguments.short else FULL
    screen = Screen(plan.steps)
    screen.line("memscaler: two llama.cpp servers, one governor, two GPUs", "bold")
    screen.line(HONESTY)
    with screen, Demo(plan, folder, screen) as demo:
        seen = demo.play()
    screen.heading("Power over time")
    for card, samples in zip(seen.cards, seen.samples, strict=True):
        watts = [sample.power_w for sample in samples]
        screen.line(
            f"{card.name} {screen.sparkline(watts, max(watts), 60)} {min(watts):.0f}..{max(watts):.0f} W", indent=2
        )
    if arguments.svg:
        arguments.svg.write_text(picture.draw(seen), encoding="utf-8")
    checks = all_checks(seen)
    screen.heading("What had to hold")
    for check in checks:
        screen.check(check.held, check.text, check.detail)
    failed = sum(not check.held for check in checks)
    screen.line()
    verdict = (
        f"{failed} of {len(checks)} expectations did not hold" if failed else f"all {len(checks)} expectations held"
    )
    screen.line(f"{verdict}; {time.monotonic() - start:.0f} s", "bold red" if failed else "bold green")
    return FAILED if failed else OK


if __name__ == "__main__":
    sys.exit(main())
