"""Shell completion: the static files, in the real shells."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.patience import patience
from tools.commands import tree
from tools.completions import FOLDER, files

# Prints what would be offered into a file, and ends the shell: what is on the terminal is for people.
ZSH = """
fpath=({folder} $fpath)
autoload -Uz compinit
compinit -u -d {scratch}/dump
zstyle ':completion:*' insert-tab false
compadd() {{
    builtin compadd "$@"
    local result=$? hit
    local -a hits
    if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
        builtin compadd -A hits "$@"
        for hit in $hits; do print -r -- $IPREFIX$hit >>{scratch}/offered; done
    fi
    return $result
}}
stop() {{ exit 0 }}
comppostfuncs=(stop)
bindkey '^I' list-choices
print ready
"""


@pytest.fixture
def environ(tmp_path):
    """An environment in which whoever starts a python or memscaler leaves a trace."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("memscaler", "python3", "python"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >>{tmp_path}/started\n")
        (folder / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    # fish writes its own completions at its first start, by a python
    (home / ".local/share/fish/generated_completions").mkdir(parents=True)
    yield {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(home), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    assert not (tmp_path / "started").exists()


def bash(line, environ, _scratch):
    """The function is called as bash calls it, with "=" as a word of its own."""
    words = line.replace("=", " = ").split(" ")
    script = f'source {FOLDER}/memscaler.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _memscaler; printf "%s\\n" "${{COMPREPLY[@]}}"'
    command = ["bash", "--norc", "-c", script, "bash", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()


def zsh(line, environ, scratch):
    """An interactive zsh on a terminal."""
    setup = scratch / "setup.zsh"
    setup.write_text(ZSH.format(folder=FOLDER, scratch=scratch))
    with Terminal(["zsh", "-f", "-i"], environ) as terminal:
        terminal.send(f"source {setup}\n")
        terminal.wait_for("ready\r\n")
        terminal.send(line + "\t")
        terminal.wait_for_end()
    offered = scratch / "offered"
    return (
        [each.removeprefix(line.rpartition(" ")[2].rpartition("=")[0] + "=") for each in offered.read_text().split()]
        if offered.exists()
        else []
    )


def fish(line, environ, _scratch):
    """What fish itself says that it would offer."""
    command = ["fish", "--no-config", "-c", f"source {FOLDER}/memscaler.fish; complete -C $argv[1]", line]
    lines = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()
    return [each.partition("\t")[0].rpartition("=")[2] for each in lines]


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command, environ):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, environ)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)  # hangs up
        os.waitpid(self.pid, 0)

    def send(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, text):
        assert self._read(lambda: text in self.seen), self.seen

    def wait_for_end(self):
        assert not self._read(lambda: False), self.seen

    def _read(self, enough):
        """False: it has ended."""
        end_s = time.monotonic() + 20 * patience()
        while not enough():
            assert time.monotonic() < end_s, self.seen
            if select.select([self.fd], [], [], 1.0)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:  # EIO: nobody has the terminal any more
                    return False
        return True


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("memscaler ho", {"hold"}),
        ("memscaler --", {"--version", "--help"}),
        ("memscaler config ", {"init", "check", "show", "schema"}),
        ("memscaler help re", {"report", "restore", "resume", "release", "reload"}),
        ("memscaler run --lever ", {"auto", "memory-clock", "graphics-clock", "pstate"}),
        ("memscaler run --quiet=no-c", {"no-connections"}),
        ("memscaler run --port run --log-l", {"--log-level"}),
        ("memscaler config show --lev", {"--lever"}),
        ("memscaler hold --for 5m --js", {"--json"}),
        ("memscaler doctor --only MS-KERNEL-03", {"MS-KERNEL-03"}),
    ],
)
def test_what_is_offered(shell, line, offered, environ, tmp_path):
    """Commands, options and values of the command that stands there, and nothing else."""
    assert {each.strip("=") for each in SHELLS[shell](line, environ, tmp_path)} == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_files(shell, environ, tmp_path):
    """Where a file is wanted, files are offered."""
    (tmp_path / "one.toml").touch()
    (found,) = SHELLS[shell](f"memscaler run --config {tmp_path}/one", environ, tmp_path)
    assert Path(found).name == "one.toml"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_behind_hold(shell, environ, tmp_path):
    """Behind `--` a command line begins that is none of ours."""
    found = {each.strip() for each in SHELLS[shell]("memscaler hold gpu0 -- mkfif", environ, tmp_path)}
    assert found == {"mkfifo"}


@pytest.mark.parametrize("shell", SHELLS)
def test_lists(shell, environ, tmp_path):
    """Behind a comma the next board is offered."""
    found = SHELLS[shell]("memscaler run --simulate a40,v1", environ, tmp_path)
    assert {each.rpartition(",")[2] for each in found} == {"v100"}


def test_a_tab_in_bash(environ):
    """In a real bash, whose words end at "=" too, a TAB makes the value whole."""
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environ) as terminal:
        terminal.send(f"source {FOLDER}/memscaler.bash; echo rea''dy\n")
        terminal.wait_for("ready\r\n")
        terminal.send("echo; : memscaler; memscaler run --lever=gr\t")
        terminal.wait_for("--lever=graphics-clock")
        terminal.send("\x15exit\n")
        terminal.wait_for_end()


def test_the_files_are_current():
    """They are what the command line is: `make generate` writes them anew."""
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, "`make generate` writes it anew"


def test_every_option_is_in_every_file():
    """No command and no option is left out, nor its words."""
    texts = [path.read_text(encoding="utf-8").replace("\\:", ":") for path in files()]
    for command in tree().walk():
        assert all(command.name in text for text in texts)
        for option in command.options:
            assert all(name.lstrip("-") in text for name in option.names for text in texts)
            assert isinstance(option.value, str) or all(word in text for word in option.value for text in texts)


def test_the_shells_accept_them():
    """Syntax, and what ShellCheck says of the one that it can read."""
    assert shutil.which("shellcheck")
    for command in (["bash", "-n"], ["shellcheck"], ["zsh", "-n"], ["fish", "-n"]):
        name = {"zsh": "_memscaler", "fish": "memscaler.fish"}.get(command[0], "memscaler.bash")
        result = subprocess.run([*command, FOLDER / name], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
