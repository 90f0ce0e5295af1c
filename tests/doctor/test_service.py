"""The unit, its directory and group, and the configuration: by files, which need no systemd."""

import os
import subprocess
from pathlib import Path

import pytest

from memscaler import resources
from memscaler.config.load import load
from memscaler.daemon import systemd
from memscaler.daemon.doctor import units
from memscaler.daemon.doctor.model import Result
from memscaler.daemon.setup.program import program_path
from memscaler.history.reader import HistoryUnreadable
from memscaler.history.tables import FILE
from tests.doctor.bench import doctor, memscaler, only
from tests.history.filled import fill

UNIT = (resources.systemd_dir() / "memscaler.service").read_text()
ETC, LIB = "/etc/systemd/system", "/usr/lib/systemd/system"


@pytest.fixture
def installed(machine):
    """The unit as the package installs it, enabled, on a machine whose systemd does not run."""
    machine.write(f"{LIB}/memscaler.service", UNIT)
    machine.write("/usr/bin/memscaler")
    wants = machine.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "memscaler.service").symlink_to(f"{LIB}/memscaler.service")
    return machine


def test_not_installed(machine):
    """By this very installation: sudo's PATH may lead to another."""
    finding = machine.check("MS-UNIT-01")
    assert finding.result is Result.WARN
    assert finding.remedy == f"sudo {program_path()} setup"


def test_installed_where_systemd_does_not_run(installed):
    """Whether it is active is then unknown, not wrong."""
    finding = installed.check("MS-UNIT-01")
    assert (finding.result, finding.seen.endswith("systemd does not run here")) == (Result.UNKNOWN, True)
    assert " is enabled" in finding.seen


def test_not_enabled(installed):
    """The command that enables it."""
    (installed.root / "etc/systemd/system/multi-user.target.wants/memscaler.service").unlink()
    assert installed.check("MS-UNIT-01").remedy == "sudo systemctl enable --now memscaler"


def test_a_program_that_is_not_there(installed):
    """The most common mistake after an installation in /opt, also by a drop-in."""
    installed.write(
        f"{ETC}/memscaler.service.d/where.conf", "[Service]\nExecStart=\nExecStart=/opt/m/bin/memscaler run\n"
    )
    finding = installed.check("MS-UNIT-01")
    assert (finding.result, "/opt/m/bin/memscaler, which is not there" in finding.seen) == (Result.FAIL, True)
    installed.write("/opt/m/bin/memscaler")
    assert installed.check("MS-UNIT-01").result is Result.UNKNOWN


def test_masked(installed):
    """A link to /dev/null."""
    link = installed.root / "etc/systemd/system/memscaler.service"
    link.symlink_to("/dev/null")
    assert installed.check("MS-UNIT-01").remedy == "sudo systemctl unmask memscaler"


def test_a_second_one(installed):
    """A file that hides that of the package, and another service that runs memscaler."""
    installed.write(f"{ETC}/memscaler.service", UNIT)
    installed.write(f"{ETC}/gpu-saver.service", "[Service]\nExecStart=/opt/bin/memscaler run --discover\n")
    findings = installed.findings("MS-UNIT-01")
    hides, other = (each for each in findings if each.result is Result.WARN)
    seen = {hides.subjects + other.subjects}
    assert seen == {("gpu-saver.service", "memscaler.service")}
    assert any("systemctl disable --now gpu-saver.service" in each.remedy for each in findings)


def test_the_same_file_by_two_names_is_one(installed):
    """/lib is a link to /usr/lib on most machines."""
    (installed.root / "lib").symlink_to("usr/lib")
    unit = units.find(installed.root)
    assert unit is not None
    assert unit.hidden == ()


