"""`memscaler status` as a real process: what it prints for people and for programs, once and again and again."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from memscaler.cli.sleep_text import machine_texts, wake_text
from memscaler.core.servers import ServerReport, ServerState
from memscaler.daemon.requests import Status
from tests.asked import STATUS, answering
from tests.cli.commands import ENVIRON, command, memscaler
from tests.governor import connect, eventually, governing, listener, port_of
from tests.supervisors import tell

BUSY = {
    **STATUS,
    "gpus": [
        {
            "gpu": "gpu0",
            "name": "NVIDIA A40",
            "uuid": "GPU-aaaaaaaa-1",
            "pci_bus_id": "00000000:3B:00.0",
            "graphics_clock_mhz": 210,
            "intent": {"lever": "memory-clock", "target": 405},
            "energy_saved_today_j": 1_484_280.0,
            "state": "parked",
            "since_s": 3900.0,
            "reason": "",
            "remedy": "",
            "lever": "memory-clock",
            "next": "",
            "next_in_s": None,
            "power_w": 18.25,
            "memory_clock_mhz": 405,
            "holds": [],
            "conflict": "",
            "energy_saved_j": 3_700_000.0,
        },
        {
            "gpu": "gpu1",
            "name": "NVIDIA A100-SXM4-80GB",
            "uuid": "GPU-aaaaaaaa-2",
            "pci_bus_id": "00000000:5E:00.0",
            "graphics_clock_mhz": 1410,
            "intent": None,
            "energy_saved_today_j": 90.0,
            "state": "held",
            "since_s": 0.4,
            "reason": "held by an operator",
            "remedy": "",
            "lever": "graphics-clock",
            "next": "",
            "next_in_s": None,
            "power_w": 61.0,
            "memory_clock_mhz": 1593,
            "holds": [
                {"id": "5eed", "owner": "root", "reason": "benchmark", "expires_in_s": 7000.0},
                {"id": "beef", "owner": "root", "reason": "", "expires_in_s": None},
                {"id": "", "owner": "memscaler", "reason": "guardian", "expires_in_s": None},
            ],
            "conflict": "",
            "energy_saved_j": 90.0,
        },
        {
            "gpu": "gpu2",
            "name": "Tesla P40",
            "uuid": "GPU-bbbbbbbb",
            "pci_bus_id": "00000001:86:00.0",
            "graphics_clock_mhz": None,
            "intent": None,
            "energy_saved_today_j": 0.0,
            "state": "unmanaged",
            "since_s": 260.0,
            "reason": "the driver does not return from apply",
            "remedy": "reset the GPU: nvidia-smi --gpu-reset -i 2; it is tried again in between",
            "lever": "",
            "next": "trusted again",
            "next_in_s": 3400.0,
            "power_w": None,
            "memory_clock_mhz": None,
            "holds": [],
            "conflict": "nvidia-smi -lmc by somebody else: 405 MHz seen, 7251 MHz expected",
            "energy_saved_j": 0.0,
        },
    ],
    "watches": [
        {
            "port": 8080,
            "scope": "",
            "gpus": ["gpu0", "gpu1", "gpu2"],
            "connections": 3,
            "silent": 2,
            "idle_s": 65.5,
            "server": "llama.cpp",
            "quiet": "no-traffic",
        },
        {
            "port": 8081,
            "scope": "container:" + "x" * 40,
            "gpus": [],
            "connections": 0,
            "silent": 0,
            "idle_s": 0.0,
            "server": "",
            "quiet": "no-connections",
        },
    ],
    "waiting": [{"watch": "8082@container:web", "reason": "no such container"}],
    "rivals": [{"name": "nvidia-pstated", "pid": 77, "what": "changes performance states"}],
    "notices": ["no kernel BTF"],
    "paused": None,
    "released": None,
    "ungoverned": [],
    "transitions": [],
    "saved_since_unix_s": 1.7e9,
}


EXPECTED = """\
memscaler 1.2.3 governs; up 1d 2h, pid 123, driver 570.86.15
saved: 412.3 Wh today, 1.03 kWh since 2023-11-14

