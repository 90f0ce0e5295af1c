"""The gaps between work, as the kernel's spans and the looks at open connections tell them: real sockets, real pauses.

Every bound is one of cause and effect: a connection begins between the call of connect() and its return, and ends between
the closing and the moment when the counters say so. So no bound depends on how busy the machine is.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from memscaler.core.gaps import Gap, Track, follow
from memscaler.core.watch import Quiet, WatchSettings
from memscaler.kernel import records
from memscaler.kernel.bpf import HashMap
from memscaler.kernel.sock_diag import SockDiag
from memscaler.kernel.watch import PLAIN
from memscaler.kernel.work import SPANS, WORK_WORDS
from tests.kernel.worlds import HOOKS, POLLED, RESET, World, assert_eventually, connected, listener, world_of

PAUSE_S = 0.5  # twice the shortest gap
TALKING = WatchSettings(touch_s=0)  # whatever is said is work
KINDS = HOOKS | POLLED


@pytest.fixture(scope="module", params=KINDS)
def world(request):
    with world_of(request.param) as made:
        yield made


def now_ns():
    return time.monotonic_ns()


@dataclass(frozen=True)
class Bounds:
    """Of one piece of work: (before, after) its begin, and (before, after) its end, in ns of CLOCK_MONOTONIC."""

    begin: tuple[int, int]
    end: tuple[int, int]


class Server:
    """A watched port with a listener."""

    def __init__(self, world: World, settings: WatchSettings = PLAIN) -> None:
        self.world, self.settings = world, settings
        self.socket = listener(world.netns, 0)
        self.port = self.socket.getsockname()[1]
        self.watch = world.ledger.watch(self.port, SockDiag(world.netns), settings)

    def open_now(self) -> int:
        return self.world.ledger.open_connections(self.watch)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """(the client's, the server's)."""
        client = connected(self.world.netns, self.port)
        return client, self.socket.accept()[0]

    def serve(self, said=b"x" * 2000) -> Bounds:
        """One connection with a request, and an answer. Over when the counters say so."""
        open_before, begin = self.open_now(), now_ns()
        client, accepted = self.connect()
        began = now_ns()
        with client, accepted:
            client.sendall(said)
            got = 0
            while got < len(said):
                got += len(accepted.recv(65536))
            accepted.sendall(b"y" * 100)
            client.recv(100)
            end = now_ns()
        assert_eventually(lambda: self.open_now() <= open_before)
        return Bounds((begin, began), (end, now_ns()))

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[list[Bounds]]:
        """One connection, as long as this lasts, and after all others. Afterwards its bounds are in the list."""
        found: list[Bounds] = []
        begin = now_ns()
        client, accepted = self.connect()
        began = now_ns()
        with accepted, client:  # the client ends it
            yield found
            end = now_ns()
        assert_eventually(lambda: self.open_now() == 0)
        found.append(Bounds((begin, began), (end, now_ns())))

    def close(self) -> None:
        self.socket.close()
        self.world.ledger.unwatch(self.watch.slot)


class Gpu:
    """Follows some watches like the daemon does."""

    def __init__(self, *servers: Server) -> None:
        self.world = servers[0].world
        self.slots = [server.watch.slot for server in servers]
        self.track = Track("gpu")
        self.gaps: list[Gap] = []
        self.drain()

    def drain(self) -> None:
        asked_ns = now_ns()
        reports = self.world.ledger.worked()
        self.track, found = follow(self.track, {slot: reports[slot] for slot in self.slots}, asked_ns)
        self.gaps += found

    def listen(self) -> None:
        """As the daemon does every 2 s while connections are open."""
        self.world.ledger.silence.listen_in(self.slots)
        self.drain()


@pytest.fixture
def kept():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def server(world, kept):
    made = Server(world)
    kept.callback(made.close)
    return made


def pause():
    time.sleep(PAUSE_S)


def check(gaps, work):
    """One gap between each two pieces of work, within their bounds."""
    told = [(gap.start_ns, gap.end_ns) for gap in gaps]
    assert len(told) == len(work) - 1
    for (start_ns, end_ns), before, after in zip(told, work, work[1:], strict=False):
        assert before.end[0] <= start_ns <= before.end[1]
        assert after.begin[0] <= end_ns <= after.begin[1]


# ---- connections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("often", [True, False])
def test_short_connections(server, often):
    """The pause between each two, told once, whether somebody looks in between or only at the end."""
    gpu, work = Gpu(server), []
    for _ in range(4):
        work.append(server.serve())
        pause()
        if often:
            gpu.drain()
    work.append(server.serve())
    gpu.drain()
    gpu.drain()
    check(gpu.gaps, work)


def test_connections_without_a_pause_are_one_piece(server):
    """A hundred of them take one span."""
    gpu = Gpu(server)
    before = server.world.ledger._work.read(server.watch.slot, 0).count
    first = server.serve()
    for _ in range(98):
        server.serve()
    last = server.serve()
    pause()
    after = server.serve()
    gpu.drain()
    rests = [gap for gap in gpu.gaps if gap.end_ns < last.begin[0]]  # the machine may have stood still in between
    assert server.world.ledger._work.read(server.watch.slot, 0).count == before + 2 + len(rests)
    check([gap for gap in gpu.gaps if gap not in rests], [Bounds(first.begin, last.end), after])


def test_both_hooks_see_one_piece(world, server):
    """However many hooks see a connection, its work is noted once."""
    gpu = Gpu(server)
    before = world.ledger._work.read(server.watch.slot, 0).count
    server.serve()
    pause()
    server.serve()
    gpu.drain()
    assert world.ledger._work.read(server.watch.slot, 0).count == before + 2
    assert len(gpu.gaps) == 1


def test_overlapping_connections(server):
    """The gap ends with the begin of the first, although another one ends first, and begins with the end of the last."""
    gpu = Gpu(server)
    before = server.serve()
    pause()
    with server.kept_open() as long:
        pause()
        server.serve()
        gpu.drain()
        assert gpu.gaps == []  # one is open whose begin nobody knows yet
        pause()
    pause()
    after = server.serve()
    gpu.drain()
    check(gpu.gaps, [before, *long, after])


def test_a_longer_one_covers_gaps_of_shorter_ones(server):
    """Two short ones with a pause between them, and one that is open all the while: no gap between the two."""
    gpu = Gpu(server)
    before = server.serve()
    pause()
    with server.kept_open() as long:
        pause()
        server.serve()
        pause()
        server.serve()
    pause()
    after = server.serve()
    gpu.drain()
    check(gpu.gaps, [before, *long, after])


def test_connection_that_is_reset(server):
    """Its end is an end like any other."""
    gpu = Gpu(server)
    before = server.serve()
    pause()
    begin = now_ns()
    client, accepted = server.connect()
    began = now_ns()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    accepted.close()
    assert_eventually(lambda: server.open_now() == 0)
    gpu.drain()
    check(gpu.gaps, [before, Bounds((begin, began), (began, now_ns()))])


def test_two_watches(world, kept):
    """The gap of a GPU is one of both its ports; a GPU with one of them has its own."""
    first, second = Server(world), Server(world)
    kept.callback(first.close)
    kept.callback(second.close)
    both, one = Gpu(first, second), Gpu(first)

    def drain():  # the ledger tells everybody at once
        asked_ns = now_ns()
        reports = world.ledger.worked()
        for gpu in (both, one):
            gpu.track, found = follow(gpu.track, {slot: reports[slot] for slot in gpu.slots}, asked_ns)
            gpu.gaps += found

    drain()
    work = [first.serve()]
    for server in (second, first, second, first):
        pause()
        work.append(server.serve())
        drain()
    check(both.gaps, work)
    check(one.gaps, work[::2])


# ---- touches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["both", "tracepoint", "polled"], indirect=True, scope="module")
def test_touches_do_not_end_a_gap(world, kept):
    """Health checks come and go; the gap ends with the work after them."""
    server = Server(world, WatchSettings(quiet=Quiet.NO_CONNECTIONS, touch_s=30))
    kept.callback(server.close)
    gpu = Gpu(server)
    before = server.serve()
    for _ in range(4):
        pause()
        server.serve(b"GET /health")
        gpu.drain()
    pause()
    after = server.serve()
    gpu.drain()
    check(gpu.gaps, [before, after])
    assert world.ledger.counters.read(server.watch.slot).touches == 4


@pytest.mark.parametrize("world", ["no-btf"], indirect=True, scope="module")
def test_without_btf_nothing_is_a_touch(world, kept):
    """Then every connection ends a gap."""
    server = Server(world, WatchSettings(quiet=Quiet.NO_CONNECTIONS, touch_s=30))
    kept.callback(server.close)
    gpu = Gpu(server)
    work = [server.serve()]
    pause()
    work.append(server.serve(b"GET /health"))
    gpu.drain()
    check(gpu.gaps, work)


# ---- what was open before, what is lost, what is not known -----------------------------------------------------------


def test_open_before_the_watch_began(world, kept):
    """No gap as long as it is open, and the first one begins with its end."""
    bound = kept.enter_context(listener(world.netns, 0))
    port = bound.getsockname()[1]
    client = kept.enter_context(connected(world.netns, port))
    accepted = kept.enter_context(bound.accept()[0])
    server = object.__new__(Server)
    server.world, server.settings, server.socket, server.port = world, PLAIN, bound, port
    server.watch = world.ledger.watch(port, SockDiag(world.netns))
    kept.callback(server.close)
    gpu = Gpu(server)
    for _ in range(2):
        server.serve()
        pause()
    gpu.drain()
    end = now_ns()
    client.close()
    accepted.close()
    assert_eventually(lambda: server.open_now() == 0)
    ended = now_ns()
    pause()
    after = server.serve()
    gpu.drain()
    check(gpu.gaps, [Bounds((0, 0), (end, ended)), after])


def test_full_ring(world, server):
    """More spans than the ring has between two looks: what was lost is unknown, the rest is told, nothing is made up."""
    gpu = Gpu(server)
    server.serve()
    pause()
    pairs = [server.connect() for _ in range(SPANS + 6)]
    for client, accepted in reversed(pairs):  # each began before those that have ended: a span for each
        end, left = now_ns(), server.open_now() - 1
        client.close()
        accepted.close()
        assert_eventually(lambda left=left: server.open_now() == left)
    ended = now_ns()
    pause()
    after = server.serve()
    assert world.ledger._work.read(server.watch.slot, 0).lost_ns
    gpu.drain()
    check(gpu.gaps, [Bounds((0, 0), (end, ended)), after])


def test_span_that_is_being_written(world, server):
    """Its number is not there yet: what was done until now is unknown."""
    gpu = Gpu(server)
    server.serve()
    pause()
    server.serve()
    ring = HashMap(world.attached.fds["work"], 4, WORK_WORDS * 8)
    key = struct.pack("=I", server.watch.slot)
    words = list(struct.unpack(f"={WORK_WORDS}Q", ring.get(key)))
    words[0] += 1
    ring.put(key, struct.pack(f"={WORK_WORDS}Q", *words))
    gpu.drain()
    assert gpu.gaps == []
    pause()
    first = server.serve()
    gpu.drain()
    pause()
    second = server.serve()
    gpu.drain()
    check(gpu.gaps, [first, second])


def test_healed_connection(world, server):
    """A close that was lost: nobody knows when the work ended, so the silence until the next is no gap."""
    gpu = Gpu(server)
    server.serve()
    pause()
    stale = records.IDENTITY.pack(server.watch.netns, server.port, 9, 0, bytes(16), bytes(16))
    world.ledger._connections.put(stale, records.CONNECTION.pack(1, server.watch.slot, 0, 0, 0))
    server.watch.seeded += 1  # as if a hook had counted its open
    gpu.drain()
    assert world.ledger.reconcile(server.watch).removed == 1
    pause()
    first = server.serve()
    gpu.drain()
    assert gpu.gaps == []
    pause()
    second = server.serve()
    gpu.drain()
    check(gpu.gaps, [first, second])


def test_another_watch_in_the_same_slot(world, kept):
    """What an earlier watch did there is not told of the later one."""
    old = Server(world)
    gpu = Gpu(old)
    old.serve()
    slot = old.watch.slot
    old.close()
    freed = world.ledger._freed_ns
    others = {other: when for other, when in freed.items() if other != slot}
    world.ledger._freed_ns.clear()
    world.ledger._freed_ns[slot] = 0
    unused = {number: 1 for number in range(64) if number not in world.ledger.watches and number != slot}
    world.ledger._freed_ns.update(unused)
    new = Server(world)
    kept.callback(new.close)
    for number in unused:
        del world.ledger._freed_ns[number]
    world.ledger._freed_ns.update(others)
    assert new.watch.slot == slot
    pause()
    first = new.serve()
    gpu.drain()
    assert gpu.gaps == []
    pause()
    second = new.serve()
    gpu.drain()
    check(gpu.gaps, [first, second])


def test_no_span_is_lost_under_load(world, server):
    """Several threads connect at once for a while: no gap holds a moment of a connection's life, however the CPUs raced.

    Between the connections there may be gaps: a busy machine lets all of the threads wait.
    """
    gpu = Gpu(server)
    before = server.serve()
    pause()
    begin, stop = now_ns(), now_ns() + 2_000_000_000
    server.socket.listen(128)
    server.socket.settimeout(0.1)
    served = threading.Event()
    alive: list[int] = []  # a moment in each connection's life

    def connect_and_close():
        while now_ns() < stop:
            with contextlib.suppress(OSError), connected(world.netns, server.port):
                pass

    def accept():
        while not served.is_set():
            with contextlib.suppress(TimeoutError):
                accepted = server.socket.accept()[0]
                alive.append(now_ns())
                accepted.close()

    accepting = [threading.Thread(target=accept) for _ in range(2)]
    connecting = [threading.Thread(target=connect_and_close) for _ in range(4)]
    for thread in accepting + connecting:
        thread.start()
    for thread in connecting:
        thread.join()
    assert_eventually(lambda: server.open_now() == 0)
    ended = now_ns()
    served.set()
    for thread in accepting:
        thread.join()
    server.socket.settimeout(None)
    pause()
    after = server.serve()
    gpu.drain()
    assert world.ledger.counters.read(server.watch.slot).opened > 100
    assert [(gap, at) for gap in gpu.gaps for at in alive if gap.start_ns < at < gap.end_ns] == []
    assert before.end[0] <= gpu.gaps[0].start_ns <= before.end[1]
    assert begin <= gpu.gaps[0].end_ns <= min(alive)
    assert max(alive) <= gpu.gaps[-1].start_ns <= ended
    assert after.begin[0] <= gpu.gaps[-1].end_ns <= after.begin[1]


# ---- connections that stay open --------------------------------------------------------------------------------------


@pytest.fixture
def talking(kept):
    """(server, its GPU, client, accepted): a connection that stays open, on a watch that listens to what is said."""
    with world_of("both") as world:
        server = Server(world, TALKING)
        kept.callback(server.close)
        gpu = Gpu(server)
        client, accepted = server.connect()
        kept.enter_context(client)
        kept.enter_context(accepted)
        yield server, gpu, client, accepted
        kept.close()


TICK_NS = 20_000_000  # the grain of the kernel's times of the last data


def ask(client, accepted, takes_s=0.05) -> Bounds:
    """A request and its answer on an open connection."""
    begin = now_ns() - TICK_NS
    client.sendall(b"x" * 2000)
    got = 0
    while got < 2000:
        got += len(accepted.recv(4000))
    began = now_ns()
    time.sleep(takes_s)
    end = now_ns() - TICK_NS
    accepted.sendall(b"y" * 100)
    client.recv(100)
    return Bounds((begin, began + TICK_NS), (end, now_ns() + TICK_NS))


def silent_now(server):
    """A look finds nothing to be said: the connection was new for a second."""
    return not server.world.ledger.reading(server.watch).live


def test_requests_on_an_open_connection(talking):
    """The kernel sees no connection begin or end; the looks tell when each request came and was answered."""
    _, gpu, client, accepted = talking
    work = []
    for _ in range(4):
        work.append(ask(client, accepted))
        gpu.listen()
        pause()
        gpu.listen()
    work.append(ask(client, accepted))
    gpu.listen()
    check(gpu.gaps, work)


def test_nothing_said_is_no_work(talking):
    """A pooled connection that only stays open ends no gap, and holds none up."""
    server, gpu, client, accepted = talking
    work = [ask(client, accepted)]
    gpu.listen()
    other = server.connect()
    assert_eventually(lambda: gpu.listen() or silent_now(server))
    for end in other:
        end.close()
    assert_eventually(lambda: server.open_now() == 1)
    pause()
    gpu.listen()
    work.append(ask(client, accepted))
    gpu.listen()
    check(gpu.gaps, work)


def test_short_connections_beside_a_silent_one(talking):
    """A client keeps its connection and says nothing; the others' work is told as if it were not there."""
    server, gpu, client, accepted = talking
    work = [ask(client, accepted)]
    for _ in range(3):
        gpu.listen()
        pause()
        work.append(server.serve())
    gpu.listen()
    check(gpu.gaps, work)


