"""The stage server-sleep, against a fake vLLM: a real HTTP server that behaves as vLLM's documents and issues say."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from memscaler.core.stages import Stage
from memscaler.sleep.drivers.make import Around, drivers
from memscaler.sleep.drivers.protocol import Gone, Later, Stuck, Target, Undone, Where
from memscaler.sleep.drivers.talk import Door
from tests.servers.bench import eventually, free_port
from tests.sleep.drivers.benches import Announced, Started, Vllm, listens, rule, wait_gone, within

RULE = rule(Stage.SERVER_SLEEP)
ON = "--enable-sleep-mode"


@pytest.fixture
def vllm(tmp_path, machine):
    """Start one, as in `vllm("--enable-sleep-mode", dev=False)`."""
    made = []

    def start(*options, **more):
        folder = tmp_path / f"vllm{len(made)}"
        folder.mkdir()
        made.append(Vllm(folder, machine, *options, **more))
        return made[-1]

    yield start
    for each in made:
        each.kill()


@pytest.fixture
def announced():
    return Announced()


@pytest.fixture
def driver(tmp_path, announced):
    return drivers(Around(tmp_path, announced))[Stage.SERVER_SLEEP]


def test_down_and_back(vllm, driver):
    """It sleeps, its memory is free; it wakes, and answers. Doing either twice does nothing."""
    server = vllm(ON)
    assert driver.possible(server.target, RULE, within()) == ""
    memo = driver.prepare(server.target, RULE, within())
    assert driver.look(memo, within()).where is Where.UP
    driver.enter(memo, within())
    driver.enter(memo, within())
    assert driver.look(memo, within()).where is Where.DOWN
    assert server.calls().count("POST /sleep?level=1&mode=wait") == 1
    driver.leave(memo, within())
    driver.leave(memo, within())
    assert driver.look(memo, within()).where is Where.UP
    assert server.calls().count("POST /wake_up") == 1
    assert server.complete() == "hello"


def test_every_connection_is_announced_first(vllm, driver, announced):
    """Nothing that we ask comes from a port that the governor was not told of, and none stays announced."""
    server = vllm(ON)
    driver.possible(server.target, RULE, within())
    memo = driver.prepare(server.target, RULE, within())
    driver.enter(memo, within())
    driver.look(memo, within())
    driver.leave(memo, within())
    assert set(server.peers()) <= set(announced.ports)
    assert len(server.peers()) >= 6
    assert announced.keys == {str(server.port)}
    assert not announced.open


def test_not_announced(vllm, driver, announced):
    """Another local port is tried. If none can be announced, nothing is entered; but what sleeps is woken."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    announced.refusals = 2
    driver.enter(memo, within())
    announced.refusals = 1000
    with pytest.raises(Later, match="announce"):
        driver.possible(server.target, RULE, within())
    assert driver.look(memo, within()).where is Where.UNKNOWN
    driver.leave(memo, within())
    assert server.complete() == "hello"
    assert announced.refusals


def test_level_2_reads_its_weights_again(vllm, driver):
    """Without that it would answer nonsense: the memory is there, and what was in it is not."""
    server = vllm(ON)
    deep = rule(Stage.SERVER_SLEEP, level=2)
    memo = driver.prepare(server.target, deep, within())
    driver.enter(memo, within())
    driver.leave(memo, within())
    posts = [call for call in server.calls() if call.startswith("POST")]
    assert posts == [
        "POST /sleep?level=2&mode=wait",
        "POST /wake_up?tags=weights",
        "POST /collective_rpc",
        "POST /wake_up?tags=kv_cache",
    ]
    assert server.complete() == "hello"