GPU   STATE      SINCE   POWER   MEMORY    GRAPHICS  SAVED TODAY  IN ALL
gpu0  parked     1h 5m   18.2 W  405 MHz   210 MHz   412.3 Wh     1.03 kWh
gpu1  held       0s      61.0 W  1593 MHz  1410 MHz  0.0 Wh       0.0 Wh
gpu2  unmanaged  4m 20s  -       -         -         0.0 Wh       0.0 Wh

gpu0  NVIDIA A40, memory-clock at 405 MHz
      next: awake, when a client connects or speaks
      open: 3 (2 silent) on port 8080

gpu1  NVIDIA A100-SXM4-80GB, lever graphics-clock
      why: held by an operator
      next: governed again, when the last hold ends
      open: 3 (2 silent) on port 8080
      held by root: benchmark, 1h 56m left, id 5eed
      held by root, until it is ended, id beef
      held by memscaler: guardian, until it is ended

gpu2  Tesla P40, no lever
      why: the driver does not return from apply
      next: trusted again in 56m 40s
      open: 3 (2 silent) on port 8080
      conflict: nvidia-smi -lmc by somebody else: 405 MHz seen, 7251 MHz
        expected
      REMEDY: reset the GPU: nvidia-smi --gpu-reset -i 2; it is tried again in
        between

PORT  SCOPE                SERVER     GPUS    OPEN  SILENT  LAST ACTIVE
8080  host                 llama.cpp  3 GPUs  3     2       now
8081  container:xxxxxx...  -          -       0     0       0s ago

waiting: 8082@container:web: no such container
rival: nvidia-pstated (pid 77): changes performance states
notice: no kernel BTF
"""


def test_status_for_people(folder, loop):
    """Everything that an operator needs, in 80 columns."""
    loop.answer = lambda _: BUSY
    result = memscaler(folder, "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == EXPECTED
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_server_that_uses_no_gpu(tmp_path):
    """Its port is named and no GPU is: it is there, and not waited for, for it may never use one."""
    with listener() as server, governing(tmp_path, "a40", "--port", str(port_of(server))) as governor:
        said = eventually(lambda: _remark(memscaler(tmp_path, "status").stdout, port_of(server)), within_s=30)
        assert said == f"nothing to park: {port_of(server)}: its server uses no GPU so far (no CUDA context)"
        assert governor.events("watch.waiting")[-1]["reason"] == "its server uses no GPU so far (no CUDA context)"


def _remark(text, port):
    return next((line for line in text.splitlines() if f": {port}: " in line), "")


SERVERS = [
    {
        "name": "chat",
        "user": "memscaler-servers",
        "state": "ready",
        "since_s": 7200.0,
        "supervised": True,
        "pid": 31,
        "port": 8080,
        "gpus": ["gpu0", "gpu1"],
        "model": "/m.gguf",
        "restarts": 1,
        "reason": "",
        "ended": "SIGKILL",
        "starts_in_s": None,
    }
]
SERVERS += [
    {
        **SERVERS[0],
        "name": "a-name-as-long-as-a-name-of-a-server-can-be.which-is-63-letters",
        "state": "waiting",
        "port": None,
        "gpus": ["GPU-8f3a1c52-0000-4000-8000-000000000001"],
        "reason": "it ended with exit status 1.",
        "starts_in_s": 7.6,
    },
    {**SERVERS[0], "name": "old", "supervised": False, "gpus": []},
]
OF_SERVERS = """\
SERVER                      STATE    SINCE  PORT  GPUS       RESTARTS
chat                        ready    2h     8080  gpu0,gpu1  1
a-name-as-long-as-a-nam...  waiting  2h     -     1 GPU      1
old                         unknown  2h     8080  -          1

      a-name-as-long-as-a-name-of-a-server-can-be.which-is-63-letters: it ended
        with exit status 1; is started again in 8s
      old: its supervisor has ended; it was ready