def test_answer_that_takes_long(talking):
    """From the request to the end of the answer it is one piece, however often somebody looks; also if it ends with it."""
    server, gpu, client, accepted = talking
    before = ask(client, accepted)
    gpu.listen()
    pause()
    gpu.listen()
    begin = now_ns() - TICK_NS
    client.sendall(b"x" * 2000)
    while not accepted.recv(4000):
        pass
    began = now_ns() + TICK_NS
    for _ in range(3):
        gpu.listen()
        pause()
    end = now_ns()
    accepted.sendall(b"y" * 100)
    client.close()
    accepted.close()
    assert_eventually(lambda: server.open_now() == 0)
    ended = now_ns()
    pause()
    after = server.serve()
    gpu.drain()
    check(gpu.gaps, [before, Bounds((begin, began), (end, ended)), after])


def test_nobody_listened_for_long(talking):
    """Looks that come too late know only the last of what was said: what lies before is unknown, not silent."""
    server, gpu, client, accepted = talking
    ask(client, accepted)
    gpu.listen()
    server.watch.hearing.heard_ns -= 60_000_000_000  # as if that look had been a minute ago
    server.watch.hearing.noticed_ns -= 60_000_000_000
    pause()
    first = ask(client, accepted)
    gpu.listen()
    assert gpu.gaps == []
    pause()
    second = ask(client, accepted)
    gpu.listen()
    check(gpu.gaps, [first, second])


def test_doorbell_tells_the_begin(talking):
    """While its GPU is parked nobody looks; the data hook says when the first byte came, although the look comes later."""
    server, gpu, client, accepted = talking
    book, slot = server.world.ledger, server.watch.slot
    before = ask(client, accepted)
    gpu.listen()
    assert_eventually(lambda: book.silence.listen_in([slot]) or silent_now(server))
    judged_ns = now_ns()  # until the client's kernel has acknowledged it, an answer is not over
    book.counters.arm(slot)
    book.silence.listen_for_data([slot])
    pause()
    gpu.drain()
    work = ask(client, accepted, takes_s=1)  # the last it hears is the answer, a second after the request
    assert not book.counters.is_armed(slot)
    client.sendall(b"x" * 2000)  # and another request: when the first came only the doorbell knows
    while not accepted.recv(4000):
        pass
    accepted.sendall(b"y" * 100)
    book.silence.stop_listening()
    gpu.listen()
    assert len(gpu.gaps) == 1
    assert before.end[0] <= gpu.gaps[0].start_ns <= judged_ns
    assert work.begin[0] <= gpu.gaps[0].end_ns <= work.begin[1]
