"""The kernel's checks: on this machine, on this machine with something hidden, and on machines made of files."""

import os
import sys

import pytest

from memscaler.daemon.doctor.model import Result
from memscaler.kernel import loader
from tests.doctor.bench import doctor, only

KERNEL = [f"MS-KERNEL-0{number}" for number in range(1, 9)]
HIDE = "mount --make-rprivate / 2>/dev/null || true; umount -l /sys/kernel/debug 2>/dev/null || true; "
HIDE += 'mount -t tmpfs none /sys/kernel/tracing && exec "$@"'


def test_this_machine_as_root(runtime_dir):
    """Where the other tests run, everything that they need is there."""
    found = doctor(runtime_dir, *KERNEL)
    assert {check: only(found, check)["result"] for check in KERNEL} == dict.fromkeys(KERNEL, "PASS")
    assert os.uname().release in only(found, "MS-KERNEL-01")["seen"]


def test_this_machine_as_nobody(runtime_dir):
    """What only root can know is unknown, and nothing is a failure."""
    found = doctor(runtime_dir, *KERNEL, nobody=True)
    results = {check: only(found, check)["result"] for check in KERNEL}
    assert "FAIL" not in results.values()
    assert results["MS-KERNEL-05"] == "UNKNOWN"
    assert "inconclusive without root" in only(found, "MS-KERNEL-05")["remedy"]
    assert results["MS-KERNEL-08"] == results["MS-KERNEL-01"] == "PASS"


def test_tracefs_that_is_not_mounted(runtime_dir):
    """The command that mounts it is said; memscaler would mount it itself, so it is no failure."""
    prefix = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", HIDE, "sh")
    finding = only(doctor(runtime_dir, "MS-KERNEL-03", prefix=prefix), "MS-KERNEL-03")
    assert finding["result"] == "WARN"
    assert finding["remedy"] == "sudo mount -t tracefs nodev /sys/kernel/tracing"


def test_a_python_without_bcc(runtime_dir):
    """The interpreter and the distribution's own command are named; -S: nothing that was installed is seen."""
    python = runtime_dir / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    finding = only(doctor(runtime_dir, "MS-KERNEL-04", env={"MEMSCALER_LOADER_PYTHON": str(python)}), "MS-KERNEL-04")
    assert finding["result"] == "FAIL"
    assert f"{python} cannot import bcc (ModuleNotFoundError" in finding["seen"]
    assert "install" in finding["remedy"]
    assert 'loader_python = "auto"' in finding["remedy"]


def test_no_such_python(runtime_dir):
    """A python that is not there is no traceback."""
    finding = only(doctor(runtime_dir, "MS-KERNEL-04", env={"MEMSCALER_LOADER_PYTHON": "/nowhere"}), "MS-KERNEL-04")
    assert (finding["result"], finding["seen"]) == ("FAIL", "cannot run /nowhere: No such file or directory")


def test_root_without_rights(runtime_dir):
    """Root in a container that may not load programs is told which rights are missing, and here it is a failure."""
    prefix = ("setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon", "--inh-caps=-all")
    finding = only(doctor(runtime_dir, "MS-KERNEL-05", prefix=prefix), "MS-KERNEL-05")
    assert finding["result"] == "FAIL"
    assert "CAP_BPF" in finding["remedy"]


@pytest.mark.parametrize(
    ("release", "results"),
    [
        ("4.15.0-213-generic", ("FAIL", "WARN")),
        ("5.4.0-150-generic", ("PASS", "WARN")),
        ("5.8.0", ("PASS", "PASS")),
        ("7.0-rc1+", ("PASS", "PASS")),
    ],
)
def test_kernels(machine, release, results):
    """Too old, without a ring buffer, and good."""
    machine.write("/proc/sys/kernel/osrelease", release + "\n")
    assert (machine.check("MS-KERNEL-01").result, machine.check("MS-KERNEL-07").result) == results
    assert release in machine.check("MS-KERNEL-01").seen


