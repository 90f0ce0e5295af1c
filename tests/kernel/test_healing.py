"""Reconciling when the hooks missed something, and when the world moves in the middle of it."""

import time

import pytest

from memscaler.kernel import records
from memscaler.kernel.healing import Corrections
from tests.kernel.worlds import Port, World, connected, reset


def entries(port: Port) -> list[bytes]:
    return list(port.world.ledger._connections.by_slot().get(port.watch.slot, {}))


def forge(port: Port, since_ns: int = 1) -> bytes:
    """An entry whose connection is long gone, as a lost close leaves it; counted as opened, like a hook would."""
    key = records.IDENTITY.pack(port.watch.netns, port.number, 1, 0, bytes(16), bytes(16))
    port.world.ledger._connections.put(key, records.CONNECTION.pack(since_ns, port.watch.slot, 0, 0, 0))
    port.watch.seeded += 1
    return key


class Interleaved:
    """The real sock_diag, and things that happen right after its n-th dump."""

    def __init__(self, diag, **after):
        self._diag = diag
        self._after = after
        self._dumps = 0

    def connections(self, port, **more):
        rows = self._diag.connections(port, **more)
        self._dumps += 1
        self._after.get(f"dump_{self._dumps}", lambda: None)()
        return rows

    def __getattr__(self, name):
        return getattr(self._diag, name)


def reconcile(port: Port, **after) -> Corrections:
    port.watch.diag = Interleaved(port.diag, **after)
    try:
        return port.world.ledger.reconcile(port.watch)
    finally:
        port.watch.diag = port.diag


def test_lost_close_is_healed(port: Port):
    """An entry without a socket goes, once."""
    port.pair(port.listen())
    forge(port)
    assert port.live == 2
    assert reconcile(port) == Corrections(removed=1)
    port.settles(1)
    assert port.watch.healed == 1
    assert reconcile(port) == Corrections()


def test_lost_open_is_healed(port: Port):
    """A socket without an entry comes, and its close counts."""
    client, accepted = port.pair(port.listen())
    port.world.ledger._connections.delete(entries(port)[0])
    port.watch.healed += 1
    assert port.live == 0
    assert reconcile(port) == Corrections(added=1)
    port.settles(1)
    assert port.watch.added == 1
    reset(client)
    accepted.close()
    port.settles(0)


def test_new_connection_renews_a_stale_entry(port: Port):
    """A connection with the identity of one whose close was lost counts once, and stays."""
    server = port.listen()
    source = ("127.0.0.1", port.number + 20000)
    first = connected(port.world.netns, port.number, source=source)
    held = server.accept()[0]
    (key,) = entries(port)
    reset(first)
    held.close()
    port.settles(0)
    port.world.ledger._connections.put(key, records.CONNECTION.pack(1, port.watch.slot, 0, 0, 0))
    port.watch.seeded += 1
    reopened_ns = time.monotonic_ns()
    second = port.kept.enter_context(connected(port.world.netns, port.number, source=source))
    accepted = port.kept.enter_context(server.accept()[0])
    port.settles(1)
    assert port.world.ledger._connections.by_slot()[port.watch.slot][key] >= reopened_ns
    assert reconcile(port) == Corrections()
    port.settles(1)
    reset(second)
    accepted.close()


def test_closed_between_the_look_and_the_addition(port: Port):
    """A connection that was missed and closes just when it is found leaves nothing, and was no correction."""
    client, accepted = port.pair(port.listen())
    port.world.ledger._connections.delete(entries(port)[0])
    port.watch.healed += 1

    def close():
        reset(client)
        accepted.close()

    assert reconcile(port, dump_1=close) == Corrections()
    port.settles(0)


def test_closed_after_the_set_was_read(port: Port):
    """A connection that ends by itself during reconciling is not healed a second time."""
    client, accepted = port.pair(port.listen())
    healed = port.watch.healed
    ledger = port.world.ledger
    rows, known, read_ns = port.watch.dump(), ledger._connections.by_slot()[port.watch.slot], time.monotonic_ns()
    reset(client)
    accepted.close()
    port.settles(0)
    assert ledger._healing.heal(port.watch, rows, known, read_ns) == Corrections()
    assert port.watch.healed == healed
    port.settles(0)


@pytest.mark.parametrize("moment", ["dump_1", "dump_2"])
def test_opened_meanwhile(port: Port, moment):
    """A connection that begins during reconciling, even under the identity of an entry about to go, stays."""
    server = port.listen()
    source = ("127.0.0.1", port.number + 20000)
    local, peer = (records.prefix(address)[1] for address in ("127.0.0.1", "127.0.0.1"))
    key = records.IDENTITY.pack(port.watch.netns, port.number, source[1], 0, local, peer)
    port.world.ledger._connections.put(key, records.CONNECTION.pack(1, port.watch.slot, 0, 0, 0))
    port.watch.seeded += 1
    assert port.live == 1

    def open_again():
        port.kept.enter_context(connected(port.world.netns, port.number, source=source))
        port.kept.enter_context(server.accept()[0])

    assert reconcile(port, **{moment: open_again}) == Corrections()
    port.settles(1)


def test_renewed_between_look_and_deletion(port: Port, monkeypatch: pytest.MonkeyPatch):
    """The smallest gap: renewed after its age was read. It is put back, so that no live connection goes uncounted."""
    server = port.listen()
    source = ("127.0.0.1", port.number + 20000)
    address = records.prefix("127.0.0.1")[1]
    key = records.IDENTITY.pack(port.watch.netns, port.number, source[1], 0, address, address)
    ledger = port.world.ledger
    ledger._connections.put(key, records.CONNECTION.pack(1, port.watch.slot, 0, 0, 0))
    port.watch.seeded += 1
    real = ledger._connections.is_older

    def late(key: bytes, than_ns: int) -> bool:
        older = real(key, than_ns)
        port.kept.enter_context(connected(port.world.netns, port.number, source=source))
        port.kept.enter_context(server.accept()[0])
        return older

    monkeypatch.setattr(ledger._connections, "is_older", late)
    assert ledger.reconcile(port.watch) == Corrections()
    port.settles(1)


def test_all_watches_with_one_read_of_the_set(world: World):
    """reconcile_all heals each watch and keeps them apart."""
    ports = [Port(world) for _ in range(8)]
    for port in ports:
        port.pair(port.listen())
        forge(port)
    healed = [one for one in world.ledger.reconcile_all().values() if one != Corrections()]
    assert healed == [Corrections(removed=1)] * 8
    for port in ports:
        port.settles(1)
        port.close()
        port.settles(0)


def test_cost_of_reconciling(world: World):
    """With 20,000 entries of others in the set one look stays below a tenth of a second here, a second anywhere."""
    port = Port(world)
    others = [
        records.IDENTITY.pack(7, 1, number % 65536, 0, bytes(16), number.to_bytes(16, "big")) for number in range(20000)
    ]
    for key in others:
        world.ledger._connections.put(key, records.CONNECTION.pack(1, 63, 0, 0, 0))
    port.pair(port.listen())
    started = time.perf_counter()
    assert world.ledger.reconcile(port.watch) == Corrections()
    assert time.perf_counter() - started < 1.0
    for key in others:
        world.ledger._connections.delete(key)
    port.close()
    port.settles(0)
