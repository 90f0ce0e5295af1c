"""For all tests: in CI a skipped test is a failed one, because what is skipped everywhere is tested nowhere."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
# No deadlines: these machines are shared. In CI the same examples each time, so that a red run can be run again.
settings.register_profile("memscaler", deadline=None, derandomize=IN_CI)
settings.load_profile("memscaler")
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


def pytest_configure() -> None:
    """As in a terminal, also under nohup or behind `&`: what is ignored here would be ignored by whom we start."""
    for number, usual in USUAL.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn a skipped test into a failed one; an expected failure stays what it is."""
    return _failed_if_skipped((yield), item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Turn a skipped module (importorskip) into a failed one."""
    return _failed_if_skipped((yield), collector.nodeid)


def _failed_if_skipped(report, name):
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{name}: skipped in CI: {reason}"
    return report


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium. Not for longer than a module: playwright's event loop would be in the way of others'."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "chromium is missing: tools/setup installs it"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session", autouse=True)
def _leave_no_mount():
    """`ip netns add` makes /run/netns a mount; where it was none before, it is none afterwards."""
    before = _is_mount("/run/netns")
    yield
    if not before and _is_mount("/run/netns") and not any(Path("/run/netns").iterdir()):
        subprocess.run(["umount", "/run/netns"], check=True)


def _is_mount(path):
    """Also for a directory that is bound to itself, which os.path.ismount cannot see."""
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())
