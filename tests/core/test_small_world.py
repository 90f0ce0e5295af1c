"""Every order of events in a small world: two watches, two GPUs (watch 0 -> a, watch 1 -> a and b), searched completely.

Time moves in ticks longer than every back-off, and all times are kept relative to now, so the number of states is
finite. The daemon keeps its deadlines here; what happens when it does not is the state machine's part (test_machine.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest

from memscaler.core.governor import DOWN, step
from memscaler.core.model import (
    Arm,
    Counters,
    Doubt,
    GovernorState,
    GpuPolicy,
    GpuState,
    Hold,
    LeverResult,
    Look,
    Observation,
    Outcome,
    Park,
    ParkNow,
    Phase,
    Policy,
    Reading,
    Stop,
    Surveyed,
    Unhold,
    Wake,
)

TICK_NS = 64
NOW_NS = 100 * TICK_NS
FAR_NS = 10**15
GPUS = ("a", "b")
POLICY = Policy(
    {
        "a": GpuPolicy(frozenset({0, 1}), TICK_NS, TICK_NS, retry_after_ns=TICK_NS),
        "b": GpuPolicy(frozenset({1}), TICK_NS, TICK_NS, retry_after_ns=TICK_NS),
    },
    reconcile_every_ns=FAR_NS,
    parked_look_ns=TICK_NS,
    survey_timeout_ns=TICK_NS,
    wake_retry_ns=1,
)
STALE = -1
UP = frozenset({Phase.AWAKE, Phase.COOLING, Phase.ARMING, Phase.STOPPED, Phase.UNMANAGED})


class NoHolds(dict[str, int]):
    """Stands for the holds of a canonical state, which are kept beside it, to make that state hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


NO_HOLDS = NoHolds()


@dataclass(frozen=True, slots=True)
class Watch:
    """live: a connection is open. missed: a doorbell was lost, and it was not armed again since."""

    live: bool = False
    recent: bool = False  # activity within the last tick
    armed: bool = False
    missed: bool = False

    def reading(self) -> Reading:
        return Reading(int(self.live), NOW_NS - TICK_NS * (not self.recent), self.armed)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: what the governor knows, and what is true. Numbers are relative: 0 is the governor's, else stale."""

    knows: GpuState
    holds: tuple[tuple[str, int], ...] = ()
    down: bool = False
    queue: tuple[tuple[str, int], ...] = ()
    reply: tuple[int, Outcome] | None = None
    in_vain: bool = False
    survey: tuple[int, tuple[tuple[int, Reading], ...] | None] | None = None


@dataclass(frozen=True, slots=True)
class World:
    """Everything at one instant."""

    gpus: tuple[Gpu, ...]
    watches: tuple[Watch, ...] = (Watch(), Watch())
    bell: bool = False
    stopped: bool = False


@dataclass(frozen=True)
class Menu:
    """What may happen in one search. late: GPUs whose surveys and levers take their time; the others' are prompt."""

    slots: tuple[int, ...] = (0, 1)
    lost_bells: bool = False
    park: tuple[Outcome, ...] = (Outcome.APPLIED,)
    wake: tuple[Outcome, ...] = (Outcome.WOKEN,)
    in_vain: bool = False
    holds: tuple[str, ...] = ()
    doubts: tuple[str | None, ...] = ()
    park_now: tuple[str, ...] = ()
    stop: bool = False
    late: tuple[str, ...] = GPUS


