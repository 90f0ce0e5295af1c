"""`memscaler gateway --check`: a place that cannot be had, a server that nobody knows, a governor that does not answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from tests.gateway.gateways import Server, Web, free_port, running
from tests.gateway.test_process import command
from tests.governor import governing

PLACE = "127.0.0.1:0"


def finding(*arguments: str) -> tuple[int, dict[str, list[str]]]:
    status, text = command(*arguments, "--check", "--json")
    return status, json.loads(text)["gateways"][0]


def test_a_place_that_somebody_else_has():
    """Named, with what to do; exit code 1."""
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
    with (
        Server(Web()) as server,
        subprocess.Popen([sys.executable, "-c", code + "sys.stdin.read()"], stdin=-1, stdout=-1, text=True) as holder,
    ):
        assert holder.stdout
        port = int(holder.stdout.readline())
        for host in ("127.0.0.1", "0.0.0.0", "[::]"):
            status, found = finding("--listen", f"{host}:{port}", "--to", f"127.0.0.1:{server.port}")
            assert status == 1
            (problem,) = found["problems"]
            assert f"{host}:{port} is taken by python" in problem
            assert f"(pid {holder.pid})" in problem
            assert "write another `listen`" in problem
        assert holder.stdin
        holder.stdin.close()


def test_an_address_that_this_machine_does_not_have():
    """Here; whoever has it may be another machine."""
    with Server(Web()) as server:
        status, found = finding("--listen", "192.0.2.1:8080", "--to", f"127.0.0.1:{server.port}")
    assert status == 1
    (problem,) = found["problems"]
    assert problem.startswith(
        "cannot listen on 192.0.2.1:8080: Cannot assign requested address: this machine has no such"
    )


def test_a_port_that_needs_a_right():
    """The unit has no right at all: told before somebody starts it."""
    with Server(Web()) as server:
        found = finding("--listen", "127.0.0.1:1023", "--to", f"127.0.0.1:{server.port}")[1]
    assert any("CAP_NET_BIND_SERVICE" in each for each in found["warnings"])
    assert not found["problems"]


def test_our_own_gateway_is_no_problem(tmp_path):
    """It runs with that configuration: a note. With another one it is somebody else's place."""
    port = free_port()
    with Server(Web()) as server:
        config, other = tmp_path / "config.toml", tmp_path / "other.toml"
        config.write_text(f'[[gateway]]\nlisten = "127.0.0.1:{port}"\nto = "127.0.0.1:{server.port}"\n')
        other.write_text(config.read_text())
        with running(tmp_path, "--config", str(config)) as gateway:
            status, found = finding("--config", str(config))
            assert status == 0, found
            assert any(
                f"a gateway (pid {gateway.process.pid}) listens there already" in each for each in found["facts"]
            )
            for words in (
                ("--config", str(other)),
                ("--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{server.port}"),
            ):
                status, found = finding(*words)
                assert status == 1
                assert f"(pid {gateway.process.pid}) with another configuration" in found["problems"][0]


def test_who_may_not_look_is_told_no_name():
    """A user who cannot see whose socket it is still hears that the place is taken."""
    with Server(Web()) as server, Server(Web()) as holder:
        told = ("--listen", f"127.0.0.1:{holder.port}", "--to", f"127.0.0.1:{server.port}", "--check")
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *told], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1, done.stderr
    assert f"{told[1]} is taken by somebody" in done.stdout


AS_NOBODY = """
import os, sys, encodings.idna
import memscaler.cli.main, memscaler.sleep.gateway.check, memscaler.cli.gateway, memscaler.cli.output
import memscaler.cli.paint, memscaler.config.load, memscaler.config.gateway_tables, memscaler.observe.log
import memscaler.cli.present, contextlib, io
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # what the command line imports late
    memscaler.cli.main.app(["gateway", "--help"])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.argv = ["memscaler", "gateway", *sys.argv[1:]]
memscaler.cli.main.main()
"""


# ---- its server -----------------------------------------------------------------------------------------------------

DESCRIBED = """
[[server]]
name = "chat"
command = "/bin/true --port 8090"
port = 8090

[[watch]]
port = 8091
gpus = ["gpu0"]

[[stage]]
after = "1h"
do = "stop-server"
"""


def described(tmp_path, more: str = "") -> str:
    config = tmp_path / "config.toml"
    config.write_text(more + DESCRIBED)
    return str(config)


