"""The table of commands: what is imported when, the nearest command, and the help of all of them."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from memscaler.cli.main import COMMANDS, app
from tools.commands import tree

LOADED = """
import sys
from memscaler.cli import main
sys.argv = ["memscaler", *sys.argv[1:]]
try:
    main.main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
COMMAND_MODULES = {entry.where.partition(":")[0] for entry in COMMANDS.values()}
HEAVY = {
    "pydantic",
    "rich",
    "http.client",
    "ssl",
    "email",
    "asyncio",
    "aiohttp",
    "structlog",
    "prometheus_client",
    "pynvml",
}


def memscaler(*args):
    """Run it as a process."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")} | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "memscaler", *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


def loaded(*args):
    """The modules that a command line has loaded at its end."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *args], capture_output=True, text=True, check=False, timeout=60
    )
    return set(result.stderr.split())


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["nothing"]])
def test_no_command_is_loaded_for_nothing(args):
    """The list of commands needs none of them."""
    modules = loaded(*args)
    assert "memscaler.cli.main" in modules
    assert not modules & (COMMAND_MODULES | HEAVY)


def test_a_command_is_loaded_alone(tmp_path):
    """A small command loads itself, and nothing that takes long."""
    modules = loaded("status", "--runtime-dir", str(tmp_path))
    assert modules & COMMAND_MODULES == {"memscaler.cli.status"}
    assert "memscaler.cli.client" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("args", [["gpuctl", "--help"], ["gpuctl", "ls", "--help"]], ids=" ".join)
def test_the_help_of_gpuctl_loads_little(args):
    """Neither what it is about nor the configuration's files; the group's not even its commands."""
    modules = loaded(*args)
    assert "memscaler.cli.gpuctl.group" in modules
    assert not modules & {*HEAVY, "memscaler.config.load", "tomllib"}
    assert not [each for each in modules if each.startswith(("memscaler.gvm", "memscaler.kernel"))]
    assert ("memscaler.cli.gpuctl.look" in modules) == ("ls" in args)
    assert ("memscaler.config.schema" in modules) == ("ls" in args)


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["hepl"], "no such command: 'hepl'", "did you mean `memscaler help`?"),
        (["help", "stauts"], "no such command: 'stauts'", "did you mean `memscaler status`?"),
        (["quux"], "no such command: 'quux'", "see `memscaler --help`"),
        (["help", "hold", "gpu0"], "`memscaler hold` has no commands of its own", "see `memscaler help`"),
    ],
)
def test_the_nearest_command(args, message, hint):
    """A command that is not there is one line, and the one that may be meant."""
    result = memscaler(*args)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"memscaler: {message}\nhint: {hint}\n"


def test_every_help():
    """`help COMMAND` is `COMMAND --help`; it fits the screen, and its usage is no puzzle."""
    for command in tree().walk():
        told = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["help", *command.path.split()], prog_name="memscaler")
        same = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*command.path.split(), "--help"], prog_name="memscaler")
        assert (told.exit_code, told.output) == (0, same.output)
        assert max(map(len, told.output.splitlines())) <= 80
        usage = told.output.splitlines()[0]
        assert usage.startswith(f"Usage: memscaler {command.path}".rstrip() + " [OPTIONS]")
        assert not {"[[", "]]"} & {usage[at : at + 2] for at in range(len(usage))}


def test_the_list_of_commands():
    """Every command stands in it with a line that is not cut."""
    lines = memscaler("--help").stdout.splitlines()
    for name, entry in COMMANDS.items():
        assert any(line.split() == [name, *entry.short_help.split()] for line in lines), name
