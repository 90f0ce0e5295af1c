"""A supervisor in a process of its own, as an unprivileged user, with a configuration in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.asked import short_folder
from tests.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
PYTHON = "/usr/bin/python3"  # which everybody may execute; ours may lie where only root can read

# Everything that may be needed is imported before the rights go.
RUN = """
import sys, os, signal
sys.path[:0] = {path!r}
import encodings.idna, concurrent.futures.thread, subprocess, traceback, structlog.dev
import memscaler.servers.run, memscaler.servers.programs, memscaler.config.load, memscaler.observe.log
import memscaler.planner.devices, memscaler.planner.placement, memscaler.servers.placing, memscaler.gpu.inventory
from memscaler.core.errors import MemscalerError
from memscaler.servers.places import Places
from pathlib import Path
if {simulate!r}:
    import memscaler.simulator
    memscaler.simulator.build()
if {become!r}:
    os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
folder = Path({folder!r})
memscaler.observe.log.configure("json", "debug", {{}})
load = lambda: memscaler.config.load.load({{}}, {{}}, folder / "config.toml")
try:
    try:
        settings = load()
        memscaler.servers.run.run(settings, load, Places(folder / "run", folder / "state", folder / "logs"), **{more!r})
    except MemscalerError as error:
        print(f"memscaler: {{error}}", error.hint, sep="\\n", file=sys.stderr)
        sys.exit(error.exit_code)
finally:
    sys.stderr.flush()
"""


class Bench:
    """`config` is written, then `start`. What runs at the end is killed."""

    def __init__(self, folder: Path, *, reads_all: bool = False, simulate: Sequence[str] = ()) -> None:
        """reads_all: also files of root's, which the real engine's python may be; no other right."""
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = folder / "supervisor.log"
        self._reads_all = reads_all
        self._simulate = tuple(simulate)
        for name in ("run", "state", "logs"):
            (folder / name).mkdir()
            os.chown(folder / name, NOBODY, NOBODY)
        shutil.copy(Path(__file__).with_name("small.py"), folder / "small.py")
        (folder / "small.py").chmod(0o644)
        (folder / "config.toml").write_text("")

    # ---- descriptions -----------------------------------------------------------------------------------------------

    def small(self, *words: object) -> list[str]:
        """A command line of the small server."""
        return [PYTHON, str(self.folder / "small.py"), *map(str, words)]

    def describe(self, *servers: dict[str, Any], general: str = "") -> None:
        """Write the configuration: a table for each server; `log` is a file unless it says otherwise."""
        text = general + (f"simulate = {list(self._simulate)!r}\n" if self._simulate else "")
        for server in servers:
            text += _table("server", {"log": "file", "restart_after": "100ms", **server})
        draft = self.folder / "config.new"
        draft.write_text(text)
        draft.rename(self.folder / "config.toml")

    # ---- the supervisor ---------------------------------------------------------------------------------------------

    def command(self, *, as_root: bool = False, **more: Any) -> list[str]:
        become = not self._reads_all and not as_root
        values = {"path": sys.path, "nobody": NOBODY, "folder": str(self.folder), "more": more, "become": become}
        words = [sys.executable, "-c", RUN.format(**values, simulate=list(self._simulate))]
        if self._reads_all:
            to = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
            return ["setpriv", *to, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", *words]
        return words

    def start(self, *, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        """more: for memscaler.servers.run.run."""
        assert self.process is None or self.process.poll() is not None
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(**more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**clean, **(env or {})},
                start_new_session=True,
            )
        process = self.process

        def there() -> bool:
            assert process.poll() is None, self.said()
            with contextlib.suppress(FileNotFoundError):
                return bool(json.loads((self.folder / "run/servers.json").read_text())["pid"] == process.pid)
            return False

        eventually(there, what=self.said)
        return process

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Without a goodbye."""
        self.send(signal.SIGKILL)
        self.ended()

    def ended(self, within_s: float = 40.0) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(within_s * patience())

    def reload(self) -> None:
        """By SIGHUP, and wait until it is applied or refused."""
        before = len(self.events("servers.applied")) + len(self.events("reload.refused"))
        self.send(signal.SIGHUP)
        eventually(
            lambda: len(self.events("servers.applied")) + len(self.events("reload.refused")) > before, what=self.said
        )

    # ---- what it says -----------------------------------------------------------------------------------------------

    def said(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def events(self, name: str = "", **facts: Any) -> list[dict[str, Any]]:
        """Of its log, in order."""
        found = []
        for line in self.said().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"].startswith(name) and facts.items() <= event.items():
                    found.append(event)
        return found

    def report(self) -> dict[str, dict[str, Any]]:
        """Name -> what servers.json says of it."""
        document = json.loads((self.folder / "run/servers.json").read_text())
        return {each["name"]: each for each in document["servers"]}

    def server(self, name: str) -> dict[str, Any]:
        return self.report()[name]

    def until(self, name: str, state: str, within_s: float = 30.0) -> dict[str, Any]:
        """Wait for a state of a server, and what is reported then."""

        def is_so() -> dict[str, Any] | None:
            found = self.report().get(name)
            return found if found is not None and found["state"] == state else None

        return eventually(is_so, within_s, lambda: f"{name} is not {state}: {self.report()}\n{self.said()}")

    def output(self, name: str) -> str:
        """What a server wrote, where it writes to a file."""
        file = self.folder / "logs" / f"{name}.log"
        return file.read_text() if file.exists() else ""

    # ---- the end ----------------------------------------------------------------------------------------------------

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in ours(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def bench(**more: Any) -> Iterator[Bench]:
    with short_folder() as folder:
        made = Bench(folder, **more)
        try:
            yield made
        finally:
            made.clean_up()
            print(made.said())  # pytest shows it if the test has failed
            for file in sorted((folder / "logs").glob("*.log")):
                print(f"---- {file.name}", file.read_text(errors="replace")[-4000:], sep="\n")


def ours(folder: Path) -> list[int]:
    """Living processes that name this folder in their command line or were started from there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                named = str(folder).encode() in words or str((entry / "cwd").readlink()).startswith(str(folder))
                if named and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], Any], within_s: float = 30.0, what: Callable[[], object] = str) -> Any:
    """What `holds` says as soon as it is true."""
    end = time.monotonic() + within_s * patience()
    while not (found := holds()):
        assert time.monotonic() < end, what()
        time.sleep(0.02)
    return found


def _table(name: str, values: dict[str, Any]) -> str:
    lines = [f"[[{name}]]"]
    below = ""
    for key, value in values.items():
        if key == "hooks":
            below += "".join(_table(f"{name}.hook", hook) for hook in value)
        elif isinstance(value, dict):
            pairs = ", ".join(f"{json.dumps(each)} = {json.dumps(str(said))}" for each, said in value.items())
            lines.append(f"{key} = {{{pairs}}}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n\n" + below
