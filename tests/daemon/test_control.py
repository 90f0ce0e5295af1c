"""The control socket: a real one, real clients of several users, and a thread that answers as the loop does."""

import contextlib
import dataclasses
import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from memscaler.core.errors import ConfigError, GpuPermission, MemscalerError, PermissionMissing, UsageError
from memscaler.daemon import control
from memscaler.daemon.control import ControlServer
from memscaler.daemon.http1 import BODY_BYTES, HEAD_BYTES
from memscaler.daemon.requests import (
    FOR_READERS,
    READS,
    ROUTES,
    SOCKET,
    HoldWanted,
    ParkWanted,
    PauseWanted,
    Peer,
    ReleaseWanted,
    ReloadWanted,
    ResumeWanted,
    Status,
    TiedEnded,
    UnholdWanted,
    WakeWanted,
    parse,
)
from tests.asked import STATUS, AnsweringLoop, answer, answering, short_folder
from tests.governor import eventually

NOBODY = 65534
GROUP = grp.getgrnam("games")  # of every Debian; nobody is in it
CHANGES = [route for route, kind in ROUTES.items() if kind not in READS]
FOR_ROOT = [route for route in CHANGES if ROUTES[route] not in FOR_READERS]


@pytest.fixture
def folder():
    """The runtime directory."""
    with short_folder() as path:
        yield path


@pytest.fixture
def loop(folder):
    """A socket in the folder, and who answers there."""
    with answering(folder) as loop:
        yield loop


def connect(folder) -> socket.socket:
    """A client that waits no longer than a test may take."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / SOCKET))
    client.settimeout(20)
    return client


def request(route: str, body: bytes | dict | None = None, *, method: str = "") -> bytes:
    """A request as curl writes it."""
    text = json.dumps(body).encode() if isinstance(body, dict) else body
    method = method or ("GET" if text is None and route == "/v1/status" else "POST")
    fields = b"" if text is None else b"Content-Length: %d\r\n" % len(text)
    return (
        f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".encode() + fields + b"\r\n" + (text or b"")
    )


def read_all(client: socket.socket) -> bytes:
    """Until the server closes; what it closed without having read is no error."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(65536):
            text += more
    return text


def parts(text: bytes) -> tuple[int, dict]:
    """Status and document of a whole answer, which it must be."""
    head, _, body = text.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ") for field in fields)
    assert headers["Content-Type"] == "application/json"
    assert headers["Connection"] == "close"
    assert int(headers["Content-Length"]) == len(body)
    document = json.loads(body)
    assert document["schema"] == 1
    return int(line.split()[1]), document


def answer_to(folder, text: bytes) -> bytes:
    """Send these bytes, read all that comes back: who is refused at once may find that nobody reads any more."""
    with connect(folder) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(text)
        return read_all(client)


def exchange(folder, text: bytes) -> tuple[int, dict]:
    """Send these bytes, read an answer."""
    return parts(answer_to(folder, text))


def ask(folder, route: str, body=None, **how) -> tuple[int, dict]:
    """One request and its answer."""
    return exchange(folder, request(route, body, **how))


