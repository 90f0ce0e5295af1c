"""From the sleeper's reports, one after the other, to what is kept of them: spells in stages, totals and wakes. Pure.

A report has the state of each server and totals "since the start". A sleeper that is started again counts anew, so a
total that fell is one that began with 0. The seconds are those of the spells, for a sleeper counts a spell when it is
over. A spell is the time that a server was in a stage, as its deepest; what leaving
it took is known with the totals, and belongs to the last spell of that server in that stage, also if a deeper one came
between. A failed attempt to enter a stage is a spell without length.

The machine's own spells have the port 0: `asleep_s` grows by what it slept, once it is awake again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memscaler.core.stages import LADDER, MachineSleep, Rung, Sleep, SleepingServer, Stage, StageTotals

MOST_SERVERS = 256
Key = tuple[int, str]
"""Port and scope."""


@dataclass(frozen=True, slots=True)
class Spell:
    """One time of one server in one stage, or of the machine ("", port 0). Seconds since 1970; until None: it lasts.

    wake_s: what leaving it took, None if nobody knows. failed: it was to be entered and was not. by: who put it there
    if that was not memscaler. gpus: the server's, UUIDs.
    """

    server: str
    port: int
    scope: str
    stage: Stage
    at_unix_s: float
    until_unix_s: float | None = None
    wake_s: float | None = None
    failed: bool = False
    by: str = ""
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """A stage was left; it took so long."""

    key: Key
    server: str
    stage: Stage
    seconds: float


@dataclass(frozen=True, slots=True)
class _Server:
    """told: its totals as the last report had them; sums: over all sleepers. open: the spell that lasts.

    waiting: by stage, the last spell that has ended without a known wake.
    """

    told: Mapping[Stage, StageTotals] = field(default_factory=dict)
    sums: Mapping[Stage, StageTotals] = field(default_factory=dict)
    open: Spell | None = None
    waiting: Mapping[Stage, Spell] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Followed:
    """What was told so far. sleep: the last report, its totals over all sleepers since the governor started.

    suspended: the machine's last spell, as long as nobody knows how long its servers took to be back.
    """

    sleep: Sleep = field(default_factory=Sleep)
    servers: Mapping[Key, _Server] = field(default_factory=dict)
    told_machine: MachineSleep = field(default_factory=MachineSleep)
    suspended: Spell | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What a report has told: spells that began, ended or are better known now, and wakes."""

    spells: tuple[Spell, ...] = ()
    wakes: tuple[Wake, ...] = ()


def follow(before: Followed, sleep: Sleep, now_unix_s: float) -> tuple[Followed, News]:
    """One more report."""
    spells: list[Spell] = []
    wakes: list[Wake] = []
    servers, shown = dict(before.servers), []
    for server in sleep.servers:
        key = (server.port, server.scope)
        if key not in servers and len(servers) >= MOST_SERVERS:
            shown.append(server)
            continue
        mine, news = _follow_server(servers.get(key, _Server()), server, now_unix_s)
        servers[key] = mine
        spells += news.spells
        wakes += news.wakes
        shown.append(replace(server, totals=mine.sums))
    seen = {(server.port, server.scope) for server in sleep.servers}
    for key, mine in servers.items():
        if key not in seen and mine.open is not None:
            ended = replace(mine.open, until_unix_s=max(now_unix_s, mine.open.at_unix_s))
            spells.append(ended)
            servers[key] = replace(mine, open=None)
            if not ended.by:
                waiting = {**mine.waiting, ended.stage: ended}
                sums = {**mine.sums, ended.stage: _longer(mine.sums, ended, now_unix_s)}
                servers[key] = replace(servers[key], waiting=waiting, sums=sums)
    machine, suspended, more = _follow_machine(before, sleep.machine, now_unix_s)
    whole = replace(sleep, servers=tuple(shown), machine=machine)
    after = Followed(whole, servers, sleep.machine, suspended)
    return after, News((*spells, *more.spells), (*wakes, *more.wakes))


