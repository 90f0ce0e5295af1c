"""The supervisor's control socket: a real one, real clients of several users, and an answer that a test may choose."""

import asyncio
import contextlib
import grp
import json
import socket
import stat
import threading
import time

import pytest

from memscaler.cli.client import Asker
from memscaler.config.servers import Hook, Server
from memscaler.core.errors import ConfigError, MemscalerError, PermissionMissing, UsageError
from memscaler.servers import control
from memscaler.servers.control import ControlServer
from memscaler.servers.requests import (
    READS,
    ROUTES,
    Apply,
    List,
    Reload,
    Restart,
    Show,
    Start,
    parse,
)
from memscaler.servers.steering import described
from tests.asked import short_folder
from tests.servers.bench import eventually
from tests.servers.steered import as_user

NOBODY = 65534
GROUP = grp.getgrnam("games")  # of every Debian; nobody is in it
CHANGES = [route for route, kind in ROUTES.items() if kind not in READS]


class Answering:
    """A control socket in a thread of its own. answer: may be exchanged; what it raises is answered, too."""

    def __init__(self, folder):
        self.path = folder / "control.sock"
        self.asked = []
        self.state = "starting"
        self.answer = self.usual
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(20)

    async def usual(self, request):
        return {"user": "", "pid": 1, "servers": [{"name": "qwen", "state": self.state}]} if request == List() else {}

    async def _serve(self):
        async def answer(request):
            self.asked.append(request)
            return await self.answer(request)

        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._before = len(asyncio.all_tasks())
        server = ControlServer(self.path, answer)
        await server.start()
        self._started.set()
        await self._ended.wait()
        await server.stop()

    def tasks(self):
        """How many more there are than at first: connections and what they wait for."""
        told = threading.Event()
        found = []
        self._loop.call_soon_threadsafe(lambda: (found.append(len(asyncio.all_tasks())), told.set()))
        assert told.wait(20)
        return found[0] - self._before

    def stop(self):
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.fixture
def server(folder):
    made = Answering(folder)
    yield made
    made.stop()


def raw(path, text: bytes) -> bytes:
    """Everything that comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(30)
        client.sendall(text)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(65536):
                answer += more
        return answer


def test_every_route(server):
    """Each one arrives as what it means."""
    asker = Asker(server.path)
    asker.told("GET", "/v1/servers")
    asker.told("GET", "/v1/servers/a%20b")
    asker.told("POST", "/v1/apply", {"dry_run": True})
    asker.told("POST", "/v1/apply", {})
    asker.told("POST", "/v1/reload", {})
    asker.told("POST", "/v1/restart", {"servers": ["qwen", "phi", "qwen"]})
    assert server.asked == [List(), Show("a b"), Apply(dry_run=True), Apply(), Reload(), Restart(("qwen", "phi"))]


@pytest.mark.parametrize(
    ("method", "route", "body", "says"),
    [
        ("GET", "/v1/nothing", None, "no such route"),
        ("GET", "/v1/servers/a/b", None, "no such route"),
        ("GET", "/v1/apply", None, "/v1/apply wants POST"),
        ("POST", "/v1/servers", {}, "/v1/servers wants GET"),
        ("POST", "/v1/start", {}, "servers is missing"),
        ("POST", "/v1/start", {"servers": "qwen"}, 'servers is a list, as in ["qwen"]'),
        ("POST", "/v1/start", {"servers": ["a\nb"]}, "control characters"),
        ("POST", "/v1/start", {"servers": ["x" * 129]}, "longer than 128"),
        ("POST", "/v1/start", {"servers": ["x"] * 1001}, "more than 1000"),
        ("POST", "/v1/start", {"server": ["qwen"]}, "did you mean 'servers'"),
        ("POST", "/v1/apply", {"dry_run": 1}, "true or false"),
    ],
)
def test_what_makes_no_sense(server, method, route, body, says):
    """It is refused with a sentence, and nobody is asked."""
    with pytest.raises(MemscalerError, match=says.replace("[", "\\[")) as refused:
        Asker(server.path).told(method, route, body)
    assert refused.value.hint or "wants" in says
    assert server.asked == []


def test_hint_of_a_wrong_body():
    """It names the page on which the routes are."""
    with pytest.raises(UsageError) as refused:
        parse(Start, b"[]")
    assert "docs/servers.md" in refused.value.hint


@pytest.mark.parametrize("kind", [UsageError, ConfigError, PermissionMissing, MemscalerError])
def test_errors_arrive_as_what_they_are(server, kind):
    """With message and hint; the exit code of the command is theirs."""

    async def refuse(_):
        raise kind("it is so\nand so", hint="do that")

    server.answer = refuse
    with pytest.raises(kind) as refused:
        Asker(server.path).told("POST", "/v1/apply", {})
    assert (str(refused.value), refused.value.hint) == ("it is so\nand so", "do that")
    assert type(refused.value) is kind


def test_a_mistake_of_ours(server):
    """It is no word about our insides, and the next one is answered."""

    async def wrong(_):
        raise ZeroDivisionError("division by zero")

    server.answer = wrong
    with pytest.raises(MemscalerError, match="made a mistake") as refused:
        Asker(server.path).told("POST", "/v1/apply", {})
    assert "zero" not in str(refused.value)
    server.answer = server.usual
    assert Asker(server.path).told("GET", "/v1/servers")["servers"]


def test_a_slow_answer(server, monkeypatch):
    """Whoever asks learns that it takes long; what was asked for is done all the same."""
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.2)
    done = threading.Event()

    async def slowly(_):
        await asyncio.sleep(1)
        done.set()
        return {}

    server.answer = slowly
    with pytest.raises(MemscalerError, match="does not answer"):
        Asker(server.path).told("POST", "/v1/apply", {})
    assert done.wait(20)


def test_follow(server):
    """A line at once, one for every change, none without one; the client may go, and nothing of it is left."""
    asker = Asker(server.path)
    with asker.lines("/v1/follow") as lines:
        assert next(lines)["servers"][0]["state"] == "starting"
        server.state = "ready"
        seen = [next(lines)["servers"][0]["state"] for _ in range(2)]
        assert seen[-1] == "ready"
    eventually(lambda: server.tasks() == 0)


def test_followers_live_signs(server, monkeypatch):
    """Who follows hears something although nothing changes: a client can tell a quiet supervisor from a hung one."""
    monkeypatch.setattr(control, "SIGN_OF_LIFE_S", 0.3)
    with Asker(server.path).lines("/v1/follow") as lines:
        assert len({json.dumps(next(lines)) for _ in range(4)}) == 1


def test_follow_ends_with_the_supervisor(folder):
    """The answer ends; it is not broken off in a line."""
    server = Answering(folder)
    with Asker(server.path).lines("/v1/follow") as lines:
        next(lines)
        server.stop()
        assert all(line["servers"] for line in lines)
    assert not server.path.exists()


def test_too_many_follow(server, monkeypatch):
    """They are bounded, and do not keep others from asking."""
    monkeypatch.setattr(control, "MOST_FOLLOWERS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            next(stack.enter_context(Asker(server.path).lines("/v1/follow")))
        with pytest.raises(MemscalerError, match="3 follow already"), Asker(server.path).lines("/v1/follow"):
            pass
        assert Asker(server.path).told("GET", "/v1/servers")
    eventually(lambda: server.tasks() == 0)


def test_half_a_request(server, monkeypatch):
    """It is not waited for."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.3)
    began = time.monotonic()
    assert b"408 Request Timeout" in raw(server.path, b"GET /v1/servers HT")
    assert time.monotonic() - began < 20


