"""How servers are started, watched, restarted and ended: real processes, of an unprivileged supervisor."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from memscaler.servers.child import Process
from tests.servers.bench import NOBODY, PYTHON, alive, bench, eventually, free_port, ours


@pytest.fixture
def b():
    with bench() as made:
        yield made


def pid_of_child(b, name):
    """That it has started, as it says itself."""
    text = eventually(lambda: b.output(name).rpartition("child ")[2].partition("\n")[0])
    return int(text)


def test_a_server_starts_clean_and_unprivileged(b):
    """Its own session, no input, no ignored or blocked signal, no descriptor of ours, its variables and directory."""
    facts = b.folder / "state/facts"
    environment = {"GREETING": "hello there", "PATH": "/usr/bin:/bin"}
    server = {"name": "a", "command": b.small("--facts", facts), "environment": environment, "directory": "/tmp"}
    b.describe(server)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as below nohup, or in a shell's background
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        b.start(env={"NOTIFY_SOCKET": "/nonexistent", "JOURNAL_STREAM": "1:2"})
    finally:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    pid = b.until("a", "ready")["pid"]
    seen = json.loads(eventually(lambda: facts.exists() and facts.read_text()))
    assert seen["uid"] == NOBODY
    assert seen["sid"] == seen["pid"] == pid
    assert seen["cwd"] == "/tmp"
    assert seen["stdin"] == "/dev/null"
    assert seen["fds"] == ["0", "1", "2", "3"]  # the last is that of the listing itself
    assert int(seen["blocked"], 16) == 0
    pythons_own = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    libcs_own = 3 << 32 - 1  # 32 and 33 cannot be changed by programs, and come from whoever started the tests
    assert int(seen["ignored"], 16) & ~(pythons_own | libcs_own) == 0
    assert seen["environment"]["GREETING"] == "hello there"
    assert not {"NOTIFY_SOCKET", "JOURNAL_STREAM"} & seen["environment"].keys()


def test_what_cannot_be_started_fails_at_once_and_says_why(b):
    """No crash loop: no file, no right, no directory, no model, no interpreter; the others are not kept from starting."""
    for name, mode in (("plain", 0o644), ("odd", 0o755)):
        file = b.folder / name
        file.write_text("#!/no/such/interpreter\n")
        file.chmod(mode)
    secret = b.folder / "secret.gguf"
    secret.write_text("x")
    secret.chmod(0o600)
    good = b.small()
    expected = {
        "file": ({"command": ["/no/such/program"]}, "/no/such/program: no such program"),
        "path": ({"command": ["no-such-program"]}, "no-such-program: no such program in PATH"),
        "right": ({"command": [str(b.folder / "plain")]}, "plain: not executable for this user"),
        "first": (
            {"command": [str(b.folder / "odd")]},
            "odd: its interpreter (the first line of the file) is not there",
        ),
        "folder": ({"command": good, "directory": "/no/such/folder"}, "directory /no/such/folder: no such directory"),
        "model": ({"command": [*good, "-m", "/no/model.gguf"]}, "model /no/model.gguf: no such file"),
        "secret": ({"command": [*good, "-m", str(secret)]}, "secret.gguf: permission denied for this user"),
    }
    b.describe(*({"name": name, **server} for name, (server, _) in expected.items()), {"name": "good", "command": good})
    b.start()
    b.until("good", "ready")
    for name, (_, why) in expected.items():
        report = b.until(name, "failed")
        assert report["reason"].startswith("cannot be started: "), report
        assert why in report["reason"]
        assert report["restarts"] == 0
    assert len(b.events("server.started")) == 1


def test_a_killed_server_is_started_again(b):
    """Kill -9: another process, ready again, counted."""
    port = free_port()
    b.describe({"name": "a", "command": b.small("--port", port), "port": port})
    b.start()
    first = b.until("a", "ready")
    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: b.server("a")["restarts"] == 1, what=b.said)
    again = b.until("a", "ready")
    assert again["pid"] != first["pid"]
    assert again["ended"] == "SIGKILL"
    assert b.events("server.ended", server="a", how="SIGKILL", wanted=False)


def test_a_killed_one_has_no_reason_of_its_own(b):
    """What it said at its start, however it sounds, is not why it was killed."""
    words = b.small("--say", "no such device: error ignored\nlistening")
    b.describe({"name": "a", "command": words, "health": "off", "restart_after": "60s"})
    b.start()
    pid = b.until("a", "ready")["pid"]
    eventually(lambda: "listening" in b.output("a"))
    os.kill(pid, signal.SIGKILL)
    assert b.until("a", "waiting")["reason"].endswith("SIGKILL; its last words: listening")


def test_a_crash_loop_is_ended_with_the_last_words(b):
    """Pauses that double, then FAILED, with how it ended and what it said; an operator's apply of the same changes nothing."""
    command = b.small("--say", "error: no CUDA-capable device is detected", "--exit", 3)
    b.describe({"name": "a", "command": command, "port": free_port(), "restart_limit": 3})
    b.start()
    report = b.until("a", "failed")
    assert (
        "exit status 3; its last words: error: no CUDA-capable device is detected (4 times in a row)"
        in report["reason"]
    )
    assert (report["restarts"], report["ended"], report["pid"]) == (3, "exit status 3", None)
    assert [event["again_s"] for event in b.events("server.waiting")] == [0.1, 0.2, 0.4]
    assert len(b.events("server.started")) == 4
    b.reload()
    assert b.server("a")["state"] == "failed"


