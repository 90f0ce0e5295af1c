"""A real sleeper with the governor's end of its link in our hands, a fake vLLM, and servers of a real supervisor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.child.link import GpuSeen
from memscaler.config.stages import StageRule, Suspend
from memscaler.core.plain import to_plain
from memscaler.core.stages import Rung, Stage
from memscaler.daemon.child_words import Guard
from memscaler.daemon.guardian import Guardian
from memscaler.daemon.journals import ASLEEP, tells_of_something
from memscaler.sleep import undo
from memscaler.sleep.link import Do
from tests.patience import patience
from tests.servers.bench import REPOSITORY, alive, eventually, free_port
from tests.servers.steered import steered
from tests.sleep.governor import GPU, governor
from tests.suspend.bus import a_box

SLEEP = StageRule(stage=Stage.SERVER_SLEEP, after_s=1.0)
STOP = StageRule(stage=Stage.STOP_SERVER, after_s=2.0)


@pytest.fixture
def with_vllm(vllm, boards):
    """A governor whose one server is a fake vLLM."""
    server = vllm()
    with governor(SLEEP, environment=boards.environment) as made:
        made.watch(server.port, pids=(server.pid,))
        yield made, server


def is_sleeping(server) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/is_sleeping", timeout=10) as answer:
        return bool(json.loads(answer.read())["is_sleeping"])


def test_a_quiet_server_sleeps_and_its_client_is_served(with_vllm):
    """End to end: guard, look, /sleep, look, DOWN; a client rings, /wake_up, and its request is answered."""
    made, server = with_vllm
    made.start()
    told = made.until_down(server.port, Stage.SERVER_SLEEP)
    assert is_sleeping(server)
    assert made.guarded[str(server.port)]
    assert (made.runtime_dir / "sleep" / f"{server.port}.json").exists()
    assert told.totals[Stage.SERVER_SLEEP].entered == 1
    made.client_comes(server.port)
    assert server.complete() == "hello"
    told = made.until_up(server.port)
    assert not made.guarded[str(server.port)]
    assert not (made.runtime_dir / "sleep" / f"{server.port}.json").exists()
    assert told.totals[Stage.SERVER_SLEEP].left == 1
    assert len(told.totals[Stage.SERVER_SLEEP].wakes_s) == 1
    assert told.totals[Stage.SERVER_SLEEP].seconds > 0
    made.client_goes(server.port)
    made.until_down(server.port, Stage.SERVER_SLEEP)
    assert made.end() == 0
    assert not is_sleeping(server)


def test_its_own_questions_are_announced(with_vllm):
    """Every connection of its own to the watched port was announced before it was made, and is forgotten."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    assert made.end() == 0
    assert set(server.peers()) <= {each.local[1] for each in made.announced}
    assert {each.key for each in made.announced} == {str(server.port)}
    assert {each.to[1] for each in made.announced} == {server.port}
    assert made.open == {}


def test_no_sleep_while_a_gpu_is_awake_and_it_says_so(with_vllm):
    """Parking is the governor's; what follows is told."""
    made, server = with_vllm
    made.gpus[GPU] = GpuSeen("awake")
    made.start()
    told = made.until(server.port, lambda each: each.why_not)
    assert told.why_not == "gpu0 is awake"
    assert told.next is Stage.SERVER_SLEEP
    made.gpus[GPU] = GpuSeen("parked")
    made.show("parked")
    made.until_down(server.port, Stage.SERVER_SLEEP)


