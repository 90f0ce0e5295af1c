"""What the deeper stages spare, beside the energy account of a GPU (core/energy.py). Pure.

A GPU is as deep as the shallowest of its servers: with one of two servers stopped, it is not deeper than parked. A
server that another manager has put to sleep counts as up: what others spare is not claimed. So the `Depth` of a GPU is

    stage     all of its servers are in a stage; this is the shallowest of theirs
    moving    one of its servers enters or leaves this stage, and none is up
    neither   in all other cases

The energy between two readings is shared by time, as in the energy account. It is compared with what this GPU drew just
before it went down: the median (of two the lower one) of its last REFERENCE_READINGS readings while it was parked (or
unmanaged and idle) and not deeper. So a saving is what a stage spares beyond parking alone:

    saved_j     reference_w * seconds - energy, over the time in the stage and the time of entering and leaving it;
                negative where a wake took more than the stage had spared
    switch_j    the energy of entering and leaving alone, less reference_w * seconds

Without a reading before nothing is claimed. A machine that sleeps has no readings, and its clock stands still: of what
suspend spares nothing is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memscaler.core.energy import CALM_NS, median_low, sane, spent_between
from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading
from memscaler.core.stages import LADDER, Rung, Sleep, SleepingServer, Spent, Stage

REFERENCE_READINGS = 3
_QUIET = frozenset({Public.PARKED, Public.UNMANAGED})
_MOVES = frozenset({Rung.ENTERING, Rung.LEAVING})


@dataclass(frozen=True, slots=True)
class Depth:
    """How deep a GPU is, beyond its public state."""

    stage: Stage | None = None
    moving: Stage | None = None


UP = Depth()


@dataclass(frozen=True, slots=True)
class StageAccount:
    """One GPU's, up to `at_ns`. calm_ns: from then on a reading may become the reference.

    candidates: the last that may, in watts. untold_ns: time by depth since the last reading.
    """

    state: Public
    at_ns: int
    depth: Depth = UP
    calm_ns: int = 0
    reference_w: float | None = None
    candidates: tuple[float, ...] = ()
    last: GpuReading | None = None
    untold_ns: Mapping[Depth, int] = field(default_factory=dict)
    spent: Mapping[Stage, Spent] = field(default_factory=dict)


def depth_of(uuid: str, sleep: Sleep) -> Depth:
    """As the sleeper's last report has it."""
    theirs = [server for server in sleep.servers if uuid in server.gpus]
    if not theirs or any(server.rung in (Rung.UP, Rung.STUCK) or server.asleep_by for server in theirs):
        return UP
    moving = [stage for server in theirs if server.rung in _MOVES and (stage := _moves_at(server)) is not None]
    if moving:
        return Depth(moving=max(moving, key=LADDER.index))
    stages = [server.stage for server in theirs if server.rung is Rung.DOWN and server.stage is not None]
    return Depth(min(stages, key=LADDER.index)) if len(stages) == len(theirs) else UP


def _moves_at(server: SleepingServer) -> Stage | None:
    """The stage that it enters or leaves."""
    return (server.stage or server.next) if server.rung is Rung.ENTERING else server.stage


def observe_depth(account: StageAccount, state: Public, depth: Depth, now_ns: int) -> StageAccount:
    """The account after the GPU was seen like this; the same again brings the seconds up to date."""
    account = _pass_time(account, now_ns)
    if (state, depth) == (account.state, account.depth):
        return account
    if account.depth == UP and depth != UP and account.candidates:
        account = replace(account, reference_w=median_low(account.candidates))
    if depth.stage is not None and depth.stage is not account.depth.stage:
        known = account.spent.get(depth.stage, Spent())
        account = replace(account, spent={**account.spent, depth.stage: known.plus(Spent(entries=1))})
    calm_ns = account.at_ns + CALM_NS
    return replace(account, state=state, depth=depth, calm_ns=calm_ns, candidates=())


def observe_reading(account: StageAccount, reading: GpuReading) -> StageAccount:
    """The account after one sample. One older than the account counts as taken now; one without a figure is skipped."""
    account = _pass_time(account, reading.at_ns)
    if reading.power_w is None and reading.energy_j is None:
        return account
    reading = replace(reading, at_ns=account.at_ns)
    account = _settle(account, reading)
    power_w = sane(reading.power_w)
    calm = account.depth == UP and account.state in _QUIET and account.at_ns >= account.calm_ns
    if calm and not reading.utilization_ratio and power_w is not None:
        account = replace(account, candidates=(*account.candidates, power_w)[-REFERENCE_READINGS:])
    return replace(account, last=reading, untold_ns={})


def _pass_time(account: StageAccount, now_ns: int) -> StageAccount:
    """The seconds since the last observation go to the depth of that time."""
    passed_ns = now_ns - account.at_ns
    if passed_ns <= 0:
        return account
    depth, spent = account.depth, dict(account.spent)
    if depth.stage is not None:
        spent[depth.stage] = spent.get(depth.stage, Spent()).plus(Spent(seconds=passed_ns / SECOND_NS))
    untold_ns = {**account.untold_ns, depth: account.untold_ns.get(depth, 0) + passed_ns}
    return replace(account, at_ns=now_ns, untold_ns=untold_ns, spent=spent)


def _settle(account: StageAccount, reading: GpuReading) -> StageAccount:
    """The energy since the last reading goes to the depths since then."""
    passed_ns = sum(account.untold_ns.values())
    spent_j, _ = spent_between(account.last, reading)
    if spent_j is None or not passed_ns:
        return account
    spent = dict(account.spent)
    for depth, ns in account.untold_ns.items():
        stage = depth.stage or depth.moving
        if stage is not None:
            mine_s, mine_j = ns / SECOND_NS, spent_j * ns / passed_ns
            spent[stage] = spent.get(stage, Spent()).plus(_share(depth, mine_s, mine_j, account.reference_w))
    return replace(account, spent=spent)


def _share(depth: Depth, seconds: float, energy_j: float, reference_w: float | None) -> Spent:
    """Of a time at one depth; its seconds are counted already."""
    spared_j = 0.0 if reference_w is None else reference_w * seconds - energy_j
    if depth.moving is not None:
        return Spent(saved_j=spared_j, switch_s=seconds, switch_j=-spared_j)
    compared_s = 0.0 if reference_w is None else seconds
    return Spent(known_s=seconds, energy_j=energy_j, compared_s=compared_s, saved_j=spared_j)