def test_a_taken_port_is_told_with_who_has_it(b):
    """It is not started into a crash; once the port is free it is."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        b.describe({"name": "a", "command": b.small("--port", port), "port": port, "restart_limit": 0})
        b.start()
        report = b.until("a", "waiting")
        assert report["reason"] == f"port {port} is taken by a process of another user"
        assert report["starts_unix_s"] > report["since_unix_s"]
        assert not b.events("server.started")
    b.until("a", "ready")


def test_two_servers_on_one_port(b):
    """The second one is told which process has it, and fails in the end."""
    port = free_port()
    b.describe({"name": "a", "command": b.small("--port", port), "port": port})
    b.start()
    pid = b.until("a", "ready")["pid"]
    command = [PYTHON, str(b.folder / "small.py"), "--port", str(port)]
    b.describe(
        {"name": "a", "command": b.small("--port", port), "port": port},
        {
            "name": "b",
            "command": ["sh", "-c", 'exec "$@"', "sh", *command],
            "environment": {"LLAMA_ARG_PORT": port},
            "restart_limit": 1,
        },
    )
    b.reload()
    if "b" not in b.report():  # two descriptions of one port are refused before they get here
        assert b.events("reload.refused")
        return
    assert f"port {port} is taken by python3 (pid {pid})" in b.until("b", "failed")["reason"]


def test_a_stubborn_server_and_its_stubborn_child_are_killed(b):
    """SIGTERM for all of its processes, and SIGKILL after stop_timeout."""
    b.describe({"name": "a", "command": b.small("--stubborn", "--child", "stubborn"), "stop_timeout": "500ms"})
    b.start()
    pid = b.until("a", "ready")["pid"]
    until_stubborn(b, "a")
    child = pid_of_child(b, "a")
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert not alive(pid)
    assert not alive(child)
    assert b.events("server.ended", how="SIGKILL", wanted=True)


def test_what_a_dead_server_has_left_behind_is_gone_before_the_next_one(b):
    """Its child ignores SIGTERM, and would keep its port or the GPU's memory."""
    b.describe({"name": "a", "command": b.small("--child", "stubborn")})
    b.start()
    pid = b.until("a", "ready")["pid"]
    child = pid_of_child(b, "a")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: b.server("a")["restarts"] == 1, what=b.said)
    assert not alive(child)
    b.until("a", "ready")


def test_a_child_that_ends_well_gets_the_time_for_it(b):
    """The leader is gone at once; what cleans up for a second is not killed meanwhile."""
    done = b.folder / "state/done"
    slow = f"import signal, time, sys; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open({str(done)!r}, 'w'), sys.exit())); print('child', __import__('os').getpid(), flush=True); time.sleep(100)"
    b.describe({"name": "a", "command": ["sh", "-c", f'{PYTHON} -c "$0" & wait', slow]})
    b.start()
    b.until("a", "ready")
    child = pid_of_child(b, "a")
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert done.exists()
    assert not alive(child)