def as_user(uid: int, gid: int, groups: tuple[int, ...], folder, text: bytes) -> bytes:
    """The same from a process of another user; the error's name if it cannot connect."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            os.write(writing, answer_to(folder, text))
        except OSError as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


# ---- requests ------------------------------------------------------------------------------------------------------


def test_status(folder, loop):
    """The status is what the loop says, with the version of the format."""
    assert ask(folder, "/v1/status") == (200, {"schema": 1, **STATUS})
    assert loop.requests == [Status()]


@pytest.mark.parametrize(
    ("route", "body", "meant"),
    [
        ("/v1/hold", {}, HoldWanted()),
        (
            "/v1/hold",
            {"gpus": ["gpu0", "GPU-8f"], "for_s": 7200, "reason": "Prüfstand", "tied": False},
            HoldWanted(("gpu0", "GPU-8f"), 7200.0, "Prüfstand"),
        ),
        ("/v1/hold", {"for_s": None}, HoldWanted()),
        ("/v1/unhold", {"gpus": ["1"]}, UnholdWanted(("1",))),
        ("/v1/unhold", {"id": "5eed"}, UnholdWanted(id="5eed")),
        ("/v1/park", {"gpus": ["gpu0"]}, ParkWanted(("gpu0",))),
        ("/v1/pause", {"for_s": 1.5, "reason": "x"}, PauseWanted(1.5, "x")),
        ("/v1/resume", {}, ResumeWanted()),
        ("/v1/resume", None, ResumeWanted()),
        ("/v1/resume", b" \r\n", ResumeWanted()),
        ("/v1/release", {"reason": "upgrade"}, ReleaseWanted("upgrade")),
        ("/v1/reload", {}, ReloadWanted()),
    ],
)
def test_each_change_reaches_the_loop(folder, loop, route, body, meant):
    """As data, and with the process and user that asks, as the kernel sees them."""
    status, document = ask(folder, route, body)
    assert (status, document) == (200, {"schema": 1, **answer(meant)})
    (asked,) = loop.asked
    assert asked.request == meant
    assert asked.peer == Peer(os.getpid(), 0, 0, "root")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"resaon": "x"}, "unknown key 'resaon' (did you mean 'reason'?)"),
        ({"\x1b[2J": 1}, "unknown key '\\x1b[2J'"),
        ({"x" * 1000: 1}, "unknown key '" + "x" * 128 + "...'"),
        (b'{"reason": "a", "tied": false, "reason": "b"}', "'reason' is given twice"),
        (b'{"reason": {"a": 1, "a": 2}}', "'a' is given twice"),
        ({"gpus": "gpu0"}, 'gpus is a list, as in ["gpu0"]'),
        ({"gpus": None}, 'gpus is a list, as in ["gpu0"]'),
        ({"gpus": [0]}, "gpus wants text"),
        ({"gpus": [""]}, "gpus has an empty name"),
        ({"gpus": ["x" * 129]}, "gpus is longer than 128 characters"),
        ({"gpus": ["gpu0"] * 65}, "gpus has more than 64 names"),
        ({"for_s": "2h"}, "for_s is a number of seconds from 1 to 31622400, or null"),
        ({"for_s": True}, "for_s is a number of seconds"),
        ({"for_s": 0.5}, "for_s is a number of seconds"),
        ({"for_s": -1}, "for_s is a number of seconds"),
        ({"for_s": 1e300}, "for_s is a number of seconds"),
        (b'{"for_s": 1e999}', "for_s is a number of seconds"),
        (b'{"for_s": ' + b"9" * 4000 + b"}", "for_s is a number of seconds"),
        (b'{"for_s": ' + b"9" * 60000 + b"}", "the body is not JSON"),
        (b'{"for_s": NaN}', "NaN is not a number"),
        (b'{"for_s": -Infinity}', "-Infinity is not a number"),
        ({"reason": 1}, "reason wants text"),
        ({"reason": "x" * 201}, "reason is longer than 200 characters"),
        ({"reason": "a\nb"}, "reason has control characters in it"),
        ({"reason": "\x1b]0;owned\x07"}, "reason has control characters in it"),
        ({"reason": "\u202egnp.exe"}, "reason has control characters in it"),
        (b'{"reason": "\\ud800"}', "reason has control characters in it"),
        ({"tied": 1}, "tied is true or false"),
        (b"[]", "the body is not a JSON object"),
        (b"null", "the body is not a JSON object"),
        (b'"' + b"x" * 60000 + b'"', "the body is not a JSON object"),
        (b"{", "the body is not JSON"),
        (b"{} {}", "the body is not JSON"),
        (b'{"reason": "\xff"}', "the body is not JSON"),
        ("{}".encode("utf-16"), "the body is not JSON"),
        (b"[" * 60000, "the body is nested too deeply"),
        (b'{"reason":' * 6000, "the body is nested too deeply"),
    ],
)
def test_a_wrong_body(folder, loop, body, sentence):
    """Is refused with a sentence that says what is wrong, and is not asked for."""
    status, document = ask(folder, "/v1/hold", body)
    assert status == 400
    assert document["error"].startswith(sentence)
    assert document["hint"]
    assert len(document["error"]) < 400
    assert loop.asked == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /v1/nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/status?x=1 HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/../v1/status HTTP/1.1\r\n\r\n", 404),
        (b"POST /v1/status HTTP/1.1\r\n\r\n", 405),
        (b"HEAD /v1/status HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/hold HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /v1/hold HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/status HTTP/2.0\r\n\r\n", 400),
        (b"GET http://localhost/v1/status HTTP/1.1\r\n\r\n", 400),
        (b"get /v1/status HTTP/1.1\r\n\r\n", 400),
        (b"GET  /v1/status HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 300 + b" HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nName : x\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: \r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: 0x2\r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n{}", 400),
        (b"POST /v1/resume HTTP/1.1\r\nContent-Length: %d\r\n\r\n{}" % (BODY_BYTES + 1), 413),
        (b"POST /v1/resume HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"POST /v1/resume HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", 411),
        (b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /v1/status HTTP/1.1\r\nX: " + b" " * (HEAD_BYTES - 100) + b"\0\r\n\r\n", 200),
        (b"x" * 3 * HEAD_BYTES, 431),
        (b"GET /v1/status HTTP/1.0\r\n\r\n", 200),
        (b"POST /v1/resume HTTP/1.1\r\ncontent-length:2 \r\n\r\n{}", 200),
    ],
)
def test_http(folder, loop, text, status):
    """Whatever comes is answered with JSON and the right status, and what is not understood reaches nobody."""
    found, document = exchange(folder, text)
    assert found == status
    assert ("error" in document) == (status != 200)
    assert len(loop.asked) == (status == 200)


@pytest.mark.usefixtures("loop")
def test_the_largest_body(folder):
    """What is just within the limit is read."""
    assert ask(folder, "/v1/resume", b"{}".ljust(BODY_BYTES))[0] == 200


def test_one_request_on_a_connection(folder, loop):
    """What follows a request is not read: no pipelining, and no way to smuggle one request into another."""
    with connect(folder) as client:
        client.sendall(request("/v1/resume", {}) + request("/v1/reload", {}) * 10)
        assert parts(read_all(client))[0] == 200
    assert loop.requests == [ResumeWanted()]


def test_a_client_that_has_said_everything(folder, loop):
    """A client may close its side (nc -N) and still get its answer; half a request is answered too."""
    for text, status in [(request("/v1/status"), 200), (b"GET /v1", 400), (request("/v1/hold", b"{}")[:-1], 400)]:
        with connect(folder) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            assert parts(read_all(client))[0] == status
    assert loop.requests == [Status()]


@pytest.fixture(scope="module")
def fuzzed():
    """One socket for many examples."""
    with short_folder() as folder, answering(folder) as loop:
        yield folder, loop


@hypothesis_settings(max_examples=150)
@given(
    text=st.binary(max_size=200)
    | st.from_regex(rb"(GET|POST) /v1/(status|hold) HTTP/1\.1\r\n([ -~]{0,9}:?[ -~]{0,9}\r\n){0,4}\r\n.{0,20}")
)
def test_any_bytes(fuzzed, text):
    """Whatever is sent, a JSON answer with a status of ours comes back, or nothing was sent at all."""
    folder, _ = fuzzed
    with connect(folder) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
        answered = read_all(client)
    if text:
        assert parts(answered)[0] in (200, 400, 404, 405, 411, 413, 431)
    else:
        assert answered == b""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@hypothesis_settings(max_examples=300)
@given(
    kind=st.sampled_from(list(ROUTES.values())),
    body=st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["gpus", "for_s", "reason", "tied", "id"]) | st.text(max_size=6), json_values, max_size=5
    ).map(lambda document: json.dumps(document).encode()),
)
def test_any_body(kind, body):
    """Is a request whose values are what they say they are, or a UsageError; never another exception."""
    try:
        wanted = parse(kind, body)
    except UsageError:
        return
    document = json.loads(body.decode().strip() or "{}")
    for key, value in dataclasses.asdict(wanted).items():
        if key in document:
            assert value == (tuple(document[key]) if key == "gpus" else document[key])


# ---- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("'gpu7' is no GPU", hint="known: gpu0"), 400),
        (PermissionMissing("no", hint="sudo"), 403),
        (MemscalerError("there is no hold 5eed", hint="see status"), 409),
        (GpuPermission("the driver refuses", hint="root"), 409),
        (ConfigError("line 1 is wrong\nline 2 is wrong", hint="mend it"), 422),
    ],
)
def test_errors_of_the_loop(folder, loop, error, status):
    """Each kind has its status; sentence and hint arrive."""

    def refuse(_request):
        raise error

    loop.answer = refuse
    assert ask(folder, "/v1/reload") == (status, {"schema": 1, "error": str(error), "hint": error.hint})


@pytest.mark.parametrize("wrong", [RuntimeError("secret"), {"energy": float("nan")}, {"what": object()}])
def test_a_mistake_of_ours(folder, loop, wrong):
    """The client learns that there was one, the log what it was; the server goes on."""

    def fail(_request):
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    loop.answer = fail
    with capture_logs() as logs:
        status, document = ask(folder, "/v1/status")
    assert status == 500
    assert "secret" not in str(document)
    assert "Traceback" not in str(document)
    assert [entry["event"] for entry in logs] == ["request.failed"]
    loop.answer = answer
    assert ask(folder, "/v1/status")[0] == 200


def test_a_loop_that_does_not_answer(folder, loop, monkeypatch):
    """503 in time, others are served meanwhile, and a late answer disturbs nobody."""
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.3)
    loop.answer = lambda asked: None if isinstance(asked, ResumeWanted) else answer(asked)
    with connect(folder) as slow:
        slow.sendall(request("/v1/resume"))
        eventually(lambda: loop.asked)
        assert ask(folder, "/v1/status")[0] == 200
        status, document = parts(read_all(slow))
    assert (status, document["error"]) == (503, "the governor does not answer")
    loop.asked[0].answer.set_result({})
    assert ask(folder, "/v1/status")[0] == 200


def test_half_a_request(folder, loop, monkeypatch):
    """Neither headers nor a body that do not come hold anybody up, or a connection open."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.3)
    for text in (b"", b"GET /v1/sta", request("/v1/resume", b"{}")[:-1]):
        with connect(folder) as slow:
            slow.sendall(text)
            assert ask(folder, "/v1/status")[0] == 200
            status, document = parts(read_all(slow))
        assert (status, document["error"]) == (408, "the request did not arrive within 0.3 s")
    assert set(loop.requests) == {Status()}