def test_a_hold_wakes_it(with_vllm):
    """Also a pause, a release, a reload: all are a hold to the sleeper."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    made.gpus[GPU] = GpuSeen("held", held=True)
    made.show("held")
    told = made.until_up(server.port)
    assert not is_sleeping(server)
    assert "held" in told.why_not


def test_a_server_that_refuses_to_sleep_is_told_and_left_alone_for_a_while(with_vllm):
    """It is up as before, and nothing is in the journal."""
    made, server = with_vllm
    server.faults(sleep="refuse")
    made.start()
    told = made.until(server.port, lambda each: each.totals.get(Stage.SERVER_SLEEP))
    assert told.totals[Stage.SERVER_SLEEP].failed == 1
    assert "refuses to sleep" in told.note
    assert told.rung is Rung.UP
    assert told.next_unix_s is not None
    assert tells_of_something(made.runtime_dir, ASLEEP) is False
    assert server.complete() == "hello"


def test_one_that_does_not_wake_is_stuck_and_tried_again_until_it_does(with_vllm):
    """An alarm in the log, and the others are not held up."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    server.faults(wake="refuse")
    made.client_comes(server.port)
    told = made.until(server.port, lambda each: each.rung is Rung.STUCK)
    assert "was not woken" in told.note
    assert told.stage is Stage.SERVER_SLEEP
    assert "stage.stuck" in made.said()
    server.faults()
    made.until_up(server.port)
    assert not is_sleeping(server)


def test_a_hanging_server_holds_up_no_other_one(vllm, boards):
    """One worker for each."""
    slow, fast = vllm(), vllm()
    slow.faults(sleep_s=1000)
    with governor(replace(SLEEP, enter_timeout_s=2000.0), environment=boards.environment) as made:
        made.watch(slow.port, pids=(slow.pid,))
        made.watch(fast.port, pids=(fast.pid,))
        made.start()
        made.until(slow.port, lambda each: each.rung is Rung.ENTERING)
        made.until_down(fast.port, Stage.SERVER_SLEEP)
        made.client_comes(fast.port)
        made.until_up(fast.port)
        assert made.server(slow.port).rung is Rung.ENTERING
        slow.kill()


def test_when_the_governor_dies_everything_comes_back(with_vllm):
    """The end of the socket is its death."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    made.close()
    assert made.ended() == 0
    assert not is_sleeping(server)
    assert tells_of_something(made.runtime_dir, ASLEEP) is False


def test_when_the_sleeper_is_killed_the_next_one_brings_back_first(with_vllm):
    """From the journal; then it goes on as usual."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    made.kill()
    assert is_sleeping(server)
    made.rules = replace(made.rules, stages=())
    made.start()
    made.until_up(server.port)
    assert not is_sleeping(server)
    assert "stage.found" in made.said()


def test_when_both_die_restore_brings_back(with_vllm, boards):
    """The undo, as ExecStopPost and the guardian call it: a process that knows only the journal."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    made.kill()
    command = [sys.executable, "-P", undo.__file__, str(made.runtime_dir), "text"]
    done = subprocess.run(
        command, env={**os.environ, **boards.environment}, stderr=subprocess.PIPE, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"memscaler restore: port {server.port}: back from server-sleep\n"
    assert not is_sleeping(server)
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=100)
    assert (again.returncode, again.stderr) == (0, "")


def test_memscaler_restore_brings_back_servers_after_gpus(with_vllm, boards):
    """The command, as the unit calls it when the governor has ended."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    made.kill()
    command = [sys.executable, "-m", "memscaler", "restore", "--json", "--runtime-dir", str(made.runtime_dir)]
    done = subprocess.run(
        command, env={**os.environ, **boards.environment}, capture_output=True, text=True, check=False, timeout=100
    )
    assert json.loads(done.stdout)["servers"] == [f"port {server.port}: back from server-sleep"], done.stderr
    assert not is_sleeping(server)


def test_the_guardian_of_a_governor_that_died_brings_back(with_vllm, boards):
    """If the sleeper has died, too. It has the rights of a guardian only, which is enough here."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    guardian = Guardian(made.runtime_dir, {**boards.environment, "PYTHONPATH": str(REPOSITORY)})
    try:
        assert guardian.wait_ready()
        made.kill()
    finally:
        guardian.close()
    eventually(lambda: not tells_of_something(made.runtime_dir, ASLEEP))
    assert not is_sleeping(server)


def test_undo_waits_for_a_sleeper_that_lives(with_vllm):
    """Nobody leaves a stage twice at once."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    report = undo.undo(made.runtime_dir, budget_s=0.5)
    assert report.busy
    assert not report.ok
    assert is_sleeping(server)


