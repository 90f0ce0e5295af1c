"""Whose installation root may run, where there is no systemd, no bcc, or no root."""

import os
import subprocess
from pathlib import Path

import pytest

from memscaler.core.errors import MemscalerError
from memscaler.daemon.setup import program
from memscaler.daemon.setup.files import unit
from memscaler.daemon.setup.program import Program
from tests.doctor.bench import clean_environment, memscaler

NOBODY = 65534


@pytest.fixture
def tree(tmp_path) -> Path:
    """What looks like an environment."""
    for name in ("bin/memscaler", "lib/memscaler/main.py"):
        path = tmp_path / "venv" / name
        path.parent.mkdir(parents=True)
        path.write_text("")
    return tmp_path / "venv"


def judged(tree: Path) -> list[str]:
    return program.suspicions(Program(tree / "bin/memscaler", (tree / "bin/memscaler",), (tree,)))


def test_a_good_one(tree):
    """Root's own, also where everybody may make files of their own (/tmp)."""
    assert judged(tree) == []


@pytest.mark.parametrize("name", ["bin/memscaler", "bin", "lib/memscaler/main.py", "lib", "."])
def test_what_others_may_write(tree, name):
    """A file or a folder, on the way to the program or deep in its libraries; by its mode or by its owner."""
    path = tree / name
    path.chmod(0o775 if path.is_dir() else 0o664)
    assert judged(tree) == [f"{path.resolve()} may be written by others"]
    path.chmod(0o755)
    os.chown(path, NOBODY, -1)
    assert judged(tree) == [f"{path.resolve()} belongs to another user than root (uid {NOBODY})"]


def test_where_a_link_leads(tree, tmp_path):
    """The interpreter of an environment is a link: what it leads to, and what leads there, is judged."""
    target = tmp_path / "theirs" / "python"
    target.parent.mkdir()
    target.write_text("")
    link = tree / "bin/python"
    link.symlink_to(target)
    own = Program(tree / "bin/memscaler", (link,), (tree,))
    assert program.suspicions(own) == []
    os.chown(target.parent, NOBODY, -1)
    assert program.suspicions(own) == [f"{target.parent} belongs to another user than root (uid {NOBODY})"]


@pytest.mark.parametrize("home", ["/root/.local/share/pipx", "/home/alice/.local", "/run/user/1000/x"])
def test_homes(home):
    """The unit hides them from the service: it would not start (203/EXEC)."""
    path = Path(home, "bin/memscaler")
    found = program.suspicions(Program(path, (path,), ()))
    assert any("which the service does not see" in each for each in found)


def test_a_few_are_enough(tree):
    """Of a whole environment of somebody else's not every file is told."""
    for number in range(50):
        (tree / f"lib/{number}").write_text("")
        os.chown(tree / f"lib/{number}", NOBODY, -1)
    assert program.MOST_TOLD < len(judged(tree)) < 10


def test_the_refusal_says_where_to_install_it(image, copied):
    """The whole command, with an environment that has become another user's."""
    spoilt = copied()
    os.chown(spoilt.parents[1] / "lib", NOBODY, -1)
    command = [spoilt, "setup", "--root", image.root]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    assert "root must not run this installation" in done.stderr
    assert f"{spoilt.parents[1]}/lib belongs to another user than root" in done.stderr
    assert "sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install memscaler" in done.stderr
    assert image.content() == {}


def test_every_upgrade_has_another_fingerprint(copied):
    """Of memscaler, or of a library."""
    code = "from memscaler.daemon.setup.program import fingerprint; print(fingerprint())"
    python = copied().with_name("python")

    def ask():
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout

    first = ask()
    assert ask() == first
    record = next(python.parents[1].glob("lib/python*/site-packages/memscaler-*.dist-info/RECORD"))
    record.write_text(record.read_text() + "memscaler/new.py,,\n")
    second = ask()
    (record.parent.parent / "aiohttp-99.dist-info").mkdir()
    (record.parent.parent / "aiohttp-99.dist-info/METADATA").write_text("Name: aiohttp\nVersion: 99\n")
    assert len({first, second, ask()}) == 3


@pytest.mark.parametrize(
    "path", ["/opt/my programs/memscaler", "/opt/$x/memscaler", '/opt/"/memscaler', "/opt/ü/memscaler"]
)
def test_a_path_that_no_unit_can_have(path):
    """It is refused rather than quoted: systemd has rules of its own for each of them."""
    with pytest.raises(MemscalerError, match="cannot stand in a unit"):
        unit(Path(path))


def test_a_percent_sign_is_no_specifier():
    """Doubled, as systemd.unit(5) wants it."""
    assert b"ExecStart=/opt/50%%/memscaler run" in unit(Path("/opt/50%/memscaler")).content


def test_not_root():
    """It is told what to run; and a plan needs no root."""
    done = memscaler("setup", nobody=True)
    assert done.returncode == 4
    assert "hint: sudo /" in done.stderr


def test_without_systemd(installation, image):
    """What to do instead; nothing is written. A dry run tells its steps all the same."""
    environ = {**clean_environment(PATH=str(image.root)), "PYTHONPATH": ""}

    def setup(*arguments):
        command = [installation, "setup", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environ)

    done = setup()
    assert (done.returncode, done.stdout) == (69, "")
    assert f"`{image.program} run`" in done.stderr
    assert not Path("/etc/systemd/system/memscaler.service").exists()
    told = setup("--dry-run")
    assert told.returncode == 0, told.stderr
    *steps, refusal, last = told.stdout.splitlines()
    assert any("/etc/systemd/system/memscaler.service" in line for line in steps)
    assert "this machine has no systemd (no systemctl)" in refusal
    assert last == "nothing was changed (--dry-run)"


def test_an_image_made_without_systemd(image):
    """It is enabled, as systemctl would see it, and gets its group when it starts; and it can be removed again."""
    done = image.setup("--discover", PATH=str(image.root))
    assert done.returncode == 0, done.stderr
    asked = ["systemctl", f"--root={image.root}", "is-enabled", "memscaler"]
    assert subprocess.run(asked, capture_output=True, text=True, check=False).stdout == "enabled\n"
    assert image.at("etc/sysusers.d/memscaler.conf").is_file()
    assert image.setup(PATH=str(image.root)).stdout.endswith("nothing to do\n")
    done = image.setup("--remove", "--purge", PATH=str(image.root))
    assert (done.returncode, image.content()) == (0, {}), done.stderr


def test_without_bcc(installation):
    """The exact command of this distribution; nothing is written."""
    # In a chroot / is no mount, and unshare's own way to keep mounts private fails.
    private = "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /sys"
    script = f'{private}; mount -t tmpfs none /usr/lib/python3/dist-packages && exec "$@"'
    hide = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh"]
    environ = {**clean_environment(), "PYTHONPATH": ""}
    command = [*hide, installation, "setup", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environ)
    assert done.returncode == 69, done
    assert "no python here can import bcc" in done.stderr
    assert "sudo apt-get install python3-bpfcc; then this again" in done.stderr