def test_servers_are_stopped_at_the_same_time(b):
    """Four that need a second each to be killed end within much less than four."""
    b.describe(*({"name": f"s{n}", "command": b.small("--stubborn"), "stop_timeout": "2s"} for n in range(4)))
    b.start()
    for n in range(4):
        b.until(f"s{n}", "ready")
        until_stubborn(b, f"s{n}")
    b.send(signal.SIGINT)
    assert b.ended() == 0
    stopping = b.events("server.stopping")
    ended = b.events("server.ended")
    assert len(stopping) == len(ended) == 4
    assert max(each["timestamp"] for each in stopping) < min(each["timestamp"] for each in ended)
    assert not ours(b.folder)


def test_a_second_signal_hurries(b):
    """Ctrl-C twice does not wait for stop_timeout."""
    b.describe({"name": "a", "command": b.small("--stubborn"), "stop_timeout": "10m"})
    b.start()
    b.until("a", "ready")
    until_stubborn(b, "a")
    b.send(signal.SIGINT)
    eventually(lambda: b.server("a")["state"] == "stopping")
    b.send(signal.SIGINT)
    assert b.ended() == 0
    assert not ours(b.folder)


def until_stubborn(b, name):
    """A server without a port is ready when it runs: it may not ignore SIGTERM yet."""
    eventually(lambda: int(_status(b.server(name)["pid"], "SigIgn"), 16) & 1 << signal.SIGTERM - 1)


def _status(pid, field):
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(field))


@pytest.mark.parametrize(
    ("words", "heard"),
    [
        (("--rubbish",), "does not speak HTTP"),
        (("--status", 404), "answers GET /health with status 404, not with 200"),
        (("--load", -1), "loading model"),
        ((), "nobody listens on port"),
    ],
)
def test_a_server_that_does_not_become_ready_is_given_up_with_what_it_said(b, words, heard):
    """STARTING with the reason, until start_timeout."""
    port = free_port()
    on = ("--port", port) if words else ()
    server = {"name": "a", "command": b.small(*on, *words), "port": port, "start_timeout": "3s", "restart": "never"}
    b.describe(server)
    b.start()
    eventually(lambda: heard in b.server("a")["reason"] and b.server("a")["state"] == "starting", what=b.said)
    report = b.until("a", "failed")
    assert report["reason"].startswith("not ready within 3 s: ")
    assert heard in report["reason"]
    assert not ours(b.folder) or ours(b.folder) == [b.pid]


def test_loading_is_waited_for(b):
    """503 for two seconds, then 200: ready, started once."""
    port = free_port()
    b.describe({"name": "a", "command": b.small("--port", port, "--load", 2), "port": port})
    b.start()
    eventually(lambda: b.server("a")["reason"] == "loading model")
    assert b.until("a", "ready")["reason"] == ""
    assert len(b.events("server.started")) == 1


def test_health_is_asked_again_only_where_that_is_wanted(b):
    """The one with health_every is restarted when it answers 500, the other is left alone: a look wakes the GPU."""
    broken = b.folder / "state/broken"
    servers = []
    for name, more in (("asked", {"health_every": "100ms"}), ("left", {})):
        port = free_port()
        servers.append({"name": name, "command": b.small("--port", port, "--break", broken), "port": port, **more})
    b.describe(*servers)
    b.start()
    b.until("asked", "ready")
    pid = b.until("left", "ready")["pid"]
    broken.write_text("")
    eventually(lambda: b.events("server.stopping", server="asked"), what=b.said)
    assert "did not answer 3 times in a row: answers GET /health with status 500" in b.said()
    broken.unlink()
    eventually(lambda: b.server("asked")["restarts"] == 1, what=b.said)
    b.until("asked", "ready")
    assert b.server("left")["pid"] == pid


def test_nothing_wakes_a_supervisor_whose_servers_are_ready(b):
    """Its process is not switched to once, in two seconds."""
    port = free_port()
    b.describe({"name": "a", "command": b.small("--port", port), "port": port})
    b.start()
    b.until("a", "ready")

    def switches():
        return int(_status(b.pid, "voluntary_ctxt_switches"))

    def quiet():
        before = switches()
        signal.sigtimedwait((), 2.0)
        return switches() == before

    eventually(quiet, 20.0)


