"""The governor's side of deeper sleep: what it shows, the watches it keeps armed, and what happens to its child.

The real governor in its own process, with a child whose part the test plays (scripted_sleeper.py), and the real sleeper
where its own behaviour matters.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.scripted_sleeper import environment, launch, scripted, server
from tests.governor import alive, connect, eventually, governing, listener, port_of, stand_still, watch_table
from tests.patience import patience

BOARDS = "a100,a40"
UNMANAGED = '[gpu.gpu0]\nlever = "memory-clock"\n[[watch]]\nport = 1\ngpus = ["gpu1"]\n'  # an A100 has no such lever
STAGE = '[[stage]]\nafter = "1h"\ndo = "server-sleep"\n'


@contextmanager
def played(folder, text, *arguments, boards="a40,a40", **more):
    """A governor, and its sleeper's part."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.toml"
    config.write_text('idle_after = "300ms"\nmin_dwell = 0\n' + text)
    with (
        scripted(folder) as sleeper,
        governing(
            folder / "run",
            boards,
            "--config",
            str(config),
            *arguments,
            prefix=launch(),
            env=environment(folder),
            **more,
        ) as governor,
    ):
        governor.config = config
        sleeper.come()
        yield governor, sleeper


def told(governor, *arguments, check=True):
    """What a command prints."""
    command = [sys.executable, "-m", "memscaler", *arguments, "--runtime-dir", str(governor.runtime_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


def visit(server):
    """A client comes and goes."""
    with connect(server):
        accepted, _ = server.accept()
    accepted.close()


def parked(sleeper, *keys):
    """The first picture in which the GPUs of these servers are parked."""

    def is_so(seen):
        gpus = {uuid for key in keys for uuid in server(seen, key)["gpus"]}
        return all(seen["gpus"][uuid]["state"] == "parked" for uuid in gpus)

    return sleeper.until("seen", is_so)


def test_it_is_told_the_rules_and_the_whole_picture(tmp_path):
    """First the settings, with the names of GPUs, then every GPU and server; then each change."""
    with listener() as web, listener() as other:
        text = f"""[[server]]\nname = "chat"\ncommand = "x --port {port_of(web)}"\ngpus = ["gpu0"]
{STAGE}servers = ["gpu0", "chat"]\n[suspend]\nnever = ["Sat 00:00-24:00"]\n{watch_table(other, "gpu1")}
[gvm]\nroot = "/somewhere/debug"\n"""
        with played(tmp_path, text) as (_, sleeper):
            rules = sleeper.until("settings")
            assert rules["stages"][0]["stage"] == "server-sleep"
            assert rules["stages"][0]["after_s"] == 3600
            assert rules["suspend"]["never"] == [{"days": [5], "begin_min": 0, "end_min": 1440}]
            assert rules["gvm"]["root"] == "/somewhere/debug"  # whose memory is not checkpointed
            seen = sleeper.until("seen")
            chat, second = server(seen, str(port_of(web))), server(seen, str(port_of(other)))
            assert chat["name"] == "chat"
            assert (chat["port"], chat["scope"]) == (port_of(web), "")
            assert chat["gpus"] == [rules["gpu_names"]["gpu0"]]
            assert chat["pids"] == second["pids"] == [os.getpid()]
            assert second["name"] == ""
            assert second["gpus"] == [rules["gpu_names"]["gpu1"]]
            assert set(seen["gpus"]) == {*chat["gpus"], *second["gpus"]}
            now = parked(sleeper, chat["key"], second["key"])
            assert now["gpus"][chat["gpus"][0]]["since_ns"] <= now["at_ns"]
            with connect(other):
                come = sleeper.until("seen", lambda seen: seen["gpus"][second["gpus"][0]]["state"] == "awake")
                assert server(come, second["key"])["live"] == 1
                assert come["gpus"][chat["gpus"][0]]["state"] == "parked"


def test_a_hold_is_told(tmp_path):
    """Also one on a GPU whose state is no other for it; and its end."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        (uuid,) = server(parked(sleeper, str(port_of(web))), str(port_of(web)))["gpus"]
        told(governor, "hold", "gpu0")
        sleeper.until("seen", lambda seen: seen["gpus"][uuid]["held"])
        told(governor, "unhold")
        sleeper.until("seen", lambda seen: not seen["gpus"][uuid]["held"])


def test_without_stages_there_is_no_sleeper(tmp_path):
    """Nothing of it runs, and who asks is told why."""
    with listener() as web, governing(tmp_path, "a40", "--port", f"{port_of(web)}:gpu0") as governor:
        tasks = Path(f"/proc/{governor.pid}/task").glob("*/children")
        assert [int(pid) for task in tasks for pid in task.read_text().split()] == [governor.guardian_pid]
        assert not governor.events("sleeper.started")
        refused = told(governor, "wake", check=False)
        assert refused.returncode == 1
        assert "no deeper sleep is configured" in refused.stderr


def test_a_dry_run_has_no_sleeper(tmp_path):
    """It only watches."""
    config = tmp_path / "config.toml"
    with listener() as web:
        config.write_text(STAGE + watch_table(web, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config), "--dry-run") as governor:
            assert "in a dry run" in told(governor, "wake", check=False).stderr
            assert not governor.events("sleeper.started")


# ---- guards -----------------------------------------------------------------------------------------------------------


def guard(sleeper, *keys, on=True):
    return sleeper.answered(sleeper.say("guard", keys=list(keys), on=on))


@pytest.mark.parametrize("state", ["parked", "unmanaged", "awake"])
def test_who_comes_to_a_guarded_watch_is_told_at_once(tmp_path, state):
    """Whatever its GPU does: parked, never to be parked, or awake because of somebody else's server."""
    with listener() as web, listener() as busy:
        key, text = str(port_of(web)), STAGE + watch_table(web, "gpu0")
        if state == "unmanaged":
            text += UNMANAGED
        if state == "awake":
            text += watch_table(busy, "gpu0")
        boards = BOARDS if state == "unmanaged" else "a40"
        with played(tmp_path, text, boards=boards) as (_, sleeper):
            other = connect(busy) if state == "awake" else None
            (uuid,) = server(sleeper.until("seen"), key)["gpus"]
            sleeper.until("seen", lambda seen: seen["gpus"][uuid]["state"] == state)
            seen = server(guard(sleeper, key), key)
            assert seen["guarded"]
            assert (seen["live"], seen["rang"]) == (0, False)
            while not sleeper.nothing_for(0.3):  # the GPU may have been looked at meanwhile
                sleeper.hear()
            began_s = time.monotonic()
            with connect(web):
                come = sleeper.until("seen", lambda seen: server(seen, key)["rang"])
                took_s = time.monotonic() - began_s
                assert server(come, key)["live"] == 1
            assert took_s < 0.5 * patience()
            if other is not None:
                other.close()


def test_a_guarded_watch_rings_again_and_again(tmp_path):
    """Short visits, one after the other: each is told, by its ring or by the times of the counters."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (_, sleeper):
        key = str(port_of(web))
        parked(sleeper, key)
        guard(sleeper, key)
        for _ in range(5):
            before_ns = time.monotonic_ns()
            visit(web)
            sleeper.until("seen", lambda seen, since_ns=before_ns: server(seen, key)["last_activity_ns"] >= since_ns)
            sleeper.until("seen", lambda seen: not server(seen, key)["live"])
            time.sleep(0.15)


def test_a_crowd_at_a_guarded_watch_is_told_ten_times_a_second_at_most(tmp_path):
    """However many come."""
    with (
        listener() as web,
        played(tmp_path, STAGE + watch_table(web, "gpu0") + UNMANAGED, boards=BOARDS) as (_, sleeper),
    ):
        key = str(port_of(web))
        guard(sleeper, key)
        before = len(sleeper.heard)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 1:
            visit(web)
        while not sleeper.nothing_for(0.3):
            sleeper.hear()
        lasted_s = time.monotonic() - began_s
        assert 2 <= len(sleeper.heard) - before <= 2 + 25 * lasted_s  # the ring, and the look when it is armed again


def test_a_guard_wakes_its_gpu_as_ever(tmp_path):
    """Promise 1 does not know of guards: a client of a parked GPU wakes it, before and after guards come and go."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        key, board = str(port_of(web)), governor.driver.boards[0]
        for turn in range(6):
            parked(sleeper, key)
            guard(sleeper, key, on=turn % 2 == 0)
            with connect(web):
                accepted, _ = web.accept()
                eventually(lambda: not board.locks, within_s=1, what="the wake")
                sleeper.until("seen", lambda seen: server(seen, key)["live"] == 1)
            accepted.close()


def test_what_is_said_on_a_silent_connection_rings(tmp_path):
    """A client that stayed connected and comes back is heard, though its GPU cannot be parked."""
    with listener() as web:
        text = 'touch = "off"\n' + watch_table(web, "gpu0") + UNMANAGED + STAGE
        with played(tmp_path, text, boards=BOARDS, by_connections=False) as (_, sleeper):
            key = str(port_of(web))
            with connect(web) as client:
                accepted, _ = web.accept()
                client.sendall(b"x" * 2000)
                accepted.recv(4096)
                accepted.sendall(b"y" * 2000)
                client.recv(4096)

                def is_silent():
                    return not server(sleeper.answered(sleeper.say("look")), key)["live"]

                eventually(is_silent, within_s=10)
                assert not server(guard(sleeper, key), key)["live"]
                client.sendall(b"again")
                sleeper.until("seen", lambda seen: server(seen, key)["rang"])
                eventually(lambda: not is_silent(), within_s=5)
                accepted.close()


def test_a_look_compares_with_the_sockets(tmp_path):
    """What the answer says was true after the question."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (_, sleeper):
        key = str(port_of(web))
        parked(sleeper, key)
        with connect(web):
            accepted, _ = web.accept()
            assert server(sleeper.answered(sleeper.say("look")), key)["live"] == 1
        accepted.close()
        eventually(lambda: not server(sleeper.answered(sleeper.say("look")), key)["live"])


def test_a_guarded_server_that_stops_is_watched_on(tmp_path):
    """Its port has no listener, its GPUs no context: it keeps both, until it is back and nobody guards it."""
    script = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    with listener() as free:
        port = port_of(free)
    command = [sys.executable, "-c", script, str(port)]
    first = subprocess.Popen(command)
    try:
        eventually(lambda: not _refuses(port))
        text = f"{STAGE}[[watch]]\nport = {port}\n"
        with played(tmp_path, text, boards="a40") as (governor, sleeper):
            uuid = governor.driver.boards[0].uuid
            governor.driver.boards[0].add_process(first.pid)
            sleeper.until("seen", lambda seen: server(seen, str(port))["gpus"] == [uuid])
            assert server(guard(sleeper, str(port)), str(port))["guarded"]
            first.kill()
            first.wait()
            governor.driver.boards[0].remove_process(first.pid)
            gone = sleeper.until("seen", lambda seen: not server(seen, str(port))["pids"])
            assert server(gone, str(port))["gpus"] == [uuid]
            time.sleep(1.5)  # the scout has looked again
            still = sleeper.answered(sleeper.say("look"))
            assert server(still, str(port))["gpus"] == [uuid]
            second = subprocess.Popen(command)
            try:
                sleeper.until("seen", lambda seen: server(seen, str(port))["pids"] == [second.pid])
            finally:
                second.kill()
                second.wait()
    finally:
        first.kill()
        first.wait()


def _refuses(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_our_own_connections_are_nobodys(tmp_path):
    """One that was announced neither rings nor wakes nor counts; one that was not does."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (_, sleeper):
        key, address = str(port_of(web)), web.getsockname()
        parked(sleeper, key)
        guard(sleeper, key)
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))
            number = sleeper.say("announce", key=key, local=mine.getsockname(), to=address)
            assert sleeper.until("announced") == {"id": number, "ok": True}
            again = sleeper.say("announce", key=key, local=mine.getsockname(), to=address)
            assert sleeper.until("announced") == {"id": again, "ok": False}
            mine.connect(address)
            accepted, _ = web.accept()
            seen = sleeper.answered(sleeper.say("look"))
            assert (server(seen, key)["live"], server(seen, key)["rang"]) == (0, False)
            assert {gpu["state"] for gpu in seen["gpus"].values()} == {"parked"}
            mine.close()
            accepted.close()
            sleeper.say("forget", id=number)
        with connect(web):
            sleeper.until("seen", lambda seen: server(seen, key)["rang"])


