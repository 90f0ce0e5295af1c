"""From the command to real answers of a real model, and to a GPU that is parked when nobody asks."""

import os
import pwd
import select
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from openai import OpenAI

from tests.governor import eventually, governing

pytestmark = pytest.mark.timeout(600)

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def client():
    """Makes a client of a server."""
    made = []

    def make(served, key="none"):
        made.append(OpenAI(base_url=f"{served.address}/v1", api_key=key, max_retries=0, timeout=30))
        return made[-1]

    yield make
    for each in made:
        each.close()


def answers(client, name):
    """Everything that the client of the first users asks for."""
    assert [each.id for each in client.models.list()] == [name]
    asked = {"model": name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
    whole = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens == 8
    parts = list(client.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}))
    assert len(parts) >= 2
    assert parts[-1].choices == [] or parts[-1].choices[0].finish_reason == "length"
    text = client.completions.create(model=name, prompt="Once", max_tokens=8, extra_body={"ignore_eos": True})
    assert text.usage.completion_tokens == 8


def test_the_whole_story(serve, client):
    """Planned, started, answering; parked when it is quiet, awake for a request; and nothing is left of it."""
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        assert "gpu0 (NVIDIA A40): layers 0-1 and the output" in served.told
        assert urllib.request.urlopen(f"{served.address}/health", timeout=10).status == 200
        answers(client(served), "tiny")
        example = served.told[served.told.index("curl ") :].split("\n\n")[0]
        assert '"assistant"' in os.popen(f"{example} -s").read(), "what is printed is what a shell runs"
        eventually(lambda: served.board.locks, within_s=20, what="parked when it is quiet")
        # streamed, so that the board can be looked at while the answer comes
        stream = client(served).completions.create(
            model="tiny", prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        assert not served.board.locks, "a GPU is parked while its server answers"
        stream.close()
        eventually(lambda: served.board.locks, within_s=20, what="parked again")
        log = Path(next(line.split()[1] for line in served.told.splitlines() if line.strip().startswith("log:")))
        assert "model loaded" in log.read_text()
        assert served.stop(signal.SIGINT) == 128 + signal.SIGINT
        served.assert_nothing_is_left()
        assert not log.exists()


def test_a_key_is_asked_for_and_not_shown(serve, client):
    """From the variable; in no command line, not in what is printed, and by no proxy."""
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        serve(env={"LLAMA_API_KEY": "sesame", "http_proxy": f"http://127.0.0.1:{proxy.getsockname()[1]}"}) as served,
    ):
        served.wait_ready()
        assert not select.select([proxy], [], [], 0)[0], "the key was shown to a proxy"
        answers(client(served, "sesame"), "tiny")
        with pytest.raises(Exception, match="401"):
            client(served, "wrong").completions.create(model="tiny", prompt="a", max_tokens=1)
        assert "sesame" not in served.told + served.said
        for pid in served.pids(""):
            assert "sesame" not in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.usefixtures("for_everybody")
def test_with_sudo_the_server_is_the_callers(serve, tmp_path):
    """The governor is root's; the server, its home and its log are not."""
    for each in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        each.chmod(0o755)
    sudo = {"SUDO_UID": str(NOBODY.pw_uid), "SUDO_GID": str(NOBODY.pw_gid), "SUDO_USER": "nobody"}
    roots = {"HOME": "/root", "XDG_CACHE_HOME": "/root/.cache", "XDG_RUNTIME_DIR": "/run/user/0"}
    with serve("--alias", "mine", env={**sudo, **roots, "XDG_DATA_DIRS": "/usr/share"}) as served:
        served.wait_ready()
        status = Path(f"/proc/{served.server}/status").read_text()
        assert f"\nUid:\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\n" in status
        assert f"\nGid:\t{NOBODY.pw_gid}\t{NOBODY.pw_gid}\t{NOBODY.pw_gid}\t{NOBODY.pw_gid}\n" in status
        assert f"\nGroups:\t{NOBODY.pw_gid}" in status
        assert "\nCapEff:\t0000000000000000\n" in status
        environment = Path(f"/proc/{served.server}/environ").read_bytes().split(b"\0")
        assert f"HOME={NOBODY.pw_dir}".encode() in environment
        assert not [each for each in environment if each.startswith((b"SUDO_", b"MEMSCALER_"))]
        assert [each for each in environment if each.startswith(b"XDG_")] == [b"XDG_DATA_DIRS=/usr/share"]
        assert "\nUid:\t0\t" in Path(f"/proc/{served.governor}/status").read_text()
        assert "as root" not in served.said
        served.stop()
        served.assert_nothing_is_left()


def test_a_governor_that_runs_governs(serve, client, tmp_path):
    """It watches the port already: no second one is started, and it goes on when the server has ended."""
    port = free_port()
    with governing(
        tmp_path / "run", "a40", "--port", f"{port}:gpu0", "--idle-after", "1s", by_connections=False
    ) as governor:
        with serve("--port", str(port)) as served:
            served.wait_ready()
            assert not [pid for pid in served.pids("govern.py") if pid != governor.pid]
            answers(client(served), "tiny")
            eventually(lambda: served.board.locks, within_s=20, what="parked by the governor")
            held = [event for event in governor.events("lease.began") if "loads tiny.gguf" in event["reason"]]
            assert held, "the GPU is held while the model loads"
            assert served.stop() == 130
        assert not governor.ended()


def test_a_governor_that_discovers_finds_it(serve, tmp_path):
    """It is told so by the configuration; the engine is known by its name."""
    config = tmp_path / "config.toml"
    config.write_text("discover = true\n")
    with (
        governing(tmp_path / "run", "a40", "--discover", by_connections=False),
        serve("--config", str(config)) as served,
    ):
        served.wait_ready()
        served.wait_said("has not found port")  # no CUDA context on a simulated GPU, so no GPU is known to be its
        assert f"port = {served.port}" in served.said


def test_two_gpus_one_of_them_planned(serve, tmp_path):
    """The plan takes one; the other is left alone, and the server is shown the first only. A log of one's own is kept."""
    with serve("--log", str(tmp_path / "server.log"), boards="a40,p40") as served:
        served.wait_ready()
        shown = [
            each for each in Path(f"/proc/{served.server}/environ").read_bytes().split(b"\0") if b"CUDA_VISIBLE" in each
        ]
        assert shown == [f"CUDA_VISIBLE_DEVICES={served.board.uuid}".encode()]
        assert f'"watch": ["{served.port}:{served.board.uuid}"]' in Path(f"/proc/{served.governor}/cmdline").read_text()
        served.stop()
    assert "model loaded" in (tmp_path / "server.log").read_text()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
