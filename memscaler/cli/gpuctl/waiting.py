"""Who has stopped with a process that is let go by hand: su, runuser, sudo. Nothing was written down, so one judges.

Continued is who is stopped, has no other children than those that go on, and is not to stand still by a rule.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from memscaler.core.gpuctl import Knob, Means

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.doing import Done
    from memscaler.cli.gpuctl.world import World

SOON_S = 0.1  # they learn of a stop, and of its end, a moment later


def stopped_with(world: World, pids: Collection[int], *, dry_run: bool, soon: bool) -> list[Done]:
    """They go on; dry_run: they would. soon: those of pids were stopped until now."""
    found = _found(world, pids)
    if soon and not found and not dry_run:
        time.sleep(SOON_S)
        found = _found(world, pids)
    return [_continued(world, done, dry_run=dry_run) for done in found]


def _found(world: World, pids: Collection[int]) -> list[Done]:
    from memscaler.cli.gpuctl.doing import Done
    from memscaler.gvm.above import MOST, Waiter, is_stopped
    from memscaler.gvm.turning import Place

    processes, family, found = world.processes, set(pids), list[Done]()
    children: dict[int, set[int]] = {}
    for pid in processes.pids:
        children.setdefault(processes.parent(pid), set()).add(pid)
    edge = set(pids)
    for _ in range(MOST):
        parents = {parent for pid in edge if (parent := processes.parent(pid)) > 1} - family
        edge = {parent for parent in parents if children[parent] <= family}
        family |= edge
        for pid in sorted(edge):
            about = world.about(pid)
            by_rule = any(rule.get("since_s") is not None for rule in world.doing(pid, Knob.COMPUTE_FREEZE))
            if about is not None and not by_rule and is_stopped(Waiter(pid, about.started), world.here.proc):
                place = Place(Knob.COMPUTE_FREEZE, Means.SIGNAL, pid, about.started)
                found.append(Done(about, Knob.COMPUTE_FREEZE, 0, place, was=1))
    return found


def _continued(world: World, done: Done, *, dry_run: bool) -> Done:
    from dataclasses import replace

    from memscaler.gvm.errors import KnobError
    from memscaler.gvm.turning import turn

    try:
        if done.place is not None and not dry_run:
            turn(done.place, 0, world.here.proc)
    except KnobError as error:
        return replace(done, error=error)
    return done