# ---- operators ----------------------------------------------------------------------------------------------------------


def test_wishes_are_passed_on_and_answered(tmp_path):
    """With who wants it; the answer is the sleeper's, good or bad, however long that takes."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        for arguments, what, answer, code, says in (
            (["wake", "a", "8080"], {"what": "wake", "servers": ["a", "8080"]}, {}, 0, "a up was in checkpoint"),
            (["sleep", "--stage", "checkpoint"], {"what": "sleep", "stage": "checkpoint"}, {}, 0, "a checkpoint"),
            (["sleep", "a"], {"what": "sleep", "stage": None}, {"ok": False, "error": "a is used"}, 1, "a is used"),
            (["suspend", "never", "--for", "1h"], {"what": "never", "for_s": 3600}, {}, 0, "stays up"),
        ):
            command = [sys.executable, "-m", "memscaler", *arguments, "--runtime-dir", str(governor.runtime_dir)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asking:
                wish = sleeper.until("do")
                assert wish["by"] == "root"
                assert {key: wish[key] for key in what} == what
                document = {"servers": [{"name": "a", "was": "checkpoint", "stage": "checkpoint"}]}
                sleeper.say("done", id=wish["id"], document=document, **answer)
                output, _ = asking.communicate(timeout=30)
            assert asking.returncode == code, output
            assert says in " ".join(output.split()), output


def test_a_wish_that_is_none_is_refused(tmp_path):
    """By the command, and by the control socket."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, _):
        assert told(governor, "sleep", "--stage", "nap", check=False).returncode == 2
        assert told(governor, "sleep", "--stage", "suspend", check=False).returncode == 2
        for route, body in (
            ("sleep", {"stage": "park"}),
            ("wake", {"servers": "a"}),
            ("wake", {"servers": ["a"] * 65}),
            ("suspend", {"do": "hibernate"}),
            ("suspend", {"wake_unix_s": -1}),
            ("suspend", {"force": 1}),
        ):
            assert b"HTTP/1.1 400" in asked(governor, "POST", route, body), (route, body)
        assert b"HTTP/1.1 405" in asked(governor, "GET", "wake", {})