def test_btf_that_is_missing_or_says_nothing(machine):
    """Either costs the same, and the kernel's option is named."""
    finding = machine.check("MS-KERNEL-02")
    assert (finding.result, loader.ONE_NAMESPACE in finding.seen) == (Result.WARN, True)
    assert "CONFIG_DEBUG_INFO_BTF=y" in finding.remedy
    machine.write(loader.BTF, "no BTF at all")
    assert machine.check("MS-KERNEL-02").result is Result.WARN


def test_tracepoints_of_other_kernels(machine):
    """No tracefs, tracefs unmounted, tracefs without the tracepoint, and all of it."""
    assert "no tracefs" in machine.check("MS-KERNEL-03").seen
    machine.write("/proc/filesystems", "nodev\tsysfs\nnodev\ttracefs\n")
    assert machine.check("MS-KERNEL-03").result is Result.WARN
    machine.write("/sys/kernel/tracing/events/header_page")
    finding = machine.check("MS-KERNEL-03")
    assert (finding.result, "CONFIG_FTRACE" in finding.remedy) == (Result.FAIL, True)
    machine.write("/sys/kernel/tracing/events/sock/inet_sock_set_state/format")
    assert machine.check("MS-KERNEL-03").result is Result.PASS


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("[none] integrity confidentiality", "PASS"),
        ("none [integrity] confidentiality", "PASS"),
        ("none integrity [confidentiality]", "FAIL"),
    ],
)
def test_lockdown(machine, word, result):
    """Only the strictest lockdown forbids tracing."""
    machine.write("/sys/kernel/security/lockdown", word + "\n")
    assert machine.check("MS-KERNEL-05").result == result


def test_cgroups(machine):
    """Version 2 mounted, not mounted, only a container's, and no /proc at all."""
    assert machine.check("MS-KERNEL-06").result is Result.UNKNOWN
    machine.write("/proc/self/mounts", "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
    finding = machine.check("MS-KERNEL-06")
    assert (finding.result, "mount -t cgroup2" in finding.remedy) == (Result.WARN, True)
    machine.write("/proc/self/mounts", "none /sys/fs/cgroup cgroup2 rw 0 0\n")
    assert machine.check("MS-KERNEL-06").result is Result.PASS
    machine.write("/sys/fs/cgroup/cgroup.events")
    assert machine.check("MS-KERNEL-06").result is Result.WARN


@pytest.mark.parametrize(
    ("os_release", "remedy"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\n', "sudo apt-get install python3-bpfcc"),
        ("ID=ubuntu\nID_LIKE=debian\n", "sudo apt-get install python3-bpfcc"),
        ('ID="linuxmint"\nID_LIKE="ubuntu debian"\n', "sudo apt-get install python3-bpfcc"),
        ("ID=fedora\n", "sudo dnf install python3-bcc"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "sudo dnf install python3-bcc"),
        ("ID=arch\n", "sudo pacman -S python-bcc"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "sudo zypper install python3-bcc"),
        ("ID=alpine\n", "sudo apk add py3-bcc"),
        ("ID='never heard\nnonsense\n", "install the python 3 binding of bcc"),
        ("", "install the python 3 binding of bcc"),
    ],
)
def test_the_command_of_the_distribution(machine, os_release, remedy):
    """The package is called what this distribution calls it."""
    machine.write("/etc/os-release", os_release)
    assert machine.context.distribution.bcc() == remedy


def test_drivers_of_distributions(machine):
    """The driver too, and where nobody knows, that is what is said."""
    for os_release, driver, nvapi in [
        ("ID=debian", "sudo apt-get install nvidia-driver (from the component non-free)", "libnvidia-api1"),
        ("ID=ubuntu\nID_LIKE=debian", "ubuntu-drivers", "apt-file search libnvidia-api.so.1"),
        ("ID=fedora", "RPM Fusion", "dnf provides libnvidia-api.so.1"),
        ("ID=plan9", "install the NVIDIA driver", "libnvidia-api.so.1"),
    ]:
        machine.write("/etc/os-release", os_release)
        assert driver in machine.context.distribution.driver()
        assert nvapi in machine.context.distribution.nvapi()
