"""However it ends, nothing of it is left: no server, no governor, no parked GPU. And the exit status says how."""

import os
import pty
import signal
import time
import urllib.request

import pytest

from tests.governor import alive, eventually
from tests.serve.conftest import program

pytestmark = pytest.mark.timeout(600)

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL


def parked(served):
    eventually(lambda: served.board.locks, within_s=20, what="parked")


def test_a_signal_ends_it_while_a_gpu_is_parked(serve):
    """128 and the signal's number."""
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        parked(served)
        assert served.stop(HUP) == 128 + HUP
        served.assert_nothing_is_left()


@pytest.mark.parametrize("number", [TERM, KILL])
def test_what_a_wrapper_has_started_ends_too(serve, programs, number):
    """A script that starts the server instead of becoming it, as packages have them. After kill -9 the others clean up."""
    (programs / "llama-server").rename(programs / "llama-server.real")
    program(programs / "llama-server", f'setsid sleep 1000 & {programs}/llama-server.real "$@"; true')
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        parked(served)
        assert len(served.pids("tiny.gguf")) >= 3
        assert served.pids("sleep 1000")
        assert served.stop(number) == (128 + TERM if number == TERM else -KILL)
        served.assert_nothing_is_left()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("number", [INT, KILL])
def test_ended_while_the_model_loads(serve, number):
    """As Ctrl-C, or kill -9, at once."""
    with serve() as served:
        served.wait_said("loading the model")
        assert served.server
        began_s = time.monotonic()
        assert served.stop(number) == (128 + INT if number == INT else -KILL)
        assert time.monotonic() - began_s < 20
        served.assert_nothing_is_left()
        assert "Serving" not in served.told


@pytest.mark.usefixtures("slow")
def test_the_terminal_is_closed_while_the_model_loads(serve):
    """Nothing can be drawn any more; it ends as by SIGHUP all the same, the server before the governor."""
    ours, theirs = pty.openpty()
    with serve(terminal=theirs, env={"TERM": "xterm"}) as served:
        os.close(theirs)
        said = b""
        while b"loading the model" not in said:
            said += os.read(ours, 4096)
        server, governor = served.server, served.governor
        os.close(ours)
        eventually(lambda: not alive(server), within_s=20, what="the server has ended")
        assert served.wait() == 128 + HUP
        assert not alive(governor)
        served.assert_nothing_is_left()


def test_ended_while_the_governor_starts(serve):
    """No server was started."""
    with serve() as served:
        served.wait_said("starting the governor")
        assert served.stop(INT) == 128 + INT
        assert "starting the server" not in served.said
        served.assert_nothing_is_left()


@pytest.mark.usefixtures("stubborn")
def test_a_server_that_does_not_end_is_killed(serve):
    """After five seconds; the second Ctrl-C does not wait for them."""
    for hurries in (False, True):
        with serve() as served:
            served.wait_said("loading the model")
            server, began_s = served.server, time.monotonic()
            served.process.send_signal(INT)
            if hurries:
                time.sleep(0.5)
                assert alive(server)
                served.process.send_signal(INT)
            eventually(lambda pid=server: not alive(pid), within_s=20, what="the server has ended")
            took_s = time.monotonic() - began_s
            assert took_s < 5 if hurries else took_s >= 5
            assert served.wait() == 128 + INT
            served.assert_nothing_is_left()


def test_the_server_dies(serve):
    """Exit 1, with how, and with what it said last."""
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        parked(served)
        os.kill(served.server, KILL)
        assert served.wait() == 1
        assert "memscaler: the server ended: SIGKILL" in served.said
        assert "\nhint: all of it: /" in served.said
        served.assert_nothing_is_left()


def test_the_server_does_not_start(serve, programs):
    """Exit 1, and its own words."""
    program(programs / "llama-server", "echo no CUDA today >&2; exit 3")
    with serve() as served:
        assert served.wait() == 1
        assert "the server ended: exit status 3" in served.said
        assert "no CUDA today" in served.said
        served.assert_nothing_is_left()


def test_the_keeper_dies(serve, programs):
    """The kernel takes the program with it, and we what it had started: here a server that a script did not become."""
    (programs / "llama-server").rename(programs / "llama-server.real")
    program(programs / "llama-server", f'{programs}/llama-server.real "$@"; true')
    with serve() as served:
        served.wait_ready()
        os.kill(served.keeper, KILL)
        assert served.wait() == 1
        served.assert_nothing_is_left()


def test_the_governor_dies(serve):
    """Killed while the GPU is parked: its guardian wakes it, the server goes on, and it is said."""
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        parked(served)
        os.kill(served.governor, KILL)
        served.wait_said("the governor has ended")
        eventually(lambda: not served.board.locks, within_s=20, what="woken")
        assert urllib.request.urlopen(f"{served.address}/health", timeout=10).status == 200
        assert served.stop(INT) == 128 + INT
        eventually(lambda: not served.pids(""), within_s=20, what="everything has ended")


def test_a_governor_that_cannot_start(serve):
    """It says itself why, its exit status is ours, and no server is started."""
    with serve(env={"MEMSCALER_LOADER_PYTHON": "/bin/false"}) as served:
        assert served.wait() == 69
        assert "the governor ended: exit status 69" in served.said
        assert "starting the server" not in served.said
        served.assert_nothing_is_left()