def asked(governor, method, route, body, uid=0, gid=0):
    """The head and the body of an answer, as this user gets it."""
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setgroups([]); os.setgid(int(sys.argv[3]));"
        "os.setuid(int(sys.argv[4])); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode());"
        "s.settimeout(30); sys.stdout.buffer.write(s.recv(65536))"
    )
    data = json.dumps(body)
    request = f"{method} /v1/{route} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n{data}"
    path = str(governor.runtime_dir / "control.sock")
    return subprocess.run(
        [sys.executable, "-c", code, path, request, str(gid), str(uid)], capture_output=True, check=False, timeout=60
    ).stdout


# ---- a sleeper that fails -------------------------------------------------------------------------------------------------


def test_a_sleeper_that_dies_is_replaced(tmp_path):
    """The governor says so, who waits is answered, guards are forgotten, and the next one comes after a pause."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        key = str(port_of(web))
        parked(sleeper, key)
        guard(sleeper, key)
        sleeper.say("sleep", pid=1, servers=[{"name": "a", "port": 1, "stage": "checkpoint", "rung": "down"}])
        eventually(lambda: status(governor)["servers"])
        assert status(governor)["pid"] == sleeper.pid
        command = [sys.executable, "-m", "memscaler", "wake", "--runtime-dir", str(governor.runtime_dir)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as asking:
            sleeper.until("do")
            os.kill(sleeper.pid, signal.SIGKILL)
            told = asking.communicate(timeout=30)[1]
            assert "the sleeper has died" in told
            assert "the next one brings back first what sleeps" in told
        (died,) = governor.events("sleeper.died")
        assert died["err"] == "killed by SIGKILL"
        assert status(governor)["servers"][0]["stage"] == "checkpoint"  # nobody has left it yet
        sleeper.come()
        sleeper.until("settings")
        assert not server(sleeper.until("seen"), key)["guarded"]
        assert not status(governor)["problem"]
        os.kill(sleeper.pid, signal.SIGKILL)
        eventually(lambda: status(governor)["problem"] or len(governor.events("sleeper.started")) > 2)
        sleeper.come()
        assert [event["again_in_s"] for event in governor.events("sleeper.died")] == [0.1, 0.2]
        with connect(web):
            eventually(lambda: not governor.driver.boards[0].locks)


def status(governor):
    return json.loads(told(governor, "status", "--json").stdout)["sleep"]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"{",
        b"[]",
        b'{"guard": {}}',
        b'{"guard": {"id": "1", "keys": [], "on": true}}',
        b'{"sleep": {"servers": [{"stage": "nap"}]}}',
        b"[" * 100_000,
        b'{"sleep": 1, "look": 2}',
    ],
)
def test_a_sleeper_that_makes_no_sense_is_killed(tmp_path, nonsense):
    """And replaced; the governor goes on."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        before = sleeper.pid
        sleeper.say_raw(nonsense)
        sleeper.come()
        assert sleeper.pid != before
        assert governor.events("sleeper.makes_no_sense")
        parked(sleeper, str(port_of(web)))