def test_the_runtime_directory(installed):
    """The packaged unit keeps the journal; one that does not is told so, and what misses the restore."""
    installed.with_settings(runtime_dir=Path("/run/memscaler"))
    assert {each.result for each in installed.findings("MS-UNIT-02")} == {Result.PASS}
    text = UNIT.replace("RuntimeDirectoryPreserve=yes", "").replace("ExecStopPost=", "#")
    installed.write(f"{LIB}/memscaler.service", text)
    remedies = [each.remedy for each in installed.findings("MS-UNIT-02") if each.result is Result.WARN]
    assert remedies == [
        "RuntimeDirectoryPreserve=yes in the unit",
        "ExecStopPost=/usr/bin/memscaler restore in the unit",
    ]
    installed.write(f"{LIB}/memscaler.service", text.replace("RuntimeDirectory=memscaler", ""))
    assert any("is not /run/memscaler" in each.seen for each in installed.findings("MS-UNIT-02"))


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (lambda path: path.chmod(0o777), "chmod go-w"),
        (lambda path: os.chown(path, 65534, 0), "chown root"),
        (lambda path: (path.rmdir(), path.write_text("")), "sudo rm"),
    ],
)
def test_a_runtime_directory_that_is_not_ours(machine, spoil, remedy):
    """Whoever can write it decides what is woken."""
    path = machine.context.settings.runtime_dir
    assert machine.check("MS-UNIT-02").result is Result.PASS
    path.mkdir(parents=True)
    assert machine.check("MS-UNIT-02").result is Result.PASS
    spoil(path)
    finding = machine.check("MS-UNIT-02")
    assert (finding.result, remedy in finding.remedy) == (Result.FAIL, True)


def test_the_history(machine):
    """None yet, one that can be read, one that cannot, and a directory that is not ours or cannot be written to."""
    folder = machine.root / "state"
    machine.with_settings(state_dir=folder)
    assert (machine.check("MS-UNIT-04").result, "no history yet" in machine.check("MS-UNIT-04").seen) == (
        Result.PASS,
        True,
    )
    fill(folder, gaps=[(1.0, 1.0)])
    assert "the history of 1 GPU has 0.0 MB" in machine.check("MS-UNIT-04").seen
    (folder / FILE).write_bytes(b"x" * 5000)
    assert (machine.check("MS-UNIT-04").result, machine.check("MS-UNIT-04").remedy) == (
        Result.WARN,
        HistoryUnreadable.hint,
    )
    (folder / FILE).rename(folder / f"{FILE}.damaged")
    finding = machine.check("MS-UNIT-04")
    assert (finding.result, f"{FILE}.damaged" in finding.seen) == (Result.WARN, True)
    fill(folder, gaps=[(1.0, 1.0)])
    assert {each.result for each in machine.findings("MS-UNIT-04")} == {Result.PASS, Result.WARN}
    folder.chmod(0o777)
    assert "chmod go-w" in machine.check("MS-UNIT-04").remedy


def test_a_history_on_a_disk_that_is_read_only(machine, tmp_path):
    """It is told and what to do, also where there is a history that can be read."""
    folder = tmp_path / "disk"
    folder.mkdir()
    fill(folder)
    machine.with_settings(state_dir=folder, origins={"state_dir": "file"})
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        findings = machine.findings("MS-UNIT-04")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert {each.result for each in findings} == {Result.PASS, Result.WARN}
    assert any("state_dir" in each.remedy for each in findings)


def test_the_group(installed):
    """Missing: a failure where the unit wants it, else only less comfort; and who is in it."""
    assert (installed.check("MS-UNIT-03").result, installed.check("MS-UNIT-03").remedy) == (
        Result.FAIL,
        "sudo groupadd --system memscaler",
    )
    installed.write("/usr/lib/sysusers.d/memscaler.conf")
    assert installed.check("MS-UNIT-03").remedy == "sudo systemd-sysusers"
    (installed.root / LIB.lstrip("/") / "memscaler.service").unlink()
    assert installed.check("MS-UNIT-03").result is Result.WARN
    (installed.root / "usr/lib/sysusers.d/memscaler.conf").unlink()
    assert installed.check("MS-UNIT-03").remedy.endswith("/memscaler setup")  # which makes it; not beside a package
    installed.write("/etc/group", "root:x:0:\nmemscaler:x:990:alice,bob\n")
    assert installed.check("MS-UNIT-03").seen.endswith("members: alice, bob")


