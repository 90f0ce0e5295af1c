"""What is found to watch: real processes with real listeners in real namespaces; which GPUs they use is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.model import write as write_model
from memscaler.config.ports import parse_watch
from memscaler.daemon.discovery import NO_CONTEXT, NOBODY, UNSEEN, Found, look
from memscaler.daemon.servers import forwarder_of, option, server_of
from memscaler.kernel.containers import HERE, System
from memscaler.kernel.processes import Processes
from memscaler.kernel.scopes import OWN_NETNS
from tests.kernel.crowd import Actor, cgroup, new_id, played
from tests.kernel.worlds import Child, namespace

REPOSITORY = Path(__file__).resolve().parents[2]
SLICE = f"ms-test-{os.getpid()}.slice"
GPU0, GPU1 = "GPU-00000000-aaaa", "GPU-11111111-bbbb"
NAMES = {GPU0: "gpu0", GPU1: "gpu1"}
LLAMA = ("llama-server", "-m", "model.gguf")
OWN = Path(OWN_NETNS).stat().st_ino


@pytest.fixture
def system(tmp_path):
    """A machine without engines' files, but for those that a test writes."""
    return System(tmp_path)


def found(*specs, gpu0=(), gpu1=(), discover=False, system=None, thorough=False):
    """Each actor of gpu0 and gpu1 has a context there."""
    contexts = {GPU0: frozenset(each.pid for each in gpu0), GPU1: frozenset(each.pid for each in gpu1)}
    return look(
        [parse_watch(spec) for spec in specs],
        discover=discover,
        gpu_processes=contexts,
        name_gpu=NAMES.__getitem__,
        system=system or HERE,
        thorough=thorough,
    )


def discovered(*ours, **contexts):
    """What was discovered of these actors, whatever else runs on this machine."""
    pids = {each.pid for actor in ours for each in actor.everybody()}
    return [each for each in found(discover=True, **contexts) if pids & set(each.pids)]


# ---- what a process is ----------------------------------------------------------------------------------------------

SERVERS = {
    "llama.cpp": [
        "llama-server -m a.gguf --port 8080",
        "/opt/llama.cpp/build/bin/llama-server --host 127.0.0.1 --port 40001 --alias m",
        "./llama-server",
        "llama serve -hf x/y",
        "/usr/bin/llama serve --port 8080",
        "./server -m models/a.gguf -ngl 99",
        "server --model=/models/a.gguf",
        "./mistral.llamafile --server --nobrowser",
        "/usr/bin/ape ./mistral.llamafile --server",
        "/home/u/.ape-1.10 ./llamafile -m a.gguf --server",
        "python3 -m llama_cpp.server --model a.gguf",
        "/opt/v/bin/python3.12 -u -X dev -m llama_cpp.server",
    ],
    "llama-swap": ["llama-swap --config c.yaml", "/app/llama-swap"],
    "ollama": [
        "/usr/local/bin/ollama serve",
        "ollama start",
        "/usr/bin/ollama runner --ollama-engine --model /blobs/sha256-1 --port 36001",
        "/tmp/ollama123/runners/cuda_v12/ollama_llama_server --model x --port 1",
    ],
    "vllm": [
        "/usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-8B --port 8000",
        "/opt/venv/bin/python -u /opt/venv/bin/vllm serve x",
        "python -m vllm.entrypoints.openai.api_server --model x",
        "python3.11 -Wignore -Om vllm.entrypoints.openai.api_server",
        "python -mvllm.entrypoints.api_server",
        "python3 /src/vllm/entrypoints/openai/api_server.py --model x",
        "python3 -m vllm.entrypoints.cli.main serve x",
        "VLLM::APIServer_1",
    ],
    "sglang": [
        "python3 -m sglang.launch_server --model-path x --port 30000",
        "python /opt/sglang/launch_server.py",
        "/usr/bin/python3 /usr/local/bin/sglang serve --model-path x",
        "sglang::tokenizer_worker:77",
    ],
}