def test_undo_says_what_it_cannot_bring_back(with_vllm):
    """And leaves it in the journal, for the next time."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    server.faults(wake="refuse")
    made.kill()
    report = undo.undo(made.runtime_dir, budget_s=3.0)
    assert not report.ok
    assert "not back from server-sleep" in report.lines()[0]
    assert tells_of_something(made.runtime_dir, ASLEEP)


def test_a_governor_that_does_not_answer_keeps_everything_up(with_vllm):
    """No act without a look."""
    made, server = with_vllm
    made.silent = True
    made.start()
    told = made.until(server.port, lambda each: "does not answer" in each.note, 60)
    assert told.rung is Rung.UP
    assert not is_sleeping(server)
    assert "POST /sleep?level=1&mode=wait" not in server.calls()


def test_operators_wake_and_put_to_sleep(with_vllm):
    """`memscaler sleep` and `memscaler wake` are answered when it is done."""
    made, server = with_vllm
    made.rules = replace(made.rules, stages=(replace(SLEEP, after_s=10_000.0),))
    made.start()
    made.until_up(server.port)
    assert not made.ask("sleep", "nobody").ok
    refused = made.ask("sleep", str(server.port), stage=Stage.STOP_SERVER)
    assert "no stop-server stage is configured" in refused.error
    done = made.ask("sleep", str(server.port))
    assert done.ok, done.error
    assert is_sleeping(server)
    done = made.ask("wake", str(server.port))
    assert done.ok
    assert done.document["servers"][0] == {"name": f"port {server.port}", "was": "server-sleep", "up": True}
    assert not is_sleeping(server)
    made.client_comes(server.port)
    made.until(server.port, lambda each: each.why_not)
    assert "is used" in made.ask("sleep", str(server.port)).error


def test_who_puts_a_held_server_to_sleep_is_told_which_hold_to_end(with_vllm):
    """And what it is called that is held, as people call it."""
    made, server = with_vllm
    made.gpus[GPU] = GpuSeen("held", held=True, holds=("lease:ab12", "never_park"))
    made.start()
    made.until_up(server.port)
    refused = made.ask("sleep", str(server.port))
    assert not refused.ok
    assert refused.error.endswith("gpu0 is held awake")
    assert "`memscaler unhold --id ab12`" in refused.hint
    assert "never_park" in refused.hint
    assert "resume" not in refused.hint
    made.gpus[GPU] = GpuSeen("held", held=True, holds=("pause:cd34",))
    made.show("paused")
    eventually(lambda: "`memscaler resume`" in made.ask("sleep", str(server.port)).hint, what=made.said)
    assert "unhold" not in made.ask("sleep", str(server.port)).hint


def test_a_report_about_hundreds_of_servers_is_told_in_short(with_vllm):
    """It is longer than a message may be; what is asleep is told as ever, and that it is short."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    quiet = {"gpus": ["other"], "last_activity_ns": 0, "pids": [1]}
    many = [{"key": str(port), "port": port, **quiet} for port in range(20_000, 20_600)]
    mine = {**to_plain(made.servers[str(server.port)]), "guarded": True}
    gpus = {GPU: {"state": "parked"}, "other": {"state": "cooling"}}
    seen = {"at_ns": time.monotonic_ns(), "gpus": gpus, "servers": [*many, mine]}
    made._socket.send(json.dumps({"seen": seen}, separators=(",", ":")).encode())
    eventually(lambda: "too many servers" in made.told[-1].problem, what=made.said)
    told = made.server(server.port)
    assert (told.rung, told.stage) == (Rung.DOWN, Stage.SERVER_SLEEP)
    assert len(made.told[-1].servers) > 300
    assert "sleeper.not_told" not in made.said()


