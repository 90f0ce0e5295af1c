"""The command line, as a real process: help, errors and exit codes. What needs a GPU is in test_gpus.py."""

import os
import subprocess
import sys
import time

import pytest

from memscaler import __version__
from memscaler.config.schema import OPTIONS

HEAVY = ("aiohttp", "prometheus_client", "structlog", "pynvml", "bcc", "memscaler.daemon", "memscaler.gpu")


def memscaler(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a clean environment."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}
    return subprocess.run(
        [sys.executable, "-m", "memscaler", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**env, "COLUMNS": "80", **environ},
        timeout=60,
    )


def test_version():
    """The version goes to standard output."""
    result = memscaler("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"memscaler {__version__}\n", "")


def test_help_fits_the_screen():
    """Every help page fits into 80 columns, and the first one lists the commands and the exit codes."""
    for args in ([], ["run"], ["gpus"], ["ports"], ["restore"]):
        result = memscaler(*args, "--help")
        assert result.returncode == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
    assert all(word in memscaler("-h").stdout for word in ("run", "gpus", "ports", "restore", "78 bad configuration"))


def test_run_offers_every_setting():
    """No setting of the schema is without a flag, but those that only make sense in a file."""
    text = memscaler("run", "--help").stdout
    missing = {option.key for option in OPTIONS if option.env[0] not in text}
    assert missing == {
        "labels",
        "min_dwell",
        "sample_every",
        "settle_timeout",
        "touch_bytes",
        "touch_cooldown",
        "probe_servers",
        "retry_after",
        "wakes_per_hour",
        "wait_price",
        "conflict_pause",
        "never_park",
        "quiet_hours",
        "quiet_idle_after",
        "state_dir",
    }


def test_help_loads_nothing_heavy():
    """Help and completion stay quick because commands import what they need when they run."""
    code = f"import sys; import memscaler.cli.main; print([name for name in sys.modules if name.startswith({HEAVY!r})])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_help_is_quick():
    """The fastest of a few helps is well below what a person notices as slow."""
    times = []
    for _ in range(4):
        began = time.monotonic()
        memscaler("--help")
        times.append(time.monotonic() - began)
    assert min(times) < 1.0


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--port", "99999:gpu0"], "--port: port 99999 is out of range (1-65535)", "see `memscaler run --help`"),
        (["--port", "1:gpu0", "--port", "1"], "--port: port 1 is given twice", "see"),
        (["--port", "8080:"], "--port: port 8080: a GPU is empty", "see"),
        (["--port", "8080:gpu0", "--idle-after", "0"], "--idle-after: '0' is out of range: at least 0.1 s", "see"),
        (["--port", "8080:gpu0", "--metrics", "here"], "--metrics: 'here' is no address", "see"),
        (["--idle-after", "1s"], "no port to watch", "memscaler run --port 8080:gpu0"),
    ],
)
def test_wrong_flags(args, message, hint):
    """A wrong flag is one line and a hint on standard error, with exit code 2 and no traceback."""
    result = memscaler("run", *args)
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"memscaler: {message}")
    assert second.startswith("hint: ")
    assert hint in second


def test_an_unknown_flag():
    """Unknown flags and commands are usage errors too."""
    assert memscaler("run", "--prot", "1").returncode == 2
    assert memscaler("rnu").returncode == 2


def test_a_wrong_file(tmp_path):
    """A wrong file is exit code 78, every mistake on its own line with its place."""
    file = tmp_path / "config.toml"
    file.write_text("idle_aftr = 1\n[[watch]]\nport = 0\n")
    result = memscaler("run", "--config", str(file))
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        f"memscaler: {file}:1: unknown key 'idle_aftr' (did you mean 'idle_after'?)",
        f"memscaler: {file}:3: port 0 is out of range (1-65535)",
    ]


def test_a_wrong_variable():
    """A wrong variable is exit code 78 and is named."""
    result = memscaler("run", MEMSCALER_IDLE_AFTER="soon")
    assert result.returncode == 78
    assert "MEMSCALER_IDLE_AFTER: 'soon' is not a time" in result.stderr


def test_debug_shows_the_traceback():
    """Whoever wants to see where an error comes from can."""
    result = memscaler("run", "--port", "x", MEMSCALER_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_restore_with_nothing_to_do(tmp_path):
    """Without a journal there is nothing to restore, and no driver, daemon or configuration is needed to know."""
    result = memscaler("restore", "--runtime-dir", str(tmp_path), MEMSCALER_LOG_LEVEL="info")
    assert (result.returncode, result.stdout, result.stderr) == (0, "nothing to restore\n", "")
    result = memscaler("restore", "--json", RUNTIME_DIRECTORY=str(tmp_path))
    assert result.returncode == 0
    assert '"ok": true' in result.stdout


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["plan", "--gpu", "24GiB", "--n-ctx", "x"], "see `memscaler plan --help`"),
        (["config", "show", "--idle-after", "soon"], "see `memscaler config show --help`"),
        (["gpus", "--simulate", "p40", "--runtime-dir", "run"], "see `memscaler gpus --help`"),
    ],
)
def test_the_help_of_the_command_that_was_run(args, hint):
    """A usage error without a hint of its own names it, and not another one's."""
    result = memscaler(*args)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith(f"hint: {hint}\n")


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["memscaler", *{args!r}]
{before}
from memscaler.__main__ import main
main()
"""


def interrupted(name, before=""):
    code = INTERRUPTED.format(name=name, args=["plan", "--gpu", "24GiB"], before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "name",
    ["memscaler.cli.main", "typer", "memscaler.cli.lazy", "memscaler.cli.planning.plan", "memscaler.planner.devices"],
)
def test_an_early_interrupt(name):
    """Ctrl-C while something is imported ends with 130, and nothing else."""
    result = interrupted(name)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_an_interrupt_that_is_ignored():
    """As behind nohup, or a shell's `&`: it stays so."""
    result = interrupted("typer", "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (result.returncode, result.stderr) == (0, "")
