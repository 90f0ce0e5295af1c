"""Machines of files, and runtime directories that everybody may enter."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asked import short_folder
from tests.doctor.bench import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder
