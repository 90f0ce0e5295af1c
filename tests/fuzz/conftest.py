"""The figure of `make fuzz`."""

import pytest

from tests.fuzz import cases

AS_MANY_AS_PROMISED = 100_000


def pytest_terminal_summary(terminalreporter):
    """How many cases there were, of which kind."""
    if cases.ran:
        kinds = ", ".join(f"{count} {part}" for part, count in cases.ran.items())
        terminalreporter.write_line(f"fuzz: {sum(cases.ran.values())} cases: {kinds}")


def pytest_sessionfinish(session):
    """A long run with fewer cases than promised has failed."""
    complete = len(cases.ran) == len(PARTS) and not session.testsfailed
    if complete and sum(cases.ran.values()) < AS_MANY_AS_PROMISED <= cases.TOTAL:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


PARTS = (
    "control",
    "metrics",
    "configuration",
    "port",
    "journal",
    "leases",
    "processes",
    "scopes",
    "sock_diag",
    "gateway",
)