def test_variables_of_the_unit(installed):
    """A misspelt one in a drop-in would be waited for in vain."""
    assert installed.check("MS-CONFIG-03").result is Result.PASS
    installed.write(
        f"{ETC}/memscaler.service.d/a.conf", '[Service]\nEnvironment="MEMSCALER_IDLE_AFTR=30 s" A=b\nEnvironment=\'x\n'
    )
    finding = installed.check("MS-CONFIG-03")
    assert (finding.result, "did you mean MEMSCALER_IDLE_AFTER?" in finding.seen) == (Result.WARN, True)


def test_a_broken_configuration(runtime_dir):
    """All that is wrong with it, and the other checks go on with the defaults; who may write it, too."""
    file = runtime_dir / "config.toml"
    file.write_text('idle_aftr = 3\nlever = "voltage"\n')
    found = doctor(runtime_dir, "MS-CONFIG", "MS-METRICS", "--config", str(file))
    wrong = only(found, "MS-CONFIG-01")
    assert wrong["result"] == "FAIL"
    assert f"{file}:1: unknown key 'idle_aftr' (did you mean 'idle_after'?); {file}:2: 'voltage'" in wrong["seen"]
    assert only(found, "MS-CONFIG-02")["result"] == "PASS"
    file.write_text("discover = true\n")
    file.chmod(0o666)
    found = doctor(runtime_dir, "MS-CONFIG", "--config", str(file))
    assert (only(found, "MS-CONFIG-02")["result"], only(found, "MS-CONFIG-02")["remedy"]) == (
        "FAIL",
        f"sudo chmod go-w {file}",
    )
    assert only(found, "MS-CONFIG-01")["result"] == "PASS"
    missing = only(doctor(runtime_dir, "MS-CONFIG-02", "--config", "/nowhere.toml"), "MS-CONFIG-02")
    assert missing["result"] == "FAIL"


def test_a_configuration_that_may_not_be_read(runtime_dir):
    """To nobody that is unknown, not wrong."""
    file = runtime_dir / "config.toml"
    file.write_text("discover = true\n")
    file.chmod(0o600)
    found = doctor(runtime_dir, "MS-CONFIG-01", "MS-CONFIG-02", "--config", str(file), nobody=True)
    assert [only(found, check)["result"] for check in found] == ["UNKNOWN", "UNKNOWN"]


def test_a_broken_environment(runtime_dir):
    """A bad variable does not end the doctor; a misspelt one is named with its neighbour."""
    env = {"MEMSCALER_LEVER": "voltage", "MEMSCALER_WACTH": "8080"}
    result = memscaler("doctor", "MS-CONFIG", "--runtime-dir", str(runtime_dir), env=env)
    assert result.returncode == 1
    text = " ".join(result.stdout.split())
    assert "MEMSCALER_LEVER: 'voltage' is none of" in text
    assert "did you mean MEMSCALER_WATCH?" in text


def test_odd_names_in_remedies(machine, runtime_dir):
    """What is to be pasted into root's shell is quoted, whatever a path is called."""
    odd = runtime_dir / "a;b $(c)"
    odd.mkdir()
    odd.chmod(0o777)
    machine.with_settings(runtime_dir=odd)
    assert machine.findings("MS-UNIT-02")[0].remedy == f"sudo chmod go-w '{odd}'"
    file = odd / "config.toml"
    file.write_text("discover = true\n")
    found = only(doctor(runtime_dir, "MS-CONFIG-02", "--config", str(file)), "MS-CONFIG-02")
    assert found["remedy"] == f"sudo chmod go-w '{odd}'"
    machine.write("/etc/systemd/system/a;b.service", "[Service]\nExecStart=/usr/bin/memscaler run\n")
    assert machine.findings("MS-UNIT-01")[0].remedy == "sudo systemctl disable --now 'a;b.service'"


# ---- deeper sleep, and the gateway ----------------------------------------------------------------------------------

STOPPED = """
discover = true
[[server]]
name = "chat"
command = "/bin/true --port 8090"
port = 8090
[[stage]]
do = "stop-server"
after = "1h"
"""
GATEWAY = '[[gateway]]\nlisten = "0.0.0.0:8080"\nto = "127.0.0.1:8090"\nserver = "chat"\n'