@pytest.mark.parametrize("name", ["chat", "8090", "8091"])
def test_a_server_that_the_configuration_knows(tmp_path, name):
    """By its name, or its port."""
    told = ("--listen", PLACE, "--to", "127.0.0.1:9", "--runtime-dir", str(tmp_path), "--server", name)
    status, found = finding(*told, "--config", described(tmp_path))
    assert (status, found["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "127.0.0.1:8091", "--server", "chat"), "chat listens on port 8090, and to is 127.0.0.1:8091"),
        (("--to", "127.0.0.1:8090"), 'stops chat, and this gateway wakes nobody: write server = "chat"'),
        (
            ("--to", "127.0.0.1:8091"),
            'stops the server on port 8091, and this gateway wakes nobody: write server = "8091"',
        ),
        (("--to", "127.0.0.1:9", "--server", "chat", "--listen", "127.0.0.1:8090"), "port 8090 is that of server chat"),
        (("--to", "127.0.0.1:9", "--listen", "[::]:8091"), "port 8091 is that of a server that is watched"),
    ],
)
def test_what_the_configuration_check_tells_is_told_here(tmp_path, words, told):
    """Of flags, too; and by the log of a gateway that starts like that."""
    arguments = ("--runtime-dir", str(tmp_path), "--config", described(tmp_path), "--listen", PLACE, *words)
    found = finding(*arguments)[1]
    assert any(told in each for each in found["warnings"]), found
    assert not any("neither server nor mac" in each for each in found["warnings"]) or "is that of" in told


def test_a_doubt_is_in_the_log_of_a_gateway_that_starts(tmp_path):
    """It works, after a fashion: so it starts."""
    arguments = ("--config", described(tmp_path), "--listen", PLACE, "--to", "127.0.0.1:8090")
    with running(tmp_path, *arguments) as gateway:
        (doubt,) = gateway.events("gateway.doubtful")
        assert "stops chat, and this gateway wakes nobody" in doubt["why"]


@pytest.mark.parametrize("name", ["chta", "8099"])
def test_a_server_that_nobody_knows(tmp_path, name):
    """With those that there are, and what to do; exit code 1. A port may come where servers are discovered."""
    told = ("--listen", PLACE, "--to", "127.0.0.1:9", "--runtime-dir", str(tmp_path), "--server", name)
    status, found = finding(*told, "--config", described(tmp_path))
    assert status == 1
    assert found["problems"] == [
        f"no [[server]] is called {name}, and no such port is watched (there are chat, 8091): correct `server`"
    ]
    status, found = finding(*told, "--config", described(tmp_path, "discover = true\n"))
    assert (status, bool(found["problems"])) == ((0, False) if name.isdigit() else (1, True))


def test_a_governor_that_is_not_there_any_more(tmp_path):
    """Its socket is, and nobody answers; told apart from one that never was, and from one that hangs."""
    told = ("--listen", PLACE, "--to", "127.0.0.1:9", "--server", "chat", "--config", described(tmp_path))
    path = tmp_path / "control.sock"

    def warning() -> str:
        status, found = finding(*told, "--runtime-dir", str(tmp_path))
        assert status == 0
        return next(each for each in found["warnings"] if "brought back by nobody" in each)

    assert "no governor runs here" in warning()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(4)
        began = time.monotonic()
        assert "the governor does not answer" in warning()
        assert time.monotonic() - began < 30
    assert "is stale, nobody answers there" in warning()
    assert "systemctl restart memscaler" in warning()


def test_the_governor_that_runs_knows_more(tmp_path):
    """What it watches counts, whatever the file says; and what it does not know yet is a warning."""
    told = ("--listen", PLACE, "--to", "127.0.0.1:9", "--config", described(tmp_path))
    with Server(Web()) as server, governing(tmp_path / "run", "a40", "--port", f"{server.port}:gpu0"):
        runs = ("--runtime-dir", str(tmp_path / "run"))
        status, found = finding(*told, *runs, "--server", str(server.port))
        assert (status, found["problems"], found["warnings"]) == (0, [], [])
        status, found = finding(*told, *runs, "--server", "chat")
        assert status == 0
        assert any("does not know server chat (yet)" in each for each in found["warnings"])
        status, found = finding(*told, *runs, "--server", "chta")
        assert status == 1
        assert str(server.port) in found["problems"][0]
