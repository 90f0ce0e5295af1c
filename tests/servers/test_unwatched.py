"""A server that a supervisor runs and the governor does not watch: it is noticed and mended, or said where it cannot be."""

import json
import subprocess
import sys

import pytest

from memscaler.cli.client import Client
from tests.asked import short_folder
from tests.governor import REPOSITORY, eventually, governing
from tests.servers.bench import free_port
from tests.servers.steered import CLEAN, Steered

LONG_S = 60.0

pytestmark = pytest.mark.timeout(600)


class Beside(Steered):
    """Its supervisor's directory is where the governor's units would have it."""

    @property
    def runtime(self):
        return self.folder / "memscaler-servers"


@pytest.fixture
def bench():
    with short_folder() as folder:
        made = Beside(folder)
        (folder / "run").rename(made.runtime)
        (folder / "run").symlink_to(made.runtime)
        made.governor = folder / "governor"
        try:
            yield made
        except BaseException:
            print(made.said())
            raise
        finally:
            made.clean_up()


def server(bench, name, port, gpu="gpu0"):
    return {"name": name, "command": bench.small("--port", port), "gpus": [gpu]}


def watched(governor):
    return {each["port"]: each["gpus"] for each in Client(str(governor.runtime_dir)).status()["watches"]}


def command(bench, *words):
    """`memscaler WORDS` for the governor of this bench, on one line."""
    more = [sys.executable, "-m", "memscaler", *words, "--runtime-dir", str(bench.governor)]
    done = subprocess.run(
        more,
        capture_output=True,
        text=True,
        check=False,
        env=CLEAN,
        timeout=120,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def begin(bench):
    """Start the supervisor, on the governor's boards, whose memory is a file of root's."""
    for path in (bench.governor / "simulator", bench.governor / "simulator" / "state"):
        path.chmod(0o777)
    bench.begin(words=("--simulate", "a40"))


def until_reported(bench, name):
    eventually(
        lambda: (
            (bench.runtime / "servers.json").exists()
            and any(
                (each["name"], each["state"]) == (name, "ready")
                for each in json.loads((bench.runtime / "servers.json").read_text())["servers"]
            )
        ),
        within_s=LONG_S,
    )


def test_a_new_description_is_taken_up_when_its_server_listens(bench):
    """Nobody reloads: the governor reads its configuration anew by itself, says why, and watches the port."""
    old, new = free_port(), free_port()
    bench.describe(server(bench, "old", old))
    config = ("--config", str(bench.folder / "config.toml"), "--idle-after", "1h")
    with governing(bench.governor, "a40", *config) as governor:
        assert set(watched(governor)) == {old}
        bench.describe(server(bench, "old", old), server(bench, "new", new))
        begin(bench)
        eventually(lambda: set(watched(governor)) == {old, new}, within_s=LONG_S)
        (said,) = governor.events("config.outdated")
        assert said["ports"] == [new]
        assert len(governor.events("config.reloaded")) == 1


def test_what_cannot_be_taken_up_is_said(bench):
    """A wrong file changes nothing and is not tried again and again; a corrected one is taken up."""
    old, new = free_port(), free_port()
    bench.describe(server(bench, "old", old))
    config = ("--config", str(bench.folder / "config.toml"), "--idle-after", "1h")
    with governing(bench.governor, "a40", *config) as governor:
        bench.describe(server(bench, "old", old), server(bench, "new", new), general='labels = {a = "b"}\n')
        begin(bench)
        until_reported(bench, "new")
        eventually(lambda: governor.events("config.refused"), within_s=LONG_S)
        for _ in range(3):  # each causes a look
            bench.told("restart", "old")
        assert len(governor.events("config.refused")) == 1
        assert set(watched(governor)) == {old}
        assert f"nobody watches port {new} of server new" in command(bench, "status")
        assert f"nobody watches port {new}" in " ".join(bench.ask("list").stdout.split())
        bench.describe(server(bench, "old", old), server(bench, "new", new))
        done = bench.ask("apply")  # nothing differs for the supervisor
        assert "the governor has reloaded" in done.stdout, done.stdout + done.stderr
        assert set(watched(governor)) == {old, new}
        assert "nobody watches" not in command(bench, "status")
        assert "nobody watches" not in bench.ask("list").stdout
        assert bench.ask("apply").stdout == "nothing differs: the servers are as they are described\n"


def test_a_governor_with_ports_of_its_own(bench):
    """What was given its ports by flags reads no others: it is said what to do, and `ports` says what it watches."""
    other, port = free_port(), free_port()
    bench.describe(server(bench, "mine", port))
    config = str(bench.folder / "config.toml")
    with governing(bench.governor, "a40", "--config", config, "--port", f"{other}:gpu0") as governor:
        begin(bench)
        until_reported(bench, "mine")
        assert f"nobody watches port {port} of server mine" in command(bench, "status")
        rows = json.loads(command(bench, "ports", "--config", config, "--simulate", "a40", "--json"))["ports"]
        (mine,) = (each for each in rows if each["port"] == port)
        assert (mine["watched"], mine["spec"]) == (False, f"{port}:gpu0")
        assert f"pid {governor.pid}" in mine["problem"]
        said = command(bench, "ports", "--config", config, "--simulate", "a40")
        assert f"{port} host" in said
        assert "the memscaler that runs" in said
        assert governor.events("config.outdated") == []