OTHERS = [
    "vim llama-server.log",
    "vi llama-server",
    "tail -f /var/log/llama-server",
    "grep vllm",
    "grep -r vllm serve",
    "ssh host ollama serve",
    "python train.py --vllm",
    "python train.py vllm serve",
    "python3 -c print('vllm serve')",
    "python3 -uc import_vllm vllm serve",
    "python -",
    "python3",
    "python3 -m vllm.benchmarks.serve",
    "python3 -m pip install vllm",
    "python3 /usr/local/bin/vllm bench serve",
    "python3 /usr/local/bin/vllm chat",
    "python3 -m http.server 8080",
    "python3 -m",
    "python3 my_vllm/serve.py",
    "docker run -p 8080:8080 ghcr.io/ggml-org/llama.cpp:server llama-server -m a.gguf",
    "podman run vllm/vllm-openai vllm serve x",
    "sudo llama-server -m a.gguf",
    "sh -c llama-server -m a.gguf",
    "bash -c exec vllm serve",
    "/bin/sh /usr/local/bin/start-llama-server",
    "tini -- llama-server -m a.gguf",
    "/usr/bin/docker-proxy -proto tcp -host-port 8080 -container-ip 172.17.0.2 -container-port 80",
    "nohup ollama serve",
    "ollama run llama3",
    "ollama list",
    "ollama",
    "llama cli -m a.gguf",
    "llama",
    "llama-cli -m a.gguf",
    "llama-server-exporter --port 9000",
    "server --port 8080",
    "server -m mail",
    "./mistral.llamafile --cli",
    "VLLM::EngineCore",
    "VLLM::Worker_TP0",
    "sglang::scheduler_TP0",
    "sglang::detokenizer",
    "systemd-run llama-server",
    "nvidia-smi",
    "",
]


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in SERVERS.items() for line in lines])
def test_a_server_is_recognised(kind, line):
    """By the program that runs and by what tells it to serve."""
    server = server_of(line.split())
    assert server is not None
    assert server.kind == kind


@pytest.mark.parametrize("line", OTHERS)
def test_what_only_talks_of_a_server_is_none(line):
    """Editors, shells, wrappers, clients, engines, and other programs of a similar name."""
    assert server_of(line.split()) is None


def test_a_server_under_another_first_argument():
    """The name of the executed file tells, where somebody gave the process a name of its own."""
    assert server_of(["my-model"], "llama-server").kind == "llama.cpp"
    assert server_of(["my-model"], "sh") is None
    assert server_of([], "llama-server") is None


@given(st.lists(st.text()), st.sampled_from(["python3", "server", "ape", "llama-server", "vllm", "conmon", "lxd"]))
def test_any_command_line(words, name):
    """Command lines are written by others."""
    server_of([name, *words])
    server_of(words)
    forwarder_of(words)
    option(words, "--port")


def test_options():
    """Both ways to write one; the last one counts."""
    assert option(["x", "--port", "1", "--port=2"], "--port") == "2"
    assert option(["x", "--port"], "--port") == option(["--ports=1"], "--port") == ""


# ---- named by the operator, with GPUs -------------------------------------------------------------------------------


def test_a_named_watch_is_attached_before_its_server_is_there():
    """The namespace is enough."""
    with namespace() as path:
        [host, there] = found("7:gpu0", f"8080@netns:{path}:gpu1")
    assert (host.attach, host.netns_path, host.netns_inode, host.scope) == (True, OWN_NETNS, OWN, "host")
    assert (there.attach, there.netns_path, there.scope) == (True, path, f"netns:{path}")
    assert host.problem == there.problem == NOBODY
    assert (there.gpus, there.watch.gpus, there.pids, there.why) == ((), ("gpu1",), (), "")


def test_a_namespace_that_is_not_there_yet():
    """Nothing can be attached; the reason is said."""
    [each] = found("8080@netns:/run/netns/ms-nowhere:gpu0")
    assert (each.attach, each.netns_path, each.netns_inode) == (False, None, 0)
    assert each.problem == "there is no network namespace at /run/netns/ms-nowhere"
    [each] = found("8080@container:ms-nothing:gpu0")
    assert each.problem.startswith("no container ms-nothing is running")


def test_who_serves_a_named_port():
    """The server and what it listens on are told, although they change nothing."""
    with played(Actor(LLAMA, listens=["127.0.0.1"])) as [server]:
        [each] = found(f"{server.port}:gpu1", gpu0=[server])
    assert (each.attach, each.problem, each.server) == (True, "", "llama.cpp")
    assert (each.pids, each.addresses) == ((server.pid,), ("127.0.0.1",))
    assert each.why == f"llama-server (pid {server.pid}) listens on this host; it has a context on gpu0"


