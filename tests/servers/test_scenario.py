"""The whole of it: three real llama.cpp servers on two simulated GPUs, one GPU shared, a real supervisor, a real governor.

What goes wrong with one server is that server's business; what is parked is decided by the connections that there are.
The tests use one scene, in this order, and each leaves all three servers ready.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from demo import model
from memscaler.cli.client import Client
from tests.asked import short_folder
from tests.governor import eventually, governing
from tests.patience import patience
from tests.servers.bench import alive, free_port, ours
from tests.servers.steered import Steered

BOARDS = "a40,p40"
GPU_OF = {"chat": "gpu0", "code": "gpu1", "draft": "gpu1"}  # gpu1 is shared
LONG_S = 60.0  # these machines are shared


class Scene:
    """The three servers, and what a test changes about them."""

    def __init__(self, bench: Steered) -> None:
        self.bench = bench
        self.governor = None
        self.ports = {name: free_port() for name in GPU_OF}
        self.options = {name: {"ctx-size": 512, "parallel": 1} for name in GPU_OF}
        self.hooks: dict[str, list] = {}
        self.model = bench.folder / "tiny.gguf"
        model.write(self.model)
        self.model.chmod(0o644)

    def describe(self, *more) -> None:
        """The three, and perhaps others."""
        servers = [
            {
                "name": name,
                "model": str(self.model),
                "port": self.ports[name],
                "gpus": [gpu],
                "options": self.options[name],
                "restart_after": "200ms",
                "hook": self.hooks.get(name, []),
            }
            for name, gpu in GPU_OF.items()
        ]
        text = ""
        for server in [*servers, *more]:
            hooks = server.pop("hook", [])
            text += "[[server]]\n" + 'log = "file"\n'
            text += "".join(f"{key} = {toml(value)}\n" for key, value in server.items())
            for hook in hooks:
                text += "[[server.hook]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in hook.items())
        draft = self.bench.folder / "config.new"
        draft.write_text(text)
        draft.rename(self.bench.folder / "config.toml")

    def ready(self) -> dict[str, int]:
        """The pids of the three."""
        return {name: self.bench.until(name, "ready", LONG_S)["pid"] for name in GPU_OF}

    def apply(self) -> dict:
        done = self.bench.ask("apply", "--json")
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    # ---- the governor -----------------------------------------------------------------------------------------------

    def status(self) -> dict:
        return Client(str(self.governor.runtime_dir)).status()

    def watched(self) -> dict[int, list[str]]:
        return {watch["port"]: watch["gpus"] for watch in self.status()["watches"]}

    def states(self) -> dict[str, str]:
        return {gpu["gpu"]: gpu["state"] for gpu in self.status()["gpus"]}

    def all_parked(self) -> bool:
        return set(self.states().values()) == {"parked"}

    def until_parked(self) -> None:
        eventually(self.all_parked, within_s=LONG_S, what="all parked")

    # ---- clients ----------------------------------------------------------------------------------------------------

    def complete(self, name: str, tokens: int = 4) -> dict:
        """A real completion; it is asked for by a server's name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=60 * patience())
        body = json.dumps({"prompt": "once upon", "max_tokens": tokens, "ignore_eos": True})
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            document = json.loads(answer.read())
        assert answer.status == 200, document
        return document

    def wakes(self, name: str) -> None:
        """A request to this server wakes its GPU and no other, and is answered."""
        self.until_parked()
        before = len(self.governor.events("gpu.woken"))
        assert self.complete(name)["usage"]["completion_tokens"] > 0
        woken = eventually(lambda: self.governor.events("gpu.woken")[before:], within_s=LONG_S)
        assert {event["gpu"] for event in woken} == {GPU_OF[name]}


def toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture(scope="module")
def scene():
    with short_folder() as folder:
        bench = Steered(folder)
        bench.governor = folder / "governor"
        made = Scene(bench)
        made.describe()
        config = ("--config", str(folder / "config.toml"), "--idle-after", "1s")
        try:
            with governing(bench.governor, BOARDS, *config) as governor:
                # the simulated driver's memory is a file, of root's here; a real driver lets everybody ask
                for path in (bench.governor / "simulator", bench.governor / "simulator" / "state"):
                    path.chmod(0o777)
                made.governor = governor
                bench.begin(words=("--simulate", BOARDS))
                made.ready()
                yield made
        except BaseException:
            print(bench.said())
            raise
        finally:
            bench.clean_up()


def test_each_server_sees_its_gpus(scene):
    """The driver's own names, in the order of the bus; the governor watches the ports with the same GPUs."""
    uuids = {gpu["gpu"]: gpu["uuid"] for gpu in scene.status()["gpus"]}
    for name, gpu in GPU_OF.items():
        report = scene.bench.server(name)
        assert report["gpus"] == [uuids[gpu]]
        environ = Path(f"/proc/{report['pid']}/environ").read_bytes().split(b"\0")
        assert f"CUDA_VISIBLE_DEVICES={uuids[gpu]}".encode() in environ
        assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in environ
        assert Path(f"/proc/{report['pid']}").stat().st_uid == 65534
    assert scene.watched() == {scene.ports[name]: [gpu] for name, gpu in GPU_OF.items()}


def test_quiet_gpus_park_and_a_request_wakes_one(scene):
    """Each of the three wakes its own GPU, the shared one for both of its servers; the answers are real ones."""
    for name in GPU_OF:
        scene.wakes(name)


def test_a_killed_server_comes_back_and_is_watched(scene):
    """After kill -9 only that one is started again, and its port still wakes the shared GPU."""
    before = scene.ready()
    os.kill(before["code"], signal.SIGKILL)
    eventually(lambda: scene.bench.server("code")["pid"] not in (None, before["code"]), within_s=LONG_S)
    after = scene.ready()
    assert {name for name in GPU_OF if after[name] != before[name]} == {"code"}
    assert scene.bench.server("code")["restarts"] >= 1
    assert "SIGKILL" in scene.bench.server("code")["ended"]
    scene.wakes("code")


def test_what_cannot_work_fails_alone(scene):
    """A crash loop, a taken port, a bad model, a missing one: each fails with its reason, the three are not touched."""
    before = scene.ready()
    bad = scene.bench.folder / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(range(256)) * 16)
    bad.chmod(0o644)
    more = {"restart_after": "100ms", "restart_limit": 1}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        scene.describe(
            {"name": "crashes", "command": ["sh", "-c", "echo no such layer; exit 3"], **more},
            {"name": "taken", "model": str(scene.model), "port": taken.getsockname()[1], **more},
            {"name": "bad", "model": str(bad), "port": free_port(), **more},
            {"name": "missing", "model": "/nowhere/at/all.gguf", "port": free_port(), **more},
        )
        done = scene.bench.ask("apply")
        assert done.returncode == 1
        reports = {name: scene.bench.until(name, "failed", LONG_S) for name in ("crashes", "taken", "bad", "missing")}
        assert "exit status 3" in reports["crashes"]["reason"]
        assert str(taken.getsockname()[1]) in reports["taken"]["reason"]
        assert "/nowhere/at/all.gguf" in reports["missing"]["reason"]
        assert reports["bad"]["reason"]
        assert "no such layer" in scene.bench.ask("logs", "crashes").stdout
        assert scene.ready() == before
        assert scene.complete("chat")
    assert scene.bench.ask("start", "taken").returncode == 0  # now that the port is free
    scene.describe()
    told = scene.apply()
    assert sorted(told["removed"]) == ["bad", "crashes", "missing", "taken"]
    eventually(lambda: set(scene.bench.report()) == set(GPU_OF), within_s=LONG_S)
    assert scene.ready() == before
    scene.wakes("draft")