"""


def test_servers_for_people(folder, loop):
    """A table of those that supervisors keep running, and why they do not; hostile names are text."""
    loop.answer = lambda _: {**BUSY, "servers": SERVERS}
    result = memscaler(folder, "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert OF_SERVERS in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    loop.answer = lambda _: hostile({**BUSY, "servers": SERVERS})
    assert all(char.isprintable() or char == "\n" for char in memscaler(folder, "status").stdout)


NO_MACHINE = {
    "wanted": False,
    "rung": "up",
    "since_s": None,
    "next_in_s": None,
    "why_not": [],
    "never": "",
    "never_for_s": None,
    "alarm_in_s": None,
    "last": "",
    "suspends": 0,
    "failed": 0,
    "asleep_s": 0.0,
}
CHAT = {
    "name": "chat",
    "port": 8080,
    "scope": "",
    "gpus": ["gpu0"],
    "stage": "stop-server",
    "rung": "down",
    "standing": "stop-server",
    "since_s": 7500.0,
    "asleep_by": "",
    "next": "suspend",
    "next_in_s": 3300.0,
    "why_not": "",
    "note": "",
    "stages": [
        {"stage": "server-sleep", "entered": 3, "left": 3, "failed": 0, "seconds": 900.0, "wake": None},
        {
            "stage": "stop-server",
            "entered": 2,
            "left": 1,
            "failed": 1,
            "seconds": 17100.0,
            "wake": {"count": 1, "median_s": 12.4, "worst_s": 12.4},
        },
    ],
}
UP = {**CHAT, "stage": None, "rung": "up", "standing": "up", "since_s": None, "stages": []}
ASLEEP = {
    "pid": 99,
    "problem": "",
    "servers": [
        CHAT,
        {**UP, "name": "small", "standing": "asleep by llama.cpp", "asleep_by": "llama.cpp", "next": None},
        {
            **UP,
            "name": "a-name-as-long-as-a-name-of-a-server-can-be",
            "next": "server-sleep",
            "next_in_s": None,
            "why_not": "gpu0 is held by root.",
        },
        {
            **CHAT,
            "name": "big",
            "stage": "checkpoint",
            "rung": "stuck",
            "standing": "stuck in checkpoint",
            "since_s": 61.0,
            "next": None,
            "note": "cuda-checkpoint says failed: start it again by hand.",
        },
    ],
    "machine": {
        **NO_MACHINE,
        "wanted": True,
        "why_not": ["alice is logged in", "the CPUs are at work"],
        "alarm_in_s": 30000.0,
        "suspends": 2,
        "failed": 1,
        "asleep_s": 7200.0,
        "last": "slept 2 h, woken by its alarm",
    },
    "gpus": [
        {"gpu": "gpu0", "stage": "server-sleep", "seconds": 900.0, "power_w": None, "compared_s": 0.0, "saved_j": 0.0},
        {
            "gpu": "gpu0",
            "stage": "stop-server",
            "seconds": 17100.0,
            "power_w": 7.53,
            "compared_s": 17000.0,
            "saved_j": 171000.0,
        },
    ],
}
OF_STAGES = """\
SERVER                      STAGE                SINCE  WAKES IN  SLEPT
chat                        stop-server          2h 5m  12s       5h
small                       asleep by llama.cpp  -      -         -
a-name-as-long-as-a-nam...  up                   -      -         -
big                         stuck in checkpoint  1m 1s  -         5h

      chat: next suspend in 55m, if it stays quiet; stop-server failed once
      small: put to sleep by llama.cpp
      a-name-as-long-as-a-name-of-a-server-can-be: next server-sleep; gpu0 is
        held by root
      big: stop-server failed once; cuda-checkpoint says failed: start it again
        by hand
      gpu0: in server-sleep for 15m; what that saves is not known
      gpu0: in stop-server for 4h 45m at 7.5 W; saved 47.5 Wh beyond parking
      machine: stays up: alice is logged in; the CPUs are at work
      alarm: the machine wakes by itself in 8h 20m
      slept: suspended 2 times, asleep for 2h in all, failed once; last: slept 2
        h, woken by its alarm