def test_an_unknown_program_is_looked_for_only_where_it_matters():
    """Whom the port belongs to costs a look at every process; a person wants to know, the daemon need not."""
    with played(Actor(["my-server"], listens=["::"])) as [server]:
        [quick] = found(f"{server.port}:gpu0")
        [slow] = found(f"{server.port}:gpu0", thorough=True)
    assert (quick.attach, quick.pids, quick.addresses, quick.problem) == (True, (), ("::",), "")
    assert slow.pids == (server.pid,)
    assert slow.why == f"actor (pid {server.pid}) listens on this host"


def test_one_port_of_one_namespace_is_watched_once():
    """Two names for it: the first one counts, the second one says so."""
    with (
        cgroup(SLICE, "ms-once.service") as group,
        played(Actor(LLAMA, listens=["127.0.0.1"], cgroup=group)) as [server],
    ):
        first, second = found(f"{server.port}:gpu0", f"{server.port}@unit:ms-once:gpu1")
    assert first.attach
    assert not second.attach
    assert second.problem == f"the same port of the same namespace is watched as {server.port}:gpu0 already"


# ---- named by the operator, without GPUs ----------------------------------------------------------------------------


def test_the_gpus_of_a_listener():
    """Those on which it or any descendant has a context."""
    engine = Actor(["python3", "-c", "engine"])
    with played(Actor(["my-api"], listens=["0.0.0.0"], children=[Actor(["sh"], children=[engine])])) as [server]:
        spec = str(server.port)
        [none] = found(spec)
        [both] = found(spec, gpu0=[server], gpu1=[server.children[0].children[0]])
        [below] = found(spec, gpu1=[server.children[0].children[0]])
    assert (none.gpus, none.attach, none.problem, none.pids) == ((), False, NO_CONTEXT, (server.pid,))
    assert (both.gpus, both.attach, both.problem) == ((GPU0, GPU1), True, "")
    assert both.why.endswith("it and its children have contexts on gpu0, gpu1")
    assert below.gpus == (GPU1,)
    assert below.why.endswith("listens on this host; its children have contexts on gpu1")


def test_a_router_that_the_operator_names():
    """It drives its children's GPUs: the operator wanted that port."""
    child = Actor([*LLAMA, "--alias", "m"], listens=["127.0.0.1"])
    with played(Actor(["llama-server"], listens=["127.0.0.1"], children=[child])) as [router]:
        [each] = found(str(router.port), gpu0=router.children)
    assert each.gpus == (GPU0,)


def test_only_the_scope_counts():
    """Another server on the same port of the same namespace is none of the unit's."""
    with (
        cgroup(SLICE, "ms-mine.service") as mine,
        cgroup(SLICE, "ms-other.service") as other,
        played(Actor(LLAMA, listens=["127.0.0.1"], cgroup=other)) as [theirs],
        played(Actor(LLAMA, listens=[f"127.0.0.2@{theirs.port}"], cgroup=mine)) as [ours],
        played(Actor(["idle"], cgroup=mine)),
    ):
        [each] = found(f"{ours.port}@unit:ms-mine", gpu0=[theirs], gpu1=[ours])
        assert (each.gpus, each.pids, each.scope) == ((GPU1,), (ours.pid,), "unit:ms-mine.service")
        assert each.netns_path == OWN_NETNS
        assert "in unit ms-mine.service" in each.why
    with (
        cgroup(SLICE, "ms-mine.service") as mine,
        played(Actor(["idle"], cgroup=mine), Actor(LLAMA, listens=["127.0.0.1"])) as [_, theirs],
    ):
        unit, server = found(f"{theirs.port}@unit:ms-mine", gpu0=[theirs], discover=True)
        assert (unit.attach, unit.problem, unit.pids, unit.addresses) == (False, NOBODY, (), ())
        assert (server.attach, server.pids) == (True, (theirs.pid,))