def canonical(gpu: GpuState) -> tuple[GpuState, tuple[tuple[str, int], ...]]:
    """The same state for the governor's purposes, with times cut off where they stop to matter."""
    due_ns = gpu.due_ns and NOW_NS + max(0, -(-(gpu.due_ns - NOW_NS) // TICK_NS) * TICK_NS)
    dwelt = gpu.parked_at_ns is None or gpu.parked_at_ns <= NOW_NS - TICK_NS
    same = replace(
        gpu,
        since_ns=0,
        due_ns=due_ns,
        quiet_floor_ns=max(gpu.quiet_floor_ns, NOW_NS - TICK_NS),
        seq=0,
        parked_at_ns=None if dwelt else gpu.parked_at_ns,
        retries=min(gpu.retries, 3),
        distrust="x" if gpu.distrust else "",
        trusted_again_ns=gpu.trusted_again_ns and max(NOW_NS, gpu.trusted_again_ns),
        failures=min(gpu.failures, 1),
        hurried_ns=gpu.hurried_ns and max(gpu.hurried_ns, NOW_NS - TICK_NS),
        alarmed="",
        holds=NO_HOLDS,
    )
    return same, tuple(sorted(gpu.holds.items()))


@cache
def knowing(knows: GpuState, holds: tuple[tuple[str, int], ...]) -> GpuState:
    """The state as the governor takes it."""
    return replace(knows, holds=dict(holds))


def fed(world: World, seen: Observation) -> World:
    """One step of the governor, its actions carried to the actuators, and the counters fed while a deadline is now."""
    for _ in range(4):
        gpus = {name: knowing(gpu.knows, gpu.holds) for name, gpu in zip(GPUS, world.gpus, strict=True)}
        answer = step(GovernorState(gpus, NOW_NS + FAR_NS, NOW_NS), seen, NOW_NS, POLICY)
        world = taken(world, seen, answer.state, [a for a in answer.actions if isinstance(a, Arm | Look | Park | Wake)])
        if answer.deadline_ns > NOW_NS:
            return world
        seen = counters(world)
    pytest.fail("no progress at one instant")


def counters(world: World) -> Counters:
    return Counters({slot: watch.reading() for slot, watch in enumerate(world.watches)})


def taken(world: World, seen: Observation, state: GovernorState, actions: list[Arm | Look | Park | Wake]) -> World:
    gpus, watches = [], list(world.watches)
    for name, before in zip(GPUS, world.gpus, strict=True):
        gpu, after = before, state.gpus[name]
        if after is not knowing(before.knows, before.holds):
            knows, holds = canonical(after)
            gpu = replace(renumbered(before, after.seq - before.knows.seq), knows=knows, holds=holds)
        mine = [action for action in actions if action.gpu == name]
        if before.knows.phase is Phase.PARKING and gpu.knows.phase is Phase.PARKED:
            assert any(isinstance(action, Look) for action in mine), "no second look"
        for action in mine:
            gpu = asked(gpu, action, seen, world.stopped)
            if isinstance(action, Arm):
                for slot in POLICY.gpus[name].watches:
                    watches[slot] = replace(watches[slot], armed=True, missed=False)
        gpus.append(gpu)
    world = replace(world, gpus=tuple(gpus), watches=tuple(watches))
    check(world)
    return world


def renumbered(gpu: Gpu, shift: int) -> Gpu:
    """A new number makes everything under way stale."""
    if not shift:
        return gpu
    queue = tuple((kind, STALE) for kind, _ in gpu.queue)
    reply, survey = gpu.reply and (STALE, gpu.reply[1]), gpu.survey and (STALE, gpu.survey[1])
    return replace(gpu, queue=queue, reply=reply, survey=survey)


def asked(gpu: Gpu, action: Arm | Look | Park | Wake, seen: Observation, stopped: bool) -> Gpu:
    match action:
        case Arm() | Look():
            if isinstance(action, Arm):
                assert not stopped
                assert not gpu.knows.distrust
                assert not gpu.holds
            return replace(gpu, survey=(0, None))
        case Park():
            assert isinstance(seen, Surveyed)
            assert all(reading.armed and not reading.live for reading in seen.readings.values())
            return replace(gpu, queue=(*gpu.queue, ("park", 0)))
        case Wake():
            return replace(gpu, queue=(*[command for command in gpu.queue if command[0] == "wake"], ("wake", 0)))


def check(world: World) -> None:
    """The promises of design.md section 6, in every state."""
    for name, gpu in zip(GPUS, world.gpus, strict=True):
        phase = gpu.knows.phase
        for slot in POLICY.gpus[name].watches:
            watch = world.watches[slot]
            assert not watch.live or phase not in DOWN or world.bell or watch.missed, "slow while connected"
        if phase in UP:
            assert not gpu.queue, "a command outlives the wake"
            assert not gpu.down or gpu.in_vain, "stuck"
            assert not gpu.knows.touched
        if phase is Phase.WAKING:
            pending = any(number == 0 for _, number in gpu.queue) or (gpu.reply is not None and gpu.reply[0] == 0)
            assert pending or gpu.knows.due_ns, "a wake that nobody asks for again"
        if phase is Phase.PARKED:
            assert gpu.knows.due_ns, "parked and never looked at"
        if phase in DOWN:
            assert not any(at > NOW_NS for _, at in gpu.holds), "parked while held"
            assert not world.stopped, "parked after stop"
            assert not gpu.knows.distrust, "parked without trust"


# ---- what may happen ------------------------------------------------------------------------------------------------


def with_gpu(world: World, index: int, gpu: Gpu) -> World:
    return replace(world, gpus=(gpu, world.gpus[1]) if index == 0 else (world.gpus[0], gpu))


def with_watch(world: World, slot: int, watch: Watch, bell: bool) -> World:
    both = (watch, world.watches[1]) if slot == 0 else (world.watches[0], watch)
    return replace(world, watches=both, bell=bell)


def kernel(world: World, menu: Menu) -> Iterator[World]:
    for slot in menu.slots:
        watch = world.watches[slot]
        if watch.live:
            yield with_watch(world, slot, replace(watch, live=False, recent=True), world.bell)
        else:
            opened = replace(watch, live=True, recent=True, armed=False)
            yield with_watch(world, slot, opened, world.bell or watch.armed)
    if world.bell:
        silent = replace(world, bell=False)
        yield fed(silent, counters(silent))
        if menu.lost_bells:
            yield replace(silent, watches=tuple(replace(watch, missed=not watch.armed) for watch in world.watches))


@cache
def older(gpu: Gpu) -> Gpu:
    """The GPU a tick later."""
    due_ns = gpu.knows.due_ns and max(NOW_NS, gpu.knows.due_ns - TICK_NS)
    again_ns = gpu.knows.trusted_again_ns and max(NOW_NS, gpu.knows.trusted_again_ns - TICK_NS)
    hurried_ns = gpu.knows.hurried_ns and NOW_NS - TICK_NS
    times = {
        "due_ns": due_ns,
        "quiet_floor_ns": NOW_NS - TICK_NS,
        "trusted_again_ns": again_ns,
        "hurried_ns": hurried_ns,
    }
    knows = replace(gpu.knows, **times, parked_at_ns=None)
    survey = gpu.survey
    if survey is not None and survey[1] is not None:
        aged = tuple((slot, replace(reading, last_activity_ns=NOW_NS - TICK_NS)) for slot, reading in survey[1])
        survey = (survey[0], aged)
    holds = tuple((owner, max(NOW_NS, at - TICK_NS)) for owner, at in gpu.holds)
    return replace(gpu, knows=knows, survey=survey, holds=holds)


def tick(world: World) -> World:
    watches = tuple(replace(watch, recent=False) if watch.recent else watch for watch in world.watches)
    later = replace(world, gpus=tuple(older(gpu) for gpu in world.gpus), watches=watches)
    due = any(0 < gpu.knows.due_ns <= NOW_NS for gpu in later.gpus)
    return fed(later, counters(later)) if due else later


def edges(world: World, menu: Menu) -> Iterator[World]:
    """Surveys and levers of each GPU, one stage at a time."""
    for index, name in enumerate(GPUS):
        gpu = world.gpus[index]
        if gpu.survey is not None:
            yield surveyed(world, index, *gpu.survey)
        if gpu.reply is None and gpu.queue:
            yield from acted(world, index, menu)
        if gpu.reply is not None:
            yield replied(world, index, *gpu.reply)
        elif gpu.in_vain and not gpu.queue:
            silent = with_gpu(world, index, replace(gpu, in_vain=False))
            yield fed(silent, LeverResult(name, STALE, Outcome.NO_EFFECT))


def surveyed(world: World, index: int, number: int, answer: tuple[tuple[int, Reading], ...] | None) -> World:
    gpu, name = world.gpus[index], GPUS[index]
    if answer is None:
        seen = tuple((slot, world.watches[slot].reading()) for slot in sorted(POLICY.gpus[name].watches))
        return with_gpu(world, index, replace(gpu, survey=(number, seen)))
    answered = with_gpu(world, index, replace(gpu, survey=None))
    after = fed(answered, Surveyed(name, number, dict(answer)))
    live = any(reading.live for _, reading in answer)
    assert not live or number == STALE or after.gpus[index].knows.phase not in DOWN, "the look saw it"
    return after


def replied(world: World, index: int, number: int, outcome: Outcome) -> World:
    answered = with_gpu(world, index, replace(world.gpus[index], reply=None))
    return fed(answered, LeverResult(GPUS[index], number, outcome))


def prompt(world: World, menu: Menu) -> World:
    """The world once the GPUs that are not late have nothing pending."""
    for index in [index for index, name in enumerate(GPUS) if name not in menu.late]:
        while (gpu := world.gpus[index]).survey or gpu.queue or gpu.reply:
            if gpu.survey:
                world = surveyed(world, index, *gpu.survey)
            elif gpu.reply:
                world = replied(world, index, *gpu.reply)
            else:
                world = next(acted(world, index, Menu()))
    return world


def acted(world: World, index: int, menu: Menu) -> Iterator[World]:
    gpu = world.gpus[index]
    (kind, number), *rest = gpu.queue
    gpu = replace(gpu, queue=tuple(rest))
    for outcome in menu.park if kind == "park" else menu.wake:
        down = gpu.down and outcome is not Outcome.WOKEN if kind == "wake" else gpu.down or outcome is not Outcome.BUSY
        yield with_gpu(world, index, replace(gpu, down=down, reply=(number, outcome)))
        if kind == "wake" and outcome is Outcome.WOKEN and gpu.down and menu.in_vain:
            yield with_gpu(world, index, replace(gpu, reply=(number, outcome), in_vain=True))


def people(world: World, menu: Menu) -> Iterator[World]:
    for name in menu.holds:
        yield fed(world, Hold(name, "operator", NOW_NS + TICK_NS))
        yield fed(world, Unhold(name, "operator"))
    for heard_by in menu.doubts:
        after = fed(world, Doubt("overflow", heard_by))
        heard = [gpu for uuid, gpu in zip(GPUS, after.gpus, strict=True) if heard_by in (None, uuid)]
        assert all(gpu.knows.phase not in DOWN for gpu in heard)
        yield after
    for name in menu.park_now:
        hurried = fed(world, ParkNow(name))
        yield hurried
        yield fed(hurried, counters(hurried))
    if menu.stop and not world.stopped:
        yield fed(replace(world, stopped=True), Stop())


def search(menu: Menu) -> set[World]:
    """Every world that can be reached."""
    knows, _ = canonical(GpuState(quiet_floor_ns=NOW_NS, due_ns=NOW_NS))
    start = fed(World((Gpu(knows), Gpu(knows))), Counters({0: Reading(0, 0), 1: Reading(0, 0)}))
    found, new = {start}, deque([start])
    while new:
        world = new.popleft()
        following = [*kernel(world, menu), tick(world), *edges(world, menu), *people(world, menu)]
        for after in [prompt(after, menu) for after in following]:
            known = len(found)
            found.add(after)  # hashed once
            if len(found) > known:
                new.append(after)
    return found


PARK = (Outcome.APPLIED, Outcome.BUSY, Outcome.NEXT_LEVER, Outcome.FAILED)
WAKE = (Outcome.WOKEN, Outcome.FAILED, Outcome.WEDGED)
MENUS = {
    "both GPUs late": Menu(slots=(0,)),
    "two watches, a late": Menu(late=("a",)),
    "two watches, b late": Menu(late=("b",)),
    "lost doorbells": Menu(slots=(1,), lost_bells=True, late=("a",)),
    "levers fail": Menu(slots=(1,), park=PARK, wake=WAKE, late=("b",)),
    "wakes in vain": Menu(slots=(1,), in_vain=True, late=("b",)),
    "holds": Menu(slots=(1,), holds=("b",), late=("b",)),
    "park now": Menu(slots=(1,), park=PARK[:2], park_now=("b",), late=("b",)),
    "doubts": Menu(slots=(1,), doubts=("b", None), late=("b",)),
    "stop": Menu(slots=(1,), park=PARK[:2], wake=WAKE[:2], stop=True, late=("b",)),
}


@pytest.mark.timeout(900)  # minutes of pure work, beside others
@pytest.mark.parametrize("menu", MENUS.values(), ids=MENUS.keys())
def test_every_order_of_events(menu: Menu, record_property: Callable[[str, object], None]) -> None:
    """No order of these events breaks a promise; and the search did reach what it is about."""
    found = search(menu)
    record_property("states", len(found))
    print(f"{len(found)} states")
    phases = {(gpu.knows.phase, name) for world in found for name, gpu in zip(GPUS, world.gpus, strict=True)}
    usual = {Phase.COOLING, Phase.ARMING, Phase.PARKING, Phase.PARKED, Phase.WAKING}
    assert {(phase, name) for phase in usual for name in menu.late} <= phases
    assert all((Phase.STOPPED, name) in phases for name in GPUS) == menu.stop
