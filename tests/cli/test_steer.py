"""`memscaler hold`, `park` and the others as real processes, against a real control socket and a loop that answers."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time

import pytest

from memscaler.cli.client import Client
from memscaler.cli.errors import tell
from memscaler.cli.output import plain, span
from memscaler.config import load
from memscaler.core.errors import ConfigError, GpuCallFailed, MemscalerError, UsageError
from memscaler.daemon.requests import (
    SOCKET,
    HoldWanted,
    ParkWanted,
    PauseWanted,
    ReleaseWanted,
    ReloadWanted,
    ResumeWanted,
    Status,
    UnholdWanted,
)
from tests.asked import answer, answering
from tests.cli.commands import ENVIRON, command, memscaler
from tests.governor import eventually

COMMANDS = ("status", "verify", "hold", "unhold", "park", "pause", "resume", "release", "reload")

# ---- what is asked, and what is printed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "meant", "printed"),
    [
        (["hold"], HoldWanted(), "gpu0: held until `memscaler unhold --id 5eed`\n"),
        (
            ["hold", "gpu0", "GPU-8f", "--for", "2h", "--reason", "benchmark"],
            HoldWanted(("gpu0", "GPU-8f"), 7200.0, "benchmark"),
            "gpu0, GPU-8f: held for 2h (id 5eed)\n",
        ),
        (["hold", "--for", "90s", "1"], HoldWanted(("1",), 90.0), "1: held for 1m 30s (id 5eed)\n"),
        (["unhold"], UnholdWanted(), "ended: hold 5eed of root (benchmark)\n"),
        (["unhold", "gpu0", "--id", "5eed"], UnholdWanted(("gpu0",), "5eed"), "ended: hold 5eed of root (benchmark)\n"),
        (["park"], ParkWanted(), "gpu0  parked\n"),
        (["park", "gpu0"], ParkWanted(("gpu0",)), "gpu0  parked\n"),
        (["pause"], PauseWanted(), "paused until `memscaler resume`: every GPU stays awake\n"),
        (["pause", "--for", "1h", "--reason", "x"], PauseWanted(3600.0, "x"), "paused for 1h: every GPU stays awake\n"),
        (["resume"], ResumeWanted(), "memscaler governs\n"),
        (
            ["release", "--reason", "upgrade"],
            ReleaseWanted("upgrade"),
            "every GPU is awake and the driver is let go of, until `memscaler resume`\n",
        ),
        (["reload"], ReloadWanted(), "reloaded, nothing has changed\n"),
    ],
)
def test_each_command(folder, loop, args, meant, printed):
    """Asks for what its arguments say, and tells what came of it; with --json, what the daemon said."""
    result = memscaler(folder, *args)
    assert (result.returncode, result.stdout, result.stderr) == (0, printed, "")
    assert [each for each in loop.requests if each != Status() or meant == each] == [meant]  # resume looks again
    result = memscaler(folder, *args, "--json")
    assert (result.returncode, json.loads(result.stdout)) == (0, {"schema": 1, **answer(meant)})


def test_park_that_does_not(folder, loop):
    """The reason stands beside each GPU, and the exit code says that there is one."""
    loop.answer = lambda _: {
        "gpus": [
            {"gpu": "gpu0", "state": "parked", "reason": ""},
            {"gpu": "gpu10", "state": "awake", "reason": "8080: 1 connection\x1b[2J"},
        ]
    }
    result = memscaler(folder, "park")
    assert (result.returncode, result.stdout) == (1, "gpu0   parked\ngpu10  awake   8080: 1 connection?[2J\n")
    assert memscaler(folder, "park", "--json").returncode == 1


def test_reload_tells_what_has_changed(folder, loop):
    """A line for each."""
    loop.answer = lambda _: {"changes": ["gpu0: idle_after 60s -> 10s", "8081: watched"]}
    assert memscaler(folder, "reload").stdout == "reloaded\ngpu0: idle_after 60s -> 10s\n8081: watched\n"


def test_nothing_was_held(folder, loop):
    """Is said, and is no failure."""
    loop.answer = lambda _: {"ended": []}
    result = memscaler(folder, "unhold")
    assert (result.returncode, result.stdout) == (0, "nothing was held\n")


@pytest.mark.parametrize(
    ("args", "message", "command_named"),
    [
        (["hold", "--for", "soon"], "--for: 'soon' is not a time (write 60s, 500ms, 2m or 1.5)", "hold"),
        (["hold", "--for", "10ms"], "--for: '10ms' is out of range: at least 1 s", "hold"),
        (["pause", "--for", "9999h"], "--for: '9999h' is out of range: at most a year", "pause"),
        (["hold", "gpu0", "--"], "no command behind --", "hold"),
        (["hold", "--json", "--", "true"], "with a command, standard output is the command's: no --json", "hold"),
        (["hold", "--for", "0", "--", "true"], "--for: '0' is out of range", "hold"),
    ],
)
def test_wrong_usage(folder, loop, args, message, command_named):
    """Is said before anything is asked."""
    result = memscaler(folder, *args)
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"memscaler: {message}")
    assert second == f"hint: see `memscaler {command_named} --help`"
    assert loop.asked == []


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("'gpu7' is no GPU of this machine", hint="known: gpu0"), 2),
        (MemscalerError("there is no hold 5eed", hint="see `memscaler status`"), 1),
        (GpuCallFailed("it does not answer", hint="wait"), 1),
        (ConfigError("config.toml:1: unknown key\nconfig.toml:3: no port", hint="mend it"), 78),
        (MemscalerError("\x1b[2Jcleared", hint="\x07bell"), 1),
    ],
)
def test_what_the_daemon_refuses(folder, loop, error, code):
    """Its sentences and its hint arrive, free of what a terminal obeys."""

    def refuse(_request):
        raise error

    loop.answer = refuse
    result = memscaler(folder, "reload")
    assert (result.returncode, result.stdout) == (code, "")
    *lines, hint = result.stderr.splitlines()
    assert lines == [f"memscaler: {line}" for line in str(error).replace("\x1b", "?").splitlines()]
    assert hint == "hint: " + error.hint.replace("\x07", "?")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_daemon(folder, name):
    """Exit code 3, without a socket."""
    result = memscaler(folder, name)
    assert (result.returncode, result.stdout) == (3, "")
    first, second = result.stderr.splitlines()
    assert first == f"memscaler: memscaler does not run: nobody listens on {folder / SOCKET}"
    assert second.startswith("hint: start it: systemctl start memscaler")


def test_a_killed_daemon(folder):
    """Exit code 3 too, with a socket on which nobody listens, or none of its folders."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(folder / SOCKET))
    assert memscaler(folder, "status").returncode == 3
    assert memscaler(folder / "nowhere", "status").returncode == 3