def test_words_of_a_later_version_are_passed_over(tmp_path):
    """Also keys that do not exist, and announcements that make no sense."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        sleeper.say("dance", now=True)
        sleeper.say("forget", id=99999)
        sleeper.say("done", id=99999)
        seen = guard(sleeper, "1", "no key")
        assert not any(each["guarded"] for each in seen["servers"])
        key = str(port_of(web))
        for local, to in ((["x", 1], ["127.0.0.1", 2]), (["127.0.0.1", 99999], ["127.0.0.1", 2])):
            sleeper.say("announce", key=key, local=local, to=to)
            assert not sleeper.until("announced")["ok"]
        sleeper.say("announce", key="1", local=["127.0.0.1", 1], to=["127.0.0.1", 1])
        assert sleeper.until("announced")["ok"]  # nobody counts there
        assert not governor.events("sleeper.died")


def test_a_sleeper_that_stands_still_holds_nobody_up(tmp_path):
    """Its messages wait for a while, the governor does not; then it is replaced, for it would wake nobody."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        parked(sleeper, str(port_of(web)))
        sleeper.answered(sleeper.say("look"))  # one that has not spoken yet has more time
        os.kill(sleeper.pid, signal.SIGSTOP)
        for _ in range(3):
            with connect(web):
                accepted, _ = web.accept()
                eventually(lambda: not governor.driver.boards[0].locks, within_s=2)
            accepted.close()
            eventually(lambda: governor.driver.boards[0].locks)
        before = sleeper.pid
        sleeper.come()
        assert sleeper.pid != before
        assert governor.events("sleeper.stands_still")
        sleeper.answered(sleeper.say("look"))


