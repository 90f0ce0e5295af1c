"""Scopes, with real cgroups that are called as engines and systemd call them, and real network namespaces."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.watch import HOST, Scope
from memscaler.kernel.containers import Container, System, container_of, name_of, publisher_of
from memscaler.kernel.processes import Processes
from memscaler.kernel.scopes import OWN_NETNS, State, Unresolved, resolve, whereabouts
from tests.kernel.crowd import Actor, cgroup, new_id, played
from tests.kernel.worlds import Child, namespace, run

SLICE = f"ms-test-{os.getpid()}.slice"
USER = 54321
ID = "0123456789abcdef" * 4


@pytest.fixture
def system(tmp_path):
    """A machine of our own: engines' files lie below tmp_path, the user's home is there too."""
    return System(tmp_path / "root", lambda uid: tmp_path / "home" if uid == USER else None)


def places(kind, name, system=None):
    return resolve(Scope(kind, name), Processes.look(), *([system] if system else []))


def state_of(kind, name, system=None):
    with pytest.raises(Unresolved) as caught:
        places(kind, name, system)
    return caught.value.state, str(caught.value)


def store(path, document, owner=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    os.chown(path, owner, owner)


def docker_file(system, container, name, **more):
    path = system.at(f"/var/lib/docker/containers/{container}/config.v2.json")
    store(path, {"ID": container, "Name": f"/{name}", "State": {"Running": True, "Pid": 1}, **more})


# ---- namespaces and processes ---------------------------------------------------------------------------------------


def test_the_host():
    """No scope is our own namespace, whoever listens in it."""
    [place] = resolve(HOST, Processes.look())
    assert (place.path, place.name, place.pids) == (OWN_NETNS, "host", frozenset())
    assert place.inode == Path(OWN_NETNS).stat().st_ino


def test_a_namespace_by_path_and_by_name():
    """A path is itself; a bare name is one of `ip netns`. Any process in it counts."""
    with namespace() as path:
        [by_path], [by_name] = places("netns", path), places("netns", path.rpartition("/")[2])
        assert by_path.path == by_name.path == path
        assert by_path.inode == by_name.inode == Path(path).stat().st_ino
        assert by_path.pids == frozenset()
        assert by_path.name == f"netns:{path}"
    assert state_of("netns", path)[0] == State.ABSENT
    assert state_of("netns", path.rpartition("/")[2]) == (
        State.ABSENT,
        f"there is no network namespace called {path.rpartition('/')[2]}",
    )


def test_a_namespace_in_the_making(tmp_path):
    """`ip netns add` makes an empty file first; later the namespace is mounted on it."""
    (tmp_path / "a").touch()
    assert state_of("netns", str(tmp_path / "a"))[0] == State.ABSENT


def test_what_is_no_network_namespace(tmp_path):
    """Other files and other kinds of namespaces are mistakes, and are not waited for; nor does a FIFO block."""
    (tmp_path / "text").write_text("text")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "text", tmp_path / "fifo", "/proc/self/ns/pid", "/dev/null"):
        assert state_of("netns", str(path))[0] == State.MALFORMED, path
    for name in ("/run/netns/../netns/a", "..", "a/b", "a\nb", "/", "", "a\0b", "/run/./a", "a\x1b[1m"):
        assert state_of("netns", name)[0] == State.MALFORMED, name


def test_the_namespace_of_a_process():
    """That of the process, with what it started."""
    with namespace() as path, played(Actor(["parent"], netns=path, children=[Actor(["child"])])) as [actor]:
        [place] = places("pid", str(actor.pid))
        assert (place.inode, place.path) == (Path(path).stat().st_ino, f"/proc/{actor.pid}/ns/net")
        assert place.pids == {each.pid for each in actor.everybody()}
    assert state_of("pid", str(actor.pid)) == (State.ABSENT, f"there is no process {actor.pid}")
    for name in ("0", "-1", "1x", "", "../1", "\uff11", "99999999999"):
        assert state_of("pid", name)[0] == State.MALFORMED, name


def test_our_own_namespace_has_a_path_that_stays():
    """A scope that shares our namespace is opened without the help of a process that may end."""
    with played(Actor(["server"])) as [actor]:
        [place] = places("pid", str(actor.pid))
    assert place.path == OWN_NETNS


def test_what_is_not_permitted():
    """Without privileges that is said; it is no absence."""
    with (
        namespace() as path,
        cgroup(SLICE, "denied.service") as group,
        played(Actor(["x"], netns=path, cgroup=group)) as [actor],
    ):

        def look():
            os.setgroups([])
            os.seteuid(65534)
            assert state_of("pid", str(actor.pid))[0] == state_of("unit", "denied")[0] == State.DENIED

        Child(look).kill()


# ---- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "folder"),
    [
        ("ms-llama", "ms-llama.service"),
        ("ms-llama.service", "ms-llama.service"),
        ("ms-llama@a.service", "ms-system-llama.slice/ms-llama@a.service"),
        (r"ms\x2dllama@a\x40b", r"ms\x2dllama@a\x40b.service"),
        ("ms-run.scope", "ms-run.scope/inner/deeper"),
        ("cpu.service", "_cpu.service"),
        ("ms-inner.slice", "ms-inner.slice/ms-any.service"),
    ],
)
def test_a_unit(asked, folder):
    """By its name, with or without its type, escaped as in the path; with what runs in cgroups below its own."""
    with (
        namespace() as path,
        cgroup(SLICE, folder) as group,
        played(Actor(["server"], netns=path, cgroup=group, children=[Actor(["worker"])])) as [actor],
    ):
        [place] = places("unit", asked)
        assert place.inode == Path(path).stat().st_ino
        assert place.pids == {each.pid for each in actor.everybody()}
        assert place.name == f"unit:{asked}"


def test_a_unit_is_not_one_of_a_similar_name():
    """Whole names only."""
    with (
        cgroup(SLICE, "ms-llama-cpp.service") as group,
        cgroup(SLICE, "ms-llama.service.d") as other,
        played(Actor(["server"], cgroup=group), Actor(["server"], cgroup=other)),
    ):
        for name in ("ms-llama", "llama-cpp", "ms-llama-cp", "cpp.service"):
            assert state_of("unit", name)[0] == State.ABSENT, name
        assert state_of("unit", "ms-llama") == (State.ABSENT, "unit ms-llama.service is not running")
    for name in ("a/b", "..", "", "a\nb.service", ".service", "a b"):
        assert state_of("unit", name)[0] == State.MALFORMED, name


def test_a_unit_of_the_system_comes_before_that_of_a_user():
    """Whoever may make cgroups below a user's manager cannot take the place of a system's unit."""
    with (
        cgroup(SLICE, "user@54321.service/app.slice/ms-same.service") as users,
        cgroup(SLICE, f"docker-{ID}.scope/system.slice/ms-same.service") as nested,
        played(Actor(["theirs"], cgroup=users), Actor(["nested"], cgroup=nested)) as [theirs, _],
    ):
        assert places("unit", "ms-same")[0].pids == {theirs.pid}
        with cgroup(SLICE, "ms-same.service") as group, played(Actor(["system"], cgroup=group)) as [system]:
            assert places("unit", "ms-same")[0].pids == {system.pid}


def test_a_unit_of_two_users():
    """Neither is better: say which there are."""
    with (
        cgroup(SLICE, "user@1.service/app.slice/ms-same.service") as one,
        cgroup(SLICE, "user@2.service/app.slice/ms-same.service") as two,
        played(Actor(["one"], cgroup=one), Actor(["two"], cgroup=two)),
    ):
        state, text = state_of("unit", "ms-same")
        assert state == State.AMBIGUOUS
        assert "user@1.service" in text
        assert "user@2.service" in text


def test_a_unit_with_several_namespaces():
    """As that of a Quadlet: the helper is in ours, the server in that of the container."""
    with (
        namespace() as path,
        cgroup(SLICE, "ms-quadlet.service/runtime") as runtime,
        cgroup(SLICE, f"ms-quadlet.service/libpod-payload-{ID}") as payload,
        played(Actor(["conmon"], cgroup=runtime), Actor(["server"], netns=path, cgroup=payload)) as [helper, server],
    ):
        found = {place.inode: place for place in places("unit", "ms-quadlet")}
        assert found[Path(path).stat().st_ino].pids == {server.pid}
        assert found[Path(OWN_NETNS).stat().st_ino].pids == {helper.pid}
        assert len(found) == 2
        [inside] = places("container", ID)
        assert inside.pids == {server.pid}


# ---- containers -----------------------------------------------------------------------------------------------------

PATHS = [
    "docker-{}.scope",
    "docker/{}",
    "libpod-{}.scope/container",
    "libpod_parent/libpod-{}",
    "ms-web.service/libpod-payload-{}",
    "kubepods.slice/kubepods-pod1.slice/cri-containerd-{}.scope",
    "kubepods.slice/kubepods-pod1.slice/crio-{}.scope",
    "kubepods/besteffort/pod1/{}",
    "kubepods-burstable-pod1.slice:cri-containerd:{}",
    "nerdctl-{}.scope",
    "default/{}",
]


@pytest.mark.parametrize("form", PATHS)
def test_a_container_by_its_id(form, system):
    """In every form that an engine writes; the whole id, or its beginning."""
    key = new_id()
    with (
        namespace() as path,
        cgroup(SLICE, form.format(key)) as group,
        played(Actor(["server"], netns=path, cgroup=group, children=[Actor(["worker"])])) as [actor],
    ):
        for name in (key, key[:12]):
            [place] = places("container", name, system)
            assert place.inode == Path(path).stat().st_ino
            assert place.path == f"/proc/{actor.pid}/ns/net"
            assert place.pids == {each.pid for each in actor.everybody()}
            assert place.name == f"container:{name}"
        assert state_of("container", key[:3], system)[0] == State.ABSENT
        assert whereabouts(actor.pid, Processes.look(), system) == Scope("container", key[:12])


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (r"machine.slice/machine-ms\x2dweb.scope/payload", "ms-web"),
        ("machine.slice/systemd-nspawn@ms-web.service/payload", "ms-web"),
        ("lxc.payload.ms-web/init.scope", "ms-web"),
        ("lxc.payload/ms-web", "ms-web"),
        ("lxc/ms-web/system.slice/ssh.service", "ms-web"),
    ],
)
def test_a_container_that_is_called_in_its_cgroup(form, name, system):
    """LXC and systemd-nspawn have no ids."""
    with (
        namespace() as path,
        cgroup(SLICE, form) as group,
        played(Actor(["server"], netns=path, cgroup=group)) as [actor],
    ):
        [place] = places("container", name, system)
        assert (place.inode, place.pids) == (Path(path).stat().st_ino, {actor.pid})


@pytest.mark.parametrize("helper", ["libpod-conmon-{}.scope", "crio-conmon-{}.scope", "lxc.monitor.{}", "x{}", "{}x"])
def test_helpers_are_not_in_the_container(helper, system):
    """What an engine runs beside a container is outside of it."""
    key = new_id()
    with cgroup(SLICE, helper.format(key)) as group, played(Actor(["conmon"], cgroup=group)):
        assert state_of("container", key, system)[0] == State.ABSENT


def test_names(system, tmp_path):
    """Docker, podman (also volatile, moved or without root) and nerdctl: each engine's own file tells the name."""
    keys = [new_id() for _ in range(6)]
    docker, podman, volatile, nerdctl, rootless, rootless_docker = keys
    users = f"user.slice/user-{USER}.slice/user@{USER}.service/user.slice"
    forms = [f"docker-{docker}.scope", f"machine.slice/libpod-{podman}.scope", f"libpod-{volatile}.scope"]
    forms += [f"default/{nerdctl}", f"{users}/libpod-{rootless}.scope", f"{users}/docker-{rootless_docker}.scope"]
    docker_file(system, docker, "ms-docker")
    root = system.at("/mnt/storage")
    store(system.at("/etc/containers/storage.conf"), '[storage]\ndriver = "overlay"\ngraphroot = "/mnt/storage"\n')
    store(root / "overlay-containers/containers.json", [{"id": podman, "names": ["ms-podman"]}, {"id": "x"}, 7])
    store(root / "overlay-containers/volatile-containers.json", [{"id": volatile, "names": ["ms-volatile"]}])
    store(system.at("/var/lib/nerdctl/1935db59/names/default/ms-nerdctl"), nerdctl + "\n")
    share = tmp_path / "home/.local/share"
    listed = [{"id": rootless, "names": ["ms-rootless"]}]
    store(share / "containers/storage/overlay-containers/containers.json", listed, USER)
    store(share / f"docker/containers/{rootless_docker}/config.v2.json", {"Name": "/ms-rootless-docker"}, USER)
    names = ["ms-docker", "ms-podman", "ms-volatile", "ms-nerdctl", "ms-rootless", "ms-rootless-docker"]
    for form, name, key in zip(forms, names, keys, strict=True):
        with cgroup(SLICE, form) as group, played(Actor(["server"], cgroup=group)) as [actor]:
            [place] = places("container", name, system)
            assert place.pids == {actor.pid}
            assert places("container", key, system)[0].pids == {actor.pid}
            state, text = state_of("container", "ms-other", system)
            assert state == State.ABSENT
            assert f"{name} ({key[:12]})" in text


