"""docs/serve.md: its example is executed as it stands there, in a network of its own, where port 8080 is free."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.governor import REPOSITORY, eventually
from tests.serve.conftest import program

pytestmark = pytest.mark.timeout(600)

PAGE = (REPOSITORY / "docs" / "serve.md").read_text()
EXAMPLE = PAGE[PAGE.index("## An example") : PAGE.index("## What it runs")]
COMMANDS = re.findall(r"^    \$ (?:sudo )?(.*)$", EXAMPLE, re.MULTILINE)
CODE = re.search(r"```python\n(.*?)```", EXAMPLE, re.DOTALL)[1]
# How much it is, is for the planner to say.
PLAN = re.search(r"^ +plan: (.*), [0-9.]+ MiB of", EXAMPLE, re.MULTILINE)[1]


@pytest.fixture
def shell(tmp_path, model, programs):
    """Runs a command line in the folder of the model, with memscaler and llama-server on the PATH."""
    (tmp_path / "model.gguf").write_bytes(model.read_bytes())
    program(programs / "memscaler", f'exec {sys.executable} -P -m memscaler "$@"')
    program(programs / "python", f'exec {sys.executable} "$@"')
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("SUDO_", "MEMSCALER_"))}
    environment = {
        **hidden,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "MEMSCALER_RUNTIME_DIR": str(tmp_path / "run"),  # where no other test looks
        "LLAMA_ARG_SEED": "1",
    }
    network = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    inside = ["nsenter", "--net", "--target", str(network.pid)]
    started = []

    def run(line, **more):
        started.append(
            subprocess.Popen(
                [*inside, "sh", "-c", line], cwd=tmp_path, env=environment, text=True, stdin=subprocess.DEVNULL, **more
            )
        )
        return started[-1]

    eventually(lambda: Path(f"/proc/{network.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink())
    subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
    yield run
    for each in started:
        if each.poll() is None:
            each.terminate()
        each.communicate(timeout=30)
    network.kill()
    network.wait()


def answer(shell, line):
    process = shell(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return out


def test_the_example(shell, tmp_path):
    """Every line of it, in its order."""
    serve, status, curl = COMMANDS
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        served = shell(f"exec {serve}", stdout=out, stderr=err)
        told = ""
        end_s = time.monotonic() + 180
        while "Ctrl-C ends it" not in told:
            told = (tmp_path / "out").read_text()
            assert served.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < end_s
            time.sleep(0.1)
        assert told.startswith("Serving model at http://127.0.0.1:8080/v1, ready after ")
        assert PLAN in told
        wait_parked(shell, status)
        (tmp_path / "ask.py").write_text(CODE)
        assert answer(shell, f"python {shlex.quote(str(tmp_path / 'ask.py'))}").strip()
        assert '"text_completion"' in answer(shell, curl)
        wait_parked(shell, status)
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 130


def wait_parked(shell, status):
    end_s = time.monotonic() + 180
    while not re.search(r"^gpu0 +parked ", told := answer(shell, status), re.MULTILINE):
        assert time.monotonic() < end_s, told


def test_the_dry_run(shell):
    """The line below "What it runs"."""
    line = re.findall(r"^    \$ (.*--dry-run)$", PAGE, re.MULTILINE)[0]
    assert "memscaler run --port 8080:GPU-" in answer(shell, line)