def _follow_server(mine: _Server, server: SleepingServer, now_unix_s: float) -> tuple[_Server, News]:
    spells, wakes = [], []
    lasts = server.stage if server.rung is Rung.DOWN else None
    if server.asleep_by:
        lasts = server.stage or Stage.SERVER_SLEEP  # for us it is up
    opened, waiting, sums = mine.open, dict(mine.waiting), dict(mine.sums)
    if opened is not None and (opened.stage is not lasts or opened.by != server.asleep_by):
        ended = replace(opened, until_unix_s=max(now_unix_s, opened.at_unix_s))
        spells.append(ended)
        if not opened.by:
            waiting[opened.stage] = ended
            sums[opened.stage] = _longer(sums, ended, now_unix_s)
        opened = None
    if opened is None and lasts is not None:
        since_s = server.since_unix_s if 0 < server.since_unix_s <= now_unix_s else now_unix_s
        who = (server.name, server.port, server.scope)
        opened = Spell(*who, lasts, since_s, by=server.asleep_by, gpus=server.gpus)
        spells.append(opened)
    for stage in LADDER:
        now, was = server.totals.get(stage), mine.told.get(stage, StageTotals())
        if now is None:
            continue
        more = _more(now, was)
        sums[stage] = _sum(sums.get(stage, StageTotals()), more, now)
        for took_s in more.wakes_s:
            wakes.append(Wake((server.port, server.scope), server.name, stage, took_s))
            if (left := waiting.pop(stage, None)) is not None:
                spells.append(replace(left, wake_s=took_s))
        if more.failed:
            who = (server.name, server.port, server.scope)
            spells.append(Spell(*who, stage, now_unix_s, now_unix_s, failed=True, gpus=server.gpus))
    return _Server(server.totals, sums, opened, waiting), News(tuple(spells), tuple(wakes))


def at_this_moment(followed: Followed, now_unix_s: float) -> Sleep:
    """The last report, with the spells that last in its totals."""
    servers = []
    for server in followed.sleep.servers:
        mine = followed.servers.get((server.port, server.scope))
        if mine is not None and mine.open is not None and not mine.open.by:
            longer = _longer(server.totals, mine.open, now_unix_s)
            server = replace(server, totals={**server.totals, mine.open.stage: longer})  # noqa: PLW2901
        servers.append(server)
    return replace(followed.sleep, servers=tuple(servers))


def _longer(totals: Mapping[Stage, StageTotals], spell: Spell, now_unix_s: float) -> StageTotals:
    """With the time of this spell, so far."""
    known = totals.get(spell.stage, StageTotals())
    until_s = now_unix_s if spell.until_unix_s is None else spell.until_unix_s
    return replace(known, seconds=known.seconds + max(0.0, until_s - spell.at_unix_s))


def _more(now: StageTotals, was: StageTotals) -> StageTotals:
    """What there is more than before; all of it, if any of it fell."""
    if now.entered < was.entered or now.left < was.left or now.failed < was.failed:
        was = StageTotals()
    left = now.left - was.left
    wakes_s = now.wakes_s[-left:] if left else ()
    return StageTotals(now.entered - was.entered, left, now.failed - was.failed, wakes_s=wakes_s)


def _sum(sums: StageTotals, more: StageTotals, now: StageTotals) -> StageTotals:
    return StageTotals(
        sums.entered + more.entered,
        sums.left + more.left,
        sums.failed + more.failed,
        sums.seconds,
        now.wakes_s or sums.wakes_s,
    )


def _follow_machine(before: Followed, now: MachineSleep, now_unix_s: float) -> tuple[MachineSleep, Spell | None, News]:
    """The sums over all sleepers, the spell whose wake is not known, and what is new."""
    told, sums, suspended = before.told_machine, before.sleep.machine, before.suspended
    fell = (now.suspends, now.failed, now.asleep_s, now.left)
    if any(less < was for less, was in zip(fell, (told.suspends, told.failed, told.asleep_s, told.left), strict=True)):
        told = MachineSleep()
    slept, failed, asleep_s = now.suspends - told.suspends, now.failed - told.failed, now.asleep_s - told.asleep_s
    left = now.left - told.left
    spells, wakes = [], []
    if asleep_s > 0:
        suspended = Spell("", 0, "", Stage.SUSPEND, now_unix_s - asleep_s, now_unix_s)
        spells.append(suspended)
    for took_s in now.wakes_s[-left:] if left else ():
        wakes.append(Wake((0, ""), "", Stage.SUSPEND, took_s))
        if suspended is not None:
            spells.append(replace(suspended, wake_s=took_s))
            suspended = None
    if failed:
        spells.append(Spell("", 0, "", Stage.SUSPEND, now_unix_s, now_unix_s, failed=True))
    machine = replace(
        now,
        suspends=sums.suspends + slept,
        failed=sums.failed + failed,
        asleep_s=sums.asleep_s + asleep_s,
        left=sums.left + left,
        wakes_s=now.wakes_s or sums.wakes_s,
    )
    return machine, suspended, News(tuple(spells), tuple(wakes))