def test_drop_by_drop(folder, loop, monkeypatch):
    """A byte now and then is no request in time either."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.3)
    began = time.monotonic()
    with connect(folder) as slow, contextlib.suppress(BrokenPipeError):
        for byte in request("/v1/status") * 10:
            slow.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 5
    assert loop.asked == []


def test_a_client_that_does_not_read(folder, loop, monkeypatch):
    """Its connection is given up in the end."""
    monkeypatch.setattr(control, "SEND_TIMEOUT_S", 0.3)
    loop.answer = lambda _: {"notices": ["x" * (8 << 20)]}
    with connect(folder) as deaf:
        deaf.sendall(request("/v1/status"))
        eventually(lambda: loop.asked)
        time.sleep(0.6)
        assert len(read_all(deaf)) < 8 << 20


@pytest.mark.usefixtures("loop")
def test_clients_that_vanish(folder):
    """At any point; the server does not care."""
    for text in (b"", b"GET", request("/v1/status"), request("/v1/hold", b"{}")[:-1]):
        for _ in range(20):
            client = connect(folder)
            client.sendall(text)
            client.close()
    eventually(lambda: ask(folder, "/v1/status")[0] == 200)


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("loop")
def test_a_thousand_connections(folder):
    """One after the other; no descriptor and no thread is left behind."""

    def resources() -> tuple[int, int]:
        return descriptors(), threading.active_count()

    ask(folder, "/v1/status")
    before = resources()
    for _ in range(1000):
        assert ask(folder, "/v1/status")[0] == 200
    eventually(lambda: resources() == before)


def test_the_server_never_waits_for_the_loop(folder, monkeypatch):
    """Asking only posts: whoever takes the mail may be busy as long as it likes."""
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.3)
    mail: list[object] = []
    server = ControlServer(folder / SOCKET, mail.append)
    server.start()
    try:
        assert [ask(folder, "/v1/status")[0] for _ in range(2)] == [503, 503]
    finally:
        began = time.monotonic()
        server.stop()
    assert len(mail) == 2
    assert time.monotonic() - began < 1


# ---- who may do what -----------------------------------------------------------------------------------------------


@pytest.fixture
def grouped(folder, monkeypatch):
    """A socket whose readers are members of another group that exists here; other users get past the file's mode."""
    monkeypatch.setattr(control, "GROUP", GROUP.gr_name)
    with answering(folder) as loop:
        (folder / SOCKET).chmod(0o666)
        yield loop


