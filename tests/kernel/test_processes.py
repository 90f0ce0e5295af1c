"""A look at /proc, against processes that were made for it."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.kernel import processes as module
from memscaler.kernel.processes import Processes, parse_cgroups
from memscaler.kernel.sock_diag import SockDiag
from tests.kernel.crowd import Actor, cgroup, played
from tests.kernel.worlds import Child, namespace


def test_what_a_process_is():
    """Parent, name, arguments, executable, namespace and cgroup of a process are those that it was given."""
    argv = ["llama-server", "-m", "a b.gguf", "", "--alias", "ü\n"]
    with (
        namespace() as netns,
        cgroup(f"ms-test-{os.getpid()}.slice") as group,
        played(Actor(argv, netns=netns, cgroup=group)) as [actor],
    ):
        seen = Processes.look()
        assert actor.pid in seen
        assert seen.parent(actor.pid) == os.getpid()
        assert seen.argv(actor.pid) == tuple(argv)
        assert seen.comm(actor.pid) == "actor"
        assert seen.exe(actor.pid).endswith("/actor")
        assert seen.netns(actor.pid) == Path(netns).stat().st_ino != seen.netns(os.getpid())
        assert seen.cgroup(actor.pid) == f"/{group.name}"
        assert seen.cgroups(actor.pid)[0] == f"/{group.name}"
        assert seen.path(actor.pid, "ns", "net") == f"/proc/{actor.pid}/ns/net"
        assert seen.still_there(actor.pid)


def test_a_name_with_blanks_and_brackets():
    """The fields of /proc/PID/stat begin behind the last bracket, whatever the program is called."""
    with played(Actor(["x"], program=") S 1 (x)")) as [actor]:
        seen = Processes.look()
        assert (seen.comm(actor.pid), seen.parent(actor.pid)) == (") S 1 (x)", os.getpid())


def test_relatives():
    """Descendants of several generations, and whose branch is cut off; ancestors up to the first process."""
    leaf = Actor(["leaf"])
    with played(Actor(["root"], children=[Actor(["left"], children=[leaf, leaf]), Actor(["right"])])) as [root]:
        seen = Processes.look()
        left, right = root.children
        leaves = {each.pid for each in left.children}
        assert seen.descendants([root.pid]) == {left.pid, right.pid, *leaves}
        assert seen.descendants([root.pid, left.pid]) == {right.pid, *leaves}
        assert seen.descendants([root.pid], without={left.pid}) == {right.pid}
        assert seen.descendants([right.pid]) == seen.descendants([]) == seen.descendants([1 << 30]) == frozenset()
        assert {left.pid, root.pid, os.getpid()} <= seen.ancestors(leaves)
        assert seen.ancestors([left.pid, root.pid]) >= {os.getpid()}
        assert not seen.ancestors([left.pid, root.pid]) & {left.pid, root.pid}


def test_who_holds_a_socket():
    """Each holder of a shared socket, none of the others, and only among those that are asked about."""
    worker = Actor(["worker"])
    with played(Actor(["master"], listens=["127.0.0.1"], share=True, children=[worker, worker]), Actor(["other"])) as [
        master,
        other,
    ]:
        diag = SockDiag()
        inodes = {row.inode for row in diag.listeners(master.port)}
        diag.close()
        seen = Processes.look()
        holders = {each.pid for each in master.everybody()}
        assert seen.owners(inodes, {*holders, other.pid}) == dict.fromkeys(inodes, holders)
        assert seen.owners(inodes, [master.pid, other.pid]) == {each: {master.pid} for each in inodes}
        assert seen.owners(inodes, [other.pid]) == seen.owners({1}, holders) == {}
        assert seen.sockets(other.pid) == frozenset()


def test_a_process_that_has_ended():
    """What ends between the look and a question has nothing, and nothing fails."""
    with played(Actor(["short-lived"], listens=["127.0.0.1"])) as [actor]:
        seen = Processes.look()
    assert actor.pid in seen
    assert (seen.argv(actor.pid), seen.netns(actor.pid), seen.cgroups(actor.pid)) == ((), None, ())
    assert (seen.sockets(actor.pid), seen.exe(actor.pid), seen.cgroup(actor.pid)) == (frozenset(), "", "")
    assert not seen.still_there(actor.pid)
    assert actor.pid not in Processes.look()


def test_zombies_and_kernel_threads_are_not_there():
    """Neither has arguments, sockets or contexts."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        seen = Processes.look()
        assert pid not in seen
        kernel_threads = [int(each.name) for each in Path("/proc").iterdir() if _is_kernel_thread(each)]
        assert not set(kernel_threads) & set(seen.pids)
        assert os.getpid() in seen
    finally:
        os.waitpid(pid, 0)


