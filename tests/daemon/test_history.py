"""The whole daemon keeps its history: gaps, parks and hours, over its own sudden end."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from memscaler.cli.client import Client
from memscaler.history.reader import open_history
from memscaler.history.tables import FILE
from tests.governor import connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")

QUIET_W = 80.0  # of a simulated A40 with its clocks up


def work(server) -> None:
    """A client says something, is answered, and goes."""
    client = connect(server)
    client.sendall(b"x")
    answers, _ = server.accept()
    answers.recv(1)
    client.close()
    answers.close()


def moment(governor, event: str) -> float:
    """When the log says that it was, in seconds since 1970."""
    return datetime.fromisoformat(governor.events(event)[-1]["timestamp"]).timestamp()


def a_park(governor, client: Client, server) -> None:
    """Wait for a park that has saved something, and end it."""
    before = client.status()["gpus"][0]["energy_saved_j"]
    eventually(lambda: client.status()["gpus"][0]["energy_saved_j"] > before + 30, within_s=30)
    count = len(governor.events("gpu.woken"))
    work(server)
    eventually(lambda: len(governor.events("gpu.woken")) > count)


def governs(folder, server, board="a40", **more):
    """One that keeps its history in this folder."""
    arguments = [board, "--port", f"{port_of(server)}:gpu0", "--idle-after", "2500ms"]
    return governing(folder.parent / "run", *arguments, env={"MEMSCALER_STATE_DIR": str(folder)}, **more)


def test_what_happened_is_kept(tmp_path):
    """The gap, the park that it was used for, its hour, and what was saved."""
    folder, began = tmp_path / "state", time.time()
    with listener() as server, governs(folder, server) as governor:
        client = Client(str(governor.runtime_dir))
        work(server)
        a_park(governor, client, server)
        uuid = client.status()["gpus"][0]["uuid"]
        assert not folder.exists(), "nothing is written while something happens"
        assert governor.stop() == 0
    with open_history(folder) as history:
        (known,) = history.gpus()
        gaps, parks, hours = history.gaps(uuid), history.parks(uuid), history.hours(uuid)
        total_j = history.totals()[uuid][0]
    assert (known.uuid, known.index, known.name) == (uuid, 0, "NVIDIA A40")
    park = parks[0]
    assert None not in (park.until_unix_s, park.latency_s, park.saved_j)
    assert began < park.at_unix_s < park.until_unix_s < time.time()
    assert park.idle_s == pytest.approx(2.5, abs=1.0)
    assert (park.reason, park.source, park.baseline_w) == ("connection", "counter", 80.0)
    assert 0 < park.latency_s < 1
    assert park.saved_j > 30
    assert all(each.until_unix_s is not None for each in parks)
    start_s, length_s = next(gap for gap in gaps if gap[0] < park.at_unix_s < gap[0] + gap[1])
    assert start_s == pytest.approx(park.at_unix_s - park.idle_s, abs=0.5)
    assert start_s + length_s == pytest.approx(park.until_unix_s, abs=0.5)
    assert sum(hour.saved_j for hour in hours) == pytest.approx(total_j)
    assert sum(hour.parks for hour in hours) == len(parks)
    assert sum(hour.wakes for hour in hours) == sum(park.reason == "connection" for park in parks)
    assert known.first_unix_s == pytest.approx(moment(governor, "memscaler.started"), abs=2)
    lived_s = moment(governor, "memscaler.stopped") - moment(governor, "memscaler.started")
    assert sum(sum(hour.state_s.values()) for hour in hours) == pytest.approx(lived_s, abs=2)


def test_how_long_the_wakes_of_a_card_without_a_counter_took(tmp_path):
    """It is known only after the park's end was told."""
    folder = tmp_path / "state"
    with listener() as server, governs(folder, server, "p40") as governor:
        work(server)
        for parks in (1, 2):
            eventually(lambda parks=parks: parked_times(governor) == parks, within_s=30)
            work(server)
            eventually(lambda parks=parks: len(governor.events("gpu.woken")) >= parks)
        assert governor.stop() == 0
        logged_us = [event["latency_us"] for event in governor.events("gpu.woken") if "latency_us" in event]
    with open_history(folder) as history:
        (gpu,) = history.gpus()
        parks = [park for park in history.parks(gpu.uuid) if park.reason == "connection"]
    assert {park.source for park in parks} == {"integrated"}
    assert [int(park.latency_s * 1e6) for park in parks] == pytest.approx(logged_us, abs=1)
    assert len(parks) >= 2


def test_a_daemon_that_is_killed(tmp_path):
    """What was written stays, and the totals go on from there; what was not written yet is forgotten."""
    folder = tmp_path / "state"
    with listener() as server:
        with governs(folder, server) as governor:
            client = Client(str(governor.runtime_dir))
            a_park(governor, client, server)
            assert governor.stop() == 0
        with open_history(folder) as history:
            ((uuid, (total_j, _, _)),) = history.totals().items()
            parks = history.parks(uuid)
        with governs(folder, server) as governor:
            a_park(governor, client, server)
            assert client.status()["gpus"][0]["energy_saved_j"] > total_j + 30
            governor.process.kill()
            governor.process.wait()
        with governs(folder, server) as governor:
            assert client.status()["gpus"][0]["energy_saved_j"] == pytest.approx(total_j, abs=0.1)
            a_park(governor, client, server)
            assert governor.stop() == 0
        with open_history(folder) as history:
            assert history.totals()[uuid][0] > total_j + 30
            assert history.parks(uuid)[: len(parks)] == parks
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_no_baseline_shows_work(tmp_path):
    """Touches let a GPU park, and put some load on it: what it drew in the second after is not what it draws quiet."""
    folder = tmp_path / "state"
    with listener() as server, governs(folder, server, by_connections=False) as governor:
        (board,) = governor.driver.boards
        eventually(lambda: parked_times(governor) or a_touch(server, board), within_s=60)
        assert governor.stop() == 0
    with open_history(folder) as history:
        (gpu,) = history.gpus()
        parks = history.parks(gpu.uuid)
    assert parks
    assert max(park.baseline_w or 0.0 for park in parks) <= QUIET_W


def parked_times(governor) -> int:
    """By its log: asking it would have it take a reading."""
    return sum(event["state"] == "parked" for event in governor.events("gpu.changed_state"))


def a_touch(server, board) -> None:
    """A client that is soon gone, and the load that it causes; then a pause in which an average shows it."""
    board.set_utilization(90)
    work(server)
    time.sleep(0.05)
    board.set_utilization(0)
    time.sleep(0.3)