@pytest.mark.parametrize(("gid", "groups"), [(GROUP.gr_gid, ()), (NOBODY, (1, GROUP.gr_gid, 7)), (GROUP.gr_gid, (1,))])
def test_the_group_may_read(folder, grouped, gid, groups):
    """Also as a supplementary group; and may not change anything."""
    status, document = parts(as_user(NOBODY, gid, groups, folder, request("/v1/status")))
    assert (status, document["version"]) == (200, STATUS["version"])
    (asked,) = grouped.asked
    assert (asked.peer.uid, asked.peer.gid, asked.peer.name) == (NOBODY, gid, str(NOBODY))
    for route in FOR_ROOT:
        status, document = parts(as_user(NOBODY, gid, groups, folder, request(route, {})))
        assert (status, document["error"]) == (403, "only root may change anything")
        assert document["hint"]
    assert len(grouped.asked) == 1


def test_the_group_may_wake_servers(folder, grouped):
    """That undoes only what memscaler did: the gateway needs no more rights."""
    assert set(CHANGES) - set(FOR_ROOT) == {"/v1/wake"}
    as_user(NOBODY, GROUP.gr_gid, (), folder, request("/v1/wake", {"servers": ["chat"]}))
    (asked,) = grouped.asked
    assert asked.request == WakeWanted(("chat",))


