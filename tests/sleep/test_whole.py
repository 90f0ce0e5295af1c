"""The real governor, its real sleeper and guardian, and a fake vLLM: whatever dies or stands still, clients are served."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from tests.governor import alive, eventually, governing
from tests.patience import patience
from tests.servers.bench import free_port
from tests.servers.steered import steered
from tests.sleep.drivers.benches import Vllm

STAGE = '[[stage]]\ndo = "server-sleep"\nafter = "500ms"\n'


def told(governor, *arguments):
    """What a command prints."""
    command = [sys.executable, "-m", "memscaler", *arguments, "--runtime-dir", str(governor.runtime_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * patience())


@contextlib.contextmanager
def whole(folder, *servers, text=STAGE, boards="a40", head="", **more):
    """A governor of these servers, on one GPU."""
    config = folder / "config.toml"
    watches = "".join(f'[[watch]]\nport = {server.port}\ngpus = ["gpu0"]\n' for server in servers)
    config.write_text(f'idle_after = "300ms"\nmin_dwell = 0\n{head}{text}{watches}')
    with governing(folder / "run", boards, "--config", str(config), **more) as governor:
        yield governor


@pytest.fixture
def server(tmp_path):
    """A vLLM that may sleep, and is on no board that anybody could look at."""
    folder = tmp_path / "vllm"
    folder.mkdir()
    made = Vllm(folder, None, "--enable-sleep-mode")
    yield made
    made.kill()


def sleeps(server):
    """Asked without asking it: that would be a client."""
    calls = [call for call in server.calls() if "/sleep?" in call or "/wake_up" in call]
    return bool(calls) and "/sleep?" in calls[-1]


def down(governor, server):
    """It is in its stage, and the governor has been told."""
    eventually(lambda: sleeps(server), within_s=30, what="it sleeps")
    eventually(lambda: stages(governor)[0]["rung"] == "down", within_s=30, what="it is down")


def stages(governor):
    return json.loads(told(governor, "status", "--json").stdout)["sleep"]["servers"]


def change(governor, old, new):
    """Another configuration, by a reload."""
    config = governor.runtime_dir.parent / "config.toml"
    config.write_text(config.read_text().replace(old, new))
    assert told(governor, "reload").returncode == 0


def sleeper(governor):
    return governor.events("sleeper.started")[-1]["pid"]


def test_a_sleeper_that_stands_still_is_replaced(tmp_path, server):
    """Nobody else would wake its servers."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        first = sleeper(governor)
        os.kill(first, signal.SIGSTOP)
        assert server.complete() == "hello"
        assert governor.events("sleeper.stands_still")
        eventually(lambda: sleeper(governor) != first)
        assert not alive(first)


def test_clients_of_a_governor_that_stands_still_are_served(tmp_path, server):
    """The guardian wakes the GPUs, the sleeper its servers; when the governor goes on it begins anew."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        os.kill(governor.pid, signal.SIGSTOP)
        try:
            assert server.complete() == "hello"
        finally:
            os.kill(governor.pid, signal.SIGCONT)
        down(governor, server)


def test_what_a_sleeper_that_stands_still_has_put_to_sleep_is_brought_back_when_the_governor_dies(tmp_path, server):
    """By the guardian, who waits for no sleeper that does nothing."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        last = sleeper(governor)
        os.kill(last, signal.SIGSTOP)
        governor.process.kill()
        assert server.complete() == "hello"
        eventually(lambda: not alive(last))


def kill_all(governor):
    for pid in (governor.guardian_pid, sleeper(governor), governor.pid):
        os.kill(pid, signal.SIGKILL)
    governor.process.wait()


@pytest.mark.parametrize("driver", [True, False])
def test_restore_brings_back_what_a_crash_of_all_has_left(tmp_path, server, driver):
    """Also where the GPUs' driver does not answer any more."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        eventually(lambda: list((tmp_path / "run/journal").iterdir()), what="a park")
        kill_all(governor)
        assert sleeps(server)
        done = told(governor, "restore", *(["--simulate", "a40"] if driver else []))
        assert done.returncode == (0 if driver else 69), done.stderr
        assert f"port {server.port}: back from server-sleep" in done.stdout
        assert server.complete() == "hello"


def test_a_governor_without_stages_brings_back_what_a_crash_has_left(tmp_path, server):
    """And then it has no sleeper any more."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        kill_all(governor)
    with governing(tmp_path / "run", "a40", "--port", f"{server.port}:gpu0") as governor:
        assert server.complete() == "hello"
        eventually(lambda: governor.events("sleeper.ended"))
        assert governor.events("stage.found")
        assert not alive(sleeper(governor))


