"""Times of the week at which nothing is parked, or sooner; and waiting for them without polling."""

from __future__ import annotations

import datetime as dt
import select
import time
from dataclasses import replace

import pytest

from memscaler.cli.client import Client
from memscaler.config.hours import parse_windows
from memscaler.config.load import load
from memscaler.core.model import Hold, Unhold
from memscaler.daemon.hours import Hours
from memscaler.daemon.wall_clock import WallClock
from tests.governor import eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


def test_holds_come_and_go_with_the_clock(monkeypatch):
    """Inside never_park a GPU is held, and let go of when it ends; quiet hours are told; each change is known before."""
    fed: list[object] = []
    hours = Hours(fed.append)
    general = load({}, {}).general
    office = replace(general, never_park=parse_windows("Mon-Fri 09:00-18:00"))
    night = replace(general, quiet_hours=parse_windows("22:00-06:00"))
    clock = {"now": at("2026-11-20T08:00")}
    monkeypatch.setattr(time, "time", lambda: clock["now"])
    hours.govern({"office": office, "night": night})
    assert hours.look() == at("2026-11-20T09:00")
    assert (fed, hours.quiet) == ([], frozenset())
    clock["now"] = at("2026-11-20T09:00")
    assert hours.look() == at("2026-11-20T18:00")
    assert [(type(each), each.gpu) for each in fed] == [(Hold, "office")]
    hours.look()
    assert len(fed) == 1, "once is enough"
    clock["now"] = at("2026-11-20T22:30")
    assert hours.look() == at("2026-11-21T06:00")
    assert [(type(each), each.gpu) for each in fed[1:]] == [(Unhold, "office")]
    assert hours.quiet == {"night"}


def test_never_park_now(tmp_path):
    """It is such a time: the GPU stays awake, and the status says why. Without it, it parks after a reload."""
    config = tmp_path / "config.toml"
    with listener() as server:
        watch = f'idle_after = "200ms"\n[[watch]]\nport = {port_of(server)}\ngpus = ["gpu0"]\n'
        config.write_text('never_park = ["00:00-24:00"]\n' + watch)
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            time.sleep(1)
            assert not governor.driver.boards[0].locks
            operator = Client(str(governor.runtime_dir))
            (told,) = operator.status()["gpus"]
            assert told["state"] == "held"
            assert [hold["reason"] for hold in told["holds"]] == ["never_park"]
            (refused,) = operator.change("park")["gpus"]
            assert "never_park" in refused["reason"]
            config.write_text(watch)
            operator.change("reload")
            eventually(lambda: governor.driver.boards[0].locks)


def test_quiet_hours_now(tmp_path):
    """It is a quiet hour: the idle time is the shorter one."""
    config = tmp_path / "config.toml"
    with listener() as server:
        watch = f'[[watch]]\nport = {port_of(server)}\ngpus = ["gpu0"]\n'
        config.write_text('idle_after = "1h"\nquiet_hours = ["00:00-24:00"]\nquiet_idle_after = "300ms"\n' + watch)
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            eventually(lambda: governor.driver.boards[0].locks)


def test_the_wall_clock_rings_at_its_time():
    """Its descriptor becomes readable then, not before, and is silent once read."""
    wall = WallClock()
    try:
        poll = select.poll()
        poll.register(wall.fd, select.POLLIN)
        wall.wake_at(None)
        assert not poll.poll(50)
        started = time.monotonic()
        wall.wake_at(time.time() + 0.3)
        assert poll.poll(5000)
        assert time.monotonic() - started > 0.25
        wall.read()
        assert not poll.poll(50)
        assert wall.slept_s() == 0.0
    finally:
        wall.close()
