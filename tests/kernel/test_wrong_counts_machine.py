"""Real connections in any order, events lost, and reconciling in the middle of it all: what the counters then say.

Few identities, so that each is used again and again. After every step, when the kernel is done with it:
never negative; without a loss equal to /proc at once; after a loss equal to /proc after at most two reconciliations,
and until the first of them wrong only in the direction of what was lost.
"""

import contextlib
import os
import socket

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from memscaler.kernel.netns import entered
from tests.kernel.worlds import PATIENCE_S, Port, assert_eventually, live_here_by_proc, reset, world_of

EXAMPLES = 400 if "MEMSCALER_SOAK" in os.environ else 25
IDENTITIES = 4
Keys = dict[int, bytes]
MOMENTS = ["before dump 1", "after dump 1", "after listeners", "before dump 2", "after dump 2", "after dump 3"]


class Interleaved:
    """The real sock_diag, and things that happen around its dumps."""

    def __init__(self, diag, act):
        self._diag = diag
        self._act = act
        self._dumps = 0

    def connections(self, port, **more):
        self._dumps += 1
        self._act(f"before dump {self._dumps}")
        rows = self._diag.connections(port, **more)
        self._act(f"after dump {self._dumps}")
        return rows

    def listeners(self, port=0):
        rows = self._diag.listeners(port)
        self._act("after listeners")
        return rows

    def __getattr__(self, name):
        return getattr(self._diag, name)