def test_a_unit_in_two_namespaces():
    """The one where it listens is meant; as long as it listens in none, all of them."""
    key = new_id()
    with (
        namespace() as path,
        cgroup(SLICE, "ms-quadlet.service/runtime") as runtime,
        cgroup(SLICE, f"ms-quadlet.service/libpod-payload-{key}") as payload,
        played(Actor(["helper"], cgroup=runtime)),
    ):
        inode = Path(path).stat().st_ino
        with played(Actor(["starting"], cgroup=payload, netns=path)):
            both = found("8080@unit:ms-quadlet:gpu0")
        assert {each.netns_inode for each in both} == {OWN, inode}
        assert len({each.scope for each in both}) == 2
        assert all(each.attach and each.scope.startswith("unit:ms-quadlet.service") for each in both)
        with played(Actor(LLAMA, listens=["0.0.0.0@8080"], cgroup=payload, netns=path)):
            [each] = found("8080@unit:ms-quadlet:gpu0")
        assert (each.netns_inode, each.scope) == (inode, "unit:ms-quadlet.service")


def test_a_socket_that_systemd_holds_too():
    """Everything is a descendant of systemd: it is never taken for the server."""
    with played(
        Actor(["/lib/systemd/systemd"], listens=["127.0.0.1"], share=True, program="systemd", children=[Actor(["api"])])
    ) as [manager]:
        api = manager.children[0]
        [each] = found(str(manager.port), gpu0=[api], gpu1=[manager])
        assert (each.gpus, each.pids) == ((GPU0,), (api.pid,))
    with played(Actor(["/lib/systemd/systemd"], listens=["127.0.0.1"], program="systemd")) as [manager]:
        [each] = found(str(manager.port), gpu1=[manager])
        assert (each.gpus, each.pids, each.problem) == ((), (), UNSEEN)


def test_without_privileges_that_is_said():
    """What may not be seen is a problem of the watch, not an error."""
    with namespace() as path, played(Actor(LLAMA, listens=["127.0.0.1"])) as [server]:

        def ask():
            os.setgroups([])
            os.seteuid(65534)
            hidden, closed = found(str(server.port), f"8080@netns:{path}:gpu0")
            assert hidden.problem == UNSEEN
            assert not closed.attach
            assert "Operation not permitted" in closed.problem

        Child(ask).kill()


# ---- discovered -----------------------------------------------------------------------------------------------------


def test_a_server_on_the_host():
    """Found with its port, its GPUs and the reason."""
    with played(Actor(LLAMA, listens=["127.0.0.1"])) as [server]:
        [each] = discovered(server, gpu1=[server])
    assert each == Found(
        port=server.port,
        scope="host",
        netns_path=OWN_NETNS,
        netns_inode=OWN,
        gpus=(GPU1,),
        server="llama.cpp",
        pids=(server.pid,),
        addresses=("127.0.0.1",),
        why=f"llama-server (pid {server.pid}) listens on this host; it has a context on gpu1",
        attach=True,
    )


@pytest.mark.parametrize("kind", SERVERS)
def test_every_kind_in_a_namespace_of_its_own(kind):
    """Whatever the server, wherever it is."""
    with namespace() as path, played(Actor(SERVERS[kind][0].split(), listens=["0.0.0.0"], netns=path)) as [server]:
        [each] = discovered(server, gpu0=[server])
    assert (each.server, each.scope, each.port) == (kind, f"netns:{path}", server.port)
    assert (each.netns_path, each.netns_inode != OWN) == (f"/proc/{server.pid}/ns/net", True)
    assert each.attach


@pytest.mark.parametrize("line", [line for line in OTHERS if line])
def test_what_is_no_server_is_not_found(line):
    """Even if it listens and uses a GPU."""
    with played(Actor(line.split(), listens=["127.0.0.1"])) as [actor]:
        assert discovered(actor, gpu0=[actor]) == []


