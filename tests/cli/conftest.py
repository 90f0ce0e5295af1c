"""For commands that ask a daemon: a runtime directory, and somebody who answers there."""

import pytest

from tests.asked import answering, short_folder


@pytest.fixture
def folder():
    """The runtime directory."""
    with short_folder() as path:
        yield path


@pytest.fixture
def loop(folder):
    """A control socket in the folder, and who answers there."""
    with answering(folder) as loop:
        yield loop