@pytest.mark.parametrize("groups", [(), (0, 1, 7), tuple(gid for gid in range(1, 60) if gid != GROUP.gr_gid)])
def test_others_may_nothing(folder, grouped, groups):
    """Not even learn which routes there are; also in root's group."""
    for route in [*ROUTES, "/v1/nothing"]:
        status, document = parts(as_user(NOBODY, 0, groups, folder, request(route)))
        assert (status, document["error"]) == (403, "only root and members of group games may ask")
    assert grouped.asked == []


@pytest.mark.usefixtures("grouped")
def test_more_groups_than_we_can_see(folder):
    """Doubt means no."""
    groups = (GROUP.gr_gid, *range(1000, 1300))
    assert parts(as_user(NOBODY, NOBODY, groups, folder, request("/v1/status")))[0] == 403
    assert parts(as_user(NOBODY, GROUP.gr_gid, groups, folder, request("/v1/status")))[0] == 200


def test_a_missing_group(folder, monkeypatch):
    """Then there are no readers; gid 0, to which the file belongs, does not make one."""
    monkeypatch.setattr(control, "GROUP", "memscaler-is-not-here")
    with answering(folder) as loop:
        assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o660
        assert (folder / SOCKET).stat().st_gid == 0
        assert parts(as_user(NOBODY, 0, (), folder, request("/v1/status")))[0] == 403
        assert ask(folder, "/v1/status")[0] == 200
        assert len(loop.asked) == 1


def test_the_mode_of_the_file(folder, monkeypatch):
    """Keeps all others away, whatever the mask; the group is the readers'."""
    monkeypatch.setattr(control, "GROUP", GROUP.gr_name)
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            with answering(folder):
                found = (folder / SOCKET).stat()
                assert os.umask(mask) == mask
                assert as_user(NOBODY, NOBODY, (), folder, request("/v1/status")) == b"PermissionError"
                assert as_user(NOBODY, GROUP.gr_gid, (), folder, request("/v1/status")).startswith(b"HTTP/1.1 200")
        finally:
            os.umask(before)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, GROUP.gr_gid)


@pytest.mark.usefixtures("grouped")
def test_who_is_refused_is_refused_before_the_body(folder):
    """Nobody waits for, or reads, what must not be asked."""
    text = request("/v1/hold", {})[:-1]
    began = time.monotonic()
    assert parts(as_user(NOBODY, GROUP.gr_gid, (), folder, text))[0] == 403
    assert time.monotonic() - began < 3


@pytest.mark.usefixtures("grouped")
def test_the_log_has_changes_only(folder):
    """One line for each that is asked for, with who asks; nothing for readers, and nothing that others can cause."""
    with capture_logs() as logs:
        ask(folder, "/v1/status")
        ask(folder, "/v1/hold", {"reason": "benchmark", "for_s": 60})
        ask(folder, "/v1/hold", {"reason": 1})
        ask(folder, "/v1/nothing")
        exchange(folder, b"\r\n\r\n")
        as_user(NOBODY, GROUP.gr_gid, (), folder, request("/v1/status"))
        as_user(NOBODY, GROUP.gr_gid, (), folder, request("/v1/reload", {}))
        as_user(NOBODY, NOBODY, (), folder, request("/v1/reload", {}))
    assert logs == [
        {
            "event": "control.asked",
            "log_level": "info",
            "what": "hold",
            "user": "root",
            "pid": os.getpid(),
            "gpus": (),
            "for_s": 60.0,
            "reason": "benchmark",
            "tied": False,
        }
    ]