def test_a_message_that_makes_no_sense_is_refused_and_the_rest_is_heard(with_vllm):
    """The link is checked; the sleeper goes on."""
    made, server = with_vllm
    made.start()
    for nonsense in (b"{", b"[]", b'{"seen": {}}', b'{"seen": {"at_ns": "x"}}', b'{"never heard": 1}', b"[" * 60_000):
        made._socket.send(nonsense)
    made.until_down(server.port, Stage.SERVER_SLEEP)
    assert made.said().count("sleeper.message_refused") == 5


# ---- servers of a supervisor -------------------------------------------------------------------------------------------


@pytest.fixture
def described(boards):
    """A real supervisor with one server, and a governor that watches it."""
    with steered() as made:
        port = free_port()
        made.describe({"name": "chat", "command": made.small("--port", port), "port": port, "gpus": []})
        made.begin()
        pid = made.until("chat", "ready")["pid"]
        (made.folder / "memscaler-servers").symlink_to("run")  # where those that are started by hand are looked for
        environment = {**boards.environment, "XDG_RUNTIME_DIR": str(made.folder)}
        with governor(STOP, environment=environment) as watching:
            watching.watch(port, name="chat", pids=(pid,))
            yield watching, made, port


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def test_a_quiet_server_is_stopped_and_started_when_the_gateway_asks(described):
    """Its process ends; `wake` starts it, and answers when it can serve."""
    made, supervisor, port = described
    made.start()
    made.until_down(port, Stage.STOP_SERVER)
    pid = made.servers[str(port)].pids[0]
    eventually(lambda: not alive(pid))
    assert supervisor.server("chat")["state"] == "stopped"
    made.change(port, pids=(), last_activity_ns=time.monotonic_ns())  # as its connections end
    time.sleep(0.3)
    assert made.server(port).rung is Rung.DOWN
    done = made.ask("wake", "chat")
    assert done.ok, done.error
    assert answers(port)
    assert supervisor.server("chat")["state"] == "ready"


def test_who_puts_a_server_to_sleep_whose_supervisor_is_gone_is_told_at_once(described):
    """It was tried again without a pause, and nobody was ever told."""
    made, supervisor, port = described
    made.rules = replace(made.rules, stages=(replace(STOP, after_s=10_000.0),))
    made.start()
    made.until_up(port)
    supervisor.kill()
    refused = made.ask("sleep", "chat")
    assert not refused.ok
    assert refused.error.startswith(f"chat is not asleep: no supervisor that answers runs chat on port {port}")
    assert "memscaler servers list" in refused.error
    asked = len([each for each in made.heard if isinstance(each, Guard) and each.on])
    time.sleep(2)
    assert len([each for each in made.heard if isinstance(each, Guard) and each.on]) == asked
    assert made.server(port).rung is Rung.UP


def test_what_is_as_deep_as_it_goes_is_asleep(described):
    """Whoever wants it asleep has it so."""
    made, _, port = described
    made.start()
    made.until_down(port, Stage.STOP_SERVER)
    for words in (("chat",), ()):
        done = made.ask("sleep", *words)
        assert done.ok, done.error
        assert done.document["servers"] == [{"name": "chat", "stage": "stop-server"}]


def test_a_server_that_an_operator_has_stopped_is_not_said_to_be_awake(described):
    """While it slept. Whoever wakes it is told how to have it back, as often as they ask."""
    made, supervisor, port = described
    made.start()
    made.until_down(port, Stage.STOP_SERVER)
    made.change(port, pids=())
    assert supervisor.ask("stop", "chat").returncode == 0
    for _ in range(2):
        done = made.ask("wake", "chat")
        assert not done.ok
        assert "stopped by an operator" in done.error
        assert "memscaler servers start chat" in done.error
    assert "stopped by an operator" in made.until(port, lambda each: each.why_not).why_not
    refused = made.ask("sleep", "chat")
    assert not refused.ok
    assert "stopped by an operator" in refused.error
    assert supervisor.ask("start", "chat").returncode == 0
    made.change(port, pids=(supervisor.until("chat", "ready")["pid"],))
    made.until_down(port, Stage.STOP_SERVER)
    assert made.ask("wake", "chat").ok


