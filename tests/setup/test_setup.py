"""`memscaler setup` on a root of files, with the real systemctl, systemd-sysusers and systemd-analyze.

On a running systemd: the scenarios of `make test-systemd`.
"""

import hashlib
import json
import os
import subprocess

import pytest

from memscaler.config.load import load
from memscaler.core.snapshot import Identity
from memscaler.daemon import lock
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.setup.removal import remove_runtime
from memscaler.gpu.journal import Journal
from memscaler.resources import completions_dir, deploy_dir, man_dir, systemd_dir
from tests.systemd.test_unit import exposure

UNIT = "etc/systemd/system/memscaler.service"
ENABLED = "etc/systemd/system/multi-user.target.wants/memscaler.service"
CONFIG = "etc/memscaler/config.toml"
MANIFEST = "var/lib/memscaler/setup.json"
LISTS = {f"etc/{name}{old}" for name in ("gshadow", "passwd", "shadow") for old in ("", "-")} | {
    "etc/.pwd.lock",
    "etc/group-",
}


def test_everything_is_there(image):
    """Unit, group, configuration, completion, manual, dashboard: from the wheel, readable for all, and enabled."""
    os.umask(0o077)
    try:
        image.good("--discover")
    finally:
        os.umask(0o022)
    share = image.at("usr/local/share")
    pairs = {
        share / "bash-completion/completions/memscaler": completions_dir() / "memscaler.bash",
        share / "zsh/site-functions/_memscaler": completions_dir() / "_memscaler",
        share / "man/man1/memscaler.1": man_dir() / "memscaler.1",
        share / "man/man5/memscaler.toml.5": man_dir() / "memscaler.toml.5",
        share / "man/man8/memscaler.service.8": man_dir() / "memscaler.service.8",
        share / "memscaler/grafana/memscaler.json": deploy_dir() / "grafana/memscaler.json",
        share / "memscaler/prometheus/alerts.yml": deploy_dir() / "prometheus/alerts.yml",
        image.at("etc/sysusers.d/memscaler.conf"): systemd_dir() / "memscaler.sysusers.conf",
    }
    for there, source in pairs.items():
        assert there.read_bytes() == source.read_bytes()
        assert (there.stat().st_mode & 0o777, there.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    assert "memscaler:" in image.at("etc/group").read_text()
    assert image.at(ENABLED).is_symlink()
    assert load({}, {}, image.at(CONFIG)).discover


def test_the_unit_is_the_one_that_is_tested(image):
    """But for the program, whose path is this installation's; systemd takes it, and it is as tight as ours."""
    image.good()
    text = image.at(UNIT).read_text()
    head, _, rest = text.partition("\n")
    assert "memscaler setup" in head
    assert (
        rest.replace(f"={image.program} ", "=/usr/bin/memscaler ") == (systemd_dir() / "memscaler.service").read_text()
    )
    assert rest.count(str(image.program)) == 3
    done = subprocess.run(["systemd-analyze", "verify", image.at(UNIT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert exposure(image.at(UNIT)) <= 2.9


def test_a_program_in_the_image(image, copied):
    """An image's own is started by the path that it has there."""
    program = copied()
    inside = image.at("opt/memscaler")
    inside.parent.mkdir()
    program.parents[1].rename(inside)
    program = inside / "bin/memscaler"
    program.write_text(program.read_text().replace(str(image.root.parent / "venv"), str(inside)))
    command = [program, "setup", "--root", image.root]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert "ExecStart=/opt/memscaler/bin/memscaler run\n" in image.at(UNIT).read_text()
    assert "install memscaler at the same place" not in done.stdout


def test_dry_run_tells_what_is_then_done(image):
    """The very same lines, and nothing is changed; also for somebody who is not root."""
    told = image.good("--dry-run", "--discover")
    assert told.pop() == "nothing was changed (--dry-run)"
    assert image.content() == {}
    assert image.good("--discover") == told
    writes = [line.split()[1] for line in told if line.startswith("write")]
    assert set(writes) == {str(image.root / name) for name in image.content() if ".wants" not in name} - {
        str(image.root / f"etc/{name}") for name in ("group", "gshadow", "passwd", "shadow", ".pwd.lock")
    }
    before = image.content()
    told = image.good("--dry-run", "--remove", "--purge")
    assert image.content() == before
    assert image.good("--remove", "--purge") == told[:-1]


def test_again_does_nothing(image):
    """Once is enough."""
    image.good("--discover")
    before = {path: path.lstat().st_mtime_ns for path in image.root.rglob("*")}
    assert image.good()[-1] == "nothing to do"
    assert {path: path.lstat().st_mtime_ns for path in image.root.rglob("*")} == before


def test_only_what_is_missing_is_repaired(image):
    """A file that is gone, and a setup that was interrupted between its notes and its files."""
    image.good()
    whole = image.content()
    image.at(UNIT).unlink()
    image.at("usr/local/share/man/man1/memscaler.1").unlink()
    assert len([line for line in image.good() if line.startswith("write") and "setup.json" not in line]) == 2
    assert image.content() == whole


def test_an_upgrade_renews_what_is_ours(image):
    """What an older setup wrote is replaced without a question; what it wrote and no longer does is removed."""
    image.good()
    manifest = json.loads(image.at(MANIFEST).read_text())
    for name, text in ((UNIT, b"[Service]\nExecStart=/old\n"), ("usr/local/share/old", b"old")):
        image.at(name).write_bytes(text)
        manifest["files"][f"/{name}"] = [hashlib.sha256(text).hexdigest()]
    image.at(MANIFEST).write_text(json.dumps(manifest))
    told = image.good()
    assert any(line.startswith(f"write   {image.at(UNIT)}") for line in told)
    assert f"remove  {image.at('usr/local/share/old')}" in told
    assert "/old" not in image.at(UNIT).read_text()
    assert not image.at("usr/local/share/old").exists()
    assert image.good()[-1] == "nothing to do"


def test_what_is_not_ours_is_not_replaced(image):
    """A unit somebody has written or changed stops it before anything is done; --force replaces it."""
    image.at(UNIT).parent.mkdir(parents=True)
    image.at(UNIT).write_text("[Service]\nExecStart=/mine\n")
    before = image.content()
    done = image.setup()
    assert done.returncode == 1
    assert f"memscaler: {image.at(UNIT)} is there, and not as setup has written it" in done.stderr
    assert "--force" in done.stderr
    assert image.content() == before
    image.good("--force")
    image.at(UNIT).write_text(image.at(UNIT).read_text() + "# mine\n")
    assert image.setup().returncode == 1


def test_a_masked_unit_and_one_of_a_package(image):
    """An operator's decision, and another installation: both are told with the way out."""
    image.at(UNIT).parent.mkdir(parents=True)
    image.at(UNIT).symlink_to("/dev/null")
    assert f"sudo systemctl --root={image.root} unmask memscaler" in image.setup().stderr
    image.at(UNIT).unlink()
    package = image.at("usr/lib/systemd/system/memscaler.service")
    package.parent.mkdir(parents=True)
    package.write_text("[Service]\nExecStart=/usr/bin/memscaler run\n")
    done = image.setup()
    assert (done.returncode, "comes from a package" in done.stderr) == (1, True)
    assert not image.at(CONFIG).exists()


def test_a_configuration_is_never_touched(image):
    """Whatever it says; if it is wrong, nothing is done at all."""
    image.at(CONFIG).parent.mkdir()
    image.at(CONFIG).write_text("idle_aftr = 1\n")
    done = image.setup()
    assert (done.returncode, "did you mean 'idle_after'" in done.stderr) == (78, True)
    assert set(image.content()) == {CONFIG}
    image.at(CONFIG).write_text("[[watch]]\nport = 8080\n")
    notes = [line for line in image.good("--discover") if line.startswith("note:")]
    assert image.at(CONFIG).read_text() == "[[watch]]\nport = 8080\n"
    assert any(f"{image.at(CONFIG)} is kept as it is" in line and "edit it (discover = true" in line for line in notes)
    assert not any("no port is watched" in line for line in notes)


def test_a_new_configuration_says_what_was_asked_for(image):
    """Ports as `run --port` takes them; none: it is told that nothing is watched. Drop-ins count."""
    image.good("--port", "8080:gpu0,gpu1", "-p", "9000@container:web")
    assert [str(each) for each in load({}, {}, image.at(CONFIG)).watches] == ["8080:gpu0,gpu1", "9000@container:web"]
    assert image.setup("--port", "99999").returncode == 2
    image.good("--remove", "--purge")
    (note,) = (line for line in image.good() if "no port is watched yet" in line)
    assert note.endswith(f"in {image.at(CONFIG)}")  # a setup without --root would change the machine that makes it
    image.at("etc/memscaler/conf.d").mkdir()
    image.at("etc/memscaler/conf.d/chat.toml").write_text("discover = true\n")
    assert not any("no port is watched yet" in line for line in image.good())


def test_not_to_be_started(image):
    """--no-start neither enables it."""
    told = image.good("--no-start")
    assert not image.at(ENABLED).exists()
    assert f"note: not enabled: sudo systemctl --root={image.root} enable memscaler" in told


# ---- and back -------------------------------------------------------------------------------------------------------


def test_remove_leaves_what_was_there(image):
    """Everything that setup wrote is gone, with the folders that it made; what was there before is as it was."""
    for name, text in {"etc/hosts": b"mine", "usr/local/share/man/man1/other.1": b"theirs"}.items():
        image.at(name).parent.mkdir(parents=True, exist_ok=True)
        image.at(name).write_bytes(text)
    image.good("--discover")
    told = image.good("--remove")
    left = set(image.content()) - {*LISTS, "etc/group"}
    assert left == {"etc/hosts", "usr/local/share/man/man1/other.1", CONFIG, MANIFEST}
    assert not image.at("usr/local/share/zsh").exists()
    assert not image.at(UNIT).parent.exists() or not image.at(UNIT).exists()
    assert told[-1].startswith("note: kept: ")
    assert image.good("--remove")[-2:] == ["note: setup has installed nothing here", "nothing to do"]
    image.good("--remove", "--purge")
    assert set(image.content()) - LISTS == {
        "etc/hosts",
        "etc/group",
        "usr/local/share/man/man1/other.1",
    }
    assert "memscaler" not in image.at("etc/group").read_text()
    assert image.good("--remove", "--purge")[-1] == "nothing to do"


def test_what_was_changed_since_is_kept(image):
    """And told; the service is no longer enabled all the same."""
    image.good("--discover")
    page = image.at("usr/local/share/memscaler/prometheus/alerts.yml")
    page.write_text("groups: []\n")
    told = image.good("--remove")
    assert f"note: {page} was changed since, and is kept (--purge removes it too)" in told
    assert page.read_text() == "groups: []\n"
    assert not image.at(ENABLED).is_symlink()


@pytest.mark.parametrize("removed_before", [False, True])
def test_purge_removes_what_was_changed_too(image, removed_before):
    """As it does with the configuration, also if it was kept by an earlier removal. But no folder in its place."""
    image.good("--discover")
    unit, page = image.at(UNIT), image.at("usr/local/share/memscaler/prometheus/alerts.yml")
    unit.write_text(unit.read_text() + "# mine\n")
    page.unlink()
    page.mkdir()
    if removed_before:
        image.good("--remove")
        assert unit.exists()
    told = image.good("--remove", "--purge")
    assert f"remove  {unit} (changed since)" in told
    assert f"note: {page} was changed since, and is kept" in told
    assert not unit.exists()
    assert page.is_dir()


def test_the_folder_of_the_runtime(tmp_path):
    """It goes unless a GPU is parked, somebody governs or somebody calibrates."""
    path = tmp_path / "memscaler"
    lock.prepare_runtime_dir(path)
    journal = Journal(path / JOURNAL)
    gpu = Identity(0, "GPU-1", "0000:01:00.0", "A40")
    journal.record(gpu, "memory-clock", 405)
    remove_runtime(path)
    assert len(journal.entries()) == 1
    journal.release(gpu.uuid)
    for name in (lock.DAEMON, lock.CALIBRATION):
        held = lock.acquire(path, name)
        remove_runtime(path)
        assert path.is_dir()
        os.close(held)
    remove_runtime(path)
    assert not path.exists()
    remove_runtime(path)


def test_a_group_that_was_there_stays(image):
    """--purge removes the one that setup has made, no other."""
    image.at("etc/group").write_text("memscaler:x:990:alice\n")
    image.good("--discover")
    image.good("--remove", "--purge")
    assert image.at("etc/group").read_text() == "memscaler:x:990:alice\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"files": {"/../etc/passwd": ["x"]}, "folders": [], "group": false, "started": ""}',
        "{" * 100_000,
    ],
)
def test_a_damaged_note_removes_nothing(image, text):
    """Then nobody knows what is ours, and least of all what is elsewhere."""
    image.good("--discover")
    image.at(MANIFEST).write_text(text)
    before = image.content()
    done = image.setup("--remove", "--purge")
    assert (done.returncode, "is damaged" in done.stderr) == (1, True)
    assert image.content() == before


def test_purge_alone_is_a_mistake(image):
    """It would be taken for something else."""
    assert image.setup("--purge").returncode == 2
    assert image.setup("--remove", "--purge").returncode == 0


def test_the_gateway(image):
    """Its unit is there for whoever enables it, and a removal takes both away."""
    image.good("--discover")
    unit = "etc/systemd/system/memscaler-gateway.service"
    assert f"ExecStart={image.program} gateway\n" in image.at(unit).read_text()
    link = image.at("etc/systemd/system/multi-user.target.wants/memscaler-gateway.service")
    assert not link.is_symlink()
    link.symlink_to(f"/{unit}")
    assert image.good()[-1] == "nothing to do"
    image.good("--remove", "--purge")
    assert not link.is_symlink()
    assert not image.at(unit).exists()


def test_supervisors_of_described_servers(image):
    """Their units are there; enabled are those that have something to run, and a removal takes them away again."""
    wants = image.at("etc/systemd/system/multi-user.target.wants")
    image.good("--discover")
    assert image.at("etc/systemd/system/memscaler-servers.service").is_file()
    assert image.at("etc/systemd/system/memscaler-servers@.service").is_file()
    assert [link.name for link in wants.iterdir()] == ["memscaler.service"]
    assert "memscaler-servers:" in image.at("etc/passwd").read_text()
    with image.at(CONFIG).open("a") as file:
        file.write(
            '\n[[server]]\nname = "a"\ncommand = ["x"]\n\n[[server]]\nname = "b"\ncommand = ["x"]\nuser = "alice"\n'
        )
    image.good()
    assert sorted(link.name for link in wants.iterdir()) == [
        "memscaler-servers.service",
        "memscaler-servers@alice.service",
        "memscaler.service",
    ]
    assert (
        str((wants / "memscaler-servers@alice.service").readlink()) == "/etc/systemd/system/memscaler-servers@.service"
    )
    assert (
        f"ExecStart={image.program} servers run\n"
        in image.at("etc/systemd/system/memscaler-servers@.service").read_text()
    )
    assert image.good()[-1] == "nothing to do"
    image.good("--remove", "--purge")
    assert not wants.exists()
    assert not list(image.at("etc").rglob("memscaler*"))
    assert "memscaler" not in image.at("etc/passwd").read_text() + image.at("etc/group").read_text()


SLEEP = "etc/systemd/system/memscaler.service.d/sleep.conf"
STAGE = '\n[[stage]]\ndo = "stop-server"\nafter = "1h"\n'


def test_a_drop_in_that_a_configuration_needs(image):
    """It comes with the first [[stage]] table and goes with the last; a removal takes it away, too."""
    image.good("--discover")
    before = image.at(CONFIG).read_text()
    assert not image.at(SLEEP).exists()
    image.at(CONFIG).write_text(before + STAGE)
    assert any(f"write   {image.at(SLEEP)} (needed by [[stage]] tables)" in line for line in image.good())
    assert image.at(SLEEP).read_bytes() == (systemd_dir() / "memscaler.sleep.conf").read_bytes()
    done = subprocess.run(["systemd-analyze", "verify", image.at(UNIT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert image.good()[-1] == "nothing to do"
    image.at(CONFIG).write_text(before)
    assert any(line.startswith(f"remove  {image.at(SLEEP)}") for line in image.good())
    assert not image.at(SLEEP).exists()
    image.at(CONFIG).write_text(before + STAGE)
    image.good()
    image.good("--remove")
    assert not image.at(SLEEP).exists()


def test_a_drop_in_of_the_operator(image):
    """Kept, unless it is to be replaced; also one that setup wrote and somebody has changed."""
    image.good("--discover")
    with image.at(CONFIG).open("a") as file:
        file.write(STAGE)
    image.at(SLEEP).parent.mkdir(parents=True, exist_ok=True)
    for text in ("[Service]\nTimeoutStopSec=2h\n", "[Service]\nTimeoutStopSec=3h\n"):
        image.at(SLEEP).write_text(text)
        assert f"note: {image.at(SLEEP)} is kept as it is (--force replaces it)" in image.good()
        assert image.at(SLEEP).read_text() == text
        image.good("--force")
        assert image.at(SLEEP).read_bytes() == (systemd_dir() / "memscaler.sleep.conf").read_bytes()