def test_docker_elsewhere(system):
    """Docker's data may have been moved to a larger disk."""
    store(system.at("/etc/docker/daemon.json"), {"data-root": "/data/docker"})
    store(system.at(f"/data/docker/containers/{ID}/config.v2.json"), {"Name": "/web"})
    assert name_of(Container(ID), system) == "web"


def test_a_stopped_container_is_absent(system):
    """A name in an engine's files is not yet a process."""
    docker_file(system, ID, "ms-stopped")
    assert state_of("container", "ms-stopped", system)[0] == State.ABSENT


def test_a_name_comes_before_the_beginning_of_an_id(system):
    """A container may be called "beef" while the id of another begins so."""
    named, other = new_id(), "beef" + new_id()[4:]
    docker_file(system, named, "beef")
    with (
        cgroup(SLICE, f"docker-{named}.scope") as one,
        cgroup(SLICE, f"docker-{other}.scope") as two,
        played(Actor(["one"], cgroup=one), Actor(["two"], cgroup=two)) as [actor, _],
    ):
        assert places("container", "beef", system)[0].pids == {actor.pid}
        assert places("container", "beef" + other[4:6], system)[0].pids != {actor.pid}


def test_a_beginning_that_several_have(system):
    """The candidates are named."""
    one, two = "beef0" + new_id()[5:], "beef1" + new_id()[5:]
    docker_file(system, one, "ms-one")
    with (
        cgroup(SLICE, f"docker-{one}.scope") as first,
        cgroup(SLICE, f"docker-{two}.scope") as second,
        played(Actor(["one"], cgroup=first), Actor(["two"], cgroup=second)),
    ):
        state, text = state_of("container", "beef", system)
        assert (state, text) == (
            State.AMBIGUOUS,
            f"'beef' means several containers: {two[:12]}, ms-one ({one[:12]})",
        )


