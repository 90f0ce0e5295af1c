"""What drivers ask of a watched server is heard by nobody: with the real hooks, in a network namespace of its own."""

import contextlib
import subprocess

import pytest

from memscaler.core.stages import Stage
from memscaler.kernel import records
from memscaler.sleep.drivers.make import Around, drivers
from memscaler.sleep.drivers.protocol import Target, unannounced
from memscaler.sleep.drivers.talk import Talk, door_of
from tests.kernel.worlds import Port, assert_eventually, world_of
from tests.servers.bench import PYTHON, REPOSITORY, eventually
from tests.sleep.drivers.benches import rule, within

SMALL = REPOSITORY / "tests/servers/small.py"


@pytest.fixture(params=["both", "tracepoint"])
def port(request):
    """A watched port with a server behind it, in its own namespace."""
    with world_of(request.param) as world, contextlib.closing(Port(world)) as made:
        words = ["nsenter", f"--net={world.netns}", PYTHON, str(SMALL), "--port", str(made.number)]
        server = subprocess.Popen(words)
        try:
            made.server = Target(f"{made.number}@netns:test", made.number, "netns:test", pids=(server.pid,))
            eventually(lambda: made.world.diag.listeners(made.number))
            yield made
        finally:
            server.kill()
            server.wait()


def announce_to(port):
    """As the governor does it."""

    def announce(_key, local, to):
        identity = records.IDENTITY.pack(
            port.watch.netns, to[1], local[1], 0, records.address(to[0]), records.address(local[0])
        )
        return port.world.ledger.own.announced(identity)

    return announce


def test_announced_it_rings_nobody(port):
    """Ten questions: nothing is opened, the doorbell stays armed. One that is not announced rings and counts."""
    counters, slot = port.world.ledger.counters, port.watch.slot
    counters.arm(slot)
    before = counters.read(slot)
    talk = Talk(announce_to(port))
    for _ in range(10):
        assert talk.get(door_of(port.server), "/health", within().until_s).ok
        assert port.live == 0
    assert counters.is_armed(slot)
    assert (counters.read(slot).opened, counters.read(slot).rings) == (before.opened, before.rings)
    assert Talk(unannounced).get(door_of(port.server), "/health", within().until_s).ok
    assert_eventually(lambda: not counters.is_armed(slot))
    assert counters.read(slot).opened == before.opened + 1


@pytest.mark.usefixtures("machine")
def test_asking_whether_a_stage_is_possible_rings_nobody(port, tmp_path):
    """All drivers, as the sleeper asks them."""
    counters, slot = port.world.ledger.counters, port.watch.slot
    counters.arm(slot)
    for stage, driver in drivers(Around(tmp_path, announce_to(port))).items():
        assert driver.possible(port.server, rule(stage), within())
        assert stage is not Stage.PARK
    assert counters.is_armed(slot)
