"""From reports of the sleeper to spells, totals and wakes: however often it is started again, nothing counts twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.stage_times import Followed, Spell, at_this_moment, follow
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Stage, StageTotals

STAGES = (Stage.SERVER_SLEEP, Stage.CHECKPOINT, Stage.STOP_SERVER)
ACTS = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from(STAGES)),
    st.tuples(st.just("leave"), st.floats(0.1, 60)),
    st.tuples(st.just("fail"), st.sampled_from(STAGES)),
    st.tuples(st.sampled_from(["restart", "vanish", "report", "suspend"]), st.none()),
)


class World:
    """A sleeper with one server, as it would report; it forgets its totals when it is started again."""

    def __init__(self) -> None:
        self.server = SleepingServer("chat", 8080, gpus=("GPU-1",))
        self.machine = MachineSleep(wanted=True)
        self.is_there = True
        self.now_s = 1000.0
        self.entered = self.left = self.failed = self.suspends = 0

    def act(self, what: str, how) -> None:
        totals = dict(self.server.totals)
        mine = totals.get(how if what in ("enter", "fail") else self.server.stage, StageTotals())
        match what:
            case "enter" if self.server.stage is not how:
                totals[how] = replace(mine, entered=mine.entered + 1)
                self.entered += 1
                self.server = replace(self.server, stage=how, rung=Rung.DOWN, since_unix_s=self.now_s, totals=totals)
            case "leave" if self.server.stage is not None:
                totals[self.server.stage] = replace(mine, left=mine.left + 1, wakes_s=(*mine.wakes_s, how)[-5:])
                self.left += 1
                self.server = replace(self.server, stage=None, rung=Rung.UP, since_unix_s=self.now_s, totals=totals)
            case "fail":
                totals[how] = replace(mine, failed=mine.failed + 1)
                self.failed += 1
                self.server = replace(self.server, totals=totals)
            case "restart":
                self.server = replace(self.server, stage=None, rung=Rung.UP, totals={})
                self.machine = MachineSleep(wanted=True)
            case "vanish":
                self.is_there = not self.is_there
            case "suspend":
                self.suspends += 1
                self.now_s += 100
                slept_s = self.machine.asleep_s + 100
                self.machine = replace(self.machine, suspends=self.machine.suspends + 1, asleep_s=slept_s)

    def report(self) -> Sleep:
        return Sleep(7, (self.server,) if self.is_there else (), self.machine)


@given(st.lists(ACTS, max_size=30))
def test_totals_and_spells(acts) -> None:
    """Totals are what happened since the start; spells of a server follow each other, and each wake is told once."""
    world, followed = World(), Followed()
    spells: dict[tuple, Spell] = {}
    wakes = 0
    for what, how in [("report", None), *acts, ("report", None)]:
        world.now_s += 5
        world.act(what, how)
        followed, news = follow(followed, world.report(), world.now_s)
        if not world.is_there:  # what it does meanwhile is told when it is back
            world.act("vanish", None)
            followed, more = follow(followed, world.report(), world.now_s)
            wakes += len(more.wakes)
            spells |= {(spell.stage, spell.at_unix_s, spell.failed): spell for spell in (*news.spells, *more.spells)}
            continue
        wakes += len(news.wakes)
        spells |= {(spell.stage, spell.at_unix_s, spell.failed): spell for spell in news.spells}
    told = followed.sleep.servers[0].totals.values()
    assert sum(each.entered for each in told) == world.entered
    assert sum(each.left for each in told) == world.left == wakes
    assert sum(each.failed for each in told) == world.failed
    assert followed.sleep.machine.suspends == world.suspends
    assert followed.sleep.machine.asleep_s == 100 * world.suspends
    mine = sorted((s for s in spells.values() if s.port and not s.failed), key=lambda spell: spell.at_unix_s)
    for one, other in pairwise(mine):
        assert one.until_unix_s is not None
        assert one.at_unix_s <= one.until_unix_s <= other.at_unix_s + 10  # seen at the next report
    assert sum(spell.failed for spell in spells.values()) == world.failed
    assert sum(spell.stage is Stage.SUSPEND for spell in spells.values()) == world.suspends


def down(stage: Stage, **more) -> Sleep:
    return Sleep(7, (SleepingServer("chat", 8080, rung=Rung.DOWN, stage=stage, **more),))


def test_the_machines_wakes_over_two_sleepers() -> None:
    """Told once each, and kept with the spell that they end; a new sleeper counts anew."""
    slept = MachineSleep(wanted=True, suspends=1, asleep_s=100.0)
    followed, first = follow(Followed(), Sleep(7, machine=slept), 1000.0)
    (spell,) = first.spells
    assert (first.wakes, spell.wake_s) == ((), None)
    back = replace(slept, left=1, wakes_s=(12.5,))
    followed, news = follow(followed, Sleep(7, machine=back), 1013.0)
    assert [(wake.stage, wake.seconds) for wake in news.wakes] == [(Stage.SUSPEND, 12.5)]
    assert news.spells == (replace(spell, wake_s=12.5),)
    followed, news = follow(followed, Sleep(8, machine=MachineSleep(wanted=True)), 1020.0)
    assert (news.wakes, news.spells) == ((), ())
    followed, news = follow(followed, Sleep(8, machine=replace(back, wakes_s=(9.0,))), 2000.0)
    assert [wake.seconds for wake in news.wakes] == [9.0]
    assert (followed.sleep.machine.left, followed.sleep.machine.suspends) == (2, 2)


def test_a_ladder_down_and_up() -> None:
    """The times that leaving took belong to the last spell in each stage, also where a deeper one came between."""
    asleep = {Stage.SERVER_SLEEP: StageTotals(1)}
    both = {**asleep, Stage.STOP_SERVER: StageTotals(1)}
    followed, first = follow(Followed(), down(Stage.SERVER_SLEEP, since_unix_s=90.0, totals=asleep), 100.0)
    followed, second = follow(followed, down(Stage.STOP_SERVER, since_unix_s=200.0, totals=both), 201.0)
    left = {
        Stage.SERVER_SLEEP: StageTotals(1, 1, wakes_s=(0.5,)),
        Stage.STOP_SERVER: StageTotals(1, 1, wakes_s=(12.0,)),
    }
    leaving = SleepingServer("chat", 8080, rung=Rung.LEAVING, stage=Stage.STOP_SERVER, totals=both)
    followed, third = follow(followed, Sleep(7, (leaving,)), 300.0)
    followed, last = follow(followed, Sleep(7, (SleepingServer("chat", 8080, totals=left),)), 312.5)
    shallow = Spell("chat", 8080, "", Stage.SERVER_SLEEP, 90.0)
    deep = Spell("chat", 8080, "", Stage.STOP_SERVER, 200.0)
    assert first.spells == (shallow,)
    assert second.spells == (replace(shallow, until_unix_s=201.0), deep)
    assert third.spells == (replace(deep, until_unix_s=300.0),)
    assert set(last.spells) == {
        replace(shallow, until_unix_s=201.0, wake_s=0.5),
        replace(deep, until_unix_s=300.0, wake_s=12.0),
    }
    assert [wake.seconds for wake in last.wakes] == [0.5, 12.0]


def test_seconds_grow_while_it_lasts() -> None:
    """Those of the spells, whatever the sleeper counted; a server that is not told of any more is in no stage."""
    followed, _ = follow(Followed(), down(Stage.STOP_SERVER, since_unix_s=100.0), 100.0)

    def seconds(now_s: float) -> float:
        return at_this_moment(followed, now_s).servers[0].totals[Stage.STOP_SERVER].seconds

    assert seconds(150.0) == 50.0
    assert seconds(90.0) == 0.0
    totals = {Stage.STOP_SERVER: StageTotals(1, 1, seconds=7.0)}
    followed, _ = follow(followed, Sleep(7, (SleepingServer("chat", 8080, totals=totals),)), 200.0)
    assert seconds(900.0) == 100.0
    followed, _ = follow(followed, down(Stage.STOP_SERVER, since_unix_s=300.0, totals=totals), 300.0)
    followed, _ = follow(followed, Sleep(7), 310.0)
    followed, _ = follow(followed, Sleep(7, (SleepingServer("chat", 8080, totals=totals),)), 500.0)
    assert seconds(900.0) == 110.0


def test_others_are_told_apart() -> None:
    """A spell that another manager began is that one's, and ends where memscaler takes over."""
    theirs = Sleep(7, (SleepingServer("chat", 8080, asleep_by="llama.cpp"),))  # for us it is up
    followed, first = follow(Followed(), theirs, 100.0)
    assert at_this_moment(followed, 150.0).servers[0].totals == {}
    _, second = follow(followed, down(Stage.SERVER_SLEEP), 200.0)
    assert [(spell.by, spell.until_unix_s) for spell in (*first.spells, *second.spells)] == [
        ("llama.cpp", None),
        ("llama.cpp", 200.0),
        ("", None),
    ]


def test_a_clock_that_was_set() -> None:
    """A beginning in the future is now; an end is never before its beginning."""
    followed, first = follow(Followed(), down(Stage.SERVER_SLEEP, since_unix_s=5000.0), 100.0)
    _, second = follow(followed, Sleep(7), 50.0)
    assert first.spells[0].at_unix_s == 100.0
    assert second.spells[0].until_unix_s == 100.0


def test_more_servers_than_are_followed() -> None:
    """They are shown as they were told, and nothing of them is kept."""
    many = tuple(SleepingServer(f"s{port}", port) for port in range(1, 400))
    followed, _ = follow(Followed(), Sleep(7, many), 1.0)
    assert len(followed.servers) == 256
    assert [server.name for server in followed.sleep.servers] == [server.name for server in many]