def test_a_container_in_a_container(system):
    """What runs in the inner one is not in the outer one: it has a network of its own."""
    outer, inner = new_id(), new_id()
    with (
        namespace() as path,
        cgroup(SLICE, f"docker-{outer}.scope/init") as first,
        cgroup(SLICE, f"docker-{outer}.scope/docker/{inner}") as second,
        played(Actor(["dockerd"], cgroup=first), Actor(["server"], cgroup=second, netns=path)) as [one, two],
    ):
        assert [place.pids for place in places("container", outer, system)] == [{one.pid}]
        assert [place.pids for place in places("container", inner, system)] == [{two.pid}]


def test_a_user_cannot_take_the_name_of_a_container_of_the_system(system, tmp_path):
    """Neither with a cgroup nor with a file of their own; and a file that is not theirs is not read."""
    real, fake = new_id(), new_id()
    docker_file(system, real, "ms-web")
    users = f"user.slice/user-{USER}.slice/user@{USER}.service"
    stored = tmp_path / "home/.local/share/containers/storage/overlay-containers/containers.json"
    store(stored, [{"id": fake, "names": ["ms-web"]}, {"id": real, "names": ["ms-mine"]}], USER)
    with (
        cgroup(SLICE, f"docker-{real}.scope") as one,
        cgroup(SLICE, users, f"libpod-{fake}.scope") as two,
        cgroup(SLICE, users, f"docker-{real}.scope") as three,
        played(*[Actor(["server"], cgroup=group) for group in (one, two, three)]) as [web, faker, _],
    ):
        assert places("container", "ms-web", system)[0].pids == {web.pid}
        assert places("container", real, system)[0].pids == {web.pid}
        assert places("container", fake, system)[0].pids == {faker.pid}
        os.chown(stored, USER + 1, USER + 1)
        assert name_of(Container(fake, USER), system) == ""


