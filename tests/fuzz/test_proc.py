"""A /proc as no kernel shows it, processes that vanish, and files of engines that lie: no worse than "not there"."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memscaler.config.ports import Watch
from memscaler.core.watch import Scope
from memscaler.daemon.discovery import look
from memscaler.kernel.containers import NAME, System, container_of, name_of, publisher_of
from memscaler.kernel.processes import Processes, parse_cgroups
from memscaler.kernel.scopes import Place, Unresolved, resolve, whereabouts
from tests.fuzz.cases import case, fuzzed, json_like, mutated

ID = "0123456789abcdef" * 4
STAT = b"7 (llama-server) S 1 7 7 0 -1 4194304 1 0 0 0 1 1 0 0 20 0 9 0 4711 1000 100 184467 1 1 0"
CGROUPS = [
    f"0::/system.slice/docker-{ID}.scope",
    f"12:cpu:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
    "0::/lxc.payload.web/x",
    "0::/machine.slice/machine-a\\x2db.scope",
    "0::/system.slice/llama@a.service",
    "0::/user.slice/user-99999999999.slice/lxc/../..",
    "",
]
ARGV = [
    b"llama-server\0-m\0a.gguf\0--port\08080\0",
    b"docker-proxy\0-container-port\0" + b"9" * 50 + b"\0-host-port\08080\0",
]
ARGV += [
    b"python3\0-m\0vllm.entrypoints.openai.api_server\0--port\0\xff\0",
    b"VLLM::APIServer_1",
    b"rootlessport\0",
    b"\0" * 70_000,
]
WORDS = [
    b"\0",
    b" ",
    b")",
    b"(",
    b"\n",
    b"/",
    b"\xff",
    b"9" * 5000,
    b"-1",
    b"Z",
    ID.encode(),
    b".service",
    b"0::/",
    b"\\x2f",
    b"--port",
]
LINKS = [
    "socket:[1]",
    "socket:[]",
    "socket:[x]",
    "socket:[-1]",
    "socket:[" + "9" * 5000,
    "socket:",
    "/dev/null",
    "pipe:[1]",
    "²",
]
PIDS = ["7", "8", "1", "007", "²", "٣", "9" * 30, "self", "0", "-1", "4194305"]
SCOPES = [Scope("container", ID[:12]), Scope("container", "web"), Scope("unit", "llama@a.service"), Scope("pid", "7")]
SCOPES += [
    Scope("pid", "²"),
    Scope("pid", "9" * 30),
    Scope("netns", "a"),
    Scope("netns", "/a\0b"),
    Scope("netns", "x" * 5000),
    Scope("odd", "x"),
]
SCOPES += [Scope("unit", "\ud800"), Scope("container", "../.."), Scope()]

processes_seen = st.fixed_dictionaries(
    {},
    optional={
        "stat": mutated([STAT, STAT.replace(b"llama-server", b") S 1 (")], WORDS),
        "cmdline": mutated(ARGV, WORDS),
        "cgroup": mutated([each.encode() for each in CGROUPS], WORDS),
        "net/unix": mutated(
            [b"Num RefCount Protocol Flags\n0: 00000002 00000000 00010000 0001 01 1 /run/a.sock\n"], WORDS
        ),
        "fd": st.lists(st.sampled_from(LINKS), max_size=3),
        "ns/net": st.sampled_from(["/proc/self/ns/net", "/proc/self/ns/uts", "nowhere", "/dev/zero"]),
        "exe": st.sampled_from(["/bin/sh (deleted)", "x" * 200]),
    },
)
crowds = st.dictionaries(st.sampled_from(PIDS), processes_seen, max_size=3)
engines = st.dictionaries(
    st.sampled_from(
        [
            f"var/lib/docker/containers/{ID}/config.v2.json",
            "etc/docker/daemon.json",
            "etc/containers/storage.conf",
            "var/lib/containers/storage/overlay-containers/containers.json",
            "var/lib/nerdctl/a/names/default/web",
        ]
    ),
    mutated(
        [
            b'{"Name": "/web", "State": {"Running": true}, "NetworkSettings": {"Ports": {"80/tcp": [{"HostPort": "8080"}]}}}',
            b'{"data-root": "/srv/\\u0000docker"}',
            b'{"data-root": "/srv/\\ud800"}',
            b'[storage]\ngraphroot = "/srv"\n',
            b"a = " + b"9" * 5000,
            b"a = " + b"[" * 3000,
            json.dumps([{"id": ID, "names": ["web", None]}]).encode(),
            ID.encode(),
            b"[" * 50_000,
        ],
        WORDS,
    )
    | json_like([ID]).map(lambda value: json.dumps(value).encode()),
    max_size=2,
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Where its /proc and its other files are."""
    return tmp_path_factory.mktemp("machine")


