"""A zone for the tests that need one, histories by the real writer, and the browser of the status page's tests."""

import time

import pytest

from tests.page.conftest import look  # noqa: F401  # a fixture
from tests.report.recorded import deeper, month

NOW_S = 1795298400.0  # 2026-11-21 22:00 UTC, a Saturday


@pytest.fixture
def zone(monkeypatch):
    """Set the time zone of this process; it is as before afterwards."""

    def in_zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield in_zone
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def a_month(tmp_path_factory):
    """A state directory with 30 days of three GPUs, up to NOW_S."""
    return month(tmp_path_factory.mktemp("month"), NOW_S)


@pytest.fixture(scope="session")
def deep_month(tmp_path_factory):
    """The same, with a server that was stopped at night."""
    return deeper(month(tmp_path_factory.mktemp("deep"), NOW_S), NOW_S)


@pytest.fixture(scope="session")
def fresh_month(tmp_path_factory):
    """The same up to now, for the command itself."""
    return month(tmp_path_factory.mktemp("fresh"), time.time())