@pytest.mark.parametrize("version", ["0.17.0", "0.22.1", "0.24.0"])
def test_level_2_is_refused_where_a_waiting_request_would_end_the_server(vllm, driver, version):
    """vllm-project/vllm#44395: between the weights and the cache its scheduler goes on. Level 1 wakes at once."""
    server = vllm(ON, FAKE_VERSION=version)
    why = driver.possible(server.target, rule(Stage.SERVER_SLEEP, level=2), within())
    assert f"is vLLM {version}: below 0.25" in why
    assert driver.possible(server.target, RULE, within()) == ""
    memo = driver.prepare(server.target, rule(Stage.SERVER_SLEEP, level=2), within())
    driver.enter(memo, within())

    def come():
        with contextlib.suppress(OSError):  # it ends over it
            server.complete()

    client = threading.Thread(target=come, daemon=True)
    client.start()
    eventually(lambda: "POST /v1/completions" in server.calls())
    with pytest.raises(Gone, match="ended when it was woken"):
        driver.leave(memo, within())


def test_a_request_that_waits_while_level_2_wakes_is_answered_right(vllm, driver):
    """It came while there was nothing: it is kept until weights and cache are there, in vLLM's own order."""
    server = vllm(ON, FAKE_VERSION="0.25.0")
    deep = rule(Stage.SERVER_SLEEP, level=2)
    assert driver.possible(server.target, deep, within()) == ""
    memo = driver.prepare(server.target, deep, within())
    driver.enter(memo, within())
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(server.complete()))
    client.start()
    eventually(lambda: "POST /v1/completions" in server.calls())
    driver.leave(memo, within())
    client.join(60)
    assert answers == ["hello"]


def test_level_2_after_a_death_half_way(vllm, driver, tmp_path):
    """Whoever woke it died after the first step; another process, which has only the memo, ends it."""
    server = vllm(ON)
    memo = driver.prepare(server.target, rule(Stage.SERVER_SLEEP, level=2), within())
    driver.enter(memo, within())
    driver._post(memo, Door.of(memo), "/wake_up?tags=weights", within())
    other = drivers(Around(tmp_path))[Stage.SERVER_SLEEP]
    assert other.look(memo, within()).where is Where.DOWN
    other.leave(memo, within())
    assert server.complete() == "hello"


def test_a_request_that_comes_while_it_sleeps_is_answered_after_the_wake(vllm, driver):
    """The wake takes longer than a client needs to send its request: vLLM keeps it."""
    server = vllm(ON)
    server.faults(wake_s=0.5)
    memo = driver.prepare(server.target, RULE, within())
    driver.enter(memo, within())
    answers = []
    client = threading.Thread(target=lambda: answers.append(server.complete()))
    client.start()
    eventually(lambda: "POST /v1/completions" in server.calls())
    assert not answers
    driver.leave(memo, within())
    client.join(30)
    assert answers == ["hello"]


@pytest.mark.parametrize(
    ("options", "more", "says"),
    [
        ((ON,), {"dev": False}, "VLLM_SERVER_DEV_MODE"),
        ((), {}, "--enable-sleep-mode"),
        ((ON,), {"FAKE_VERSION": "0.16.0"}, "below 0.17"),
        ((ON,), {"FAKE_VERSION": "dev"}, "does not tell its version"),
    ],
)
def test_not_possible(vllm, driver, options, more, says):
    """Each reason in words; nothing was asked of it that changes anything."""
    server = vllm(*options, **more)
    assert says in driver.possible(server.target, RULE, within())
    assert not [call for call in server.calls() if call.startswith("POST")]


def test_other_servers(tmp_path, driver):
    """llama.cpp sleeps by itself, SGLang does not tell, others have nothing."""
    for words, says in (
        (["llama-server", "-c", "import time; time.sleep(99)"], "--sleep-idle-seconds"),
        (["sglang::tokenizer_worker", "-c", "import time; time.sleep(99)"], "SGLang"),
        (["whatever", "-c", "import time; time.sleep(99)"], "no vLLM"),
    ):
        server = Started(words, tmp_path, executable="/usr/bin/python3")
        try:
            eventually(lambda: "time" in Path(f"/proc/{server.pid}/cmdline").read_text())
            assert says in driver.possible(Target("1", 1, pids=(server.pid,)), RULE, within())
        finally:
            server.kill()