def test_root_is_refused(b):
    """With what to run instead, and exit 2."""
    b.describe()
    done = subprocess.run(b.command(as_root=True), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "servers are never run as root" in done.stderr
    assert "sudo -u" in done.stderr


def test_there_is_one_supervisor_per_directory(b):
    """The second one names the first."""
    b.describe()
    b.start()
    done = subprocess.run(b.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"a supervisor runs already (pid {b.pid})" in done.stderr


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_what_a_server_has_taken_out_of_its_session_is_ended_too(b, end):
    """A daemon of its own making, in another session, and nobody's child: it would keep the port, or the GPU's memory."""
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); print('child', os.getpid(), flush=True); time.sleep(1000)"
    b.describe({"name": "a", "command": ["sh", "-c", f'{PYTHON} -c "$0"; exec sleep 1000', code]})
    b.start()
    pid = b.until("a", "ready")["pid"]
    child = pid_of_child(b, "a")
    assert os.getsid(child) == child
    if end == "stop":
        b.send(signal.SIGTERM)
        assert b.ended() == 0
    else:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: b.server("a")["restarts"] == 1, what=b.said)
    assert not alive(child)


def test_a_process_whose_first_thread_has_ended_alone_is_stopped(b):
    """The kernel shows a zombie, and another thread works on."""
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); ctypes.CDLL(None).syscall(60, 0)"
    b.describe({"name": "a", "command": [PYTHON, "-c", code]})
    b.start()
    pid = b.until("a", "ready")["pid"]
    eventually(lambda: not alive(pid))
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert not Path(f"/proc/{pid}").exists()


def test_ready_is_said_of_the_server_and_not_of_who_has_its_port(b):
    """Somebody else, who was there before, has taken the port since the server was started, and answers 200."""
    port, flag = free_port(), b.folder / "state/flag"
    words = f'while [ ! -e {flag} ]; do sleep 0.05; done; exec "$@"'
    other = subprocess.Popen(
        ["sh", "-c", words, "sh", *b.small("--port", port)], user=NOBODY, group=NOBODY, extra_groups=[]
    )
    try:
        b.describe({"name": "a", "command": ["sleep", "1000"], "port": port})
        b.start()
        eventually(lambda: "nobody listens" in b.server("a")["reason"], what=b.said)
        flag.touch()
        expected = f"python3 (pid {other.pid}) listens on port {port}"
        eventually(lambda: b.server("a")["reason"] == expected, what=b.said)
        assert b.server("a")["state"] == "starting"
    finally:
        other.kill()
        other.wait()


def test_what_passes_is_tried_again(b):
    """A program that is being written is no mistake of the description."""
    program = b.folder / "program"
    shutil.copy("/usr/bin/sleep", program)
    program.chmod(0o755)
    with program.open("ab"):
        b.describe({"name": "a", "command": [str(program), "1000"], "restart_limit": 0})
        b.start()
        assert "Text file busy" in b.until("a", "waiting")["reason"]
    b.until("a", "ready")


def test_a_reload_at_the_end_is_no_hurry(b):
    """Only a second signal to end is."""
    b.describe({"name": "a", "command": b.small("--stubborn"), "stop_timeout": "2s"})
    b.start()
    b.until("a", "ready")
    until_stubborn(b, "a")
    b.send(signal.SIGINT)
    eventually(lambda: b.server("a")["state"] == "stopping")
    b.send(signal.SIGHUP)
    assert b.ended() == 0
    assert not b.events("supervisor.hurried")


def test_a_journal_that_goes_away_does_not_end_a_server(tmp_path):
    """Its next line fails, and it goes on, as in services of systemd."""
    read, write = os.pipe()
    os.close(read)
    done = tmp_path / "done"

    async def main():
        process = Process.start(["sh", "-c", f"echo one; echo two; touch {done}"], dict(os.environ), "/", write)
        return await asyncio.wait_for(process.ended, 60)

    asyncio.run(main())
    os.close(write)
    assert done.exists()