def silent_readers(folder, count: int) -> int:
    """A process of a reader with many connections that say nothing; its pid, once it has them."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(())
            os.setgid(GROUP.gr_gid)
            os.setuid(NOBODY)
            clients = [connect(folder) for _ in range(count)]
            os.write(writing, b"!")
            signal.pause()
            del clients
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    return pid


def end(pid: int) -> None:
    """And leave no zombie."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.usefixtures("grouped")
def test_readers_make_room_for_root(folder):
    """Sixteen connections that say nothing keep other readers out, but never root."""
    pid = silent_readers(folder, control.MOST_CONNECTIONS)
    try:
        refused = as_user(NOBODY, GROUP.gr_gid, (), folder, b"")
        assert (parts(refused)[0], parts(refused)[1]["error"]) == (503, "too many connections")
        before = descriptors()
        with contextlib.ExitStack() as stack:
            mine = [stack.enter_context(connect(folder)) for _ in range(control.MOST_CONNECTIONS)]
            for client in mine:
                client.sendall(request("/v1/status"))
                assert parts(read_all(client))[0] == 200
            # the server's ends of ours are closed, and so are those of the readers, before their time is up
            eventually(lambda: descriptors() == before, within_s=2)
    finally:
        end(pid)


@pytest.mark.usefixtures("loop")
def test_root_waits_for_root(folder):
    """The seventeenth connection is refused at once, until one of the others is over."""
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(folder)) for _ in range(control.MOST_CONNECTIONS)]
        assert exchange(folder, b"")[0] == 503
        mine[3].close()
        eventually(lambda: exchange(folder, request("/v1/status"))[0] == 200)


# ---- tied holds ----------------------------------------------------------------------------------------------------


def tie(folder, **wanted) -> tuple[socket.socket, dict]:
    """A tied hold: its connection, and the line that comes at once."""
    client = connect(folder)
    client.sendall(request("/v1/hold", {**wanted, "tied": True}))
    text = b""
    while b"\r\n\r\n" not in text or not text.endswith(b"\n"):
        text += client.recv(65536)
    head, _, line = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Content-Length" not in head
    assert line.count(b"\n") == 1
    return client, json.loads(line)


def stays(ask, value, for_s: float = 0.2) -> None:
    """It is so, and is so for a while."""
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        assert ask() == value
        time.sleep(0.01)


def test_a_tied_hold(folder, loop):
    """Begins at once, lasts as long as its connection, whatever is sent on it, and ends once."""
    client, document = tie(folder, gpus=["gpu0"], reason="benchmark")
    assert document == {"schema": 1, "id": "5eed", "gpus": ["gpu0"], "expires_in_s": None}
    assert loop.requests == [HoldWanted(("gpu0",), None, "benchmark", tied=True)]
    client.sendall(request("/v1/reload", {}) * 1000)
    stays(lambda: loop.ended, [])
    client.close()
    eventually(lambda: loop.ended == ["5eed"])
    stays(lambda: loop.ended, ["5eed"])
    assert len(loop.asked) == 1


def test_the_client_of_a_tied_hold_is_killed(folder, loop):
    """With -9: the kernel closes its connection."""
    pid = os.fork()
    if pid == 0:
        try:
            kept = tie(folder)
            signal.pause()
            del kept
        finally:
            os._exit(1)
    eventually(lambda: loop.asked)
    stays(lambda: loop.ended, [])
    assert loop.asked[0].peer.pid == pid
    end(pid)
    eventually(lambda: loop.ended == ["5eed"])


def test_a_tied_hold_ends_when_the_server_stops(folder):
    """Once, and the client sees the end."""
    with answering(folder) as loop:
        client, _ = tie(folder)
    assert loop.ended == ["5eed"]
    assert client.recv(1) == b""
    client.close()


