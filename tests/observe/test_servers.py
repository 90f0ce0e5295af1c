"""What supervisors say of their servers: read from real files, whoever wrote them."""

import os
import pwd
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from memscaler.core.servers import ServerReport, ServerState, Supervised, SupervisorReport
from memscaler.observe.metrics import render
from memscaler.observe.pages import page
from memscaler.observe.servers import look, look_closely
from memscaler.observe.status import document
from memscaler.observe.view import view
from tests.observe.conftest import A40
from tests.supervisors import ROOT, tell

NOBODY = pwd.getpwnam("nobody")
CHAT = ServerReport(
    "chat",
    ServerState.READY,
    1_700_000_000.5,
    pid=4711,
    port=8080,
    gpus=(A40.uuid, "GPU-of-nobody"),
    model="/home/alice/private/model.gguf",
    restarts=3,
    ended="SIGKILL",
)
EMBED = ServerReport(
    "embed",
    ServerState.WAITING,
    1_700_000_000.0,
    port=8081,
    reason="it ended with exit status 1 (pid 4712)",
    starts_unix_s=time.time() + 1_000_000,
)


def test_what_is_told(tmp_path):
    """Of each supervisor, the default one first, also one that is run by hand; what is none is passed over."""
    assert look_closely(tmp_path) == Supervised()
    (tmp_path / "memscaler").mkdir()
    (tmp_path / "memscaler-servers-empty").mkdir()
    (tmp_path / "memscaler-servers-file").write_text("no folder")
    tell(tmp_path, [EMBED], "memscaler-servers-root")
    tell(tmp_path, [CHAT], others={"more": "a later version says more"})
    with subprocess.Popen(["sleep", "600"], user=NOBODY.pw_uid) as theirs:
        nobody = {"uid": NOBODY.pw_uid, "user": NOBODY.pw_name, "pid": theirs.pid}
        tell(tmp_path, [], "user/65534/memscaler-servers", **nobody)
        seen = look_closely(tmp_path)
        theirs.kill()
    assert (seen.gone, seen.notices) == ((), ())
    assert [each.user for each in seen.supervisors] == [ROOT, ROOT, NOBODY.pw_name]
    assert [server for server, _ in seen.servers] == [CHAT, EMBED]
    assert look(tmp_path)[:2] == seen.supervisors[:2]


