"""`memscaler ports` on the simulated driver, as a real process, with real listeners."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.cli.ports import ports
from memscaler.config.load import load
from memscaler.core.errors import PermissionMissing
from memscaler.simulator import SimulatedDriver
from tests.kernel.crowd import Actor, cgroup, new_id, played
from tests.kernel.worlds import Child, namespace

LLAMA = ("llama-server", "-m", "model.gguf")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def driver(tmp_path):
    """Two boards, on which the command finds the contexts that a test lists."""
    path = tmp_path / "simulator/state"
    path.parent.mkdir()
    with SimulatedDriver.create(path, ["a40", "p40"]) as made:
        yield made


@pytest.fixture
def memscaler(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}

    def run(*args, **more):
        command = [sys.executable, "-m", "memscaler", "ports", *args, "--simulate", "a40,p40"]
        command += ["--runtime-dir", str(tmp_path)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=env, timeout=120, cwd=REPOSITORY, **more
        )

    return run


def ours(result, *actors):
    """What the document says about these processes; others may run on this machine too."""
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    pids = {each.pid for actor in actors for each in actor.everybody()}
    return [each for each in document["ports"] if pids & set(each["pids"])]


def test_json(driver, memscaler):
    """A router, its child in a GPU, and a server in a container, as programs read them."""
    child = Actor([*LLAMA, "--alias", "m"], listens=["127.0.0.1"])
    key = new_id()
    with (
        namespace() as path,
        cgroup(f"ms-test-{os.getpid()}.slice", f"docker-{key}.scope") as group,
        played(
            Actor(["llama-server"], listens=["0.0.0.0"], children=[child]),
            Actor(["ollama", "runner"], listens=["127.0.0.1@9000"], netns=path, cgroup=group),
        ) as [router, runner],
    ):
        driver.boards[0].add_process(router.children[0].pid)
        driver.boards[1].add_process(runner.pid)
        seen = {each["port"]: each for each in ours(memscaler("--json"), router, runner)}
    assert seen[9000]["scope"] == f"container:{key[:12]}"
    assert (seen[9000]["server"], seen[9000]["gpus"]) == ("ollama", [driver.boards[1].uuid])
    assert seen[9000]["netns"]["path"] == f"/proc/{runner.pid}/ns/net"
    child_port = seen[router.children[0].port]
    assert child_port["gpus"] == [driver.boards[0].uuid]
    assert child_port["watched"]
    assert (child_port["spec"], child_port["problem"], child_port["addresses"]) == (None, None, ["127.0.0.1"])
    assert not seen[router.port]["watched"]
    assert seen[router.port]["problem"] == "it has no CUDA context: its children are watched instead"


def test_the_table(driver, memscaler, tmp_path):
    """For people: a table, and below it what is what and why, in 80 columns."""
    config = tmp_path / "config.toml"
    config.write_text('[[watch]]\nport = 1\ngpus = ["gpu1"]\n\n[[watch]]\nport = 2\n')
    with played(Actor(LLAMA, listens=["127.0.0.1"])) as [server]:
        driver.boards[1].add_process(server.pid)
        result = memscaler("--config", str(config))
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["PORT", "SCOPE", "SERVER", "PID", "GPUS", "WATCHED"]
    assert lines[1].split() == ["1", "host", "-", "-", "gpu1", "yes,", "named"]
    assert lines[2].split() == ["2", "host", "-", "-", "-", "no"]
    row = next(line.split() for line in lines if line.startswith(f"{server.port} "))
    assert row == [str(server.port), "host", "llama.cpp", str(server.pid), "gpu1", "yes,", "found"]
    assert "      note: no process listens there yet" in lines
    assert "      not watched: no process listens there yet" in lines
    said = " ".join(result.stdout.split())
    assert f"why: llama-server (pid {server.pid}) listens on this host; it has a context on gpu1" in said


def test_ports_that_are_named(driver, memscaler):
    """Flags come before what is found; who listens is told although the GPUs are named."""
    with played(Actor(["my-server"], listens=["127.0.0.1"])) as [server]:
        driver.boards[0].add_process(server.pid)
        [each] = ours(memscaler("--json", "-p", f"{server.port}:gpu1,gpu0", "-p", "1@container:ms-none"), server)
    assert each["spec"] == f"{server.port}:gpu1,gpu0"
    assert each["gpus"] == [driver.boards[1].uuid, driver.boards[0].uuid]
    assert (each["server"], each["watched"], each["problem"]) == (None, True, None)


def test_mistakes(memscaler):
    """A GPU that is not there, and a specification that is none."""
    result = memscaler("-p", "8080:gpu7")
    assert (result.returncode, result.stdout) == (2, "")
    assert "'gpu7' is no GPU of this machine" in result.stderr
    assert memscaler("-p", "nonsense").returncode == 2


def test_nothing_is_found(memscaler):
    """Not an error: what to do is said."""
    servers = json.loads(memscaler("--json").stdout)["ports"]  # of the machine that the tests run on
    result = memscaler()
    assert (result.returncode, result.stderr) == (0, "")
    words = " ".join(result.stdout.split())
    assert servers or words == (
        "no llama.cpp, llama-swap, Ollama, vLLM or SGLang server listens here, and no port is named; "
        "name one with `memscaler run --port 8080:gpu0`"
    )


def test_without_root():
    """Who may not see the processes of others is told so, instead of being shown half of them."""

    def ask():
        os.seteuid(65534)
        with pytest.raises(PermissionMissing, match="only root can see which processes") as refusal:
            ports(port=["8080"])
        assert refusal.value.exit_code == 4

    load({}, {})
    # a process of its own, where everything is imported: the packages may lie where nobody else can read
    Child(ask).kill()