def test_a_server_that_ended_while_it_was_up_is_not_about_to_sleep(described):
    """With its supervisor: nobody listens there."""
    made, _, port = described
    made.rules = replace(made.rules, stages=(replace(STOP, after_s=10_000.0),))
    made.start()
    made.until(port, lambda each: each.next is Stage.STOP_SERVER)
    made.change(port, pids=())
    told = made.until(port, lambda each: each.why_not)
    assert told.why_not == "nobody listens on its port"
    assert told.next is None
    made.change(port, pids=(os.getpid(),))
    made.until(port, lambda each: each.next is Stage.STOP_SERVER)


@pytest.mark.parametrize("wakes", [False, True])
def test_a_supervisor_that_is_killed_and_started_again_brings_its_server_back_by_itself(described, wakes):
    """Noticed when others listen there than before, also by one that tries to wake it in growing pauses."""
    made, supervisor, port = described
    made.start()
    made.until_down(port, Stage.STOP_SERVER)
    made.change(port, pids=())
    supervisor.kill()
    if wakes:
        made.say(Do(99, "wake", ("chat",)))
        made.until(port, lambda each: each.rung is Rung.STUCK)
        time.sleep(4)  # the next attempts are 4 s, 8 s and so on later
    supervisor.begin()
    pid = supervisor.until("chat", "ready")["pid"]
    began_s = time.monotonic()
    made.change(port, pids=(pid,))
    told = made.until_up(port)
    assert time.monotonic() - began_s < 3 * patience()
    assert told.totals[Stage.STOP_SERVER].wakes_s == ()
    assert answers(port)


SUSPEND = Suspend(servers="stop-server", users="ignore", ssh=False, cpu_load=0.0, network_bytes_per_s=0.0)


@pytest.fixture
def logind(tmp_path, monkeypatch):
    """A fake one on a private bus."""
    with a_box(tmp_path) as found:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        yield found


def test_a_suspend_stops_the_servers_and_brings_them_back(logind, described):
    """All of them down before logind is asked; here the machine does not sleep, so they are back at once."""
    made, supervisor, port = described
    made.rules = replace(made.rules, stages=(), suspend=SUSPEND)
    logind.set(sleep="fails")
    made.start()
    first = made.until_up(port)
    assert first.stage is None
    done = made.ask("suspend")
    assert done.ok, done.error
    eventually(lambda: made.told[-1].machine.failed, what=made.said)
    told = made.until_up(port)
    assert told.totals[Stage.STOP_SERVER].entered == 1
    assert told.totals[Stage.STOP_SERVER].left == 1
    assert [each[0] for each in logind.log()].count("SuspendWithFlags") == 1
    assert supervisor.server("chat")["state"] == "ready"


def test_a_suspend_is_called_off_for_a_server_that_cannot_be_stopped(logind, with_vllm):
    """It says which, and how to have it otherwise."""
    made, server = with_vllm
    made.rules = replace(made.rules, stages=(), suspend=SUSPEND)
    made.start()
    made.until_up(server.port)
    assert made.ask("suspend").ok
    eventually(lambda: "called off" in made.told[-1].machine.last, what=lambda: (made.told[-1], made.said()))
    last = made.told[-1].machine.last
    assert "nobody could start port" in last
    assert 'servers = "keep"' in last
    assert "SuspendWithFlags" not in [each[0] for each in logind.log()]


def test_memory_of_the_sleeper(with_vllm):
    """Not a promise, but not to be forgotten: a small process."""
    made, server = with_vllm
    made.start()
    made.until_down(server.port, Stage.SERVER_SLEEP)
    status = Path(f"/proc/{made.process.pid}/status").read_text()
    resident_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    print(f"resident: {resident_mb:.1f} MB")
    assert resident_mb < 100