def test_the_real_llama_cpp(tmp_path):
    """Its server as it really listens, in a namespace of its own, under the name that it usually has."""
    write_model(tmp_path / "model.gguf")
    (tmp_path / "llama-server").symlink_to(sys.executable)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    with namespace() as path:
        process = subprocess.Popen(
            ["nsenter", f"--net={path}", tmp_path / "llama-server", "-m", "demo.llama", tmp_path / "model.gguf"],
            env={**os.environ, "PYTHONPATH": packages},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = process.stdout.readline().decode()
            contexts = {GPU0: frozenset({process.pid}), GPU1: frozenset()}
            [each] = [
                each
                for each in look([], discover=True, gpu_processes=contexts, name_gpu=NAMES.__getitem__)
                if process.pid in each.pids
            ]
        finally:
            process.kill()
            process.communicate()
    assert address.strip() == f"http://127.0.0.1:{each.port}"
    assert (each.server, each.scope, each.gpus) == ("llama.cpp", f"netns:{path}", (GPU0,))
    assert (each.addresses, each.pids, each.attach) == (("127.0.0.1",), (process.pid,), True)


def test_without_a_context():
    """Seen, and not watched: its GPUs are not known yet."""
    with played(Actor(LLAMA, listens=["127.0.0.1"])) as [server]:
        [each] = discovered(server)
    assert (each.attach, each.gpus, each.problem) == (False, (), NO_CONTEXT)


def test_a_router_is_not_watched_but_its_children_are():
    """llama.cpp's router and each of its children has a port; the children have the GPUs."""
    children = [Actor([*LLAMA, "--alias", name], listens=["127.0.0.1"]) for name in "ab"]
    with played(Actor(["llama-server"], listens=["0.0.0.0"], children=children)) as [router]:
        a, b = router.children
        seen = {each.pids: each for each in discovered(router, gpu0=[a], gpu1=[a, b])}
    assert seen[(a.pid,)].gpus == (GPU0, GPU1)
    assert seen[(b.pid,)].gpus == (GPU1,)
    assert (seen[(router.pid,)].gpus, seen[(router.pid,)].attach) == ((), False)
    assert seen[(router.pid,)].problem == "it has no CUDA context: its children are watched instead"


@pytest.mark.parametrize(
    ("proxy", "shell"),
    [(["llama-swap"], False), (["/usr/bin/ollama", "serve"], False), (["llama-swap"], True)],
)
def test_a_proxy_starts_servers(proxy, shell):
    """llama-swap and Ollama, also by way of a shell; they may use a GPU besides."""
    backend = Actor(LLAMA, listens=["127.0.0.1"])
    child = Actor(["sh", "-c", "llama-server"], children=[backend]) if shell else backend
    with played(Actor(proxy, listens=["127.0.0.1"], children=[child])) as [front]:
        server = front.children[0].children[0] if shell else front.children[0]
        seen = {each.pids: each for each in discovered(front, gpu0=[server])}
        both = {each.pids: each for each in discovered(front, gpu0=[server], gpu1=[front])}
    assert seen[(server.pid,)].gpus == (GPU0,)
    assert seen[(server.pid,)].attach
    assert not seen[(front.pid,)].attach
    assert both[(front.pid,)].gpus == (GPU1,)


def test_a_child_on_a_random_port_that_the_operator_has_not_named():
    """A named front end is the operator's; its children are found besides."""
    child = Actor(["ollama", "runner", "--port", "1"], listens=["127.0.0.1"])
    with played(Actor(["ollama", "serve"], listens=["127.0.0.1"], children=[child])) as [front]:
        founds = found(f"{front.port}:gpu1", gpu0=front.children, discover=True)
    mine = [each for each in founds if each.pids]
    assert [(each.port, each.watch is None, each.gpus) for each in mine] == [
        (front.port, False, ()),
        (front.children[0].port, True, (GPU0,)),
    ]


def test_the_engines_of_vllm_count_for_their_server():
    """They have the GPUs, listen for each other, and have no clients. Ports between them are not watched."""
    engine = Actor(["VLLM::EngineCore"], listens=["127.0.0.1"], children=[Actor(["VLLM::Worker_TP1"])])
    argv = ["/usr/bin/python3", "/usr/local/bin/vllm", "serve", "m", "--port", "8123"]
    with namespace() as path:
        listens = ["0.0.0.0@8123", "127.0.0.1"]
        with played(Actor(argv, listens=listens, children=[engine], netns=path)) as [server]:
            core = server.children[0]
            [each] = discovered(server, gpu0=[core], gpu1=core.children)
    assert (each.port, each.pids, each.gpus) == (8123, (server.pid,), (GPU0, GPU1))
    assert each.why.endswith(f"in network namespace {path}; its children have contexts on gpu0, gpu1")


def test_a_stated_port_that_is_not_there_hides_nothing():
    """The port may come from a file that we do not read."""
    with played(Actor(["python3", "-m", "sglang.launch_server"], listens=["127.0.0.1", "127.0.0.1"])) as [server]:
        seen = discovered(server, gpu0=[server])
    assert {each.port for each in seen} == set(server.ports)


def test_several_processes_on_one_socket():
    """With several API servers, vLLM has one port, all of them, and their engines' GPUs."""
    api = [Actor([f"VLLM::APIServer_{number}"]) for number in range(2)]
    argv = ["python3", "/usr/local/bin/vllm", "serve", "m"]
    main = Actor(argv, listens=["0.0.0.0"], share=True, children=[*api, Actor(["VLLM::EngineCore_DP0"])])
    with played(main) as [server]:
        [each] = discovered(server, gpu1=[server.children[2]])
    assert each.pids == tuple(sorted([server.pid, server.children[0].pid, server.children[1].pid]))
    assert each.gpus == (GPU1,)
    assert each.why.startswith(f"vllm serve (pid {server.pid})")


def test_several_sockets_on_one_port():
    """IPv4 and IPv6, and SO_REUSEPORT: one port, with all its addresses and owners."""
    with played(Actor(LLAMA, listens=["127.0.0.1"])) as [one]:
        listens = [f"127.0.0.1@{one.port}", f"::1@{one.port}"]
        with played(Actor(LLAMA, listens=listens)) as [two]:
            [each] = discovered(one, two, gpu0=[one], gpu1=[two])
    assert each.pids == tuple(sorted([one.pid, two.pid]))
    assert (each.addresses, each.gpus) == (("127.0.0.1", "::1"), (GPU0, GPU1))


def test_one_process_with_several_ports():
    """Each port is watched for the same GPUs."""
    with played(Actor(LLAMA, listens=["127.0.0.1", "::1"])) as [server]:
        seen = discovered(server, gpu0=[server])
    assert {each.port: each.gpus for each in seen} == dict.fromkeys(server.ports, (GPU0,))


def test_the_operator_comes_first():
    """A port that is named is listed once, as named."""
    with played(Actor(LLAMA, listens=["127.0.0.1", "127.0.0.1"])) as [server]:
        first, second = server.ports
        named, other = [each for each in found(f"{first}:gpu1", gpu0=[server], discover=True) if each.pids]
    assert (named.port, named.watch.gpus, named.gpus) == (first, ("gpu1",), ())
    assert (other.port, other.watch, other.gpus) == (second, None, (GPU0,))


def test_the_same_port_in_two_containers(system):
    """Two places, two entries, called as Docker calls them."""
    keys = {"web": new_id(), "api": new_id()}
    for name, key in keys.items():
        file = system.at(f"/var/lib/docker/containers/{key}/config.v2.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"Name": f"/{name}"}))
    with (
        namespace() as one,
        namespace() as two,
        cgroup(SLICE, f"docker-{keys['web']}.scope") as web,
        cgroup(SLICE, f"docker-{keys['api']}.scope") as api,
        played(
            Actor(LLAMA, listens=["0.0.0.0@8080"], netns=one, cgroup=web),
            Actor(LLAMA, listens=["0.0.0.0@8080"], netns=two, cgroup=api),
        ) as [first, second],
    ):
        seen = {each.scope: each for each in discovered(first, second, gpu0=[first], gpu1=[second], system=system)}
        [named] = found("8080@container:web", gpu0=[first], system=system)
    assert {scope: each.gpus for scope, each in seen.items()} == {"container:web": (GPU0,), "container:api": (GPU1,)}
    assert seen["container:web"].why.startswith(f"llama-server (pid {first.pid}) listens in container web;")
    assert (named.gpus, named.netns_inode) == ((GPU0,), seen["container:web"].netns_inode)


def test_labels_are_never_the_same():
    """One container with two namespaces, and servers on the same port in both."""
    with (
        namespace() as one,
        namespace() as two,
        cgroup(SLICE, f"docker-{new_id()}.scope") as group,
        played(*[Actor(LLAMA, listens=["0.0.0.0@8080"], netns=path, cgroup=group) for path in (one, two)]) as actors,
    ):
        scopes = [each.scope for each in discovered(*actors)]
    assert len(set(scopes)) == 2


def test_a_unix_socket_cannot_be_watched(tmp_path):
    """That is said instead of nothing."""
    path = tmp_path / "llama server.sock"
    with played(Actor([*LLAMA, "--host", str(path)], listens=[str(path)])) as [server]:
        [each] = discovered(server, gpu0=[server])
    assert (each.port, each.attach, each.addresses) == (0, False, ())
    assert each.why == f"llama-server (pid {server.pid}) listens on the Unix socket {path}"
    assert each.problem == "a Unix socket cannot be watched: give the server a TCP port"


def test_servers_that_end_during_the_look():
    """What was there a moment ago is passed over."""
    with namespace() as path, played(Actor(LLAMA, listens=["0.0.0.0"], netns=path)) as [server]:
        before = Processes.look()
    founds = look([], discover=True, gpu_processes={GPU0: frozenset({server.pid})}, processes=before)
    assert not [each for each in founds if server.pid in each.pids]


# ---- published ports ------------------------------------------------------------------------------------------------

PROXY = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 1 -container-ip 172.17.0.2 -container-port 81"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (PROXY, "docker-proxy (pid {}) publishes this port for a container: watch 81@container:NAME instead"),
        ("docker-proxy -container-port x", "watch {port}@container:NAME instead"),
        ("/usr/bin/conmon --api-version 1 -n web", "conmon (pid {}) publishes this port for a container"),
    ],
)
def test_a_published_port(line, says):
    """The server's connections are elsewhere, also where its GPUs are named: not watched, and it is said what to do."""
    with played(Actor(line.split(), listens=["127.0.0.1"])) as [proxy]:
        unnamed, named = [found(f"{proxy.port}{gpus}")[0] for gpus in ("", ":gpu0")]
        assert discovered(proxy) == []
    assert not unnamed.attach
    assert not named.attach
    assert says.format(proxy.pid, port=proxy.port) in unnamed.problem
    assert unnamed.problem == named.problem