def test_one_that_goes_while_it_is_answered_is_only_gone(tmp_path):
    """It asks something, and nobody is there any more to be told: the governor finds that out twice."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        parked(sleeper, str(port_of(web)))
        before = sleeper.pid
        stand_still(governor.pid)
        sleeper.say("look")
        sleeper.say("look")
        sleeper.bye()
        eventually(lambda: not alive(before))
        os.kill(governor.pid, signal.SIGCONT)
        sleeper.come()
        assert not governor.ended()
        assert not governor.events("memscaler.failed")


# ---- reload, stop ----------------------------------------------------------------------------------------------------------


def test_a_reload_tells_the_rules_begins_and_ends_it(tmp_path):
    """Other stages are told; without stages it is to end; with stages again there is a new one."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        sleeper.until("settings")
        text = governor.config.read_text()
        governor.config.write_text(text.replace('"1h"', '"2h"'))
        assert "stage server-sleep: after 3600s -> 7200s" in told(governor, "reload").stdout
        assert sleeper.until("settings")["stages"][0]["after_s"] == 7200
        governor.config.write_text(text.replace(STAGE, ""))
        told(governor, "reload")
        sleeper.until("end")
        assert "about to end" in told(governor, "wake", check=False).stderr
        sleeper.bye()
        eventually(lambda: governor.events("sleeper.ended"))
        assert "no deeper sleep is configured" in told(governor, "wake", check=False).stderr
        governor.config.write_text(text)
        told(governor, "reload")
        sleeper.come()
        assert sleeper.until("settings")["stages"][0]["after_s"] == 3600