def configured(machine, tmp_path, text):
    """The machine with this configuration, as the doctor reads it."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    found = load({}, {}, file)
    machine.with_settings(servers=found.servers, stages=found.stages, gateways=found.gateways, discover=found.discover)
    return file


def test_a_server_that_nobody_would_bring_back(machine, tmp_path, runtime_dir):
    """In the words of `config check`, and gone with the gateway that names it."""
    file = configured(machine, tmp_path, STOPPED)
    finding = machine.check("MS-CONFIG-05")
    assert finding.result is Result.WARN
    assert "once chat is stopped no [[gateway]] brings it back" in finding.seen
    said = memscaler("config", "check", str(file))
    assert finding.seen in " ".join((said.stdout + said.stderr).split())
    assert only(doctor(runtime_dir, "MS-CONFIG-05", "--config", str(file)), "MS-CONFIG-05")["result"] == "WARN"
    configured(machine, tmp_path, STOPPED + GATEWAY)
    assert machine.check("MS-CONFIG-05").result is Result.PASS
    machine.context.examined = None
    assert machine.check("MS-CONFIG-05").result is Result.UNKNOWN


def test_the_unit_of_the_gateway(machine, tmp_path):
    """Where there are gateways: installed, unmasked, enabled, and with a program; else it is not to be enabled."""
    wants = machine.root / "etc/systemd/system/multi-user.target.wants"
    assert machine.check("MS-UNIT-05").result is Result.PASS
    configured(machine, tmp_path, STOPPED + GATEWAY)
    finding = machine.check("MS-UNIT-05")
    assert (finding.result, "1 [[gateway]] table, and" in finding.seen) == (Result.WARN, True)
    assert finding.remedy.endswith("setup")
    machine.write(f"{LIB}/{systemd.GATEWAY}", (resources.systemd_dir() / systemd.GATEWAY).read_text())
    assert machine.check("MS-UNIT-05").result is Result.FAIL
    machine.write("/usr/bin/memscaler")
    assert machine.check("MS-UNIT-05").remedy == "sudo systemctl enable --now memscaler-gateway"
    wants.mkdir(parents=True)
    (wants / systemd.GATEWAY).symlink_to(f"{LIB}/{systemd.GATEWAY}")
    finding = machine.check("MS-UNIT-05")
    assert (finding.result, "is enabled; systemd does not run here" in finding.seen) == (Result.UNKNOWN, True)
    configured(machine, tmp_path, STOPPED)
    finding = machine.check("MS-UNIT-05")
    assert (finding.result, "no [[gateway]] is configured: it cannot start" in finding.seen) == (Result.WARN, True)
    configured(machine, tmp_path, STOPPED + GATEWAY)
    (machine.root / f"etc/systemd/system/{systemd.GATEWAY}").symlink_to("/dev/null")
    assert machine.check("MS-UNIT-05").remedy == "sudo systemctl unmask memscaler-gateway"


def test_a_drop_in_that_stages_need(installed, tmp_path):
    """Missing: by setup, or of a package by the one command; there by its name, or by what it sets."""
    configured(installed, tmp_path, STOPPED)
    assert installed.context.settings.stages

    def missing():
        return [each for each in installed.findings("MS-UNIT-01") if "sleep.conf" in each.seen]

    (finding,) = missing()
    assert finding.result is Result.WARN
    place = f"{ETC}/memscaler.service.d/sleep.conf"
    assert f"install -D -m 644 {resources.systemd_dir() / 'memscaler.sleep.conf'} {place}" in finding.remedy
    installed.write(f"{ETC}/memscaler.service", UNIT)
    assert missing()[0].remedy.endswith("/memscaler setup")
    other = installed.write(f"{ETC}/memscaler.service.d/override.conf", "[Service]\nTimeoutStopSec=1h\n")
    assert missing()
    other.write_text("[Service]\nTimeoutStopSec=1h\nDeviceAllow=char-nvidia-uvm rw\n")
    assert not missing()
    other.unlink()
    installed.write(place, "[Service]\nTimeoutStopSec=1h\n")
    assert not missing()
    installed.with_settings(stages=())
    (installed.root / place.lstrip("/")).unlink()
    assert not missing()