def _is_kernel_thread(folder):
    try:
        return folder.name.isdigit() and int((folder / "stat").read_text().rpartition(")")[2].split()[6]) & 0x200000
    except OSError:
        return False


def test_a_pid_that_is_used_again(tmp_path):
    """A process of the same pid that has started later is another one."""
    line = "7 (a) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {} 0 0"
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(line.format(100))
    seen = Processes.look(tmp_path)
    assert seen.still_there(7)
    (tmp_path / "7/stat").write_text(line.format(101))
    assert not seen.still_there(7)


def test_rubbish_in_proc(tmp_path):
    """What is no process is passed over: files, names that are no numbers, empty and cut stats, a lack of everything."""
    for name, stat in {"1": "1 (init) S 0", "2": "", "3": "(((", "x": "3 (x) S 1", "4": "\0" * 50}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "stat").write_text(stat)
    (tmp_path / "5").write_text("")
    (tmp_path / "6").mkdir()
    assert not Processes.look(tmp_path).pids
    with pytest.raises(OSError, match="nowhere"):
        Processes.look(tmp_path / "nowhere")


def test_without_privileges():
    """Who may not look sees who is there, but neither namespaces nor sockets."""

    def look():
        os.setgroups([])
        os.seteuid(65534)
        seen = Processes.look()
        assert 1 in seen
        assert (seen.netns(1), seen.sockets(1), seen.exe(1)) == (None, frozenset(), "")
        assert seen.cgroups(1)

    Child(look).kill()


def test_cgroup_lines():
    """Version 2 first, then systemd's hierarchy; what was deleted keeps its name; colons belong to paths."""
    text = "4:memory:/docker/x\n1:name=systemd:/a.slice/b:c.service (deleted)\n0::/\nrubbish\n9:cpu\n"
    assert parse_cgroups(text) == ("/", "/a.slice/b:c.service", "/docker/x")
    assert (
        parse_cgroups("0::/user.slice/x@y\\x2dz.service\n1:name=systemd:/old\n")[0] == "/user.slice/x@y\\x2dz.service"
    )
    assert parse_cgroups("") == ()


@given(st.text())
def test_any_text_is_parsed(text):
    """Names are chosen by others."""
    assert all(path.startswith("/") for path in parse_cgroups(text))
    process = module._process(f"1 ({text}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0", 1)
    assert process is not None
    assert (process.comm, process.parent, process.started) == (text, 1, 5)
    module._process(text, 1)
    assert all("\0" not in word for word in module._words(text))


def test_a_look_is_quick():
    """Some hundred processes are looked at in little time, with their arguments."""
    with played(*[Actor(["sleeper"], children=[Actor(["sleeper"])] * 99)] * 3):
        best_s = min(_look_s() for _ in range(5))
    print(f"look with arguments: {best_s * 1000:.1f} ms")
    assert best_s < 0.25


def _look_s():
    began = time.monotonic()
    seen = Processes.look()
    for pid in seen.pids:
        seen.argv(pid)
    assert len(seen.pids) > 300
    return time.monotonic() - began