def test_a_reload_while_it_falls_asleep_is_no_hang(tmp_path, server):
    """Other rules are no reason to think that a call does not end."""
    with whole(tmp_path, server) as governor:
        server.faults(sleep_s=8.0)
        eventually(lambda: "entering" in [each["rung"] for each in stages(governor)], within_s=30)
        change(governor, "500ms", "600ms")
        down(governor, server)
        assert not governor.events("stage.stuck")


def test_a_sleeper_that_dies_on_its_way_out_is_replaced_all_the_same(tmp_path, server):
    """A reload has taken away the stages, but nobody has left them yet."""
    with whole(tmp_path, server) as governor:
        down(governor, server)
        server.faults(wake_s=3.0)
        first = sleeper(governor)
        change(governor, STAGE, "")
        eventually(lambda: "leaving" in [each["rung"] for each in stages(governor)], within_s=30)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: sleeper(governor) != first)
        eventually(lambda: governor.events("sleeper.ended"), within_s=30)
        assert not list((tmp_path / "run/sleep").glob("*.json"))
        assert server.complete() == "hello"


@pytest.mark.parametrize("wake_on", ["connection", "work"])
def test_health_checks_keep_a_server_up_or_let_it_sleep_but_never_toss_it_about(tmp_path, server, wake_on):
    """Each would wake it at once (the default), so it is not put to sleep between them."""
    over = threading.Event()

    def check():
        while not over.wait(0.5):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=30) as answer:
                answer.read()

    text = STAGE.replace("500ms", "4s") + f'wake_on = "{wake_on}"\n'
    checker = threading.Thread(target=check)
    checker.start()
    try:
        with whole(tmp_path, server, text=text, by_connections=False) as governor:
            if wake_on == "work":
                down(governor, server)
                time.sleep(3)
                eventually(lambda: sleeps(server), within_s=30)  # a check that was answered late is a visit
                assert server.complete() == "hello"
            else:
                time.sleep(12)
            assert ("POST /sleep?level=1&mode=wait" in server.calls()) is (wake_on == "work")
    finally:
        over.set()
        checker.join()


def test_where_no_gpu_can_be_parked_servers_sleep_deeper_all_the_same(tmp_path, server):
    """Without a stage there would be nothing to do, and it would not start."""
    with whole(tmp_path, server, boards="a100", head='[gpu.gpu0]\nlever = "memory-clock"\n') as governor:
        down(governor, server)
        assert server.complete() == "hello"


def test_a_server_of_another_users_supervisor_is_stopped_and_started(tmp_path, monkeypatch):
    """By a governor that was started by hand, which has given up most rights of root."""
    with steered() as made:
        port = free_port()
        made.describe({"name": "chat", "command": made.small("--port", port), "port": port, "gpus": []})
        made.begin()
        made.until("chat", "ready")
        (made.folder / "memscaler-servers").symlink_to("run")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.folder))
        text = f"""[[stage]]\ndo = "stop-server"\nafter = "500ms"
[[server]]\nname = "chat"\ncommand = "x --port {port}"\nport = {port}\ngpus = ["gpu0"]\n"""
        with whole(tmp_path, text=text) as governor:
            made.until("chat", "stopped")
            eventually(lambda: stages(governor)[0]["rung"] == "down", within_s=30)
            done = told(governor, "wake", "chat")
            assert done.returncode == 0, done.stderr
            made.until("chat", "ready")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
                assert answer.status == 200
            made.until("chat", "stopped")
            began_s = time.monotonic()
            kill_at_once(governor)
            made.until("chat", "ready")
            print(f"back after {time.monotonic() - began_s:.1f} s")


def kill_at_once(governor):
    """Governor and sleeper; the guardian is left."""
    os.kill(sleeper(governor), signal.SIGKILL)
    governor.process.kill()


def test_a_stage_that_comes_with_a_reload_says_that_it_may_not_ask_the_supervisor(tmp_path, monkeypatch):
    """A governor without stages gives up the right that it would need; a restart has it again."""
    with steered() as made:
        port = free_port()
        made.describe({"name": "chat", "command": made.small("--port", port), "port": port, "gpus": []})
        made.begin()
        made.until("chat", "ready")
        (made.folder / "memscaler-servers").symlink_to("run")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.folder))
        text = f"""[[server]]\nname = "chat"\ncommand = "x --port {port}"\nport = {port}\ngpus = ["gpu0"]\n"""
        stage = '[[stage]]\ndo = "stop-server"\nafter = "500ms"\n'
        with whole(tmp_path, text=text) as governor:
            change(governor, text, stage + text)

            def problem():
                return (json.loads(told(governor, "status", "--json").stdout)["sleep"] or {}).get("problem", "")

            said = eventually(problem, within_s=30)
            assert "memscaler may not ask the supervisor in" in said
            assert "so chat cannot be stopped: restart memscaler" in said
            assert "memscaler may not ask" in " ".join(told(governor, "status").stdout.split())
            assert made.server("chat")["state"] == "ready"