def test_a_supervisor_that_has_ended(tmp_path):
    """Its servers are shown as it left them, and nobody claims to know how they are."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    tell(tmp_path, [CHAT], pid=ended.pid)
    seen = look_closely(tmp_path)
    assert seen.gone == ((ROOT, ended.pid),)
    assert seen.notices == (
        f"the supervisor of user root (pid {ended.pid}) has ended; what is shown of its servers is old",
    )


def test_a_pid_that_is_anothers_now(tmp_path):
    """The process of that number belongs to another user: the supervisor has ended."""
    with subprocess.Popen(["sleep", "600"], user=NOBODY.pw_uid) as other:
        tell(tmp_path, [CHAT], pid=other.pid)
        assert look_closely(tmp_path).gone == ((ROOT, other.pid),)
        other.kill()


def server(**changed):
    return {"servers": [{**asdict(CHAT), **changed}]}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema": 2}, "is not of schema 1"),
        ({"user": "alice"}, "speaks for user 'alice', and belongs to root"),
        ({"user": 3}, "user is no text"),
        ({"pid": "1"}, "pid is no number"),
        ({"pid": True}, "pid is no number"),
        ({"started_unix_s": None}, "started_unix_s is no time"),
        ({"started_unix_s": -1}, "started_unix_s is no time"),
        ({"servers": {}}, "servers is no list"),
        ({"servers": [3]}, "a server is no object"),
        ({"servers": [asdict(CHAT)] * 2}, "two of its servers have one name"),
        ({"servers": [asdict(CHAT)] * 300}, "servers is no list of at most 256"),
        (server(name="a b"), "'a b' is no name of a server"),
        (server(name='x"} 1\n'), "is no name of a server"),
        (server(state="happy"), "its state is none that is known"),
        (server(port=0), "port is no number from 1 to 65535"),
        (server(port=8080.0), "port is no number"),
        (server(restarts=-1), "restarts is no number"),
        (server(since_unix_s=True), "since_unix_s is no time"),
        (server(gpus="GPU"), "gpus is no list of texts"),
        (server(gpus=[1]), "gpus is no list of texts"),
        (server(reason="x" * 2000), "reason is no text of at most 1024"),
        (server(reason="\ud800"), "reason is no text"),
        (server(starts_unix_s="soon"), "starts_unix_s is no time"),
    ],
)
def test_garbage_is_a_notice(tmp_path, changed, why):
    """One wrong value, and nothing of that file counts; the others do."""
    file = tell(tmp_path, [CHAT], others=changed)
    tell(tmp_path, [EMBED], "memscaler-servers-other")
    seen = look_closely(tmp_path)
    assert [each.name for each, _ in seen.servers] == ["embed"]
    (notice,) = seen.notices
    assert notice.startswith(f"{file}: ")
    assert why in notice


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b'{"schema": NaN}', b'{"schema": 1e999}', b"9" * 10_000],
)
def test_what_is_no_json(tmp_path, body):
    """A notice, and no exception, whatever is in the file."""
    tell(tmp_path, []).write_bytes(body)
    seen = look_closely(tmp_path)
    assert (seen.supervisors, len(seen.notices)) == ((), 1)


def test_files_that_are_none(tmp_path):
    """Links are not followed, FIFOs not waited for, devices not read, and large files not taken into memory."""
    secret = tell(tmp_path / "elsewhere", [CHAT])
    for name in "abcdef":
        (tmp_path / f"memscaler-servers-{name}").mkdir()
    (tmp_path / "memscaler-servers-a/servers.json").symlink_to(secret)
    os.mkfifo(tmp_path / "memscaler-servers-b/servers.json")
    (tmp_path / "memscaler-servers-c/servers.json").mkdir()
    os.mknod(tmp_path / "memscaler-servers-d/servers.json", 0o020644, os.makedev(1, 5))  # /dev/zero
    (tmp_path / "memscaler-servers-e/servers.json").write_text(" " * (300 << 10))
    (tmp_path / "memscaler-servers-z").symlink_to(secret.parent)
    seen = look_closely(tmp_path)
    assert seen.supervisors == ()
    assert len(seen.notices) == 5
    for words in ("symbolic links", "not a regular file", "is larger than 256 KiB"):
        assert any(words in notice for notice in seen.notices), seen.notices


def test_whose_file_it_is(tmp_path):
    """Who speaks for another, or from another's folder, is not heard; nor who takes another's name."""
    tell(tmp_path, [CHAT])
    with subprocess.Popen(["sleep", "600"], user=NOBODY.pw_uid) as theirs:
        nobody = {"uid": NOBODY.pw_uid, "user": NOBODY.pw_name, "pid": theirs.pid}
        file = tell(tmp_path, [CHAT], "memscaler-servers-nobody", **nobody)
        seen = look_closely(tmp_path)
        assert [server for server, _ in seen.servers] == [CHAT]
        assert seen.notices == (f"{file}: server chat is that of another supervisor",)
        os.chown(tell(tmp_path, [EMBED], "memscaler-servers-nobody", **nobody).parent, 1, -1)
        assert "belongs to another user than its folder" in look_closely(tmp_path).notices[0]
        tell(tmp_path, [EMBED], "memscaler-servers-nobody", uid=54321)
        assert "belongs to nobody that is known (uid 54321)" in look_closely(tmp_path).notices[0]
        theirs.kill()


def test_more_supervisors_than_there_should_be(tmp_path):
    """What can be read is bounded."""
    for number in range(70):
        tell(tmp_path, [replace(CHAT, name=f"s{number}")], f"memscaler-servers-{number}")
    seen = look_closely(tmp_path)
    assert len(seen.supervisors) == 64
    assert seen.notices == (f"{tmp_path}: more than 64 supervisors, the others are not shown",)


def test_memory_is_bounded(tmp_path):
    """A hostile file of the largest size takes little memory, and less than a second."""
    tell(tmp_path, []).write_text('{"servers":[' + "[]," * 80_000 + "[]]}")
    code = (
        "import resource, sys; from pathlib import Path; from memscaler.observe.servers import look_closely\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert look_closely(Path(sys.argv[1])).notices\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20 << 10


# ---- what is made of it ---------------------------------------------------------------------------------------------


def supervised(*servers, gone=()):
    return Supervised((SupervisorReport("alice", 99, 1.0, tuple(servers)),), gone, ("somebody's file is broken",))


def test_in_the_status_document(snapshot):
    """Names of GPUs that are governed, and the notices beside the kernel's."""
    told = document(replace(snapshot, supervised=supervised(CHAT, EMBED)))
    chat, embed = told["servers"]
    assert chat["since_s"] > 1_000_000
    assert {**chat, "since_s": 0} == {
        "name": "chat",
        "user": "alice",
        "state": "ready",
        "since_s": 0,
        "supervised": True,
        "pid": 4711,
        "port": 8080,
        "gpus": ["gpu0", "GPU-of-nobody"],
        "model": "/home/alice/private/model.gguf",
        "restarts": 3,
        "reason": "",
        "ended": "SIGKILL",
        "starts_in_s": None,
    }
    assert 900_000 < embed["starts_in_s"] <= 1_000_000
    assert told["notices"][-1] == "somebody's file is broken"


def test_on_the_page(snapshot, empty):
    """Without JavaScript, too; no pids, no paths of models."""
    html = page(view(replace(snapshot, supervised=supervised(CHAT, EMBED))))
    assert '<tr data-key="chat">' in html
    assert 'data-is="waiting"' in html
    assert "it ended with exit status 1. It is started again in" in html
    assert '<strong data-field="about">Servers:</strong>' in html
    assert "somebody&#x27;s file is broken" in html
    for secret in ("private", "4711", "4712"):
        assert secret not in html
    plain = page(view(empty))
    assert 'data-when="servers" hidden' in plain


def test_one_whose_supervisor_has_ended(snapshot):
    """The page says so; metrics say nothing, rather than what was."""
    seen = replace(snapshot, supervised=supervised(CHAT, gone=(("alice", 99),)))
    assert document(seen)["servers"][0]["supervised"] is False
    entry = view(seen).lists["servers"][0]
    assert (entry.fields["state"], entry.fields["why"]) == ("unknown", "Its supervisor has ended; it was ready.")
    assert b"memscaler_server" not in render(seen)[0]


def test_exactly_one_state_is_1(snapshot):
    """The states of a server add up to one, whichever it is in."""
    for state in ServerState:
        text = render(replace(snapshot, supervised=supervised(replace(CHAT, state=state))))[0].decode()
        ones = [
            line for line in text.splitlines() if line.startswith("memscaler_server_state{") and line.endswith(" 1.0")
        ]
        assert ones == [f'memscaler_server_state{{server="chat",state="{state}"}} 1.0']
