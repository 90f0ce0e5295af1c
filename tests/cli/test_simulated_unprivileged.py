"""`--simulate` of a user without rights: boards of a governor that runs already, else such of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.simulator import build

REPOSITORY = Path(__file__).resolve().parents[2]
# It reads what root can, as our python may lie in root's home, and writes what nobody can.
NOBODY = (
    "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
)


@pytest.fixture
def run(tmp_path):
    """Shell lines on a machine with an empty /run; `root` and `nobody` are memscaler as these."""
    home = tmp_path / "home"
    home.mkdir()
    for folder in (home, *home.parents):
        if folder.owner() == "root" and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.chown(home, 65534, 65534)
    memscaler = f'{sys.executable} -m memscaler "$@"'
    head = "mount --make-rprivate / 2>/dev/null || true\n"  # a chroot's root is no mount
    head += "mount -t tmpfs -o mode=755 none /run\n"
    head += f"root() {{ {memscaler}; }}\nnobody() {{ {NOBODY} {memscaler}; }}\n"
    head += f"instead() {{ exec {NOBODY} {memscaler}; }}\n"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MEMSCALER_", "XDG_", "CUDA_"))}
    environ |= {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "MEMSCALER_SIM_CACHE": str(build().parent)}

    def script(lines, **more):
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", head + lines],
            capture_output=True,
            text=True,
            check=False,
            env={**environ, **more},
            timeout=300,
            cwd="/",
        )

    return script, home


STATE = "simulator/state"


def test_before_root_has(run):
    """The boards are in the user's home; nothing is asked of /run."""
    script, home = run
    done = script("nobody gpus --simulate p40; nobody plan --simulate p40; ! test -e /run/memscaler")
    assert (done.returncode, done.stderr) == (0, "")
    assert "P40" in done.stdout.partition("BUDGET")[0]
    assert "P40" in done.stdout.partition("BUDGET")[2]
    assert (home / ".local/state/memscaler/run" / STATE).owner() == "nobody"


def test_below_what_a_login_makes(run, tmp_path):
    """As other programs do."""
    script, home = run
    folder = tmp_path / "login"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    done = script("nobody gpus --simulate p40", XDG_RUNTIME_DIR=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "memscaler" / STATE).exists()
    assert not (home / ".local").exists()


def test_beside_roots(run):
    """The same boards are root's; others are one's own, and root's stay as they are."""
    script, home = run
    done = script(
        "root gpus --simulate p40 >/dev/null; nobody gpus --simulate p40\n"
        f"! test -e {home}/.local; before=$(ls -i /run/memscaler/{STATE})\n"
        "nobody gpus --simulate a40,p40; nobody serve --simulate a40 --dry-run --no-smart-split /dev/null\n"
        f'test "$before" = "$(ls -i /run/memscaler/{STATE})"; root gpus --simulate p40'
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / ".local/state/memscaler/run" / STATE).exists()


def test_where_there_can_be_none(run):
    """A folder that was named is meant, and a user without a home has none: it is said, with exit code 4."""
    script, _ = run
    for words, more in (("--runtime-dir /run/other", {}), ("", {"HOME": "/nonexistent"})):
        done = script(f"nobody gpus --simulate p40 {words}", **more)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("memscaler: simulated boards cannot be kept in /")
        assert done.stderr.endswith("hint: name a --runtime-dir that is yours\n")


def test_a_supervisor(run, tmp_path):
    """Its simulated boards are beside its socket."""
    script, home = run
    (tmp_path / "servers.toml").write_text(
        '[[server]]\nname = "a"\ncommand = "sleep 1000"\nport = 1\nhealth = "off"\ngpus = ["gpu0"]\n'
    )
    done = script(
        f"instead servers run --config {tmp_path}/servers.toml --simulate p40 & pid=$!\n"
        f"for i in $(seq 600); do test -e {home}/.local/state/memscaler-servers/run/{STATE} && break; sleep 0.1; done\n"
        f"test -e {home}/.local/state/memscaler-servers/run/{STATE}\n"
        "kill $pid; wait $pid || true"
    )
    assert done.returncode == 0, done.stderr
    assert "Permission" not in done.stderr
