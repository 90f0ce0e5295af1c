"""`memscaler top` in a real terminal (tmux), with a real governor, simulated boards and real connections."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.daemon.requests import SOCKET
from tests.asked import STATUS, answering, short_folder
from tests.cli.commands import ENVIRON, command, memscaler
from tests.cli.test_status import ASLEEP, UP
from tests.governor import alive, connect, eventually, governing, listener, port_of

REPOSITORY = Path(__file__).resolve().parents[2]


class Screen:
    """A shell in a tmux of its own, in which top runs; it can be typed into and looked at."""

    def __init__(self, folder: Path, columns: int = 80, rows: int = 24, **environ: str) -> None:
        self._socket = folder / "tmux"
        env = {key: value for key, value in ENVIRON.items() if key not in ("COLUMNS", "NO_COLOR", "TMUX")}
        env |= {"LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **environ}
        self._tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            str(columns),
            "-y",
            str(rows),
            "env PS1='prompt> ' bash --norc",
            env=env,
        )
        self._tmux("set", "-g", "status", "off")
        self._tmux("set", "-g", "window-size", "manual")
        self.resize(columns, rows)

    def _tmux(self, *args: str, env: dict[str, str] | None = None) -> str:
        line = ["tmux", "-S", str(self._socket), *args]
        return subprocess.run(line, capture_output=True, text=True, check=True, env=env, cwd=REPOSITORY).stdout

    def start(self, folder: Path) -> None:
        """Run top; its exit code stands behind it."""
        self.type(" ".join(command(folder, "top")) + "; echo exit=$?", "Enter")

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self._tmux("send-keys", *keys)

    def text(self, *, escapes: bool = False) -> str:
        """What is on the screen now."""
        return self._tmux("capture-pane", "-p", *(["-e"] if escapes else []))

    def shows(self, what: str) -> bool:
        return re.search(what, self.text(), re.MULTILINE) is not None

    def wait_for(self, what: str) -> str:
        """Until a line of the screen matches."""
        eventually(lambda: self.shows(what) or time.sleep(0.05), within_s=20, what=f"{what}\n{self.text()}")
        return self.text()

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def pid_of_top(self) -> int:
        shell = self._tmux("display", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def is_sane(self) -> bool:
        """The shell is back: on the usual screen, with a cursor, and typed letters are shown."""
        flags = self._tmux("display", "-p", "#{alternate_on} #{cursor_flag}").split()
        self.type("echo se''en", "Enter")
        eventually(lambda: self.shows("^seen$"), within_s=20)
        return flags == ["0", "1"] and self.shows("prompt> echo se''en$")

    def close(self) -> None:
        """Also a second time."""
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def screen(folder: Path, **more: str) -> Iterator[Screen]:
    """A terminal that is gone afterwards."""
    opened = Screen(folder, **more)
    try:
        opened.wait_for("^prompt>")
        yield opened
    except BaseException:
        with suppress(subprocess.CalledProcessError):
            print(opened.text())
        raise
    finally:
        opened.close()


def test_a_day_with_top(tmp_path, folder):
    """It shows a park, a connection and a hold as they come, outlives the governor, and leaves the terminal as it was."""
    with listener() as server, listener() as other, screen(folder) as terminal:
        arguments = ["a40,p40", "--port", f"{port_of(server)}:gpu0", "--port", f"{port_of(other)}:gpu1"]
        with governing(tmp_path, *arguments, "--idle-after", "1s") as governor:
            terminal.start(tmp_path)
            terminal.wait_for(r"^> gpu0 +parked ")
            terminal.wait_for(r"^  gpu1 +parked .* 405 MHz")
            shown = terminal.text().splitlines()
            assert re.match("memscaler .* governs  ", shown[0])
            assert shown[-1].startswith("up/down select   h hold 1h")
            with connect(server):
                terminal.wait_for(r"^> gpu0 +awake .* 1 .* 7251 MHz")
                assert terminal.shows(rf"^  open +1 on port {port_of(server)}$")
                assert terminal.shows(r"^  \d\d:\d\d:\d\d  gpu0  parked    -> awake      connection$")
                assert re.search(r"^> gpu0 .*[▁▂▃▄▅▆▇█].*[▁▂▃▄▅▆▇█]", terminal.text(), re.MULTILINE)
            server.accept()[0].close()
            terminal.type("Down")
            terminal.wait_for(r"^gpu1  Tesla P40  pstate at P8$")
            terminal.type("h")
            terminal.wait_for(r"^> gpu1 +held ")
            assert terminal.shows("^gpu1 is held for 1h; u ends it$")
            assert not governor.driver.boards[1].is_slow
            terminal.type("u")
            terminal.wait_for("^gpu1: 1 hold ended$")
            terminal.type("k", "P")
            terminal.wait_for("is paused")
            terminal.wait_for(r"^> gpu0 +held ")
            terminal.type("P")
            terminal.wait_for("^memscaler governs again$")
            terminal.type("p")
            terminal.wait_for("^gpu0: parked$")
            assert governor.stop() == 0
        terminal.wait_for("^memscaler does not run: .*; waiting for it$|^memscaler does not run: ")
        with governing(tmp_path, *arguments, "--idle-after", "1s") as governor:
            terminal.wait_for(r"^> gpu0 +(cooling|parked) ")
            eventually(lambda: not terminal.shows("does not run"))
            assert governor.stop() == 0
        terminal.type("q")
        terminal.wait_for("^exit=0$")
        assert terminal.is_sane()


GPU = {
    "uuid": "GPU-aaaaaaaa",
    "pci_bus_id": "",
    "name": "NVIDIA A40",
    "state": "parked",
    "since_s": 3900.0,
    "reason": "quiet",
    "remedy": "",
    "lever": "memory-clock",
    "intent": {"lever": "memory-clock", "target": 405},
    "next": "",
    "next_in_s": None,
    "power_w": 18.25,
    "memory_clock_mhz": 405,
    "graphics_clock_mhz": 210,
    "holds": [],
    "conflict": "",
    "energy_saved_today_j": 36000.0,
    "energy_saved_j": 3_700_000.0,
}
MANY = {
    **STATUS,
    "hostname": "llm\x1b[2J",
    "gpus": [{**GPU, "gpu": f"gpu{nth}", "uuid": f"GPU-{nth:08}"} for nth in range(40)],
    "transitions": [
        {"at_unix_s": 1.7e9 + nth, "gpu": "gpu1", "was": "awake", "state": "cooling", "reason": f"\x1b]0;x\x07 {nth}"}
        for nth in range(100)
    ],
}


def test_many_gpus_on_small_and_large_screens(folder):
    """The selected one is always there, and nothing is wider or longer than the screen, which may change its size."""
    with answering(folder) as loop, screen(folder) as terminal:
        loop.answer = lambda _: MANY
        terminal.start(folder)
        terminal.wait_for("^> gpu0 ")
        terminal.type(*["j"] * 30, "k")
        terminal.wait_for("^> gpu29 ")
        for columns, rows in ((40, 12), (200, 60), (20, 5), (80, 24)):
            terminal.resize(columns, rows)
            eventually(lambda: len(terminal.text().splitlines()) == rows and terminal.shows("^> gpu29|q quit|^up/down"))
            if columns >= 40:
                terminal.wait_for("^> gpu29 ")
        assert terminal.shows(r"MEMORY GRAPHICS  \(\+\d+\)$|MEMORY GRAPHICS")
        terminal.wait_for(r"^  \d\d:\d\d:\d\d  gpu1  awake     -> cooling    \?\]0;x\? 99$")
        terminal.type("?")
        terminal.wait_for("^h +hold: keep the selected GPU awake for one hour$")
        terminal.type("Escape")
        terminal.wait_for("^> gpu29 ")
        terminal.type("C-c")
        terminal.wait_for("^exit=0$")
        assert terminal.is_sane()


def test_servers(folder):
    """Below the GPU, with why they do not run; on a small screen the troubled ones first, or none."""
    one = {
        "name": "s0",
        "user": "alice",
        "state": "ready",
        "since_s": 60.0,
        "supervised": True,
        "pid": 1,
        "port": 8080,
        "gpus": [],
        "model": "",
        "restarts": 0,
        "reason": "",
        "ended": "",
        "starts_in_s": None,
    }
    failed = {**one, "name": "bad\x1b[2J", "state": "failed", "restarts": 5, "reason": "exit status 1", "port": None}
    servers = [*({**one, "name": f"s{number}"} for number in range(12)), failed]
    with answering(folder) as loop, screen(folder, columns=100, rows=50) as terminal:
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "servers": [*servers[:2], failed]}
        terminal.start(folder)
        terminal.wait_for("^  SERVER +STATE +SINCE +PORT +RESTARTS$")
        terminal.wait_for(r"^  s1 +ready +1m +8080 +0$")
        terminal.wait_for(r"^  bad\?\[2J +failed +1m +- +5 +exit status 1$")
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "servers": servers}
        terminal.wait_for(r"RESTARTS  \(\+5\)$")
        assert terminal.shows(r"^  bad\?\[2J +failed ")
        for columns, rows in ((40, 12), (20, 5), (80, 24)):
            terminal.resize(columns, rows)
            eventually(lambda: len(terminal.text().splitlines()) == rows)
        terminal.wait_for(r"^  bad\?\[2J +failed ")
        terminal.type("q")
        terminal.wait_for("^exit=0$")


def test_deeper_stages(folder):
    """Below the GPU, the stuck ones first, and the machine; on a small screen fewer of them, or none."""
    told = {**ASLEEP, "servers": [*ASLEEP["servers"], *({**UP, "name": f"s{number}"} for number in range(12))]}
    with answering(folder) as loop, screen(folder, columns=100, rows=50) as terminal:
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "sleep": ASLEEP}
        terminal.start(folder)
        terminal.wait_for("^  STAGE OF +STAGE +SINCE +WAKES IN$")
        terminal.wait_for(r"^  chat +stop-server +2h 5m +12s +next suspend in 55m")
        terminal.wait_for(r"^  big +stuck in checkpoint +1m 1s +-")
        terminal.wait_for(r"^  machine: stays up: alice is logged in; the CPUs are at work$")
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "sleep": {**told, "problem": "killed\x1b[2J"}}
        terminal.wait_for(r"^  sleeper stuck: killed\?\[2J$")
        terminal.wait_for(r"WAKES IN  \(\+\d+\)$")
        assert terminal.shows(r"^  big +stuck in checkpoint ")
        for columns, rows in ((40, 12), (20, 5), (80, 24)):
            terminal.resize(columns, rows)
            eventually(lambda: len(terminal.text().splitlines()) == rows)
        terminal.type("q")
        terminal.wait_for("^exit=0$")


def test_who_may_only_look(folder):
    """A refusal stands in the line of messages."""
    with answering(folder) as loop, screen(folder) as terminal:

        def refuse(request):
            if type(request).__name__ != "Status":
                raise PermissionMissing("only root may change anything", hint="sudo memscaler ...")
            return {**MANY, "gpus": MANY["gpus"][:2]}

        loop.answer = refuse
        terminal.start(folder)
        terminal.wait_for("^> gpu0 ")
        for key in "hupP":
            terminal.type(key)
            terminal.wait_for(r"^only root may change anything \(sudo memscaler \.\.\.\)$")
        terminal.type("q")
        terminal.wait_for("^exit=0$")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_told_to_end(folder, number):
    """The terminal is as before, and the exit code says why."""
    with answering(folder) as loop, screen(folder) as terminal:
        loop.answer = lambda _: MANY
        terminal.start(folder)
        terminal.wait_for("^> gpu0 ")
        os.kill(terminal.pid_of_top(), number)
        terminal.wait_for(f"^exit={128 + number}$")
        assert terminal.is_sane()


def test_its_terminal_is_gone(folder):
    """Then it ends by itself."""
    with answering(folder) as loop, screen(folder) as terminal:
        loop.answer = lambda _: MANY
        terminal.start(folder)
        terminal.wait_for("^> gpu0 ")
        pid = terminal.pid_of_top()
        terminal.close()
        eventually(lambda: not alive(pid), within_s=20)


def test_it_is_suspended(folder):
    """Ctrl-Z gives the terminal back until fg."""
    with answering(folder) as loop, screen(folder) as terminal:
        loop.answer = lambda _: MANY
        terminal.start(folder)
        terminal.wait_for("^> gpu0 ")
        terminal.type("C-z")
        terminal.wait_for("Stopped")
        assert terminal.is_sane()
        terminal.type("fg", "Enter")
        terminal.wait_for("^> gpu0 ")
        terminal.type("q")
        terminal.wait_for("^prompt> *$")
        assert terminal.is_sane()


def test_an_answer_that_cannot_be_shown(folder):
    """At the beginning it ends top with one line; later it is a missed look, and top goes on."""
    bad = {**MANY, "gpus": [*MANY["gpus"], {**GPU, "gpu": "gpu40", "since_s": "soon"}]}
    with answering(folder) as loop, screen(folder) as terminal:
        loop.answer = lambda _: bad
        terminal.start(folder)
        terminal.wait_for("^exit=1$")
        assert terminal.shows("^memscaler: the daemon's answer cannot be shown: TypeError: ")
        assert "Traceback" not in terminal.text()
        assert terminal.is_sane()
        terminal.type("clear", "Enter")
        loop.answer = lambda _: MANY
        terminal.start(folder)
        terminal.wait_for("^memscaler .* governs ")
        for document, problem in (
            (bad, "TypeError: "),
            ({**MANY, "gpus": [{"gpu": "gpu0"}]}, "KeyError: 'uuid'"),
            ({**MANY, "transitions": None}, "TypeError: "),
        ):
            loop.answer = lambda _, document=document: document
            terminal.wait_for(f"^the daemon's answer cannot be shown: {problem}")
            assert terminal.shows("^memscaler .* does not answer; this was the last ")
            assert terminal.shows("^> gpu0 ")
            loop.answer = lambda _: MANY
            terminal.wait_for("^memscaler .* governs ")
        loop.answer = lambda request: MANY if type(request).__name__ == "Status" else {}
        terminal.type("u")
        terminal.wait_for("^the daemon's answer cannot be understood: KeyError: 'ended'$")
        terminal.type("q")
        terminal.wait_for("^exit=0$")


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@contextmanager
def hostile(folder: Path, *answers: bytes) -> Iterator[list[socket.socket]]:
    """On each connection another of these answers, the last of them for ever; one without an end stalls.

    The connections.
    """
    opened, left = [], list(answers)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / SOCKET))
        server.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    opened.append(connection)
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    connection.sendall(answer)
                    if answer.endswith(b"}"):
                        connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield opened
        finally:
            for connection in opened:
                connection.close()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_daemon_that_stalls_and_one_that_says_odd_things(folder):
    """What is shown is not called live, there is no traceback, and top goes on as soon as somebody answers."""
    good = OK + json.dumps({"schema": 1, **MANY}).encode()
    odd = b"HTTP/1.1 599 What\r\n\r\n{}"
    with screen(folder) as terminal:
        with hostile(folder, good, odd, odd, odd, good, OK + b'{"schema": 1, "gp') as opened:
            terminal.start(folder)
            terminal.wait_for("^the daemon refuses, with HTTP status 599$")
            assert terminal.shows("^memscaler .* does not answer; this was the last ")
            terminal.wait_for("^memscaler .* governs ")
            terminal.wait_for(r"^the daemon has not answered for \d+s$")
            assert terminal.shows("^memscaler .* does not answer; this was the last ")
            assert len(opened) == 6
        (folder / SOCKET).unlink()
        with answering(folder) as loop:
            loop.answer = lambda _: MANY
            terminal.wait_for("^memscaler .* governs ")
            assert "Traceback" not in terminal.text()
            terminal.type("q")
            terminal.wait_for("^exit=0$")
            assert terminal.is_sane()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (OK + b'{"schema": 1, "gp', "the daemon does not answer"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n{", "the daemon does not answer"),
        (b"HTTP/1.1 599 What\r\n\r\n{}", "the daemon refuses, with HTTP status 599"),
        (OK + b"schema}", "the daemon broke off its answer"),
    ],
)
def test_what_the_client_makes_of_it(folder, answer, told):
    """An error for people, whichever way the request goes."""
    client = Client(str(folder), patience_s=1)
    with hostile(folder, answer):
        for ask in (client.status, client.verify, lambda: client.change("park"), client.held().__enter__):
            with pytest.raises(MemscalerError) as error:
                ask()
            assert str(error.value) == told


def test_colour(folder):
    """States have one, but not against NO_COLOR; without a UTF-8 terminal the bars are ASCII."""
    with answering(folder) as loop:
        loop.answer = lambda _: MANY
        for environ, coloured, bar in (
            ({}, True, "█"),
            ({"NO_COLOR": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, False, "#"),
        ):
            with short_folder() as own, screen(own, **environ) as terminal:
                terminal.start(folder)
                terminal.wait_for(f"^> gpu0 .*{bar}")
                assert ("\x1b[32m" in terminal.text(escapes=True)) is coloured


@pytest.mark.parametrize("terminal", ["", "dumb"])
def test_without_a_terminal(folder, terminal):
    """It says what to use instead."""
    result = memscaler(folder, "top")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("memscaler: top needs a terminal")
    assert "memscaler status --watch" in result.stderr
    line = ["script", "-qec", " ".join(command(folder, "top")), "/dev/null"]
    env = {**ENVIRON, "TERM": terminal}
    dumb = subprocess.run(
        line, capture_output=True, text=True, check=False, env=env, timeout=60, stdin=subprocess.DEVNULL
    )
    assert (dumb.returncode, "top needs a terminal" in dumb.stdout) == (2, True)


def test_without_a_daemon(folder):
    """Exit code 3, before anything is drawn."""
    with screen(folder) as terminal:
        terminal.start(folder)
        terminal.wait_for("^exit=3$")
        assert terminal.shows("^memscaler: memscaler does not run: nobody listens")
