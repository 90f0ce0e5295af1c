"""`memscaler doctor` as a process, and its checks on a machine made of files."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memscaler.config.load import Examined, load
from memscaler.core.errors import DaemonNotRunning, MemscalerError
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import Finding
from memscaler.daemon.doctor.runner import Runner
from memscaler.daemon.doctor.table import BY_ID

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534

# Everything that may be needed is imported before the rights go: the repository may lie where only root can read.
AS_NOBODY = """
import contextlib, io, os, sys
sys.path[:0] = {path!r}
import memscaler.cli.main, memscaler.cli.doctor, memscaler.cli.config, memscaler.cli.paint, memscaler.cli.client
import memscaler.cli.simulated, memscaler.cli.run, memscaler.cli.setup
import memscaler.daemon.doctor.runner, memscaler.config.render, memscaler.simulator
import memscaler.daemon.setup.install, memscaler.daemon.setup.removal, memscaler.config.gppm, memscaler.cli.present, memscaler.config.sleep_doubts
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # what the command line imports late
    memscaler.cli.main.app([{arguments!r}[0], "--help"])
if "--simulate" in {arguments!r}: memscaler.simulator.build()
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
sys.argv = ["memscaler", *{arguments!r}]
memscaler.cli.main.main()
"""


def clean_environment(**more: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MEMSCALER_", "NO_COLOR"))}
    return {**env, "COLUMNS": "80", "PYTHONPATH": str(REPOSITORY), **more}


def command(*arguments: str, nobody: bool = False) -> list[str]:
    if not nobody:
        return [sys.executable, "-m", "memscaler", *arguments]
    return [sys.executable, "-c", AS_NOBODY.format(path=sys.path, nobody=NOBODY, arguments=list(arguments))]


def memscaler(
    *arguments: str,
    nobody: bool = False,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run it in a clean environment."""
    return subprocess.run(
        [*prefix, *command(*arguments, nobody=nobody)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=clean_environment(**(env or {})),
        timeout=110,
    )


def doctor(runtime_dir: Path, *arguments: str, **more: Any) -> dict[str, list[dict[str, Any]]]:
    """Id -> what `doctor --json` says about it; the exit code has to go with it."""
    result = memscaler("doctor", "--json", "--runtime-dir", str(runtime_dir), *arguments, **more)
    assert result.stdout, result.stderr
    document = json.loads(result.stdout)
    assert result.returncode == (0 if document["ok"] else 1), result.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for each in document["checks"]:
        found.setdefault(each["id"], []).append(each)
    return found


def only(found: Mapping[str, list[dict[str, Any]]], check: str) -> dict[str, Any]:
    (one,) = found[check]
    return one


class Machine:
    """A machine of files, and what the checks say about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        settings = load({"runtime_dir": str(root / "run/memscaler")}, {})
        self.context = Context(settings, Examined((), settings, ()), {}, 0, self._nobody, root=root)

    def _nobody(self) -> dict[str, Any]:
        raise DaemonNotRunning("nobody listens")

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def with_settings(self, **settings: Any) -> None:
        self.context.settings = replace(self.context.settings, **settings)

    def findings(self, check: str) -> list[Finding]:
        try:
            return list(Runner(self.context).run([BY_ID[check]]))
        finally:  # what an earlier test has loaded into this process may have answered
            if "driver" in self.context._made:
                with contextlib.suppress(MemscalerError):
                    self.context.driver().close()
                del self.context._made["driver"]

    def check(self, check: str) -> Finding:
        (finding,) = self.findings(check)
        return finding

    def check_apart(self, check: str) -> Finding:
        """In a process of its own: this one may have loaded the simulated driver by now."""
        code = "import pickle, sys; from pathlib import Path; from tests.doctor.bench import Machine\n"
        code += "sys.stdout.buffer.write(pickle.dumps(Machine(Path(sys.argv[1])).check(sys.argv[2])))"
        command = [sys.executable, "-c", code, str(self.root), check]
        env = clean_environment()
        return pickle.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env).stdout)