"""


def test_deeper_stages_for_people(folder, loop):
    """A table of the servers, what comes next or why not, what was saved, the machine; hostile words are text."""
    loop.answer = lambda _: {**BUSY, "sleep": ASLEEP}
    result = memscaler(folder, "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert OF_STAGES in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    loop.answer = lambda _: hostile({**BUSY, "sleep": ASLEEP})
    assert all(char.isprintable() or char == "\n" for char in memscaler(folder, "status").stdout)


@pytest.mark.parametrize("told", [{}, {"sleep": None}], ids=["older", "without"])
def test_without_stages_the_status_is_as_it_was(folder, loop, told):
    """Not a word more, of an older daemon as well."""
    loop.answer = lambda _: {**BUSY, **told}
    assert memscaler(folder, "status").stdout == EXPECTED


@pytest.mark.parametrize(
    ("machine", "problem", "told"),
    [
        ({}, "", []),
        ({"wanted": True}, "", ["machine: suspend when every server is quiet"]),
        ({"wanted": True, "next_in_s": 60.0}, "", ["machine: suspend in 1m, if everything stays quiet"]),
        (
            {"never": "alice: backup.", "never_for_s": 7200.0},
            "",
            ["machine: is not suspended: alice: backup, for another 2h"],
        ),
        ({"never": "root"}, "", ["machine: is not suspended: root"]),
        ({"rung": "leaving", "since_s": 3.0}, "", ["machine: leaving suspend for 3s"]),
        ({"rung": "stuck", "why_not": ["logind is gone."]}, "", ["machine stuck: logind is gone"]),
        (
            {},
            "it died of signal 9; the next one starts in 2 s",
            ["sleeper: it died of signal 9; the next one starts in 2 s"],
        ),
    ],
)
def test_what_is_said_of_the_machine(folder, loop, machine, problem, told):
    """One line for each thing there is to know, in the words of its state."""
    sleep = {"pid": 1, "problem": problem, "servers": [], "gpus": [], "machine": {**NO_MACHINE, **machine}}
    loop.answer = lambda _: {**STATUS, "watches": BUSY["watches"], "sleep": sleep}
    shown = [line.strip() for line in memscaler(folder, "status").stdout.splitlines() if line.startswith("      ")]
    assert shown == told


@pytest.mark.parametrize(
    ("state", "next_in_s", "told"),
    [("cooling", 47.6, "parked in 48s, if it stays quiet"), ("awake", None, "cooling, when its connections are quiet")],
)
def test_what_comes_next(folder, loop, state, next_in_s, told):
    """Is said for every state, with its time if that is known."""
    gpu = {**BUSY["gpus"][0], "state": state, "next": "parked", "next_in_s": next_in_s}
    loop.answer = lambda _: {**BUSY, "gpus": [gpu]}
    assert f"      next: {told}\n" in memscaler(folder, "status").stdout


def test_status_of_a_daemon_that_has_let_go(folder, loop):
    """What to do stands at the top."""
    released = {"owner": "alice", "reason": "driver 580", "since_unix_s": time.time() - 3600}
    loop.answer = lambda _: {**STATUS, "mode": "released", "released": released, "dry_run": True, "driver_version": ""}
    assert memscaler(folder, "status").stdout == (
        "memscaler 1.2.3 has let go of the driver, dry run: no GPU is touched; up 1d 2h, pid 123\n"
        "      by alice: driver 580, 1h ago\n"
        "      REMEDY: `memscaler resume` when the driver is back\n"
    )


def test_status_of_a_pause_and_of_gpus_that_are_left_alone(folder, loop):
    """A pause is no hold: it stands at the top, with who and until when."""
    paused = {"id": "5eed", "owner": "root", "reason": "benchmark", "expires_in_s": 60.0}
    alone = [{"gpu": "gpu1", "uuid": "GPU-1", "pci_bus_id": "", "name": "T4", "reason": "no watch names it"}]
    loop.answer = lambda _: {**STATUS, "mode": "paused", "paused": paused, "ungoverned": alone, "notices": []}
    assert memscaler(folder, "status").stdout == (
        "memscaler 1.2.3 is paused; up 1d 2h, pid 123, driver 570.86.15\n"
        "      by root: benchmark, 1m left, id 5eed; `memscaler resume` ends it\n\n"
        "left alone: gpu1 T4: no watch names it\n"
        "no server is watched: name one with `--port 8080:gpu0` or let it `--discover`;\n"
        "  see `memscaler ports`\n"
    )


def test_status_for_programs(folder, loop):
    """Is the document."""
    loop.answer = lambda _: BUSY
    assert json.loads(memscaler(folder, "status", "--json").stdout) == {"schema": 1, **BUSY}
    assert loop.requests == [Status()]


def hostile(value):
    """The same document, every text of it with a sequence that clears the screen, and a line more."""
    match value:
        case dict():
            return {key: hostile(each) for key, each in value.items()}
        case list():
            return [hostile(each) for each in value]
        case str() if value not in ("governing", "paused", "released"):
            return value + "\x1b[2J\nmemscaler: all is well\u202e\udcff"
    return value


def test_a_terminal_obeys_nobody_elses_text(folder, loop):
    """Whatever names, reasons and notices hold, they are text in their place."""
    loop.answer = lambda _: hostile(BUSY)
    result = memscaler(folder, "status")
    assert result.returncode == 0
    assert all(char.isprintable() or char == "\n" for char in result.stdout)
    assert not [line for line in result.stdout.splitlines() if line.startswith("memscaler: all")]


def test_a_character_set_that_lacks_some(folder, loop):
    """Is no reason to fail."""
    loop.answer = lambda _: {**STATUS, "notices": ["ベンチマーク"]}
    env = {**ENVIRON, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command(folder, "status"), capture_output=True, text=True, env=env, timeout=60, check=True)
    assert "notice: ??????" in result.stdout


# ---- some GPUs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["gpu0"], ["gpu0"]),
        (["2", "gpu0"], ["gpu0", "gpu2"]),
        (["GPU-bbbb"], ["gpu2"]),
        (["3b:00.0"], ["gpu0"]),
        (["0001:86:00.0"], ["gpu2"]),
        (["gpu5"], []),
    ],
)
def test_some_gpus(folder, loop, names, shown):
    """Named as for hold: only these, and the ports that drive them; one that is left alone may be asked for, too."""
    alone = [{"gpu": "gpu5", "uuid": "GPU-cccccccc", "pci_bus_id": "", "name": "T4", "reason": "no watch names it"}]
    loop.answer = lambda _: {**BUSY, "ungoverned": alone}
    document = json.loads(memscaler(folder, "status", "--json", *names).stdout)
    assert [gpu["gpu"] for gpu in document["gpus"]] == shown
    assert [watch["port"] for watch in document["watches"]] == ([8080] if shown else [])
    assert [gpu["gpu"] for gpu in document["ungoverned"]] == ([] if shown else ["gpu5"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [("gpu7", "is none of the GPUs that memscaler knows"), ("GPU-aaaaaaaa", "means several GPUs"), ("gpu", "is none")],
)
def test_a_gpu_that_is_not_there(folder, loop, name, problem):
    """Exit code 2, and what there is."""
    loop.answer = lambda _: BUSY
    result = memscaler(folder, "status", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert problem in result.stderr
    assert "hint: known: gpu0 00000000:3B:00.0 GPU-aaaaaaaa-1; gpu1 " in result.stderr


# ---- colour --------------------------------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *args: str, **environ: str) -> str:
    """What the command writes to a terminal."""
    master, slave = pty.openpty()
    env = {**{key: value for key, value in ENVIRON.items() if key != "NO_COLOR"}, "TERM": "xterm", **environ}
    process = subprocess.Popen(command(folder, *args), stdout=slave, stderr=slave, env=env)
    os.close(slave)
    said = b""
    while select.select([master], [], [], 60)[0]:
        try:
            said += os.read(master, 65536)
        except OSError:  # its other end is closed
            break
    os.close(master)
    assert process.wait(60) == 0
    return said.decode()


def test_colour(folder, loop):
    """States have one on a terminal, but not against NO_COLOR, and not on a dumb terminal; the words are the same."""
    loop.answer = lambda _: BUSY
    coloured = on_a_terminal(folder, "status")
    assert "\x1b[32mparked\x1b[0m " in coloured
    assert "\x1b[1;31munmanaged\x1b[0m " in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).replace("\r", "") == EXPECTED
    for plainly in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert on_a_terminal(folder, "status", **plainly).replace("\r", "") == EXPECTED


def test_a_wider_terminal(folder, loop):
    """Has room for the names of containers."""
    loop.answer = lambda _: BUSY
    assert f"container:{'x' * 40}" in on_a_terminal(folder, "status", COLUMNS="120")


# ---- again and again -----------------------------------------------------------------------------------------------


class Watching:
    """A `memscaler status --watch` in a terminal of its own."""

    def __init__(self, folder: Path, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(folder, "status", "--watch", *args),
            stdout=slave,
            stderr=subprocess.PIPE,
            env={**ENVIRON, "TERM": "xterm", "LINES": "40"},
            text=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._said = b""

    def screens(self) -> list[str]:
        """What was drawn so far."""
        try:
            while more := os.read(self._master, 65536):
                self._said += more
        except OSError:  # nothing more, or nobody is there
            pass
        return self._said.decode().split("\x1b[H")[1:]


def test_watch(folder):
    """Redraws; says that the daemon has gone, and goes on when it is back; Ctrl-C is a good end."""
    with answering(folder) as loop:
        loop.answer = lambda _: BUSY
        watching = Watching(folder, "0.3")
        eventually(lambda: len(watching.screens()) > 2, within_s=30)
        assert "gpu2  " in watching.screens()[-2]
    eventually(lambda: "memscaler does not run" in watching.screens()[-1], within_s=30)
    with answering(folder) as loop:
        loop.answer = lambda _: BUSY
        eventually(lambda: "gpu0  " in watching.screens()[-1], within_s=30)
    watching.process.send_signal(signal.SIGINT)
    assert (watching.process.communicate(timeout=30)[1], watching.process.returncode) == ("", 0)


def test_watch_is_no_longer_than_the_screen(folder, loop):
    """What would scroll away is counted instead."""
    loop.answer = lambda _: {**BUSY, "notices": [f"number {nth}" for nth in range(30)]}
    watching = Watching(folder)
    eventually(lambda: watching.screens() and "\x1b[J" in watching.screens()[-1], within_s=30)
    watching.process.send_signal(signal.SIGINT)
    watching.process.communicate(timeout=30)
    lines = watching.screens()[-1].splitlines()
    assert len([line for line in lines if line.endswith("\x1b[K")]) == 39
    assert any("lines more" in line for line in lines)


def test_watch_for_programs(folder, loop):
    """A document on each line, until nobody reads any more."""
    loop.answer = lambda _: BUSY
    line = [*command(folder, "status", "--json", "--watch", "500ms")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON)
    for _ in range(2):
        assert json.loads(process.stdout.readline()) == {"schema": 1, **BUSY}
    process.stdout.close()
    process.wait(30)
    assert (process.returncode, process.stderr.read()) == (0, "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--watch", "10ms"], "--watch: '10ms' is out of range: at least 0.2 s"),
        (["--watch", "1.2.3"], "--watch: '1.2.3' is not a time"),
        (["--watch", "gpu7"], "'gpu7' is none of the GPUs"),
        (["gpu7", "-w"], "'gpu7' is none of the GPUs"),
        (["gpu7", "--watch=1s"], "'gpu7' is none of the GPUs"),
    ],
)
def test_watch_needs_no_time(folder, loop, args, said):
    """What follows is its time only if it is one; who asks for what is not there is told so, once."""
    loop.answer = lambda _: BUSY
    result = memscaler(folder, "status", *args)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


# ---- the contract --------------------------------------------------------------------------------------------------

KEYS = Path(__file__).with_name("status.keys")


def keys_of(value: object, where: str = "") -> set[str]:
    """Every key that a program may rely on, as in "gpus[].holds[].owner"."""
    if isinstance(value, list):
        return set().union(*(keys_of(each, f"{where}[]") for each in value)) or {f"{where}[]"}
    if not isinstance(value, dict) or where in ("gpus[].errors", "rivals[]"):  # what failed, and what runs here
        return {where}
    return set().union(*(keys_of(each, f"{where}.{key}".removeprefix(".")) for key, each in value.items()))


def test_the_keys_of_the_document(tmp_path):
    """Are those of the golden file, as a real daemon answers. MEMSCALER_UPDATE_GOLDEN=1 writes it anew."""
    running = tmp_path / "memscaler"
    tell(tmp_path, [ServerReport("chat", ServerState.READY, time.time(), 1, 8080, ("GPU-1",))])
    with (
        listener() as server,
        governing(
            running,
            "a40,a40,p40",
            "--port",
            f"{port_of(server)}:gpu0,gpu1",
            "--port",
            "1@unit:none:gpu0",
            "--idle-after",
            "200ms",
        ) as governor,
    ):
        boards = governor.driver.boards
        eventually(lambda: boards[1].is_slow)
        assert memscaler(running, "hold", "gpu0", "--for", "1h", "--reason", "x").returncode == 0
        eventually(lambda: "gpu1  parked" in memscaler(running, "status").stdout, within_s=30)
        document = json.loads(memscaler(running, "status", "--json").stdout)
        with connect(server):
            eventually(lambda: not boards[1].is_slow)
            assert re.search(
                rf"^{port_of(server)} +host .* 1 +0 +now$", memscaler(running, "status").stdout, re.MULTILINE
            )
        assert governor.stop() == 0
    found = "".join(f"{key}\n" for key in sorted(keys_of(document)))
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        KEYS.write_text(found)
    assert found == KEYS.read_text()
    assert document["schema"] == 1


@pytest.mark.parametrize(
    ("following", "stages", "text"),
    [
        ("stop-server", CHAT["stages"], "12s"),  # what comes next is known
        ("server-sleep", CHAT["stages"], "12s"),  # it is not: the deepest it has been in
        (None, [{**CHAT["stages"][1], "wake": {"count": 2, "median_s": 0.018, "worst_s": 0.02}}], "18ms"),
        ("suspend", [], "-"),
    ],
)
def test_a_server_that_is_up_tells_what_its_next_wake_would_take(following, stages, text):
    """As far as earlier wakes tell."""
    assert wake_text({**UP, "next": following, "stages": stages}) == text


def test_the_machine_tells_how_long_it_took_until_its_servers_were_back():
    """Behind how often it slept."""
    machine = {**NO_MACHINE, "suspends": 2, "asleep_s": 7200.0, "wake": {"count": 1, "median_s": 65.0, "worst_s": 65.0}}
    assert dict(machine_texts(machine))["slept:"] == (
        "suspended 2 times, asleep for 2h in all; wakes in 1m 5s, servers and all"
    )
