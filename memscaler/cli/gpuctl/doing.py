"""Setting knobs of processes, by hand. Nothing is journalled: what is set by hand is its operator's."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from memscaler.cli.gpuctl.waiting import stopped_with
from memscaler.config.gpuctl import How
from memscaler.core.errors import MemscalerError
from memscaler.core.gpuctl import Knob, Means

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.world import World
    from memscaler.gvm.errors import Refused
    from memscaler.gvm.processes import Subject
    from memscaler.gvm.turning import Place

_MEAN_NICE = 20  # less RLIMIT_NICE: the highest priority that one may give (getrlimit(2))
PUT_BACK = "; it was put back to what it was"
STAYS = "; its file says the new value all the same: see `memscaler gpuctl reset`"


@dataclass(frozen=True, slots=True)
class Orders:
    """waiting: told of what takes long. by_place: a unit, container or cgroup was named, and not processes alone."""

    how: How
    timeout_s: float
    dry_run: bool
    waiting: Callable[[Done], None]
    by_place: bool = False


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
    done += [Done(subjects[place.pid], knob, value, place, rules=_ruled(world, place)) for place in places]
    done = _turned(world, _read(world, done), orders)
    if knob is Knob.COMPUTE_FREEZE and not value:
        gone_on = {found.subject.pid for found in done if found.error is None}
        was_stopped = any(found.was and found.place and found.place.means is Means.SIGNAL for found in done)
        done += stopped_with(world, gone_on, dry_run=orders.dry_run, soon=was_stopped)
    there = [found for found in done if not isinstance(found.error, Gone)]
    return sorted(there or done, key=lambda found: found.subject.pid)


def _ruled(world: World, place: Place) -> tuple[Mapping[str, object], ...]:
    """What rules do to this knob by these means: one that stops a process by SIGSTOP does nothing to GVM's file."""
    doing = world.doing(place.pid, place.knob)
    return tuple(each for each in doing if each.get("means") in ("", None, str(place.means)))


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
        return [_if_allowed(found) for found in done]

    def told(found: Done, outcome: object) -> Done:
        if isinstance(outcome, Refused) and outcome.changed:
            return replace(found, error=_put_back(world, found, outcome))
        return replace(found, error=outcome) if isinstance(outcome, MemscalerError) else found

    return _each(done, lambda place, found: partial(turn, place, found.value, world.here.proc), told, orders)


def _if_allowed(found: Done) -> Done:
    """As turning it would be refused for want of rights: those of files, of signals (kill(2)) and of nice."""
    from memscaler.gvm.errors import NotAllowed
    from memscaler.gvm.freezing import FILES

    place = found.place
    if place is None or found.error is not None:
        return found
    if place.means in (Means.GVM, Means.CGROUP):
        name = found.knob if place.means is Means.GVM else FILES[found.knob]
        path = f"{place.path}/{name}"
        is_allowed, what = os.access(path, os.W_OK, effective_ids=True), f"{path} may not be written"
    else:
        is_allowed, what = _is_ours(place.pid), f"process {place.pid} belongs to somebody else"
        if is_allowed and place.means is Means.NICE and os.geteuid() and found.value < (found.was or 0):
            is_allowed = found.value >= _MEAN_NICE - resource.getrlimit(resource.RLIMIT_NICE)[0]
            what = f"only root gives process {place.pid} a higher priority"
    return found if is_allowed else replace(found, error=NotAllowed(f"it would be refused: {what}"))


def _is_ours(pid: int) -> bool:
    """Whether it takes signals from us. One that has ended is not refused."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


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


def not_by_cgroup(world: World, done: Sequence[Done]) -> list[str]:
    """Sentences: why those that are stopped by a signal are not stopped by their cgroup."""
    from memscaler.gvm.turning import placed

    stopped = {
        found.subject.pid
        for found in done
        if found.knob is Knob.COMPUTE_FREEZE and found.value and found.place and found.place.means is Means.SIGNAL
    }
    if not stopped:
        return []
    named = [found.subject.pid for found in done]
    refused = placed(Knob.COMPUTE_FREEZE, named, world.here, how="cgroup").refused
    return [
        f"not by the cgroup: {why}" for why in dict.fromkeys(refused[pid] for pid in sorted(stopped & refused.keys()))
    ]


def serving(world: World, pids: Collection[int]) -> dict[int, str]:
    """Pid -> what it has to do with a watched port: those of these whom rules leave alone for that."""
    from memscaler.gvm.named import listeners
    from memscaler.gvm.processes import untouchable

    if not pids or not world.watched:
        return {}
    try:
        found = listeners(world.watched, world.processes).values()
    except OSError:  # the kernel does not say who listens
        return {}
    never = untouchable(world.processes, listeners=frozenset[int]().union(*found))
    return {pid: never[pid] for pid in sorted(pids) if pid in never}
