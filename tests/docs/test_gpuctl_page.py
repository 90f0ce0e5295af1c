"""docs/gpuctl.md says what the code says: which knobs there are without GVM, and examples that are good."""

import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from memscaler.config.load import load
from memscaler.core.gpuctl import Knob
from memscaler.core.knobs import DIRECTIONS, RANGES
from memscaler.gvm.capability import Facts, means
from tests.asked import short_folder
from tests.governor import eventually

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs" / "gpuctl.md").read_text(encoding="utf-8")
CONTAINERS = (REPOSITORY / "docs" / "containers.md").read_text(encoding="utf-8")
NO_GVM = Facts(gvm="none", gvm_write="none")
BLOCKS = re.findall(r"(?:^    .*\n|^\n)+", TEXT, re.MULTILINE)
TABLES = [textwrap.dedent(block).strip() for block in BLOCKS if re.search(r"^    \[", block, re.MULTILINE)]
ROWS = {
    cells[1].strip(" `"): cells for line in TEXT.splitlines() if (cells := line.split("|"))[0] == "" and len(cells) > 4
}


@pytest.mark.parametrize("knob", list(Knob))
def test_the_capability_table(knob):
    """Possible without GVM is what the arbiter can do without; with GVM all is."""
    _, _, with_gvm, without, _ = ROWS[knob]
    assert ("not possible" in without) == (not means(knob, NO_GVM))
    assert "not possible" not in with_gvm
    if knob in DIRECTIONS:
        assert DIRECTIONS[knob].split()[0] in with_gvm
        assert all(str(end) in with_gvm for end in RANGES[knob])


def test_the_examples_are_found():
    """The list below is not empty by mistake."""
    assert len(TABLES) >= 3
    assert "[gvm]" in "".join(TABLES)


@pytest.mark.parametrize("example", TABLES)
def test_examples_are_good(example, tmp_path):
    """Each by itself, beside the servers that it names."""
    path = tmp_path / "config.toml"
    server = '[[server]]\nname = "chat"\ncommand = ["/bin/true"]\nport = 8081\ngpus = ["gpu0"]\n'
    path.write_text(f"[[watch]]\nport = 8080\n\n{server}\n{example}\n")
    settings = load({}, {}, path)
    assert settings.gpuctl or settings.gvm.gpu_map


# ---- "Try it without a GPU" -----------------------------------------------------------------------------------------


class Shell:
    """A bash that is told what the page says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, text: str) -> str:
        """What these lines print."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{text}\necho the-end-of-it\n")
        self._process.stdin.flush()
        lines = iter(self._process.stdout.readline, "")
        found = []
        for line in lines:
            if line == "the-end-of-it\n":
                return "".join(found).strip()
            found.append(line)
        raise AssertionError("the shell has ended")


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """`memscaler` is the one of this tree. What it starts ends with it."""
    program = folder / "memscaler"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m memscaler "$@"\n')
    program.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}
    environment = {**clean, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder
        ) as process,
    ):
        found = Shell(process)
        try:
            yield found
        finally:
            with suppress(BrokenPipeError, AssertionError):
                found.do("for each in $(jobs -p | tac); do kill $each; wait $each; done")
            process.kill()


def _says(bash: Shell, order: str, expected: str) -> bool:
    return bash.do(order) == expected


def test_it_can_be_tried_without_a_gpu():
    """The page's own lines, with another port and folder: a client comes, the job is frozen; it goes, all is back."""
    part = TEXT.partition("## Try it without a GPU")[2].partition("\n## ")[0]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    with short_folder() as folder:
        part = part.replace("8090", port).replace("/tmp/gvm", str(folder))
        found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", part, re.MULTILINE)
        _, config, begin, act = map(textwrap.dedent, found)
        (folder / "try.toml").write_text(config)
        with shell(folder) as bash:
            bash.do(begin.replace("http.server", "http.server > /dev/null").replace(" &\n", " > /dev/null &\n"))
            status = f"memscaler status --runtime-dir {folder}/run"
            eventually(lambda: "try" in bash.do(status), within_s=30, what="the governor to have the rule")
            eventually(lambda: not bash.do(f"(exec 4<>/dev/tcp/127.0.0.1/{port}) 2>&1"), what="the server")
            told = 0
            for line in act.splitlines():
                order, _, expected = (word.strip() for word in line.partition("#"))
                if (order.startswith("ps "), expected) == (True, "0"):
                    expected = str(os.getpriority(os.PRIO_PROCESS, 0))  # as the job was started: tests may be niced
                if expected:
                    eventually(partial(_says, bash, order, expected), within_s=30, what=line)
                    told += 1
                else:
                    bash.do(order)
            assert told == 4


def test_the_page_on_containers_has_what_this_page_sends_for():
    """What is needed for GVM, and for the host's processes."""
    assert "containers.md#other-work-on-the-gpus" in TEXT
    part = CONTAINERS.partition("### Other work on the GPUs")[2].partition("`make test-container`")[0]
    for word in ("--pid=host", "/sys/kernel/debug", "`KILL`", "`SYS_NICE`", "`DAC_OVERRIDE`"):
        assert word in part
