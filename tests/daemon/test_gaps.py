"""The gaps that a whole daemon learns while it governs: from real connections, with simulated boards.

Like in tests/kernel/test_gaps.py every bound is one of cause and effect.
"""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.daemon.servers import KeepAlive
from tests.daemon.test_traffic import WORK, Client
from tests.daemon.timeline import Timeline, now_ns
from tests.daemon.waking import wake_ups
from tests.governor import Governor, connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
PAUSE_S = 0.5
TICK_NS = 20_000_000  # the grain of the kernel's times of the last data
LEARNING = ["--log-level", "debug"]
Bounds = tuple[int, int, int, int]  # before and after the begin of one piece of work, before and after its end


@pytest.fixture
def frequent_looks(monkeypatch):
    """The daemon looks every second instead of every 15."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")


def told(governor: Governor, uuid: str = "") -> list[tuple[int, int]]:
    events = governor.events("gap.seen")
    return [(event["start_ns"], event["end_ns"]) for event in events if event["uuid"] == (uuid or events[0]["uuid"])]


def visit(server) -> Bounds:
    """One connection. Its end comes with the server's close; the counters follow at once."""
    begin = now_ns()
    client = connect(server)
    began = now_ns()
    with server.accept()[0]:
        end = now_ns()
        client.close()
    return begin, began, end, now_ns() + TICK_NS


def check(gaps, work):
    assert len(gaps) == len(work) - 1
    for (start_ns, end_ns), before, after in zip(gaps, work, work[1:], strict=False):
        assert before[2] <= start_ns <= before[3]
        assert after[0] <= end_ns <= after[1]


@pytest.mark.usefixtures("frequent_looks")
@pytest.mark.parametrize("idle_after", ["60s", "250ms"], ids=["awake", "parking"])
def test_gaps_between_connections(tmp_path, idle_after):
    """Also those that are too short for a park; a park in between changes nothing."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", idle_after, *LEARNING]
        with governing(tmp_path, "a40", *arguments) as governor:
            board = governor.driver.boards[0]
            work = [visit(server)]
            for _ in range(3):
                time.sleep(PAUSE_S)
                if idle_after != "60s":
                    eventually(lambda: board.locks)
                work.append(visit(server))
            eventually(lambda: len(told(governor)) == len(work) - 1)
            check(told(governor), work)


@pytest.mark.usefixtures("frequent_looks")
def test_each_gpu_has_its_own(tmp_path):
    """One port for both, one for the second alone: the second's gaps are those of both ports."""
    with listener() as shared, listener() as own:
        ports = ["--port", f"{port_of(shared)}:gpu0,gpu1", "--port", f"{port_of(own)}:gpu1"]
        with governing(tmp_path, "a40,p40", *ports, "--idle-after", "60s", *LEARNING) as governor:
            uuids = [event["uuid"] for event in governor.events("gpu.governed")]
            work = []
            for server in (shared, own, shared, own, shared):
                work.append(visit(server))
                time.sleep(PAUSE_S)
            eventually(lambda: len(told(governor, uuids[1])) == 4 and len(told(governor, uuids[0])) == 2)
            check(told(governor, uuids[1]), work)
            check(told(governor, uuids[0]), work[::2])


@pytest.mark.usefixtures("frequent_looks")
def test_gaps_on_a_connection_that_stays_open(tmp_path):
    """With the product's defaults, a client that keeps its connection: awake by looks, parked by the doorbell."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(KeepAlive())
        ports = ["--port", f"{server.port}:gpu0", "--idle-after", "4s", *LEARNING]
        governor = stack.enter_context(governing(tmp_path, "a40", *ports, by_connections=False))
        timeline = Timeline(governor.driver)
        server.is_parked = lambda: bool(timeline.board.locks)
        client = stack.enter_context(Client(server.port))
        work = []

        def ask():
            begin_ns, end_ns = client.ask(WORK)
            work.append((begin_ns - TICK_NS, end_ns + TICK_NS, begin_ns - TICK_NS, end_ns + TICK_NS))

        ask()
        time.sleep(2.7)  # longer than between two looks; not enough for a park
        ask()
        time.sleep(2.7)
        ask()
        assert not timeline.spans
        eventually(lambda: timeline.board.locks, within_s=30)
        time.sleep(PAUSE_S)
        ask()
        eventually(lambda: len(told(governor)) == 3)
        check(told(governor), work)


@pytest.mark.usefixtures("frequent_looks")
def test_health_checks_end_no_gap(tmp_path):
    """With the product's defaults: what is too small and too short for work leaves the gap whole."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(KeepAlive())
        ports = ["--port", f"{server.port}:gpu0", "--idle-after", "60s", *LEARNING]
        governor = stack.enter_context(governing(tmp_path, "a40", *ports, by_connections=False))
        work = []
        for body in (WORK, b"", b"", WORK):
            begin_ns = now_ns()
            with Client(server.port) as client:
                _, end_ns = client.ask(body)
            if body:
                work.append((begin_ns, end_ns, begin_ns, now_ns() + 10 * TICK_NS))
            time.sleep(PAUSE_S)
        eventually(lambda: told(governor))
        check(told(governor), work)


def test_learning_wakes_nobody(tmp_path):
    """Forty gaps on an awake GPU: the daemon sleeps through them, and tells them when it looks anyway."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "60s", "--log-level", "debug"]
        with governing(tmp_path, "a40", *arguments, "--metrics", "127.0.0.1:0") as governor:
            work = []

            def visit_again_and_again() -> None:
                for _ in range(41):
                    work.append(visit(server))
                    time.sleep(0.3)

            assert wake_ups(governor, visit_again_and_again) < 41  # one for each would be 41
            eventually(lambda: governor.metrics() and len(told(governor)) == 40)
            check(told(governor), work)
