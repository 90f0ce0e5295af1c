"""A job that is a client of the server beside which it works: its own connection must not keep it stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.child.link import ServerSeen
from memscaler.child.standstill import state
from memscaler.config.gpuctl import Match
from memscaler.gvm import clients
from memscaler.gvm.clients import Clients, connected
from memscaler.kernel.netns import entered
from memscaler.kernel.processes import Processes
from memscaler.simulator import SimulatedDriver
from tests.governor import eventually
from tests.gvm.governor_end import batch_rule, governor_end
from tests.kernel.worlds import namespace

pytestmark = pytest.mark.timeout(180)

# A line says what to do: connect ADDRESS PORT, shut, close. It answers with a line.
JOB = """
import socket, sys
kept = None
print("ready", flush=True)
for line in sys.stdin:
    match line.split():
        case ["connect", address, port]:
            kept = socket.create_connection((address, int(port)))
        case ["shut"]:
            kept.shutdown(socket.SHUT_WR)
        case ["close"]:
            kept.close()
    print("done", flush=True)
"""


class Job:
    """A process that does as it is told."""

    def __init__(self, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", JOB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.pid = self.process.pid
        self._answer("ready")

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def does(self, line: str) -> None:
        self.say(line)
        self._answer("done")

    def _answer(self, word: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline().strip() == word


@contextlib.contextmanager
def job(*before: str) -> Iterator[Job]:
    made = Job(*before)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@contextlib.contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    with socket.socket(family) as made:
        made.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))
        made.listen()
        yield made


def port_of(made: socket.socket) -> int:
    return int(made.getsockname()[1])


def seen(port: int, **more: object) -> ServerSeen:
    return ServerSeen(str(port), port, **more)  # type: ignore[arg-type]


def found(server: ServerSeen, *jobs: Job) -> set[int]:
    return set(connected(server, [each.pid for each in jobs], Processes.look()))


def test_a_job_that_asks_the_server_itself_is_let_go_and_told(tmp_path: Path):
    """It stands still for a moment, as any other; a job that is none stays stopped."""
    boards = SimulatedDriver.create(tmp_path / "boards", ("a40",))
    rule = batch_rule(processes=(Match("name", "python*"),), how="signal")
    with (
        contextlib.closing(boards),
        listening() as server,
        job() as asks,
        job() as other,
        governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end,
    ):
        for each in (asks, other):
            boards.boards[0].add_process(each.pid, 1 << 30)
        end.change(port=port_of(server))
        end.start()
        end.prepared()
        asks.does(f"connect 127.0.0.1 {port_of(server)}")
        end.client_comes()
        told = end.until(lambda told: "is a client of port" in told.rules[0].why_not)
        assert f"process {asks.pid} (python" in told.rules[0].why_not
        assert f"is a client of port {port_of(server)} itself, and goes on" in told.rules[0].why_not
        eventually(lambda: state(asks.pid) == "S", within_s=30)
        eventually(lambda: state(other.pid) == "T", within_s=30)
        asks.does("close")
        end.client_goes()
        end.until(lambda told: not told.controlled)
        eventually(lambda: state(other.pid) == "S", within_s=30)
        asks.does("nothing")
        end.park()
        end.client_comes()  # a moment later: who asks again and again is not stopped in between
        eventually(lambda: state(other.pid) == "T", within_s=30)
        time.sleep(1)
        assert state(asks.pid) == "S"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_either_family_to_a_server_of_both(address: str):
    with listening(socket.AF_INET6) as server, job() as one, job() as other:
        mine = seen(port_of(server))
        assert found(mine, one, other) == set()
        one.does(f"connect {address} {port_of(server)}")
        assert found(mine, one, other) == {one.pid}
        accepted, _ = server.accept()
        one.does("shut")  # he waits for the answer
        assert found(mine, one, other) == {one.pid}
        one.does("close")
        assert found(mine, one, other) == set()
        accepted.close()


def test_a_connection_to_the_same_port_elsewhere_is_none_of_this_server_s():
    """Another namespace has its own port of that number; and a job in there is a client of who listens there."""
    with namespace() as path, listening() as server, job("nsenter", f"--net={path}") as away, job() as here:
        with entered(path):
            theirs = socket.socket()
        with theirs:
            theirs.bind(("127.0.0.1", port_of(server)))
            theirs.listen()
            away.does(f"connect 127.0.0.1 {port_of(server)}")
            here.does(f"connect 127.0.0.1 {port_of(server)}")
            there = seen(port_of(server), scope="netns:x", pids=(away.pid,))  # whoever is in that namespace
            assert found(there, here, away) == {away.pid}
            assert found(seen(port_of(server)), here, away) == {here.pid}
            assert found(seen(port_of(server), scope="netns:x"), here, away) == set()  # nobody knows where that is


def test_one_who_has_inherited_the_connection_is_one_too():
    with listening() as server, socket.create_connection(server.getsockname()) as mine:
        child = subprocess.Popen(["sleep", "999"], pass_fds=[mine.fileno()])
        try:
            assert connected(seen(port_of(server)), [child.pid], Processes.look()) == {child.pid}
            assert connected(seen(port_of(server)), [os.getppid()], Processes.look()) == set()
        finally:
            child.kill()
            child.wait()


def test_he_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clients, "SPARED_S", 0.5)
    with listening() as server, job() as one:
        known, mine = Clients(), seen(port_of(server))
        one.does(f"connect 127.0.0.1 {port_of(server)}")
        assert known.of(mine, [one.pid], Processes.look()) == {one.pid}
        one.does("close")
        assert known.of(mine, [one.pid], Processes.look()) == {one.pid}
        assert known.of(seen(port_of(server) ^ 1), [one.pid], Processes.look()) == set()
        eventually(lambda: not known.of(mine, [one.pid], Processes.look()), within_s=30)
        assert known.of(mine, [], Processes.look()) == set()