def test_no_room_in_memory(vllm, tmp_path, announced):
    """Level 1 keeps the weights in host memory: the machine's, or what the server's cgroup may have."""
    server = vllm(ON)
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable:     500000 kB\n")
    driver = drivers(Around(tmp_path, announced, root=root))[Stage.SERVER_SLEEP]
    assert "are free" in driver.possible(server.target, RULE, within())
    assert driver.possible(server.target, rule(Stage.SERVER_SLEEP, level=2), within()) == ""


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ({"sleep": "refuse"}, Undone, "EngineCore"),
        ({"sleep": "lie"}, Undone, "does not"),
        ({"sleep": "keep"}, Undone, "frees no memory"),
        ({"sleep": "die"}, Gone, "ended"),
    ],
)
def test_enter_fails(vllm, driver, faults, error, says, monkeypatch):
    """It is up afterwards, or gone, and the error says which."""
    monkeypatch.setattr("memscaler.sleep.drivers.server_sleep._SETTLES_S", 1.0)
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    server.faults(**faults)
    with pytest.raises(error, match=says):
        driver.enter(memo, within())
    if error is Undone:
        assert driver.look(memo, within()).where is Where.UP
        assert server.complete() == "hello"
    else:
        wait_gone(server.pid)
        assert driver.look(memo, within()).where is Where.GONE
        with pytest.raises(Gone):
            driver.leave(memo, within())


def test_a_sleep_that_frees_nothing_is_never_tried_again(vllm, driver):
    """Success is not effect."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    server.faults(sleep="keep")
    with pytest.raises(Undone) as caught:
        driver.enter(memo, within())
    assert caught.value.for_good


def test_enter_hangs(vllm, driver):
    """At the deadline it is not known how it stands: Stuck or Undone, never "it is down"; and it comes back later."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    server.faults(sleep_s=3.0)
    began = time.monotonic()
    with pytest.raises((Undone, Stuck)):
        driver.enter(memo, within(1.0))
    assert time.monotonic() - began < 30
    eventually(lambda: driver.look(memo, within()).where is Where.DOWN)
    driver.leave(memo, within())
    assert server.complete() == "hello"


def test_nobody_waits_for_a_mute_server(vllm, driver):
    """It is stopped by a signal, so it accepts and says nothing."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    os.kill(server.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Later):
        driver.possible(server.target, RULE, within(1.0))
    with pytest.raises(Later):
        driver.enter(memo, within(1.0))
    with pytest.raises(Stuck):
        driver.leave(memo, within(1.0))
    assert driver.look(memo, within(1.0)).where is Where.UNKNOWN
    assert time.monotonic() - began < 20
    os.kill(server.pid, signal.SIGCONT)
    eventually(lambda: driver.look(memo, within()).where is Where.UP)


def test_leave_fails_and_is_tried_again(vllm, driver):
    """No memory for its weights now; later there is."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    driver.enter(memo, within())
    server.faults(wake="refuse")
    with pytest.raises(Stuck, match="out of memory"):
        driver.leave(memo, within())
    server.faults()
    driver.leave(memo, within())
    assert server.complete() == "hello"


def test_it_dies_when_it_is_woken(vllm, driver):
    """There is nothing left to wake."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    driver.enter(memo, within())
    server.faults(wake="die")
    with pytest.raises(Gone, match="when it was woken"):
        driver.leave(memo, within())
    wait_gone(server.pid)
    with pytest.raises(Gone):
        driver.leave(memo, within())


def test_abandoned(vllm, driver):
    """Somebody came before it was asked: it is not asked."""
    server = vllm(ON)
    memo = driver.prepare(server.target, RULE, within())
    with pytest.raises(Undone, match="somebody came"):
        driver.enter(memo, within(abandoned=lambda: True))
    assert not [call for call in server.calls() if call.startswith("POST")]


def test_nobody_listens(driver):
    """Nothing is known now."""
    with pytest.raises(Later):
        driver.prepare(Target("1", free_port()), RULE, within())
    assert not listens(1)
