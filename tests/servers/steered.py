"""`memscaler servers run` as an unprivileged user, and the commands that steer it, all as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.asked import short_folder
from tests.patience import patience
from tests.servers.bench import NOBODY, REPOSITORY, Bench

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("MEMSCALER_", "XDG_"))}
CLEAN |= {"COLUMNS": "100", "PYTHONPATH": str(REPOSITORY)}


def as_user(uid: int, *groups: int) -> list[str]:
    """Words before a command: another user, who may read all files, for our python may lie where only root can."""
    to = ["--reuid", str(uid), "--regid", str(uid)]
    to += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ["setpriv", *to, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


class Steered(Bench):
    """A bench whose supervisor is the command. It has no governor beside it unless `governor` names its directory."""

    governor: Path | None = None

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def command(self, **more: Any) -> list[str]:
        words = ["servers", "run", "--config", str(self.folder / "config.toml"), "--runtime-dir", str(self.runtime)]
        words += ["--log-format", "json", *more.get("words", ())]
        own = [f"STATE_DIRECTORY={self.folder / 'state'}", f"LOGS_DIRECTORY={self.folder / 'logs'}"]
        return ["env", *own, *as_user(NOBODY), sys.executable, "-m", "memscaler", *words]

    def begin(self, **more: Any) -> None:
        """Start the supervisor."""
        self.start(env=self.environ, **more)

    @property
    def environ(self) -> dict[str, str]:
        return {**CLEAN, "MEMSCALER_RUNTIME_DIR": str(self.governor or self.folder / "no-governor")}

    def words(self, *args: str) -> list[str]:
        """A command line for this supervisor."""
        return [sys.executable, "-m", "memscaler", "servers", args[0], "--runtime-dir", str(self.runtime), *args[1:]]

    def ask(self, *args: str, user: int = 0, groups: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`memscaler servers ARGS`, to its end."""
        before = as_user(user, *groups) if user else []
        return subprocess.run(
            [*before, *self.words(*args)],
            capture_output=True,
            text=True,
            check=False,
            env=self.environ,
            timeout=100 * patience(),
            stdin=subprocess.DEVNULL,
            cwd="/",
        )

    def told(self, *args: str) -> dict[str, Any]:
        """The same with --json; it must go well."""
        done = self.ask(*args, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["schema"] == 1
        return document


@contextlib.contextmanager
def steered(**more: Any) -> Iterator[Steered]:
    with short_folder() as folder:
        made = Steered(folder, **more)
        try:
            yield made
        except BaseException:
            print(made.said())
            raise
        finally:
            made.clean_up()
