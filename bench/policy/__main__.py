"""Replay the traces, print the table, and write it into docs/policy.md with its plot if that is wanted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.policy import MOST, MOST_QUICK, diurnal, held_out, page, results
from bench.policy.policies import judge
from bench.policy.traces import from_history


def main() -> int:
    """Exit status 1 if the goal is missed where a timer could have reached it."""
    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of each trace")
    parser.add_argument("--history", type=Path, action="append", default=[], metavar="STATE_DIR", help="replay it too")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the gaps of that history as a trace")
    parser.add_argument("--write-docs", action="store_true", help="write the table and the plot of docs/policy.md")
    options = parser.parse_args()
    if options.export:
        (trace,) = [each for state_dir in options.history for each in from_history(state_dir, 1 << 20)][:1]
        first_s = trace.gaps[0][0]
        lines = [f"{start_s - first_s:.3f},{gap_s:.3f}\n" for start_s, gap_s in trace.gaps]
        options.export.write_text("start_s,length_s\n" + "".join(lines))
        return 0
    most = MOST_QUICK if options.quick else MOST
    found = results(quick=options.quick, histories=tuple(options.history))
    others = [judge(trace, timers=False) for trace in held_out(most)]
    tables = "\n".join([page.table(found, most), page.held_out(others), page.by_hour(list(diurnal(most)))])
    print(tables)
    if options.write_docs:
        page.write(found, tables, most)
    missed = [each.trace.name for each in found if each.within_reach and not each.met]
    if missed:
        print(f"goal missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
