"""The whole chain: a governor's ladder stops a described server, and a client of the gateway has it brought back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demo import model
from tests.gateway.gateways import Gateway, get, running
from tests.governor import Governor, eventually, governing
from tests.patience import patience
from tests.servers.bench import free_port
from tests.servers.steered import Steered, steered

LADDER = """
[[stage]]
after = "3s"
do = "stop-server"
leave_timeout = "60s"
[[gateway]]
listen = "127.0.0.1:0"
to = "127.0.0.1:{port}"
server = "chat"
name = "front"
{gateway}
"""
CLIENT = """
import openai, sys
client = openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0, timeout=90)
for line in sys.stdin:
    parts = client.completions.create(model="m", prompt="Once", max_tokens=8, stream=True)
    print("parts", len(list(parts)), flush=True)
"""


class Chain:
    """Of three real processes and a server."""

    def __init__(self, supervisor: Steered, governor: Governor, gateway: Gateway, port: int) -> None:
        self.supervisor, self.governor, self.gateway, self.port = supervisor, governor, gateway, port

    def state(self) -> str:
        return str(self.supervisor.server("chat")["state"])

    def until_stopped(self) -> None:
        def is_so() -> bool:
            return self.state() == "stopped"

        eventually(is_so, within_s=60, what="the ladder stops it")


@contextlib.contextmanager
def chain(folder: Path, server: Callable[[Steered, int], dict[str, Any]], gateway: str = "") -> Iterator[Chain]:
    """server: its description, of the bench and its port."""
    with steered() as b:
        port = free_port()
        described = {"name": "chat", "port": port, "gpus": ["gpu0"], **server(b, port)}
        b.describe(described, general='idle_after = "500ms"\n')
        with (b.folder / "config.toml").open("a") as config:
            config.write(LADDER.format(port=port, gateway=gateway))
        (b.folder / "memscaler-servers").symlink_to("run")  # where those that are started by hand are looked for
        b.governor = b.folder / "governor"
        told = ["--config", str(b.folder / "config.toml")]
        with governing(b.governor, "a40", *told, env={"XDG_RUNTIME_DIR": str(b.folder)}) as governor:
            # the simulated driver's memory is a file, of root's here; a real driver lets everybody ask
            for path in (b.governor / "simulator", b.governor / "simulator" / "state"):
                path.chmod(0o777)
            b.begin(words=("--simulate", "a40"))
            b.until("chat", "ready", 60)
            with running(folder, *told, "--runtime-dir", str(b.governor), "--metrics", "127.0.0.1:0") as front:
                yield Chain(b, governor, front, port)


def llama(b: Steered, _port: int) -> dict[str, Any]:
    model.write(b.folder / "tiny.gguf")
    (b.folder / "tiny.gguf").chmod(0o644)
    return {"model": str(b.folder / "tiny.gguf"), "options": {"ctx-size": 256}}


def test_openai_is_answered_by_a_server_that_the_ladder_has_stopped(tmp_path):
    """A real llama.cpp server and the real client, which may not even try again; twice."""
    with chain(tmp_path, llama) as made:
        host, port = made.gateway.address
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, f"http://{host}:{port}/v1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def complete() -> None:
            client.stdin.write("\n")
            client.stdin.flush()
            line = client.stdout.readline()
            assert line.startswith("parts "), client.communicate()[1]

        complete()
        for _ in range(2):
            made.until_stopped()
            complete()
            assert made.state() == "ready"
        client.stdin.close()
        assert client.wait(30) == 0
        client.stdout.close()
        client.stderr.close()
        assert made.gateway.metric("wakes_total", result="done") == 2
        assert made.gateway.metric("refused_total") == 0


def test_a_slow_load_shows_no_503(tmp_path):
    """Neither after a wake of the gateway's own, nor after one that somebody else has asked for."""

    def slow(b: Steered, port: int) -> dict[str, Any]:
        return {"command": b.small("--port", port, "--load", 3)}

    with chain(tmp_path, slow) as made:
        assert get(made.gateway, "/v1/models")[0] == 200
        made.until_stopped()
        assert get(made.gateway, "/v1/models", timeout_s=60 * patience())[0] == 200
        made.until_stopped()
        woken = subprocess.Popen(
            [sys.executable, "-m", "memscaler", "wake", "chat", "--runtime-dir", str(made.governor.runtime_dir)]
        )

        def is_loading() -> bool:
            with contextlib.suppress(urllib.error.HTTPError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{made.port}/health", timeout=5)
                return False
            return made.state() != "stopped"

        eventually(is_loading, within_s=30)
        assert get(made.gateway, "/v1/models", timeout_s=60 * patience())[0] == 200
        assert woken.wait(60 * patience()) == 0


def test_why_a_server_does_not_come_back_is_told_and_a_repaired_one_is_reached(tmp_path):
    """Its model is away while it is stopped: a prompt 503 that says so; when the model is there again, an answer."""
    with chain(tmp_path, llama, 'wait = "9m"\nwake_timeout = "9m"\nwake_pause = "9m"') as made:
        assert get(made.gateway, "/v1/models")[0] == 200
        made.until_stopped()
        there, away = made.supervisor.folder / "tiny.gguf", made.supervisor.folder / "away"
        there.rename(away)
        status, fields, body = get(made.gateway, "/v1/models", timeout_s=60 * patience())
        assert status == 503
        assert b"chat does not come back" in body
        assert b": chat cannot be started: model tiny.gguf: no such file" in body
        assert fields["retry-after"]
        away.rename(there)
        eventually(
            lambda: get(made.gateway, "/v1/models", timeout_s=60 * patience())[0] == 200, within_s=60 * patience()
        )
