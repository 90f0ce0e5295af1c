"""The unit file, as systemd itself judges it."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.core.errors import ConfigError, Unavailable, UsageError
from memscaler.resources import systemd_dir

UNIT = systemd_dir() / "memscaler.service"
THRESHOLD = 35  # systemd-analyze counts in tenths


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


def test_it_is_hardened():
    """The exposure score of systemd is 3.5 or better."""
    result = analyze("security", "--offline=true", f"--threshold={THRESHOLD}", str(UNIT))
    assert result.returncode == 0, result.stdout
    assert "Overall exposure level" in result.stdout


def test_it_is_valid(tmp_path: Path):
    """Every line is understood by systemd (checked with a command that exists here)."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    result = analyze("verify", str(copy))
    assert (result.returncode, result.stderr.replace(str(tmp_path), "")) == (0, "")


def test_every_open_line_has_its_reason():
    """What stays open is listed at the end, each with a reason."""
    text = UNIT.read_text()
    for setting in ("User=", "PrivateDevices=no", "PrivateNetwork=no", "PrivateUsers=no", "ProtectProc=default"):
        assert f"#   {setting}" in text
    assert "ProtectKernelModules=no" in text
    assert "MemoryDenyWriteExecute=no" in text


def test_never_stuck(unit):
    """The restore runs after every end, the journal outlives the stop, and only the governor gets SIGTERM."""
    service = unit["Service"]
    assert service["ExecStopPost"] == ["/usr/bin/memscaler restore"]
    assert service["RuntimeDirectory"] == ["memscaler"]
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert service["KillMode"] == ["mixed"]
    assert service["Restart"] == ["always"]
    assert service["Type"] == ["notify"]
    assert "WatchdogSec" in service


def test_what_does_not_get_better_is_not_retried(unit):
    """The exit codes that prevent a restart are those of a wrong command line and configuration, not of a late driver."""
    codes = {int(code) for code in unit["Service"]["RestartPreventExitStatus"][0].split()}
    assert codes == {UsageError.exit_code, ConfigError.exit_code}
    assert Unavailable.exit_code not in codes


def test_companions():
    """The group and the configuration directory are made by systemd's own tools."""
    users = (systemd_dir() / "memscaler.sysusers.conf").read_text().splitlines()
    assert [line for line in users if not line.startswith("#")] == ["g memscaler -"]
    files = (systemd_dir() / "memscaler.tmpfiles.conf").read_text().splitlines()
    assert [line for line in files if not line.startswith("#")] == ["d /etc/memscaler 0755 root root -"]


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