def built(proc: Path, crowd: dict[str, dict]) -> None:
    shutil.rmtree(proc, ignore_errors=True)
    proc.mkdir()
    for pid, files in crowd.items():
        folder = proc / pid
        folder.mkdir()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            match content:
                case bytes():
                    path.write_bytes(content)
                case str():
                    path.symlink_to(content)
                case list():
                    path.mkdir()
                    for number, target in enumerate(content):
                        with contextlib.suppress(OSError):  # longer than a link may be
                            (path / str(number)).symlink_to(target)


def written(root: Path, files: dict[str, bytes]) -> System:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return System(root, lambda uid: root / "home" if uid == 1000 else None)


@fuzzed(0.05)
@given(crowd=crowds, vanish=st.sampled_from(["", "", "all", "stat", "fd", "cgroup", "cmdline"]))
@example(crowd={"²": {"stat": STAT}}, vanish="")
@example(crowd={"7": {"stat": STAT, "fd": LINKS}}, vanish="")
@example(crowd={"9" * 5000: {"stat": STAT}}, vanish="")
@example(
    crowd={"7": {"stat": STAT.replace(b" 1 7", b" 8 7")}, "8": {"stat": STAT.replace(b" 1 7", b" 7 7")}}, vanish=""
)
def test_processes(machine, crowd, vanish):
    """Whatever the files say, every question has an answer; and every look at what is there."""
    crowd = {pid: files for pid, files in crowd.items() if len(pid) < 255}
    proc = machine / "proc"
    built(proc, crowd)
    with case("processes"):
        seen = Processes.look(proc)
        for pid in crowd if vanish else ():
            shutil.rmtree(proc / pid) if vanish == "all" else shutil.rmtree(proc / pid / vanish, ignore_errors=True)
        pids = [*seen.pids, 7, 12345]
        for pid in pids:
            assert all(isinstance(word, str) for word in seen.argv(pid))
            assert all(path.startswith("/") for path in seen.cgroups(pid))
            assert isinstance(seen.exe(pid), str)
            assert isinstance(seen.still_there(pid), bool)
            seen.netns(pid), seen.cgroup(pid), seen.comm(pid)
            assert all(isinstance(inode, int) for inode in seen.sockets(pid))
        assert not seen.ancestors(pids) & set(pids)
        assert not seen.descendants(pids) & set(pids)
        seen.owners({1, 2}, pids)
        contexts = {"GPU-a": frozenset({7})}
        founds = look(
            [Watch(8080), Watch(1, ("gpu0",), SCOPES[3])],
            discover=True,
            gpu_processes=contexts,
            processes=seen,
            system=System(machine / "root"),
        )
        assert len(founds) >= 2


@fuzzed(0.05)
@given(
    crowd=crowds, files=engines, scope=st.sampled_from(SCOPES), path=mutated([each.encode() for each in CGROUPS], WORDS)
)
@example(crowd={}, files={"etc/docker/daemon.json": b'{"data-root": "/a\\u0000b"}'}, scope=SCOPES[0], path=b"")
@example(crowd={}, files={"etc/docker/daemon.json": b'{"data-root": "/a\\ud800"}'}, scope=SCOPES[0], path=b"")
@example(crowd={}, files={"etc/containers/storage.conf": b"a = " + b"9" * 5000}, scope=SCOPES[0], path=b"")
@example(crowd={}, files={"etc/containers/storage.conf": b"a = " + b"[" * 100_000}, scope=SCOPES[0], path=b"")
@example(crowd={}, files={}, scope=Scope("netns", "/a\0b"), path=b"")
@example(crowd={}, files={}, scope=Scope("netns", "\ud800"), path=b"")
def test_scopes(machine, crowd, files, scope, path):
    """A scope is places, or Unresolved; a container has a name that can be one, or none."""
    built(machine / "proc", crowd)
    system = written(machine / "root", files)
    with case("scopes"):
        seen = Processes.look(machine / "proc")
        try:
            places = resolve(scope, seen, system)
            assert places
            assert all(isinstance(place, Place) for place in places)
        except Unresolved as error:
            assert str(error)  # noqa: PT017  # either is right
        for pid in [*seen.pids, 12345]:
            assert str(whereabouts(pid, seen, system))
        for each in itertools.chain(parse_cgroups(path.decode("utf-8", "replace")), [f"/docker/{ID}"]):
            container = container_of(each)
            if container is not None:
                name = name_of(container, system)
                assert not name or NAME.fullmatch(name)
                assert not set(container.key) - set(string.ascii_letters + string.digits + "_.-")
        published = publisher_of(8080, system)
        assert published is None or NAME.fullmatch(published[0])
