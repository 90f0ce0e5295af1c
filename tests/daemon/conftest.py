"""Short dwell times, so that tests can park often."""

import pytest


@pytest.fixture
def quick_settings(monkeypatch):
    """No minimum time between two parks."""
    monkeypatch.setenv("MEMSCALER_MIN_DWELL", "0s")
