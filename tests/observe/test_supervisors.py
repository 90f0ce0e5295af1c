"""Supervisors while the governor runs: whatever their users do, nobody waits for them and metrics do not grow."""

import ctypes
import os
import pwd
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from memscaler.core.servers import ServerReport, ServerState
from memscaler.observe.metrics import render
from memscaler.observe.servers import look_closely
from memscaler.observe.supervisors import MOST_LABELS, Supervisors
from tests.supervisors import ROOT, tell

NOBODY = pwd.getpwnam("nobody")
CHAT = ServerReport("chat", ServerState.READY, 1_700_000_000.0, port=8080)
EMBED = replace(CHAT, name="embed", port=8081)
LIBC = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


@contextmanager
def deaf_file_system(folder):
    """A file system of a user's own making (FUSE) that never answers; at the end those who wait for it go on."""
    folder.mkdir(parents=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    failed = LIBC.mount(b"deaf", bytes(folder), b"fuse", 0, options.encode())
    assert not failed, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(device)
        LIBC.umount2(bytes(folder), MNT_DETACH)


def looking():
    """Threads that look."""
    return [thread for thread in threading.enumerate() if thread.name == "supervisors"]


def test_a_file_system_that_does_not_answer(tmp_path):
    """Who asks is told after a moment, at once the next time, and learns of the others; one thread waits."""
    tell(tmp_path, [CHAT])
    tell(tmp_path, [EMBED], "user/65534/memscaler-servers")
    supervisors = Supervisors(tmp_path)
    with deaf_file_system(tmp_path / "user/1000/memscaler-servers"):
        first = supervisors.look()
        assert [server.name for server, _ in first.servers] == ["chat"]
        for _ in range(3):
            seen = supervisors.look()
            assert [server.name for server, _ in seen.servers] == ["chat", "embed"]
            assert len(looking()) == 1
        assert seen.notices == first.notices
        (notice,) = seen.notices
        assert notice.startswith(f"{tmp_path}/user/1000/memscaler-servers: its file system does not answer")
    for thread in looking():
        thread.join(30)
    assert not looking()
    assert [server.name for server, _ in supervisors.look().servers] == ["chat", "embed"]


def test_a_link_to_a_file_system_that_does_not_answer(tmp_path):
    """It is not followed, not even to see whether something is there."""
    with deaf_file_system(tmp_path / "elsewhere"):
        (tmp_path / "user/1000").mkdir(parents=True)
        (tmp_path / "user/1000/memscaler-servers").symlink_to(tmp_path / "elsewhere/deeper")
        code = "import sys; from pathlib import Path; from memscaler.observe.servers import look_closely\n"
        code += "assert not look_closely(Path(sys.argv[1])).notices"
        subprocess.run(["timeout", "30", sys.executable, "-c", code, tmp_path], check=True)


def test_labels_of_metrics_are_few(tmp_path, snapshot):
    """Names and ports that change with every look: soon that supervisor is not heard, the others are."""
    tell(tmp_path, [EMBED], "memscaler-servers-other")
    supervisors = Supervisors(tmp_path)
    series = set()
    for turn in range(2 * MOST_LABELS // 200):
        file = tell(tmp_path, [replace(CHAT, name=f"s{turn}-{nth}") for nth in range(200)])
        seen = supervisors.look()
        lines = render(replace(snapshot, supervised=seen))[0].decode().splitlines()
        series |= {line for line in lines if line.startswith("memscaler_server_info{")}
    assert seen.notices == (f"{file}: has told of more than {MOST_LABELS} servers and ports in a day",)
    assert [server.name for server, _ in seen.servers] == ["embed"]
    assert 200 <= len(series) <= MOST_LABELS + 1
    tell(tmp_path, [replace(CHAT, name="s0-0")])
    assert [server.name for server, _ in supervisors.look().servers] == ["s0-0", "embed"]


def test_a_pid_that_is_claimed(tmp_path):
    """Who says that another's supervisor is its own process does not make that one look ended."""
    tell(tmp_path, [CHAT])
    tell(tmp_path, [EMBED], "user/65534/memscaler-servers", uid=NOBODY.pw_uid, user=NOBODY.pw_name, pid=os.getpid())
    seen = look_closely(tmp_path)
    assert [(each.user, seen.has_ended(each)) for each in seen.supervisors] == [(ROOT, False), (NOBODY.pw_name, True)]


def test_names_that_are_claimed(tmp_path):
    """Only those are the first one's; what else the second has is shown."""
    tell(tmp_path, [CHAT])
    file = tell(tmp_path, [CHAT, EMBED], "memscaler-servers-other")
    seen = look_closely(tmp_path)
    assert [[server.name for server in each.servers] for each in seen.supervisors] == [["chat"], ["embed"]]
    assert seen.notices == (f"{file}: server chat is that of another supervisor",)


def test_replaced_while_it_is_read(tmp_path):
    """What is read is one file or the other, however fast they change."""
    supervisors, over = Supervisors(tmp_path), threading.Event()
    tell(tmp_path, [CHAT])

    def change():
        while not over.is_set():
            tell(tmp_path, [CHAT] * (time.monotonic_ns() % 2))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            assert supervisors.look().notices == ()
    finally:
        over.set()
        changing.join()