def test_garbage(server):
    """What is no HTTP is refused."""
    assert b"400 Bad Request" in raw(server.path, b"\x16\x03\x01 hello\r\n\r\n")


def ask_as(uid, groups, path, method, route):
    """The status and the document that another user gets; the name of the error if it cannot connect."""
    code = (
        "import socket, sys\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "try:\n    client.connect(sys.argv[1])\n"
        "except OSError as error:\n    print(type(error).__name__)\n    sys.exit()\n"
        "client.sendall(f'{sys.argv[2]} {sys.argv[3]} HTTP/1.1\\r\\n\\r\\n'.encode())\n"
        "print(client.makefile().read())"
    )
    import subprocess

    words = [*as_user(uid, *groups), "/usr/bin/python3", "-c", code, str(path), method, route]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_who_may_what(folder, monkeypatch):
    """Members of the group look, and change nothing; others cannot even connect."""
    monkeypatch.setattr(control, "GROUP", GROUP.gr_name)
    server = Answering(folder)
    try:
        mode = server.path.stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_gid) == (0o660, GROUP.gr_gid)
        assert ask_as(NOBODY, (), server.path, "GET", "/v1/servers") == "PermissionError"
        for route in ("/v1/servers", "/v1/servers/qwen"):
            assert "200 OK" in ask_as(NOBODY, (GROUP.gr_gid,), server.path, "GET", route)
        looked = len(server.asked)
        for route in CHANGES:
            assert "403 Forbidden" in ask_as(NOBODY, (GROUP.gr_gid,), server.path, "POST", route)
        assert len(server.asked) == looked
        server.path.chmod(0o666)  # an operator's mistake
        for route in ("/v1/servers", *CHANGES):
            method = "GET" if route == "/v1/servers" else "POST"
            assert "403 Forbidden" in ask_as(NOBODY, (), server.path, method, route)
    finally:
        server.stop()


def test_secrets_are_not_told():
    """Of variables only the names, of hooks as well: who may look need not know keys."""
    hook = Hook(
        name="proxy", command=("x", "token"), environment=(("KEY", "secret"),), hooks=(Hook(name="in", command=("y",)),)
    )
    told = described(Server(name="a", command=("b",), environment=(("HF_TOKEN", "secret"),), hooks=(hook,)))
    assert told["environment"] == ["HF_TOKEN"]
    assert told["hooks"] == ["proxy", "proxy.in"]
    assert "secret" not in json.dumps(told)
    assert "token" not in json.dumps(told)
