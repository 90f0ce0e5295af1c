"""What the tests of gvm share: GVM's driver, faked as a program with a FUSE file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gvm.fake.client import FakeGvm


@pytest.fixture
def gvm(tmp_path: Path) -> Iterator[FakeGvm]:
    """The fake driver, loaded, with nobody on a GPU. gvm.root, gvm.proc, gvm.environment; see fake/client.py."""
    fake = FakeGvm(tmp_path / "gvm")
    try:
        yield fake
    finally:
        fake.stop()