@pytest.mark.parametrize("line", ["rootlessport", "/usr/bin/pasta.avx2 --config-net", "incusd forkproxy -- 1"])
def test_a_relayed_port(line):
    """All connections pass through the helper: they are the server's, but the GPUs have to be named."""
    with played(Actor(line.split(), listens=["127.0.0.1"])) as [proxy]:
        unnamed, named = [found(f"{proxy.port}{gpus}")[0] for gpus in ("", ":gpu0")]
    assert (named.attach, named.problem) == (True, "")
    assert not unnamed.attach
    assert f"watch {proxy.port}@container:NAME instead" in unnamed.problem


def test_a_published_port_whose_container_is_known(system):
    """Docker's files tell which one, with docker-proxy and without."""
    with played(Actor(PROXY.split(), listens=["127.0.0.1"])) as [proxy]:
        file = system.at(f"/var/lib/docker/containers/{new_id()}/config.v2.json")
        file.parent.mkdir(parents=True)
        ports = {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(proxy.port)}]}
        file.write_text(json.dumps({"Name": "/web", "State": {"Running": True}, "NetworkSettings": {"Ports": ports}}))
        [through] = found(str(proxy.port), system=system)
    [without] = found(f"{proxy.port}:gpu0", system=system)
    instead = "for a container: watch 8000@container:web instead"
    assert through.problem == f"docker-proxy (pid {proxy.pid}) publishes this port {instead}"
    assert without.problem == "Docker publishes this port for container web: watch 8000@container:web instead"
    assert not without.attach


# ---- before there is a context --------------------------------------------------------------------------------------

LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(f"{GPU1}", (GPU1,)), (f"{GPU1},{GPU0}", (GPU0, GPU1)), ("1", ()), ("GPU-11111111", ()), ("", ())],
)
def test_gpus_that_a_server_was_shown(visible, gpus):
    """A watch without GPUs drives those of CUDA_VISIBLE_DEVICES until there is a context, told by whole UUIDs."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": visible},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            port = int(server.stdout.readline())
            [shown] = found(f"{port}")
            assert (shown.gpus, shown.attach) == (gpus, bool(gpus))
            assert shown.problem == ("" if gpus else NO_CONTEXT)
            [used] = found(f"{port}", gpu0=[server])
            assert used.gpus == (GPU0,)
        finally:
            server.kill()
