"""Runs inside the emulated machine (tools/distros/machine.py): chooses the tests, runs them, writes what came out.

python -m tests.distros.guest RESULTS_FILE
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memscaler.core.errors import MemscalerError
from memscaler.kernel import attachment
from memscaler.simulator import build

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
ENVIRONMENT = {
    "MEMSCALER_TEST_PATIENCE": "5",  # what is waited for may take this many times as long as on a real machine
    "MEMSCALER_SOAK": "1000",  # fewer turns of the tests that take many
    "MEMSCALER_SOAK_KILLS": "2",
}
# What depends on the kernel and on bcc. The rest of tests/kernel is about our own code, about time, or about masses.
TESTS = [
    *(f"tests/kernel/test_{name}.py" for name in ("layout", "opens_and_closes", "namespaces", "seeding")),
    *(
        f"tests/kernel/test_loader.py::test_{name}"
        for name in (
            "everything",
            "no_cgroup2",
            "no_btf",
            "tracefs_gets_mounted",
            "minimal_capabilities",
            "no_tracepoint",
            "broken_program",
            "holder_killed",
        )
    ),
    *(
        f"tests/kernel/test_data_hook.py::test_{name}"
        for name in (
            "first_byte_rings_once",
            "acknowledgements_and_window_updates_do_not_ring",
            "end_of_a_connection_does_not_ring",
            "silent_connection_is_listened_to",
            "own_probe_is_nobody",
        )
    ),
    *(f"tests/daemon/test_{name}.py" for name in ("old_kernels",)),
    "tests/daemon/test_following.py::test_a_port_alone_waits_for_its_server_and_follows_it",
    "tests/daemon/test_following.py::test_two_namespaces_with_the_same_port_on_two_gpus",
    *(
        f"tests/daemon/test_run.py::{name}"
        for name in (
            "test_parks_when_quiet_and_wakes_on_connection",
            "test_connection_older_than_the_start_keeps_the_gpu_awake",
            "test_gpus_are_independent_and_shared_gpu_waits_for_all",
            "test_every_gpu_is_awake_before_the_end[15]",
            "test_runs_in_an_environment_without_bcc",
        )
    ),
    *(
        f"tests/daemon/test_never_stuck.py::{name}"
        for name in (
            "test_kill_9_at_random_moments",
            "test_guardian_killed_is_replaced_and_nothing_parks_meanwhile",
            "test_daemon_and_guardian_killed_together_leave_a_journal_for_restore",
        )
    ),
]
BCC = """
import bcc, re
maps = open("/proc/self/maps").read()
print(bcc.__version__, *re.findall(r"libLLVM[-.a-z]*([0-9]+)", maps)[:1])
"""


class LeftOut(NamedTuple):
    """A test that is not run on some machines: which, why, and where."""

    pattern: str
    reason: str
    where: Callable[[dict[str, Any]], bool]


def one_namespace(machine: dict[str, Any]) -> bool:
    """True if the loader cannot tell network namespaces apart here (before Linux 5.14 or 5.15)."""
    return not machine["loader"].get("namespaces")


def old_gcc(machine: dict[str, Any]) -> bool:
    """True if the compiler cannot write BTF."""
    return int(machine["gcc"].split(".")[0]) < 12


def old_setpriv(machine: dict[str, Any]) -> bool:
    """True if setpriv knows no capability that is newer than itself."""
    return not machine["setpriv_knows_bpf"]


def old_bcc(machine: dict[str, Any]) -> bool:
    """True if bcc finds tracefs in debugfs only."""
    return tuple(map(int, machine["bcc"].split(".")[:2])) < (0, 22)


def paranoid(machine: dict[str, Any]) -> bool:
    """True if tracepoints are for CAP_SYS_ADMIN only."""
    return int(machine["perf_event_paranoid"]) > 2


LEFT_OUT = [
    LeftOut(
        r"test_loader\.py::test_everything",
        "expects that namespaces are told apart; what is missing here is in the table",
        one_namespace,
    ),
    LeftOut(
        r"test_namespaces\.py::test_(two_namespaces|cookies_differ)",
        "needs a kernel that tells namespaces apart",
        one_namespace,
    ),
    LeftOut(
        r"test_loader\.py::(test_minimal_cap|test_without_net_admin|test_no_permission\[without)",
        "needs a setpriv that knows CAP_BPF",
        old_setpriv,
    ),
    LeftOut(
        r"test_loader\.py::test_tracefs_gets_mounted",
        "this bcc finds tracefs in debugfs only; the error says what to mount",
        old_bcc,
    ),
    LeftOut(
        r"test_loader\.py::(test_minimal_cap|test_without_net_admin)",
        "kernel.perf_event_paranoid is 3: tracepoints want CAP_SYS_ADMIN here, which the error says",
        paranoid,
    ),
    LeftOut(
        r"test_following\.py::test_two_namespaces",
        "needs a kernel that tells namespaces apart",
        one_namespace,
    ),
    LeftOut(r"test_layout\.py::test_btf_of_the_running", "needs a kernel with cookies of namespaces", one_namespace),
    LeftOut(r"test_layout\.py::test_btf_of_a_compiler", "needs gcc 12 or newer", old_gcc),
]


class Record:
    """A pytest plugin: leaves out what makes no sense here, and remembers how each test ended."""

    def __init__(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.passed: set[str] = set()
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.left_out: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect, and keep the reason."""
        kept, gone = [], []
        for item in items:
            reason = self.why_not(item.nodeid)
            (gone if reason else kept).append(item)
            if reason:
                self.left_out.setdefault(reason, []).append(item.nodeid)
        items[:] = kept
        config.hook.pytest_deselected(items=gone)

    def why_not(self, nodeid: str) -> str:
        """Why this test is left out here, or nothing."""
        fitting = (each for each in LEFT_OUT if re.search(each.pattern, nodeid) and each.where(self.machine))
        return next((each.reason for each in fitting), "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of set-up, call and tear-down; a failure in any of them is one."""
        if report.failed:
            text = str(report.longrepr)
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed.setdefault(report.nodeid, crash.message[:500] if crash else text[-500:])
            self.passed.discard(report.nodeid)
            print(f"\n{text}", flush=True)  # now, not at the end, which may never come
        elif report.skipped:
            self.skipped[report.nodeid] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
        elif report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported is a failure."""
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)[-500:]


def describe() -> dict[str, Any]:
    """The machine, and what the loader makes of it."""
    python = attachment.DISTRIBUTION_PYTHON
    asked = subprocess.run([python, "-c", BCC], capture_output=True, text=True, check=True)
    bcc, _, llvm = asked.stdout.strip().partition(" ")
    machine: dict[str, Any] = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "kernel": platform.release(),
        "bcc": bcc,
        "llvm": llvm,
        "python": platform.python_version(),
        "distribution_python": said_by(python, "--version").split()[-1],
        "gcc": said_by("gcc", "-dumpversion"),
        "setpriv_knows_bpf": "bpf" in said_by("setpriv", "--list-caps").split(),
        "perf_event_paranoid": Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip(),
        "systemd": said_by("systemctl", "--version").split()[1],
    }
    try:
        attached = attachment.load(ROOT / "bpf")
    except MemscalerError as error:
        return machine | {"loader": {"error": f"{error} ({error.hint})"}}
    hooks = [hook for hook in ("sockops", "tracepoint") if hook in attached.fds]
    told = {"python": attached.python, "headers": attached.headers, "hooks": hooks}
    attached.close()
    return machine | {"loader": {**told, "namespaces": attached.tells_netns, "notices": list(attached.notices)}}


def said_by(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(target: str) -> None:
    machine = describe()
    print(json.dumps(machine, indent=1), flush=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # systemd allows 1024; a test has more sockets open
    record = Record(machine)
    build()  # or the first governor waits for the compiler
    options = [
        "-v",
        "--color=no",
        "--tb=short",
        "--durations=10",
        "-p",
        "no:cacheprovider",
        "-o",
        f"timeout={TIMEOUT_S}",
    ]
    status = pytest.main([*options, *TESTS], plugins=[record])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        record.failed["pytest"] = f"ended with status {int(status)}"
    outcome = {"passed": len(record.passed), "failed": record.failed, "skipped": record.skipped}
    with Path(target).open("r+b") as disk:
        disk.write(json.dumps({**machine, **outcome, "left_out": record.left_out}).encode())


def hand_over() -> None:
    """Become another guest if the kernel's command line names one (tools/distros/machine.py: Job)."""
    told = dict(word.split("=", 1) for word in Path("/proc/cmdline").read_text().split() if "=" in word)
    if module := told.get("memscaler.guest"):
        more = filter(None, told.get("memscaler.arguments", "").split(","))
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:], *more])


if __name__ == "__main__":
    hand_over()
    os.environ.update(ENVIRONMENT)
    main(sys.argv[1])