def test_apply_under_load(scene):
    """While a client streams from one server, another one is described anew: the stream goes on to its end."""
    before = scene.ready()
    lines: list[bytes] = []
    began = threading.Event()

    def stream() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", scene.ports["chat"], timeout=60 * patience())
        body = json.dumps({"prompt": "once upon", "max_tokens": 400, "ignore_eos": True, "stream": True})
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            for line in connection.getresponse():
                lines.append(line)
                began.set()

    client = threading.Thread(target=stream)
    client.start()
    assert began.wait(60 * patience())
    scene.options["code"] = {"ctx-size": 768, "parallel": 1}
    scene.describe()
    told = scene.apply()
    client.join(60 * patience())
    assert not client.is_alive()
    assert told["changed"] == {"code": ["options"]}
    assert lines[-2].strip() == b"data: [DONE]"
    after = scene.ready()
    assert {name for name in GPU_OF if after[name] != before[name]} == {"code"}
    assert "768" in Path(f"/proc/{after['code']}/cmdline").read_text()
    scene.wakes("code")


def test_hooks(scene):
    """A hook runs beside its ready server, and ends with it; its own hook, too."""
    mark = scene.bench.folder / "state" / "hook"
    inner = {"name": "inner", "command": ["sh", "-c", f"echo $$ > {mark}.inner; exec sleep 1000"]}
    scene.hooks["draft"] = [{"name": "outer", "command": ["sh", "-c", f"echo $$ > {mark}; exec sleep 1000"]}]
    scene.describe()
    table = (scene.bench.folder / "config.toml").read_text()
    nested = "[[server.hook.hook]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in inner.items())
    (scene.bench.folder / "config.toml").write_text(table.rstrip("\n") + "\n" + nested)
    before = scene.ready()
    scene.apply()
    pids = [eventually(lambda file=file: pid_in(file), within_s=LONG_S) for file in (mark, Path(f"{mark}.inner"))]
    assert all(map(alive, pids))
    assert scene.ready() == before  # hooks come and go without their server
    scene.bench.told("stop", "draft")
    assert not any(map(alive, pids))
    scene.hooks.clear()
    scene.describe()
    scene.apply()
    scene.bench.told("start", "draft")
    scene.ready()


def pid_in(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(file.read_text())
    return 0


def test_a_new_port_is_followed(scene):
    """`apply` has the governor reload: the new port wakes the GPU, the old one is watched no longer."""
    old, scene.ports["code"] = scene.ports["code"], free_port()
    before = scene.ready()
    scene.describe()
    told = scene.apply()
    assert told["changed"] == {"code": ["port"]}
    assert "has reloaded" in told["governor"]
    after = scene.ready()
    assert {name for name in GPU_OF if after[name] != before[name]} == {"code"}
    assert scene.watched() == {scene.ports[name]: [gpu] for name, gpu in GPU_OF.items()}
    assert old not in scene.watched()
    scene.wakes("code")


def test_servers_survive_their_supervisor(scene):
    """After kill -9 of the supervisor its servers answer, and the next one adopts them; a request still wakes."""
    before = scene.ready()
    scene.bench.kill()
    assert scene.complete("chat")
    assert scene.bench.ask("start", "chat").returncode == 3
    scene.bench.begin(words=("--simulate", BOARDS))
    assert scene.ready() == before
    assert scene.bench.ask("apply").stdout.startswith("nothing differs")
    scene.wakes("draft")
    scene.bench.told("restart", "draft")
    assert scene.ready()["draft"] != before["draft"]


def test_nothing_is_left(scene):
    """SIGTERM for both: no process, no socket, and every GPU at full speed."""
    pids = scene.ready()
    scene.until_parked()
    scene.bench.send(signal.SIGTERM)
    assert scene.bench.ended() == 0
    assert not any(map(alive, pids.values()))
    assert not (scene.bench.runtime / "control.sock").exists()
    assert scene.governor.stop(within_s=LONG_S) == 0
    assert not any(board.parked for board in scene.governor.driver.boards)
    eventually(lambda: not ours(scene.bench.folder), within_s=LONG_S, what="no process")