def test_the_end_waits_for_what_sleeps_and_wakes_gpus_at_once(tmp_path):
    """`end` is said, the GPUs are at full speed within the second, and the governor stays until the sleeper has gone."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        key = str(port_of(web))
        parked(sleeper, key)
        guard(sleeper, key)
        governor.process.terminate()
        sleeper.until("end")
        eventually(lambda: not governor.driver.boards[0].locks, within_s=1)
        time.sleep(2)
        assert not governor.ended()
        number = sleeper.say("announce", key=key, local=["127.0.0.1", 1], to=["127.0.0.1", port_of(web)])
        assert sleeper.until("announced")["id"] == number  # it is served to its end
        sleeper.bye()
        assert governor.process.wait(10) == 0


def test_who_does_not_want_to_wait_at_the_end_stops_twice(tmp_path):
    """The governor goes, the sleeper goes on alone; its journal says what is left."""
    with listener() as web, played(tmp_path, STAGE + watch_table(web, "gpu0")) as (governor, sleeper):
        parked(sleeper, str(port_of(web)))
        governor.process.send_signal(signal.SIGINT)
        sleeper.until("end")
        time.sleep(1.5)
        assert not governor.ended()
        governor.process.send_signal(signal.SIGINT)
        assert governor.process.wait(10) == 0
        assert governor.events("sleeper.left")


def test_the_time_to_wait_at_the_end_is_bounded(tmp_path):
    """By what leaving a stage may take."""
    text = STAGE + 'leave_timeout = "1s"\n'
    with listener() as web, played(tmp_path, text + watch_table(web, "gpu0")) as (governor, sleeper):
        parked(sleeper, str(port_of(web)))
        governor.process.terminate()
        sleeper.until("end")
        assert governor.process.wait(30) == 0


# ---- the real one -----------------------------------------------------------------------------------------------------------


def test_the_real_sleeper_lives_and_dies_with_the_governor(tmp_path):
    """It answers, it is replaced when it dies, it goes at once when nothing sleeps, also if the governor is killed."""
    config = tmp_path / "config.toml"
    with listener() as web:
        config.write_text(STAGE + watch_table(web, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config), "--idle-after", "300ms") as governor:
            first = eventually(lambda: governor.events("sleeper.started"))[-1]["pid"]
            answer = json.loads(told(governor, "wake", "--json").stdout)
            assert [each["name"] for each in answer["servers"]] == [f"port {port_of(web)}"]
            os.kill(first, signal.SIGKILL)
            second = eventually(
                lambda: [event["pid"] for event in governor.events("sleeper.started") if event["pid"] != first]
            )[-1]
            assert governor.stop() == 0
            assert not alive(second)
        with governing(tmp_path / "run", "a40", "--config", str(config), "--idle-after", "300ms") as governor:
            last = eventually(lambda: governor.events("sleeper.started"))[-1]["pid"]
            governor.process.kill()
            eventually(lambda: not alive(last))
