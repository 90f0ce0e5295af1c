"""The governor keeps nobody frozen: by an arbiter that stands still, that cannot live, or that finds what it cannot read."""

import os
import signal
import time

import pytest

from tests.daemon.test_arbiter import BASE, RULE, heard, parked, played
from tests.governor import eventually, governing, listener, stand_still, watch_table

pytestmark = pytest.mark.timeout(180)

FROZEN = {"rule": "batch", "pid": 4242, "name": "batch", "knob": "compute.freeze", "means": "signal", "value": 1}


def test_one_that_stands_still_while_something_is_set_is_replaced_though_nothing_happens(tmp_path):
    """Nothing is to be told: no client comes or goes, no GPU changes. Without a question nobody would find out."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        parked(governor)
        heard(arbiter, controlled=[{**FROZEN, "since_unix_s": time.time()}])
        stand_still(arbiter.pid)
        eventually(lambda: governor.events("arbiter.stands_still"), within_s=30)
        arbiter.come()


def test_nothing_is_asked_while_nothing_is_set(tmp_path):
    """No polling."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        parked(governor)
        heard(arbiter)
        stand_still(arbiter.pid)
        time.sleep(12)
        assert not governor.events("arbiter.stands_still")
        os.kill(arbiter.pid, signal.SIGCONT)


def test_while_something_is_left_the_next_one_never_waits_for_long(tmp_path):
    """One that dies again and again, for whatever reason: whoever it has left frozen is not kept for a minute."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        folder = governor.runtime_dir / "gpuctl"
        folder.mkdir(exist_ok=True)
        (folder / "1-x.json").write_text("{}")
        for turn in range(7):
            os.kill(arbiter.pid, signal.SIGKILL)
            eventually(lambda turn=turn: len(governor.events("arbiter.died")) == turn + 1)
            arbiter.come()
        assert max(event["again_in_s"] for event in governor.events("arbiter.died")) <= 2.0
        (folder / "1-x.json").unlink()


def test_an_entry_that_nobody_can_read_is_told_once_and_not_for_ever(tmp_path):
    """Without rules an arbiter comes for what is left. It cannot read this one, and nor can the next."""
    folder = tmp_path / "run" / "gpuctl"
    folder.mkdir(parents=True)
    (folder / "1-x.json").write_text("{}")
    config = tmp_path / "config.toml"
    with listener() as web:
        config.write_text(BASE + 'sample_every = "1s"\n' + watch_table(web, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            _is_told_once(governor)
    (folder / "1-x.json").unlink()


def _is_told_once(governor):
    eventually(lambda: governor.events("arbiter.ended"), within_s=30)
    time.sleep(5)
    assert len(governor.events("arbiter.started")) == 1
