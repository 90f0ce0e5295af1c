"""The supervisor's units, as systemd itself judges them."""

import re
import subprocess
from pathlib import Path

import pytest

from memscaler.core.errors import ConfigError, UsageError
from memscaler.resources import systemd_dir
from memscaler.servers import places

NAMES = ("memscaler-servers.service", "memscaler-servers@.service")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "servers.md"
EXPOSURE = 2.3  # of systemd 252; what it consists of is at the end of the unit


def text_of(name: str) -> str:
    return (systemd_dir() / name).read_text()


def values(name: str) -> dict[str, list[str]]:
    """Key -> its values, in order."""
    found: dict[str, list[str]] = {}
    for line in text_of(name).splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def security(name: str) -> str:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(systemd_dir() / name)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid(name, tmp_path):
    """Every line is understood by systemd (checked with programs that exist here)."""
    copy = tmp_path / name
    copy.write_text(re.sub("/usr/bin/(memscaler|nvidia-modprobe)", "/bin/true", text_of(name)))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_hardened(name):
    """The exposure score of systemd is what the unit and the documentation say."""
    found = re.search(r"exposure level for \S+: ([0-9.]+)", security(name))
    assert found
    assert float(found[1]) <= EXPOSURE
    assert f"says {EXPOSURE}." in text_of(name)
    assert str(EXPOSURE) in PAGE.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_open_line_has_its_reason(name):
    """What stays open is listed at the end, each with its price."""
    listed = text_of(name).partition("what stays open, and why")[2]
    words = []
    for line in security(name).splitlines():
        if line.startswith("✗"):
            key = line.split()[1].rpartition("~")[2].rstrip("=")
            words.append(re.findall(r"[A-Z][A-Za-z]+|@[a-z]+|AF_[A-Z]+", key))
    assert len(words) > 10
    for each in words:
        assert any(re.search(rf"^#   0\.\d  .*{re.escape(word)}", listed, re.MULTILINE) for word in each), each


@pytest.mark.parametrize("name", NAMES)
def test_servers_survive(name):
    """A crash and a restart of the supervisor, and what one server does to itself, end no other server."""
    said = values(name)
    assert said["KillMode"] == ["process"]
    assert said["OOMPolicy"] == ["continue"]
    assert said["Restart"] == ["always"]
    assert said["RuntimeDirectoryPreserve"] == ["restart"]
    assert said["Type"] == ["notify"]
    assert "PrivateTmp" not in said or said["PrivateTmp"] == ["no"]
    codes = {int(code) for code in said["RestartPreventExitStatus"][0].split()}
    assert codes == {UsageError.exit_code, ConfigError.exit_code}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_nobody_special(name):
    """No right is left, and its user is not root."""
    said = values(name)
    assert said["CapabilityBoundingSet"] == [""]
    assert said["NoNewPrivileges"] == ["yes"]
    assert said["User"] in ([places.USER], ["%i"])
    assert said["SupplementaryGroups"] == ["memscaler"]


def test_folders_are_those_of_the_code():
    """Where the unit puts them is where the supervisor keeps what, and where the commands look."""
    said = values(NAMES[0])
    assert said["RuntimeDirectory"] == said["StateDirectory"] == said["LogsDirectory"] == [places.NAME]
    assert places.whose({"RUNTIME_DIRECTORY": "/run/memscaler-servers"}) == ""
    assert places.whose({"RUNTIME_DIRECTORY": "/run/memscaler-servers-alice"}) == "alice"
    assert places.whose({}) == ""
    environ = {"RUNTIME_DIRECTORY": "/run/a", "STATE_DIRECTORY": "/var/lib/a", "LOGS_DIRECTORY": "/var/log/a"}
    assert [str(each) for each in vars_of(places.own(environ))] == ["/run/a", "/var/lib/a", "/var/log/a"]
    assert places.without_own(environ | {"HOME": "/x"}) == {"HOME": "/x"}


def vars_of(found):
    return found.runtime, found.state, found.logs


def test_the_template_differs_in_its_user_only():
    """What is changed in one of them is changed in the other."""
    default, template = (values(name) for name in NAMES)
    differ = {key for key in default.keys() | template.keys() if default.get(key) != template.get(key)}
    own = {
        "Description",
        "User",
        "ExecReload",
        "RuntimeDirectory",
        "StateDirectory",
        "LogsDirectory",
        "SyslogIdentifier",
    }
    assert differ == own | {"Environment"}
    for key in own:
        assert "%i" in template[key][0]


def test_its_user_is_made(tmp_path):
    """By systemd-sysusers, with the home that the unit makes."""
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(systemd_dir() / "memscaler.sysusers.conf")]
    subprocess.run(command, check=True, capture_output=True)
    line = next(
        line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith(f"{places.USER}:")
    )
    assert line.split(":")[5] == f"/var/lib/{places.NAME}"
    assert line.endswith("nologin")
