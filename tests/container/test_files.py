"""Containerfile and compose.yaml say what the page says, and grant what the systemd unit grants, no more."""

import os
import re
import subprocess

import pytest
import yaml

from memscaler import resources
from memscaler.kernel.loader import TRACEFS
from tests.container import oci
from tools.image import CONTAINERFILE
from tools.release.lock import RUNTIME

COMPOSE = yaml.safe_load(oci.COMPOSE.read_text())
OURS = ("memscaler", "memscaler-guardian")
UNIT = (resources.systemd_dir() / "memscaler.service").read_text()
PAGE = (oci.ROOT / "docs/containers.md").read_text()


def of_unit(setting):
    """The value of a line of the unit."""
    return re.search(rf"^{setting}=(.*)$", UNIT, re.MULTILINE)[1]


@pytest.mark.parametrize("name", OURS)
def test_it_is_confined(name):
    """Never privileged; all capabilities dropped but the three that the unit has; nothing to write to but what is named."""
    said = COMPOSE["services"][name]
    assert "privileged" not in said
    assert said["cap_drop"] == ["ALL"]
    assert {f"CAP_{each}" for each in said["cap_add"]} == set(of_unit("CapabilityBoundingSet").split())
    assert "no-new-privileges:true" in said["security_opt"]
    assert not [each for each in said["security_opt"] if each.startswith("seccomp")]  # the engine's default stays
    assert said["read_only"] is True
    assert (said["pid"], said["network_mode"], said["cgroup"]) == ("host", "host", "host")
    assert said["oom_score_adj"] == int(of_unit("OOMScoreAdjust"))
    assert said["restart"] == "always"
    for volume in said["volumes"]:
        writable = volume["target"] in ("/run/memscaler", "/var/lib/memscaler")
        assert writable or volume["read_only"], volume


def test_the_journal_outlives_the_container():
    """Both see one /run/memscaler, of the host: the list of what is parked, and the lock of one governor per machine."""
    for name in OURS:
        (runtime,) = [each for each in COMPOSE["services"][name]["volumes"] if each["target"] == "/run/memscaler"]
        assert (runtime["type"], runtime["source"]) == ("bind", "/run/memscaler")


def test_the_guardian_is_in_another_container():
    """It waits there: what is killed with the governor cannot wake anything."""
    assert COMPOSE["services"]["memscaler-guardian"]["command"] == ["restore", "--wait"]
    assert COMPOSE["services"]["memscaler"]["command"][0] == "run"
    assert COMPOSE["services"]["memscaler"]["stop_grace_period"] == of_unit("TimeoutStopSec")


def test_the_tracepoint_is_where_the_loader_looks():
    """Docker's /sys has no tracefs in it."""
    (tracing,) = [each for each in COMPOSE["services"]["memscaler"]["volumes"] if "tracing" in each["target"]]
    assert tracing["target"] == tracing["source"] == TRACEFS


def test_the_image_is_made_of_a_release():
    """Wheel and lock, with hashes; the names are those that `make release` gives them."""
    text = CONTAINERFILE.read_text()
    assert f"memscaler-*-{RUNTIME.name} memscaler-*.whl" in text
    assert "--require-hashes" in text
    assert "--no-index --no-deps" in text
    assert text.count("FROM ${BASE}") == 2  # the same python in both: the environment is copied over
    assert not re.search(r"^USER|privileged(?!`)", text, re.MULTILINE)
    assert 'ENTRYPOINT ["memscaler"]' in text
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in text


@pytest.mark.parametrize(
    "word", ["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "libnvidia-api.so.1", "restore --wait", "apparmor"]
)
def test_the_page_explains_it(word):
    """What somebody must decide about stands there with its reason."""
    assert word in PAGE.partition("## memscaler in a container")[2]


def test_a_shell_reads_the_containerfiles_commands():
    """Every RUN is a line that sh understands."""
    commands = re.findall(r"^RUN ((?:.*\\\n)*.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True, env={"PATH": os.defpath})
