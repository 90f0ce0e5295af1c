"""The unit file, as systemd itself judges it. That it also works: `make test-systemd`."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.core.errors import ConfigError, Unavailable, UsageError
from memscaler.daemon.privileges import CONTROLLING
from memscaler.resources import systemd_dir
from tests.systemd.scenarios import KEPT, tight_lines

UNIT = systemd_dir() / "memscaler.service"
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "systemd.md"
EXPOSURE = 2.9  # of systemd 252; what it consists of is at the end of the unit
TIGHT_EXPOSURE = 2.5


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    """Ask systemd-analyze, which needs no running systemd for this."""
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unit() -> dict[str, dict[str, list[str]]]:
    """The unit as sections of keys, each with all its values."""

    class Repeated(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, self[key] + value if key in self and isinstance(value, list) else value)

    parser = configparser.RawConfigParser(dict_type=Repeated, strict=False, comment_prefixes=("#",))
    parser.optionxform = str
    parser.read(UNIT)
    return {name: {key: value.splitlines() for key, value in parser[name].items()} for name in parser.sections()}


def exposure(path: Path) -> float:
    """The figure of systemd-analyze."""
    said = analyze("security", "--offline=true", "--no-pager", str(path)).stdout
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def test_it_is_hardened():
    """The exposure score of systemd is what the unit, the README and the documentation say."""
    assert exposure(UNIT) <= EXPOSURE
    for path in (UNIT, ROOT / "README.md", PAGE):
        assert str(EXPOSURE) in path.read_text(), path


def test_the_tighter_drop_in(tmp_path: Path):
    """The one in the documentation is valid, and worth its price."""
    lines = tight_lines(PAGE.read_text())
    assert any(line.startswith("CapabilityBoundingSet=CAP_") for line in lines)
    copy = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true")
    copy.write_text(text.replace("[Install]", "\n".join((*lines, "[Install]"))))
    assert analyze("verify", str(copy)).stderr == ""
    assert exposure(copy) <= TIGHT_EXPOSURE


def test_it_is_valid(tmp_path: Path):
    """Every line is understood by systemd (checked with a command that exists here)."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    result = analyze("verify", str(copy))
    assert (result.returncode, result.stderr.replace(str(tmp_path), "")) == (0, "")


def test_every_open_line_has_its_reason():
    """What stays open is listed at the end, each with a reason."""
    text = UNIT.read_text()
    listed = text.partition("what stays open, and why")[2]
    names = ["User=", "PrivateDevices=no", "PrivateNetwork=no", "PrivateUsers=no", "ProtectProc=default", "ProcSubset="]
    names += ["MemoryDenyWriteExecute=no", "RestrictNamespaces=", "IPAddressAllow=", "DeviceAllow=", "RootDirectory="]
    names += ["@privileged", "@debug", "AF_UNIX", "AF_NETLINK", "AF_INET", *KEPT]
    assert [name for name in names if not re.search(rf"^#   0\.\d  .*{re.escape(name)}", listed, re.MULTILINE)] == []
    said = analyze("security", "--offline=true", "--no-pager", str(UNIT)).stdout
    open_lines = [line.split()[1].rstrip("=") for line in said.splitlines() if line.startswith("✗")]
    for each in open_lines:  # "SystemCallFilter=~@debug", "User=/DynamicUser="
        name = each.rpartition("~")[2].partition("=")[0]
        words = re.findall(r"[A-Z][A-Za-z]+|@[a-z]+|AF_[A-Z]+|CAP_[A-Z_]+[A-Z]|net", name)
        assert any(word.replace("IPAddressDeny", "IPAddressAllow") in listed for word in words), each


