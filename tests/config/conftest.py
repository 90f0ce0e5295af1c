"""Configuration files of a test's own."""

from pathlib import Path

import pytest

from memscaler.config.load import load
from memscaler.config.schema import Settings


@pytest.fixture
def config(tmp_path: Path):
    """Write a configuration file and load it."""

    def write(text, flags=None, environ=None) -> Settings:
        file = tmp_path / "config.toml"
        file.write_text(text)
        return load(flags or {}, environ or {}, file)

    return write


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch, tmp_path):
    """The machine's own configuration stays out of the tests."""
    monkeypatch.setattr("memscaler.config.load.DEFAULT_FILE", tmp_path / "none.toml")