HOSTILE = [
    "",
    "null",
    "[" * 100_000,
    '{"Name": "/../../etc"}',
    '{"Name": "/a\\nb"}',
    '{"Name": ["/a"]}',
    '{"Name": "/' + "a" * 300 + '"}',
    "\x00\xff",
    json.dumps([{"id": ID, "names": "x"}, {"id": ID, "names": [["x"]]}]),
    '{"Name": 7, "State": 8, "NetworkSettings": []}',
    '{"State": {"Running": true}, "NetworkSettings": {"Ports": {"a": [{"HostPort": {}}, 7], "b/tcp": 8}}}',
    '{"State": {"Running": true}, "NetworkSettings": {"Ports": {"999999/tcp": [{"HostPort": "8080"}]}}}',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_files(text, system):
    """What is no name of a container is no name, and nothing fails."""
    for path in (
        f"/var/lib/docker/containers/{ID}/config.v2.json",
        "/var/lib/containers/storage/overlay-containers/containers.json",
        "/etc/docker/daemon.json",
        "/etc/containers/storage.conf",
    ):
        store(system.at(path), text)
    assert name_of(Container(ID), system) == ""
    assert publisher_of(8080, system) is None


def test_files_that_are_none(system, tmp_path):
    """Links, FIFOs and folders in the place of a file are not followed, and do not block."""
    secret = tmp_path / "secret"
    secret.write_text('{"Name": "/secret"}')
    path = system.at(f"/var/lib/docker/containers/{ID}/config.v2.json")
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    assert name_of(Container(ID), system) == ""
    path.unlink()
    os.mkfifo(path)
    assert name_of(Container(ID), system) == ""
    path.unlink()
    path.mkdir()
    assert name_of(Container(ID), system) == ""


def test_names_that_are_none(system):
    """Slashes, dots, newlines and the like are no names of containers."""
    for name in ("", "..", "a/b", "../../etc", "a\nb", "-x", "a\0", "a b", "ä"):
        assert state_of("container", name, system)[0] == State.MALFORMED, name
    assert state_of("nonsense", "x")[0] == State.MALFORMED


@given(st.text(st.characters(exclude_characters="\n")))
def test_any_path(path):
    """Cgroups are called by others; what comes out is an id or a plain name."""
    for form in (
        "/{}",
        "/docker-{}.scope",
        "/machine-{}.scope",
        "/lxc.payload.{}",
        "/lxc/{}",
        "/user@{}.service/lxc/a",
    ):
        found = container_of(form.format(path))
        assert (
            found is None or found.has_id or found.key.replace("-", "a").replace("_", "a").replace(".", "a").isalnum()
        )


def test_published_ports(system):
    """Which running container a port of the host leads to, whether a proxy listens on it or not."""
    bound = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "53/udp": [{"HostPort": "8053"}], "81/tcp": None}
    docker_file(system, ID, "web", NetworkSettings={"Ports": bound})
    docker_file(
        system, new_id(), "stopped", State={"Running": False}, NetworkSettings={"Ports": {"1/tcp": [{"HostPort": "9"}]}}
    )
    assert publisher_of(8080, system) == ("web", 80)
    assert publisher_of(8053, system) is publisher_of(80, system) is publisher_of(9, system) is None


def test_whereabouts():
    """What an operator would write: nothing, a named namespace, a unit of its own, else the process."""
    with namespace() as path, cgroup(SLICE, "ms-private.service") as group:
        actors = [Actor(["host"]), Actor(["named"], netns=path), Actor(["unit"], netns=path, cgroup=group)]
        with played(*actors) as [host, named, unit]:
            seen = Processes.look()
            assert whereabouts(host.pid, seen) == HOST
            assert whereabouts(named.pid, seen) == whereabouts(unit.pid, seen) == Scope("netns", path)
            run("ip", "netns", "del", path.rpartition("/")[2])
            assert whereabouts(unit.pid, seen) == Scope("unit", "ms-private.service")
            assert whereabouts(named.pid, seen) == Scope("pid", str(named.pid))