def test_a_daemon_that_dies_before_it_answers(folder):
    """Is a failure that says where to look, not a traceback."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen()
        for said in (
            b"",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{",
            b"\0\0\0",
            b"HTTP/1.1 200 OK\r\n\r\n[]",
        ):
            process = subprocess.Popen(command(folder, "status"), stderr=subprocess.PIPE, text=True, env=ENVIRON)
            client, _ = listener.accept()
            client.recv(65536)
            client.sendall(said)
            client.close()
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 1
            assert stderr.startswith("memscaler: the daemon ")
            assert "Traceback" not in stderr


def test_a_daemon_of_another_version(folder, loop):
    """What it says is not guessed at."""
    loop.answer = lambda _: {"schema": 2}
    result = memscaler(folder, "status")
    assert result.returncode == 1
    assert "the daemon is of another version than this command" in result.stderr


def as_user(uid: int, gid: int, ask) -> tuple[int, str]:
    """Exit code and standard error of what another user asks. (The interpreter of these tests is only root's.)"""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            sys.stderr = os.fdopen(writing, "w")
            ask()
            code = 0
        except MemscalerError as error:
            code = tell(error)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def test_other_users(folder, loop):
    """Exit code 4 and whom to ask, whether the file's mode keeps them out or the daemon."""
    client = Client(str(folder))
    code, said = as_user(65534, 65534, client.status)
    assert code == 4
    assert said.splitlines() == [
        f"memscaler: you may not ask the daemon: no access to {folder / SOCKET}",
        "hint: root may do everything, members of group memscaler may look",
    ]
    (folder / SOCKET).chmod(0o666)
    code, said = as_user(65534, 65534, client.status)
    assert code == 4
    assert said.startswith("memscaler: only root and members of group memscaler may ask\nhint: sudo usermod")
    assert loop.asked == []


@pytest.mark.usefixtures("loop")
def test_the_configured_directory(folder):
    """Is where the daemon is looked for, if no other is named."""
    env = {**ENVIRON, "MEMSCALER_RUNTIME_DIR": str(folder)}
    line = [sys.executable, "-m", "memscaler", "status", "--json"]
    result = subprocess.run(line, capture_output=True, text=True, env=env, timeout=60, check=True)
    assert json.loads(result.stdout)["pid"] == 123


@pytest.mark.usefixtures("loop")
def test_a_broken_configuration(folder, tmp_path, monkeypatch):
    """Does not keep an operator from asking: only the runtime directory is wanted of it. Nor does a secret one."""
    file = tmp_path / "config.toml"
    file.write_text("idle_aftr = 1")
    monkeypatch.setattr(load, "DEFAULT_FILE", file)
    assert Client(str(folder)).status()["pid"] == 123
    file.chmod(0o600)
    (folder / SOCKET).chmod(0o666)
    assert "only root and members of group" in as_user(65534, 65534, lambda: Client(str(folder)).status())[1]


# ---- hold -- COMMAND -----------------------------------------------------------------------------------------------


def test_a_command_under_a_hold(folder, loop):
    """The hold is there before the command starts, and ends after it; its streams and options are its own."""
    mark = folder / "started"

    def before(request):
        assert not mark.exists()
        time.sleep(0.2)
        return answer(request)

    loop.answer = before
    script = f'test -t 0 || touch {mark}; cat; echo "$@"; echo err >&2; exit 7'
    args = ["hold", "gpu0", "--reason", "benchmark", "--", "sh", "-c", script, "sh", "--json", "--", "-h"]
    result = memscaler(folder, *args, stdin="through\n")
    assert (result.returncode, result.stdout, result.stderr) == (7, "through\n--json -- -h\n", "err\n")
    assert mark.exists()
    assert loop.requests == [HoldWanted(("gpu0",), None, "benchmark", tied=True)]
    eventually(lambda: loop.ended == ["5eed"])


def test_the_hold_lasts_as_long_as_the_command(folder, loop):
    """And not until the end of what the command leaves behind."""
    process = subprocess.Popen(
        command(folder, "hold", "--", "sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!; read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    left_behind = int(process.stdout.readline())
    try:
        time.sleep(0.3)
        assert loop.ended == []
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
        eventually(lambda: loop.ended == ["5eed"])
    finally:
        os.kill(left_behind, signal.SIGTERM)


@pytest.mark.parametrize(
    ("command_line", "code", "said"),
    [
        (["true"], 0, ""),
        (["false"], 1, ""),
        (["sh", "-c", "kill -TERM $$"], 128 + 15, ""),
        (["sh", "-c", "kill -9 $$"], 128 + 9, ""),
        (["memscaler-has-no-such-command"], 127, "cannot run memscaler-has-no-such-command: No such file or directory"),
        (["/etc/passwd"], 126, "cannot run /etc/passwd: Permission denied"),
    ],
)
def test_exit_codes(folder, loop, command_line, code, said):
    """As a shell would tell; and the hold is over in every case."""
    result = memscaler(folder, "hold", "--", *command_line)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    eventually(lambda: loop.ended == ["5eed"])


def test_no_hold_no_command(folder):
    """Without a daemon, or if that refuses, the command is not run."""
    mark = folder / "started"
    result = memscaler(folder, "hold", "--", "touch", str(mark))
    assert result.returncode == 3
    assert "hint: start memscaler, or run the command without hold" in result.stderr
    with answering(folder) as loop:

        def refuse(_request):
            raise MemscalerError("the driver is let go of", hint="memscaler resume")

        loop.answer = refuse
        result = memscaler(folder, "hold", "--", "touch", str(mark))
    assert result.returncode == 1
    assert not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_go_to_the_command(folder, loop, number):
    """It decides what becomes of them."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        command(folder, "hold", "--", "bash", "-c", script), stdout=subprocess.PIPE, text=True, env=ENVIRON
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"got {name}\n"
    assert process.wait(20) == 5
    eventually(lambda: loop.ended == ["5eed"])


@pytest.mark.usefixtures("loop")
def test_the_command_starts_as_if_there_were_no_hold(folder):
    """No signal is blocked or ignored for it, and no descriptor is left open."""
    line = ["grep", "-hE", "Sig(Blk|Ign)", "/proc/self/status"]  # a shell would have cleared the mask
    direct = subprocess.run(line, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    held = memscaler(folder, "hold", "--", *line)
    counted = memscaler(folder, "hold", "--", "ls", "/proc/self/fd")

    def masks(text: str) -> list[int]:
        return [int(line.split()[-1], 16) & 0x7FFFFFFF for line in text.splitlines()]  # 32 and 33 are glibc's own

    assert masks(held.stdout) == masks(direct.stdout) == [0, 0]
    assert counted.stdout.split() == ["0", "1", "2", "3"]  # the last is that of ls itself


COUNTS_INTERRUPTS = """
import os, signal, time
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)  # a byte for each, also where Python's handler would run once for two
signal.signal(signal.SIGINT, lambda *_: None)
print("ready", flush=True)
os.read(reading, 1)
time.sleep(1)
os.set_blocking(reading, False)
try:
    more = len(os.read(reading, 100))
except BlockingIOError:
    more = 0
raise SystemExit(41 + more)
"""


@pytest.mark.parametrize("by_keyboard", [True, False])
def test_one_interrupt(folder, loop, by_keyboard):
    """What the keyboard sends, the terminal sends to the command too: it does not come twice, and kill comes once."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command(folder, "hold", "--", sys.executable, "-c", COUNTS_INTERRUPTS),
        stdin=slave,
        stdout=slave,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509  # it is one system call
        env=ENVIRON,
    )
    os.close(slave)
    assert os.read(master, 100).strip() == b"ready"
    if by_keyboard:
        os.write(master, b"\x03")
    else:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 41
    os.close(master)
    eventually(lambda: loop.ended == ["5eed"])


def test_a_killed_client(folder, loop):
    """The hold ends although the command goes on."""
    process = subprocess.Popen(
        command(folder, "hold", "--", "sh", "-c", "echo $$; exec sleep 30"),
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    running = int(process.stdout.readline())
    try:
        assert loop.ended == []
        process.kill()
        process.wait()
        eventually(lambda: loop.ended == ["5eed"])
        os.kill(running, 0)
    finally:
        os.kill(running, signal.SIGTERM)


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_screen(folder, name):
    """In 80 columns; and hold shows where the command goes."""
    result = memscaler(folder, name, "--help")
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert ("[-- COMMAND [ARG]...]" in result.stdout) == (name == "hold")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0s"),
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (86399, "23h 59m"),
        (86400, "1d"),
        (90061, "1d 1h"),
        (31622400, "366d"),
    ],
)
def test_span(seconds, text):
    """The two largest units."""
    assert span(seconds) == text


def test_plain():
    """Text stays; what a terminal would obey, or what would begin a line, does not."""
    assert plain("Prüfstand 試験 🙂") == "Prüfstand 試験 🙂"
    assert plain("a\x1b[1m\nb\tc\x9b\u2028d\u202ee\ud800") == "a?[1m b c? d?e?"
    assert plain(8080) == "8080"