class Clients:
    """A server and its clients, of which each has one identity; losing events as a skipped program does."""

    def __init__(self, port: Port, keys: Keys) -> None:
        self.port = port
        self.keys = keys
        self.ledger = port.world.ledger
        self.pairs: dict[int, list[socket.socket]] = {}
        self.server = socket.create_server(("127.0.0.1", port.number))

    def _entry(self, number):
        return self.ledger._connections.get(self.keys[number])

    def open(self, number: int) -> None:
        if number in self.pairs:
            return
        client = socket.socket()
        client.settimeout(PATIENCE_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", self.port.number + 20000 + number))
        client.connect(("127.0.0.1", self.port.number))
        self.pairs[number] = [client, self.server.accept()[0]]

    def half_close(self, number: int) -> None:
        """The client's half: still live."""
        if number in self.pairs:
            with contextlib.suppress(OSError):
                self.pairs[number][0].shutdown(socket.SHUT_WR)

    def end(self, number: int, client_first: bool = True) -> None:
        """With resets, so that the identity is free again at once."""
        ends = self.pairs.pop(number, [])
        for end in ends if client_first else reversed(ends):
            with contextlib.suppress(OSError):
                reset(end)

    def end_all(self) -> None:
        for number in list(self.pairs):
            self.end(number)

    def lose_open(self, number: int) -> bool:
        """Open, unseen by any hook."""
        if number in self.pairs:
            return False
        before = self._entry(number)
        opened = self._opened()
        self.open(number)
        if before is None:
            assert_eventually(lambda: self._entry(number) is not None)
            assert_eventually(lambda: self._opened() == opened + 1)
            assert self.ledger._connections.delete(self.keys[number])
            self.port.watch.healed += 1
        else:
            assert_eventually(lambda: self._entry(number) != before)
            self.ledger._connections.put(self.keys[number], before)
        return True

    def _opened(self) -> int:
        return self.ledger.counters.read(self.port.watch.slot).opened

    def lose_end(self, number: int) -> bool:
        """End, unseen by any hook: the entry stays."""
        entry = self._entry(number)
        if number not in self.pairs or entry is None:
            return False
        self.end(number)
        assert_eventually(lambda: self._entry(number) is None)
        self.ledger._connections.put(self.keys[number], entry)
        self.port.watch.seeded += 1
        return True

    def reconcile(self, act=lambda _moment: None) -> None:
        self.port.watch.diag = Interleaved(self.port.diag, act)
        try:
            self.ledger.reconcile(self.port.watch)
        finally:
            self.port.watch.diag = self.port.diag

    def close(self) -> None:
        self.end_all()
        self.server.close()


def learn_keys(port: Port) -> Keys:
    """What the kernel calls the identities."""
    keys: Keys = {}
    with entered(port.world.netns):
        clients = Clients(port, keys)
        for number in range(IDENTITIES):
            clients.open(number)
            port.settles(1)
            (keys[number],) = port.world.ledger._connections.by_slot()[port.watch.slot]
            clients.end(number)
            port.settles(0)
        clients.close()
    return keys


class Machine(RuleBasedStateMachine):
    """Without room for everything where `fits` is false: then no event is lost, but the set overflows."""

    number = st.integers(0, IDENTITIES - 1)
    doing = st.sampled_from(["open", "end", "end_by_server", "half_close", "lose_open", "lose_end"])
    plan = st.dictionaries(st.sampled_from(MOMENTS), st.lists(st.tuples(doing, number), max_size=3), max_size=3)

    def __init__(self, port: Port, keys: Keys, *, fits: bool) -> None:
        super().__init__()
        self.port = port
        self.fits = fits
        self.lost_opens = self.lost_ends = 0
        self.clients = Clients(port, keys)

    def _do(self, what: str, number: int) -> None:
        match what:
            case "lose_open":
                self.lost_opens += self.clients.lose_open(number) if self.fits else 0
            case "lose_end":
                self.lost_ends += self.clients.lose_end(number) if self.fits else 0
            case "end_by_server":
                self.clients.end(number, client_first=False)
            case _:
                getattr(self.clients, what)(number)

    @rule(number=number, what=doing)
    def step(self, number, what):
        self._do(what, number)

    @rule()
    def reconcile(self):
        wanted = self._really()
        self.clients.reconcile()
        assert self.port.live == wanted
        self.lost_opens = self.lost_ends = 0

    @precondition(lambda self: self.clients.pairs or self.lost_ends)
    @rule(plan=plan)
    def reconcile_meanwhile(self, plan):
        """What is lost before the first dump has to be found by this very reconciliation, the rest by the next."""
        late = [0, 0]

        def act(moment):
            before = self.lost_opens, self.lost_ends
            for what, number in plan.pop(moment, ()):
                self._do(what, number)
            late[0] += self.lost_opens - before[0]
            late[1] += self.lost_ends - before[1]

        self.clients.reconcile(act)
        self.lost_opens, self.lost_ends = late

    @invariant()
    def counts_are_right(self):
        assert_eventually(
            self._is_right,
            lambda: f"live {self.port.live}, {len(self.clients.pairs)} open, lost {self.lost_opens}",
            5.0,
        )

    def _really(self) -> int:
        """What /proc says, once it agrees with the descriptors that we hold. It walks a large table: milliseconds."""
        wanted = len(self.clients.pairs)
        assert_eventually(lambda: live_here_by_proc().get(self.port.number, 0) == wanted)
        return wanted

    def _is_right(self) -> bool:
        live, wanted = self.port.live, len(self.clients.pairs)
        assert live >= 0
        if self.port.world.ledger.overflowed(self.port.watch):
            return True
        not_too_few = live >= wanted or self.lost_opens > 0
        not_too_many = live <= wanted or self.lost_ends > 0 or not self.fits
        return not_too_few and not_too_many

    def teardown(self):
        """Whatever happened: two reconciliations at most, and it is right, and stays right to the end."""
        try:
            self.clients.reconcile()
            self.clients.reconcile()
            assert self.port.live == self._really()
        finally:
            self.clients.close()
        assert self._really() == 0
        self.clients.reconcile()
        assert self.port.live == 0


def run_machine(port: Port, keys: Keys, *, fits: bool = True) -> None:
    quick = settings(
        max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    with entered(port.world.netns):  # once: it takes milliseconds
        run_state_machine_as_test(lambda: Machine(port, keys, fits=fits), settings=quick)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("hooks", ["both", "tracepoint"])
def test_any_order(hooks):
    """Room for all, and events lost."""
    with world_of(hooks) as world, contextlib.closing(Port(world)) as port:
        run_machine(port, learn_keys(port))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("hooks", ["both", "tracepoint"])
def test_any_order_with_a_small_set(hooks):
    """Room for two only: never quiet by the counters while somebody is served, unless the watch says overflowed."""
    with world_of(hooks, max_connections=IDENTITIES + 2) as world, contextlib.ExitStack() as kept:
        port = kept.enter_context(contextlib.closing(Port(world)))
        keys = learn_keys(port)
        crowd = kept.enter_context(contextlib.closing(Port(world)))
        server = crowd.listen()
        for _ in range(IDENTITIES):
            crowd.pair(server)
        run_machine(port, keys, fits=False)
