"""Fixtures of the kernel tests: they need root and the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from memscaler.kernel.sock_diag import SockDiag
from tests.kernel.worlds import Port, World, namespace, world_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "tests/kernel/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="module", params=["both", "tracepoint"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Its own namespace and attachment, with both hooks and with the tracepoint alone; some modules add "no-btf"."""
    with world_of(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    """Path of a namespace in which nothing is watched."""
    with namespace() as made:
        yield made


@pytest.fixture
def diag(netns: str) -> Iterator[SockDiag]:
    """Asks about that namespace."""
    made = SockDiag(netns)
    yield made
    made.close()


@pytest.fixture
def port(world: World) -> Iterator[Port]:
    """A watched port; when the test is over everything is closed, and nothing may be left."""
    made = Port(world)
    try:
        yield made
    finally:
        made.close()
    made.settles(0)
