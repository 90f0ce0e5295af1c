"""Setting knobs of processes, by hand. Nothing is journalled: what is set by hand is its operator's."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from memscaler.config.gpuctl import How
from memscaler.core.errors import MemscalerError
from memscaler.core.gpuctl import Knob, Means

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.world import World
    from memscaler.gvm.errors import Refused
    from memscaler.gvm.processes import Subject
    from memscaler.gvm.turning import Place

PUT_BACK = "; it was put back to what it was"
STAYS = "; its file says the new value all the same: see `memscaler gpuctl reset`"


@dataclass(frozen=True, slots=True)
class Orders:
    """waiting: told of what takes long."""

    how: How
    timeout_s: float
    dry_run: bool
    waiting: Callable[[Done], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one knob of one process. error: None if it is as wanted. place: None: there is none."""

    subject: Subject
    knob: Knob
    value: int
    place: Place | None = None
    was: int | None = None
    error: MemscalerError | None = None
    rules: tuple[Mapping[str, object], ...] = ()
    gpu: str = ""

    def document(self, *, dry_run: bool) -> dict[str, object]:
        """For programs."""
        about, place = self.subject, self.place
        told: dict[str, object] = {"pid": about.pid, "name": about.name, "unit": about.unit, "knob": str(self.knob)}
        told |= {"gpu": self.gpu, "uuid": place.uuid if place else "", "means": str(place.means) if place else ""}
        told |= {"path": place.path if place else "", "was": self.was, "value": self.value}
        return {
            **told,
            "done": self.error is None and not dry_run,
            "problem": str(self.error or ""),
            "rules": list(self.rules),
        }


def change(world: World, subjects: Mapping[int, Subject], knob: Knob, value: int, orders: Orders) -> list[Done]:
    """One knob of all of these, in the order of their numbers. Those that have ended are left out, unless all have."""
    from memscaler.gvm.errors import Gone, Refused

    errors: dict[int, MemscalerError] = {
        pid: Refused(why) for pid, why in _untouchable(world, subjects, knob, value).items()
    }
    places, refused = _places(world, knob, value, [pid for pid in subjects if pid not in errors], orders)
    errors |= refused
    placed = errors.keys() | {place.pid for place in places}
    errors |= {pid: Gone(f"process {pid} has ended") for pid in subjects if pid not in placed}
    done = [Done(subjects[pid], knob, value, error=error) for pid, error in errors.items()]
    done += [
        Done(subjects[place.pid], knob, value, place, rules=tuple(world.doing(place.pid, knob))) for place in places
    ]
    done = _turned(world, _read(world, done), orders)
    there = [found for found in done if not isinstance(found.error, Gone)]
    return sorted(there or done, key=lambda found: found.subject.pid)


def _read(world: World, done: Sequence[Done]) -> list[Done]:
    """With what was set before."""
    from memscaler.gvm.turning import Was, read

    def told(found: Done, outcome: object) -> Done:
        if isinstance(outcome, Was):
            return replace(found, was=outcome.value)
        return replace(found, error=outcome) if isinstance(outcome, MemscalerError) else found

    return _each(done, lambda place, _found: partial(read, place, world.here.proc), told)


def _turned(world: World, done: Sequence[Done], orders: Orders) -> list[Done]:
    """Written also where it says so already: GVM tells what was written last, and not what is."""
    from memscaler.gvm.errors import Refused
    from memscaler.gvm.turning import turn

    if orders.dry_run:
        return list(done)

    def told(found: Done, outcome: object) -> Done:
        if isinstance(outcome, Refused) and outcome.changed:
            return replace(found, error=_put_back(world, found, outcome))
        return replace(found, error=outcome) if isinstance(outcome, MemscalerError) else found

    return _each(done, lambda place, found: partial(turn, place, found.value, world.here.proc), told, orders)


def _put_back(world: World, found: Done, error: Refused) -> MemscalerError:
    """GVM's files keep a value that the driver has refused, and would be believed. The error, and what became of it."""
    from memscaler.cli.gpuctl.apart import each
    from memscaler.gvm.turning import turn

    if found.place is None or found.was is None:
        return type(error)(f"{error}{STAYS}", hint=error.hint)
    (outcome,) = each([partial(turn, found.place, found.was, world.here.proc)])
    return type(error)(f"{error}{STAYS if isinstance(outcome, MemscalerError) else PUT_BACK}", hint=error.hint)


def _each(
    done: Sequence[Done],
    act: Callable[[Place, Done], Callable[[], object]],
    told: Callable[[Done, object], Done],
    orders: Orders | None = None,
) -> list[Done]:
    """Act on the place of each that is good so far: once for a cgroup, however many of its processes there are."""
    from memscaler.cli.gpuctl.apart import PATIENCE_S, each

    open_ = {found.place.key: found for found in reversed(done) if found.place and not found.error}
    firsts = list(open_.values())[::-1]
    outcomes = each(
        [act(found.place, found) for found in firsts if found.place],
        orders.timeout_s if orders else PATIENCE_S,
        (lambda at: orders.waiting(firsts[at])) if orders else None,
    )
    by_key = dict(zip([found.place.key for found in firsts if found.place], outcomes, strict=True))
    return [told(found, by_key[found.place.key]) if found.place and not found.error else found for found in done]


# ---- where ---------------------------------------------------------------------------------------------------------


def _places(
    world: World, knob: Knob, value: int, pids: Sequence[int], orders: Orders
) -> tuple[list[Place], dict[int, MemscalerError]]:
    """Where to set it, and why nowhere. What is to run again stands still by whatever means, anybody's."""
    from memscaler.cli.gpuctl.look import everywhere
    from memscaler.gvm.errors import NotAllowed, Refused, Unsupported
    from memscaler.gvm.turning import placed

    if why_not := world.cannot(knob, orders.how):
        is_hidden = world.hidden and knob is not Knob.CPU_WEIGHT
        return [], {pid: (NotAllowed if is_hidden else Unsupported)(why_not) for pid in pids}
    if knob is Knob.COMPUTE_FREEZE and not value and orders.how == "auto":
        places, why = everywhere(world, knob, pids)
        still = {pid: world.still(pid) for pid in pids}
        mine = [place for place in places if place.means is Means.GVM or place.means in still[place.pid]]
        running = {place.pid: place for place in places if place.pid not in {each.pid for each in mine}}
        places = [*mine, *running.values()]
    else:
        found = placed(knob, pids, world.here, how=orders.how)
        places, why = list(found.places), dict(found.refused)
    return places, {pid: Refused(text) for pid, text in why.items()}


def _untouchable(world: World, subjects: Mapping[int, Subject], knob: Knob, value: int) -> dict[int, str]:
    """Whom not to touch. Who has started this command must not stop before it, and with it whoever waits for it."""
    from memscaler.gvm.processes import untouchable

    never = untouchable(world.processes, ours=[os.getpid()])
    found = {pid: f"it is never touched: {never[pid]}" for pid in subjects if pid in never}
    if knob is Knob.COMPUTE_FREEZE and value:
        above = world.processes.ancestors([os.getpid()])
        found |= {pid: "this command was started from it" for pid in subjects if pid in above and pid not in found}
    return found


def serving(world: World, pids: Collection[int]) -> dict[int, str]:
    """Pid -> what it has to do with a watched port: those of these whom rules leave alone for that."""
    from memscaler.gvm.processes import listeners, untouchable

    if not pids or not world.watched:
        return {}
    try:
        found = listeners(world.watched, world.processes).values()
    except OSError:  # the kernel does not say who listens
        return {}
    never = untouchable(world.processes, listeners=frozenset[int]().union(*found))
    return {pid: never[pid] for pid in sorted(pids) if pid in never}