def test_never_stuck(unit):
    """The restore runs after every end, the journal outlives the stop, and only the governor gets SIGTERM."""
    service = unit["Service"]
    assert service["ExecStopPost"] == ["/usr/bin/memscaler restore"]
    assert service["RuntimeDirectory"] == ["memscaler"]
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert service["KillMode"] == ["mixed"]
    assert service["Restart"] == ["always"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert service["ExecReload"] == ["/usr/bin/memscaler reload"]
    assert "WatchdogSec" in service
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_what_does_not_get_better_is_not_retried(unit):
    """The exit codes that prevent a restart are those of a wrong command line and configuration, not of a late driver."""
    codes = {int(code) for code in unit["Service"]["RestartPreventExitStatus"][0].split()}
    assert codes == {UsageError.exit_code, ConfigError.exit_code}
    assert Unavailable.exit_code not in codes


@pytest.mark.parametrize("path", sorted(systemd_dir().glob("*.service")), ids=lambda path: path.name)
def test_nothing_else_has_to_be_there(path):
    """Beside memscaler the units start only the shell, which is everywhere: a minimal Debian has not even /bin/kill."""
    started = set(re.findall(r"^Exec\w+=(?!-)(\S+)", path.read_text(), re.MULTILINE))  # with "-" it may be missing
    assert "/usr/bin/memscaler" in started
    assert started <= {"/usr/bin/memscaler", "/bin/sh"}


def test_companions():
    """The group and the configuration directory are made by systemd's own tools."""
    users = (systemd_dir() / "memscaler.sysusers.conf").read_text().splitlines()
    group, user = [line for line in users if not line.startswith("#")]
    assert group == "g memscaler -"
    assert user.startswith("u memscaler-servers - ")
    files = (systemd_dir() / "memscaler.tmpfiles.conf").read_text().splitlines()
    assert [line for line in files if not line.startswith("#")] == [
        "d /etc/memscaler 0755 root root -",
        "d /etc/memscaler/servers.d 0755 root root -",
    ]


def test_the_control_socket_can_be_given_to_its_group(unit):
    """Without CAP_CHOWN only to a group of one's own; the one of the sysusers file."""
    assert unit["Service"]["SupplementaryGroups"] == ["memscaler"]
    assert "g memscaler -" in (systemd_dir() / "memscaler.sysusers.conf").read_text()


def test_growing_pauses(tmp_path: Path):
    """The drop-in is of what systemd 254 has; an older one knows nothing else in it."""
    text = (systemd_dir() / "memscaler.pauses.conf").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["[Service]", "RestartSteps=8", "RestartMaxDelaySec=5min"]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    drop_in = tmp_path / f"{UNIT.name}.d" / "pauses.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(text)
    said = analyze("verify", str(copy)).stderr.splitlines()
    assert all(re.search("Unknown key.*Restart(Steps|MaxDelaySec)", line) for line in said), said


def test_deeper_sleep(tmp_path: Path):
    """The drop-in for it is one that systemd understands, and costs little of the hardening."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    drop_in = tmp_path / f"{UNIT.name}.d" / "sleep.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((systemd_dir() / "memscaler.sleep.conf").read_text())
    assert not analyze("verify", str(copy)).stderr
    assert exposure(copy) <= EXPOSURE + 0.1


def test_control_of_applications(tmp_path: Path):
    """The drop-in for [[gpuctl]]: the three rights that the program keeps for it, and the one call; no more than that."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    text = (systemd_dir() / "memscaler.gpuctl.conf").read_text()
    drop_in = tmp_path / f"{UNIT.name}.d" / "gpuctl.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(text)
    assert not analyze("verify", str(copy)).stderr
    assert exposure(copy) <= EXPOSURE + 0.9
    assert f"CapabilityBoundingSet={' '.join(CONTROLLING)}\n" in text
    denied = analyze("syscall-filter", "@resources").stdout.split()
    (allowed,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("SystemCallFilter=")]
    assert allowed in denied


def test_the_companions_work(tmp_path: Path):
    """systemd-sysusers and systemd-tmpfiles take them."""
    (tmp_path / "etc").mkdir()
    users = ["systemd-sysusers", f"--root={tmp_path}", str(systemd_dir() / "memscaler.sysusers.conf")]
    files = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(systemd_dir() / "memscaler.tmpfiles.conf")]
    for command in (users, files):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    assert "memscaler:" in (tmp_path / "etc/group").read_text()
    assert (tmp_path / "etc/memscaler").is_dir()


def test_the_rights_that_are_left_suffice(unit):
    """The kernel side loads and seeds with no more capabilities than the unit leaves."""
    kept = ",".join(
        f"+{name.removeprefix('CAP_').lower()}" for name in unit["Service"]["CapabilityBoundingSet"][0].split()
    )
    code = (
        "from memscaler import resources; from memscaler.kernel import attachment, ledger;"
        "attached = attachment.load(resources.bpf_dir());"
        "ledger.Ledger(attached).watch(8080, ledger.own_namespace());"
        "print(sorted({'tracepoint', 'sockops'} & attached.fds.keys()))"
    )
    command = [
        "setpriv",
        f"--bounding-set=-all,{kept}",
        "--inh-caps=-all",
        "--no-new-privs",
        sys.executable,
        "-c",
        code,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "['sockops', 'tracepoint']\n", "")