def test_a_tied_client_that_does_not_wait(folder, loop):
    """It is gone before the hold is there: that ends as soon as it begins."""
    loop.answer = lambda _: None
    client = connect(folder)
    client.sendall(request("/v1/hold", {"tied": True}))
    eventually(lambda: loop.asked)
    client.close()
    stays(lambda: loop.ended, [])
    loop.asked[0].answer.set_result({"id": "late"})
    eventually(lambda: loop.ended == ["late"])
    stays(lambda: loop.ended, ["late"])


def test_a_tied_hold_that_comes_too_late(folder, loop, monkeypatch):
    """The client has been told that nobody answers: then nobody holds anything either."""
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.2)
    loop.answer = lambda _: None
    assert ask(folder, "/v1/hold", {"tied": True})[0] == 503
    loop.asked[0].answer.set_result({"id": "late"})
    eventually(lambda: loop.ended == ["late"])


def test_a_tied_hold_that_comes_after_the_server(folder):
    """The server has stopped meanwhile: it ends all the same."""
    mail: list = []
    server = ControlServer(folder / SOCKET, mail.append)
    server.start()
    with connect(folder) as client:
        client.sendall(request("/v1/hold", {"tied": True}))
        eventually(lambda: mail)
        server.stop()
    assert len(mail) == 1
    mail[0].answer.set_result({"id": "late"})
    assert mail[1:] == [TiedEnded("late")]


def test_a_tied_hold_that_is_refused(folder, loop):
    """There is nothing to end."""

    def refuse(_request):
        raise UsageError("'gpu7' is no GPU")

    loop.answer = refuse
    assert ask(folder, "/v1/hold", {"tied": True, "gpus": ["gpu7"]})[0] == 400
    stays(lambda: loop.ended, [])


def test_tied_holds_leave_room(folder, loop):
    """They do not count as connections that wait, but there is an end to them too."""
    with contextlib.ExitStack() as stack:
        for _ in range(control.MOST_TIED):
            stack.enter_context(contextlib.closing(tie(folder)[0]))
        assert ask(folder, "/v1/status")[0] == 200
        status, document = ask(folder, "/v1/hold", {"tied": True})
        assert (status, document["error"]) == (503, "there are 64 tied holds already")
        assert ask(folder, "/v1/hold", {})[0] == 200
    eventually(lambda: len(loop.ended) == control.MOST_TIED)


# ---- the socket ----------------------------------------------------------------------------------------------------


def test_a_stale_socket_is_replaced(folder):
    """One that a killed daemon left."""
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({str(folder / SOCKET)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert stat.S_ISSOCK((folder / SOCKET).lstat().st_mode)
    with answering(folder):
        assert ask(folder, "/v1/status")[0] == 200


def test_a_symbolic_link_is_not_followed(folder):
    """It is replaced, and what it leads to is left alone."""
    target = folder / "target"
    target.write_text("precious")
    target.chmod(0o600)
    (folder / SOCKET).symlink_to(target)
    with answering(folder):
        assert ask(folder, "/v1/status")[0] == 200
        assert not (folder / SOCKET).is_symlink()
    assert target.read_text() == "precious"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("make", ["write_text", "mkdir"])
def test_something_else_in_its_place(folder, make):
    """Is not ours to remove."""
    place = folder / SOCKET
    place.write_text("x") if make == "write_text" else place.mkdir()
    with pytest.raises(MemscalerError, match=r"cannot make the control socket .*: something else is there"):
        ControlServer(place, print)
    assert place.exists()


def test_paths_that_cannot_be(folder):
    """Too long, or in a folder that is not there: said in a sentence."""
    with pytest.raises(MemscalerError, match="is too long for a socket") as refusal:
        ControlServer(folder / ("x" * 100) / SOCKET, print)
    assert "--runtime-dir" in refusal.value.hint
    with pytest.raises(MemscalerError, match="No such file or directory"):
        ControlServer(folder / "nowhere" / SOCKET, print)


def test_life(folder):
    """Nobody gets in before start or after stop, the file goes with the server, and stopping twice harms nobody."""
    loop = AnsweringLoop()
    first = ControlServer(folder / SOCKET, loop.put)
    with pytest.raises(ConnectionRefusedError):
        connect(folder)
    first.start()
    assert ask(folder, "/v1/status")[0] == 200
    first.stop()
    assert not (folder / SOCKET).exists()
    second = ControlServer(folder / SOCKET, loop.put)
    first.stop()
    assert (folder / SOCKET).exists()
    second.stop()
    assert not (folder / SOCKET).exists()
    loop.close()
