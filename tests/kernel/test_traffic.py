"""What is said on open connections: the judgement by itself, and the kernel's figures that it rests on."""

import contextlib
import dataclasses
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.watch import WatchSettings
from memscaler.kernel.sock_diag import ESTABLISHED, Row, Said
from memscaler.kernel.traffic import GREETING_NS, MOST_SPANS, PING_BYTES, Traffic
from tests.kernel.worlds import assert_eventually, connected, listener

MS, SECOND = 1_000_000, 1_000_000_000
SETTINGS = WatchSettings()
TOUCH = round(SETTINGS.touch_s * SECOND)
REQUEST_BYTES = 60  # a few pongs of a WebSocket are less, a request for a completion never is
TICK = 4 * MS  # the coarsest grain that the properties use: what is closer together than this is not told apart
BEGIN = 1_000 * SECOND


class Talk:
    """A connection whose ends speak at stated times; `row` is what sock_diag would say of it."""

    def __init__(self, cookie=1, begin=BEGIN):
        self.cookie, self.now = cookie, begin
        self.received = self.sent = self.unread = self.unsent = 0
        self.heard_at = self.said_at = begin

    def wait(self, ns):
        self.now += ns
        return self

    def client(self, size):
        self.received += size
        self.heard_at = self.now
        return self

    def server(self, size):
        self.sent += size
        self.said_at = self.now
        return self

    def row(self):
        said = Said(self.received, self.sent, self.now - self.heard_at, self.now - self.said_at)
        return Row(ESTABLISHED, 1, 2, b"", b"", 9, self.cookie, self.unread, self.unsent, said)

    def look(self, traffic):
        return traffic.look([self.row()], self.now)


def answered(traffic, talk, size=300, within=10 * MS, answer=200):
    """A request and its answer, looked at at once."""
    talk.client(size).wait(within).server(answer)
    return talk.look(traffic)


@pytest.fixture
def traffic():
    return Traffic(SETTINGS)


@pytest.fixture
def talk(traffic):
    """A connection that is known and has had an answer long ago."""
    made = Talk()
    made.look(traffic)
    answered(traffic, made.wait(SECOND))
    traffic.last_activity_ns = traffic.last_work_ns = traffic.touches = 0
    made.wait(10 * SECOND)
    return made


# ---- one look ------------------------------------------------------------------------------------------------------


def test_new_connection_is_live_for_a_second(traffic):
    """Nobody connects without a reason; who then says nothing for a second is silent, and neither touch nor work."""
    talk = Talk()
    assert talk.look(traffic).live == 1
    assert talk.wait(GREETING_NS - MS).look(traffic).live == 1
    verdict = talk.wait(MS).look(traffic)
    assert (verdict.live, verdict.silent) == (0, {1})
    assert (traffic.touches, traffic.last_work_ns) == (0, 0)


def test_request_without_an_answer_is_live_for_ever(traffic, talk):
    """A prompt may take an hour, and is work as soon as it takes longer than a touch."""
    talk.client(300)
    assert talk.wait(10 * MS).look(traffic).live == 1
    assert traffic.last_work_ns == 0
    for _ in range(100):
        assert talk.wait(60 * SECOND).look(traffic).live == 1
        assert traffic.last_work_ns == talk.now


@pytest.mark.parametrize("what", ["unread", "unsent"])
def test_bytes_that_wait_are_owed(traffic, talk, what):
    """A request that the server has not read, an answer that the client has not got."""
    answered(traffic, talk)
    setattr(talk, what, 1)
    assert talk.wait(60 * SECOND).look(traffic).live == 1


def test_small_request_soon_answered_is_a_touch(traffic, talk):
    """It counts as activity, but not as work; that its answer is over is not sure."""
    verdict = answered(traffic, talk)
    assert verdict.silent == {1}
    assert (traffic.touches, traffic.last_work_ns) == (1, 0)
    assert traffic.last_activity_ns == traffic.last_unsure_ns == talk.now


def test_touch_is_over_at_once_if_the_server_tells(traffic, talk):
    """Then it is asked before the park whether the answer is over."""
    traffic.server_tells = True
    answered(traffic, talk)
    assert (traffic.touches, traffic.last_work_ns, traffic.last_activity_ns) == (1, 0, talk.now)


def test_large_request_is_work(traffic, talk):
    """However soon it is answered: the time of the last word counts."""
    answered(traffic, talk, size=SETTINGS.touch_bytes)
    assert (traffic.touches, traffic.last_work_ns) == (0, talk.now)


def test_answer_that_goes_on_is_work(traffic, talk):
    """A stream: the server sends while the client is silent."""
    answered(traffic, talk)
    for _ in range(10):
        talk.wait(SECOND).server(120).wait(100 * MS).look(traffic)
        assert traffic.last_work_ns == talk.now - 100 * MS
    assert traffic.touches == 1


def test_pings_of_the_server_are_silence(traffic, talk):
    """A server keeps a stream open by saying a little now and then."""
    for _ in range(10):
        verdict = talk.wait(2 * SECOND).server(PING_BYTES - 1).look(traffic)
        assert (verdict.live, verdict.silent) == (0, {1})
    assert (traffic.touches, traffic.last_work_ns, traffic.last_activity_ns) == (0, 0, 0)


def test_pings_that_nobody_counted_for_a_long_time_are_silence(traffic, talk):
    """Nobody looks while a GPU is parked: an hour of llama.cpp's stream pings (8 bytes in 30 s) is no answer."""
    for _ in range(120):
        talk.wait(30 * SECOND).server(8)
    assert talk.wait(SECOND).look(traffic).silent == {1}
    assert traffic.last_work_ns == 0


@pytest.mark.parametrize("after", [0, 1 * MS, 5 * MS, 80 * MS])
def test_pong_is_not_a_question(traffic, talk, after):
    """A WebSocket client answers the server's ping, over a network a while later: it waits for nothing."""
    for _ in range(20):
        talk.wait(SECOND).server(6).wait(after).client(10).wait(SECOND).look(traffic)
    assert traffic.last_work_ns == 0
    assert talk.look(traffic).live == 0


def test_request_that_nobody_saw_take_long_is_work(traffic, talk):
    """Between two looks there may be two seconds: when the last words were said tells how long the answer took."""
    talk.client(300).wait(1900 * MS).server(500).wait(50 * MS)
    assert talk.look(traffic).silent == {1}
    assert traffic.last_work_ns == talk.now - 50 * MS


def test_without_touches_every_byte_is_work():
    """Touch = "off"."""
    traffic = Traffic(dataclasses.replace(SETTINGS, touch_s=0))
    talk = Talk()
    talk.look(traffic)
    answered(traffic, talk.wait(SECOND), size=1, within=0, answer=1)
    assert (traffic.touches, traffic.last_work_ns) == (0, talk.now)
    talk.wait(SECOND).client(1).wait(1).look(traffic)
    assert traffic.last_work_ns == talk.now


def test_kernel_that_does_not_tell_is_live(traffic):
    """Without tcp_info nobody can say that a connection is silent."""
    talk = Talk()
    for _ in range(3):
        row = dataclasses.replace(talk.wait(60 * SECOND).row(), said=None)
        assert traffic.look([row], talk.now).live == 1
        assert traffic.has_spoken([row])


def test_connections_are_told_apart_by_cookie(traffic):
    """Each is judged by its own last look; one that is gone is forgotten, one that takes its place is new."""
    first, second = Talk(1), Talk(2)
    traffic.look([first.row(), second.row()], BEGIN)
    for each in (first, second):
        each.wait(10 * SECOND).client(100).server(10)
    second.wait(20 * MS).client(100)
    first.wait(20 * MS)
    verdict = traffic.look([first.row(), second.row()], first.now)
    assert (verdict.live, verdict.silent) == (1, {1})
    traffic.look([], first.now)
    assert first.wait(SECOND).look(traffic).silent == {1}  # it has spoken, so it is not waited for
    assert Talk(1, first.now).look(traffic).live == 1


def test_marks_say_what_is_judged(traffic):
    """The hook that sees the end is told once what is new: the bytes judged, of both ends, or that an answer is owed."""
    talk = Talk()
    assert talk.look(traffic).marks == {}
    talk.wait(100 * MS).client(300)
    assert talk.wait(20 * MS).look(traffic).marks == {}  # nothing was judged yet
    talk.server(50)
    assert talk.wait(20 * MS).look(traffic).marks == {1: (300, 50)}
    assert talk.wait(SECOND).look(traffic).marks == {}
    talk.client(200)
    assert talk.wait(20 * MS).look(traffic).marks == {1: None}
    assert talk.wait(20 * MS).look(traffic).marks == {}
    talk.server(50)
    assert talk.wait(20 * MS).look(traffic).marks == {1: (500, 100)}


def test_has_spoken(traffic, talk):
    """What makes a park undone: a word of the client since the last look, or a connection that is not known."""
    answered(traffic, talk)
    assert not traffic.has_spoken([talk.wait(60 * SECOND).row()])
    assert not traffic.has_spoken([talk.server(PING_BYTES - 1).wait(SECOND).row()])
    assert traffic.has_spoken([talk.server(1).wait(SECOND).row()])  # it goes on answering
    assert traffic.has_spoken([Talk(2).row()])
    assert traffic.has_spoken([talk.client(1).server(1).row()])  # answered already: the hook did not ring
    assert not traffic.has_spoken([])


# ---- whatever happens ----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["client", "server", "look", "wait"]),
        st.integers(1, 5_000),  # bytes
        st.integers(TICK, 3 * SECOND),  # time before it
    ),
    max_size=40,
)
POLICIES = st.builds(
    WatchSettings,
    touch_s=st.sampled_from([0, 0.05, 0.25, 5.0]),
    touch_bytes=st.sampled_from([1, 64, 1024, 100_000]),
    touch_cooldown_s=st.sampled_from([0.0, 0.05, 1.0]),
)


def replay(steps, settings, tells=False):
    """Yield (traffic, talk, verdict, what the client said since the last look, last word of both) of each look."""
    traffic, talk = Traffic(settings, server_tells=tells), Talk()
    talk.look(traffic)
    asked = 0
    for what, size, ns in [*steps, ("look", 1, TICK)]:
        talk.wait(ns)
        if what == "client":
            talk.client(size)
            asked += size
        elif what == "server":
            talk.server(size)
        elif what == "look":
            yield traffic, talk, talk.look(traffic), asked
            asked = 0


@given(STEPS, POLICIES, st.booleans())
def test_never_silent_while_an_answer_is_owed(steps, settings, tells):
    """The client has asked (what is shorter than any request is no question) and spoke last: somebody works on it."""
    for _, talk, verdict, asked in replay(steps, settings, tells):
        if asked >= REQUEST_BYTES and (talk.heard_at >= talk.said_at + TICK or not talk.sent):
            assert verdict.live == 1


@given(STEPS, POLICIES, st.booleans())
def test_live_or_silent_never_both_never_neither(steps, settings, tells):
    """Every connection is in the verdict once."""
    for _, talk, verdict, _ in replay(steps, settings, tells):
        assert verdict.live + len(verdict.silent) == 1
        assert verdict.silent <= {talk.cookie}


@given(STEPS, POLICIES, st.booleans())
def test_times_only_grow(steps, settings, tells):
    """And work is activity; nothing lies in the future, and nothing is unsure if the server tells."""
    before = 0, 0, 0
    for traffic, talk, _, _ in replay(steps, settings, tells):
        now = traffic.last_work_ns, traffic.last_activity_ns, traffic.touches
        assert all(new >= old for new, old in zip(now, before, strict=True))
        assert now[0] <= talk.now
        assert now[1] <= talk.now
        assert traffic.last_unsure_ns <= (0 if tells else talk.now)
        before = now


@given(
    st.lists(
        st.tuples(st.integers(REQUEST_BYTES, 1023), st.integers(0, 60), st.integers(1, 60_000)), min_size=1, max_size=60
    )
)
def test_touches_are_never_work_however_many(requests):
    """Health checks on one connection for a year: the bytes of one are not added to those of the next."""
    traffic, talk = Traffic(SETTINGS, server_tells=True), Talk()
    talk.look(traffic)
    for size, within_ms, pause_ms in requests:
        answered(traffic, talk.wait(pause_ms * MS), size, within_ms * MS)
    assert traffic.last_work_ns == 0
    assert traffic.touches == len(requests)


@given(STEPS)
def test_without_touches_any_word_of_a_client_is_work(steps):
    """Touch = "off": whenever one looks, the last work is not before the last word of the client."""
    for traffic, talk, _, asked in replay(steps, dataclasses.replace(SETTINGS, touch_s=0)):
        assert traffic.touches == 0
        if asked:
            assert traffic.last_work_ns >= talk.heard_at


@given(STEPS, POLICIES)
def test_large_request_is_work_whenever_one_looks(steps, settings):
    """touch_bytes or more from the client between two looks, unless they are fewer than any request has."""
    for traffic, talk, _, asked in replay(steps, settings):
        if asked >= max(settings.touch_bytes, REQUEST_BYTES):
            assert traffic.last_work_ns >= talk.heard_at


@given(st.lists(st.tuples(st.integers(100, 5000), st.integers(1, 2000)), min_size=1, max_size=40), POLICIES)
def test_stream_without_a_word_of_the_client_is_work(chunks, settings):
    """Work until its last chunk."""
    traffic, talk = Traffic(settings), Talk()
    talk.look(traffic)
    answered(traffic, talk.wait(SECOND))
    for size, pause_ms in chunks:
        talk.wait(pause_ms * MS).server(size).wait(5 * MS).look(traffic)
        assert traffic.last_work_ns == talk.said_at


# ---- the kernel's figures ------------------------------------------------------------------------------------------


FAMILIES = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]


@pytest.fixture(params=FAMILIES, ids=["v4", "v6", "mapped"])
def ends(request, netns):
    """(client's socket, server's socket, port)."""
    listens, address = request.param
    with contextlib.ExitStack() as kept:
        server = kept.enter_context(listener(netns, 7100, listens))
        client = kept.enter_context(connected(netns, 7100, address))
        yield client, kept.enter_context(server.accept()[0]), 7100


def row_of(diag, port, server):
    cookie = int.from_bytes(server.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE
    rows = [row for row in diag.connections(port, said=True) if row.cookie == cookie]
    assert len(rows) == 1
    return rows[0]


def test_figures_of_a_real_connection(diag, ends):
    """Bytes, what is not read, who spoke last and how long ago; the end of the client's side counts as one byte."""
    client, server, port = ends
    fresh = row_of(diag, port, server)
    assert (fresh.said.received, fresh.said.sent, fresh.unread, fresh.unsent) == (0, 0, 0, 0)
    time.sleep(0.05)  # both ages begin with the connection
    client.sendall(b"q" * 1500)
    assert_eventually(lambda: row_of(diag, port, server).unread == 1500)
    asked = row_of(diag, port, server)
    assert asked.said.received == 1500
    assert server.recv(4096) == b"q" * 1500
    time.sleep(0.1)
    waits = row_of(diag, port, server)
    assert waits.unread == 0
    assert 80 * MS <= waits.said.received_ago_ns < waits.said.sent_ago_ns
    server.sendall(b"a" * 700)
    assert_eventually(lambda: row_of(diag, port, server).unsent == 0)
    time.sleep(0.1)
    over = row_of(diag, port, server)
    assert (over.said.received, over.said.sent) == (1500, 700)
    assert 80 * MS <= over.said.sent_ago_ns < over.said.received_ago_ns
    client.shutdown(socket.SHUT_WR)
    assert_eventually(lambda: row_of(diag, port, server).said.received == 1501)
    ended = row_of(diag, port, server).said
    assert ended.sent_ago_ns < ended.received_ago_ns + TICK


def test_answer_that_the_client_does_not_take_is_unsent(diag, ends):
    """Until the client reads it; taking it is not a word of the client."""
    client, server, port = ends
    server.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            sent += server.send(b"a" * 65536)
    before = row_of(diag, port, server)
    assert before.unsent > 0
    got = 0
    while got < sent:
        got += len(client.recv(1 << 20))
    assert_eventually(lambda: row_of(diag, port, server).unsent == 0)
    after = row_of(diag, port, server)
    assert after.said.received == 0
    assert after.said.sent >= sent  # also what was sent twice


def test_said_only_if_asked_for(diag, ends):
    """Nobody pays for what is not wanted."""
    client, server, port = ends
    client.sendall(b"x")
    assert all(row.said is None for row in diag.connections(port))
    assert all(row.said is not None for row in diag.connections(port, said=True))
    assert server.recv(1) == b"x"


def test_first_request_is_owed_although_it_came_with_the_connection(netns, diag):
    """The kernel's two ages begin with the connection: within its tick the request is as old as "the last answer"."""
    with listener(netns, 7101) as server:
        for _ in range(20):
            with connected(netns, 7101) as client:
                client.sendall(b"q" * 300)
                with server.accept()[0] as served:
                    served.recv(4096)
                    traffic = Traffic(SETTINGS)
                    for _ in range(3):
                        time.sleep(0.01)
                        assert traffic.look([row_of(diag, 7101, served)], time.monotonic_ns()).live == 1


def test_judgement_of_a_real_conversation(diag, ends):
    """A pooled connection as the ledger sees it: new, asked, answered, silent."""
    client, server, port = ends
    traffic = Traffic(SETTINGS)

    def look():
        return traffic.look([row_of(diag, port, server)], time.monotonic_ns())

    assert look().live == 1
    client.sendall(b"q" * 300)
    assert look().live == 1
    assert len(server.recv(4096)) == 300
    time.sleep(0.4)
    assert look().live == 1  # longer than a touch
    server.sendall(b"a" * 100)
    ended = time.monotonic_ns()
    assert_eventually(lambda: look().live == 0)
    assert abs(traffic.last_work_ns - ended) < 50 * MS
    assert traffic.touches == 0
    time.sleep(0.05)
    traffic.server_tells = True  # else what is answered within a tick is work
    client.sendall(b"q" * 300)
    assert len(server.recv(4096)) == 300
    server.sendall(b"a" * 100)
    assert len(client.recv(4096)) == 200
    assert_eventually(lambda: look().live == 0)
    assert traffic.touches == 1
    assert not traffic.has_spoken([row_of(diag, port, server)])


# ---- when there was work ---------------------------------------------------------------------------------------------


def test_span_from_the_request_to_the_answer(traffic, talk):
    """As far as the look can tell: from the last that the client said to the last that the server said."""
    talk.look(traffic)
    traffic.heard_ns = talk.now
    traffic.spans.clear()
    begin = talk.wait(SECOND).now
    answered(traffic, talk, size=2000, within=300 * MS)
    assert traffic.spans == [(begin, talk.now)]
    talk.wait(2 * SECOND).look(traffic)
    assert traffic.spans == [(begin, talk.now - 2 * SECOND)]


def test_touch_is_no_span(traffic, talk):
    """Neither while its answer is owed nor afterwards; but until it is judged nobody knows."""
    traffic.spans.clear()
    traffic.heard_ns = talk.now
    asked = talk.client(300).now
    assert talk.wait(10 * MS).look(traffic).open_ns == asked
    talk.server(200)
    assert talk.look(traffic).open_ns == 0
    assert traffic.spans == []


@given(STEPS, POLICIES, st.booleans())
def test_work_and_spans_say_the_same(steps, settings, tells):
    """Whatever is work is the end of a span, and the other way round; no span lies in the future."""
    for traffic, talk, _, _ in replay(steps, settings, tells):
        assert all(begin <= end <= talk.now for begin, end in traffic.spans)
        assert max((end for _, end in traffic.spans), default=0) == traffic.last_work_ns


def test_span_grows_as_long_as_an_answer_is_owed(traffic, talk):
    """It begins with the request at every look, and ends with the answer."""
    traffic.spans.clear()
    traffic.heard_ns = talk.now
    begin = talk.client(2000).now
    ends = []
    for _ in range(3):
        talk.wait(2 * SECOND).look(traffic)
        ends.append((begin, talk.now))
        traffic.heard_ns = talk.now
    talk.wait(SECOND).server(200).look(traffic)
    assert traffic.spans == [*ends, (begin, talk.now)]


def test_answer_that_pauses_is_one_piece(traffic, talk):
    """What the server says within seconds after what it said belongs to that; after a longer pause it is new."""
    traffic.spans.clear()
    begin = traffic.heard_ns = talk.now
    for said in (2, 4, 60):
        while talk.now < begin + said * SECOND:
            traffic.heard_ns = talk.now
            talk.wait(2 * SECOND)
            talk.server(2000 if talk.now == begin + said * SECOND else 0).look(traffic)
    first, second, third = traffic.spans
    assert first == (begin, begin + 2 * SECOND)
    assert second == (begin + 2 * SECOND, begin + 4 * SECOND)
    assert third == (begin + 58 * SECOND, begin + 60 * SECOND)


def test_new_connection_worked_since_it_was_opened(traffic):
    """It may have asked for more than the last of its requests, which is all that the look shows."""
    talk = Talk()
    talk.wait(SECOND).client(2000).wait(300 * MS).server(200)
    traffic.look([talk.row()], talk.now, {talk.cookie: BEGIN})
    assert traffic.spans == [(BEGIN, talk.now)]


def test_the_doorbell_knows_the_first_word(traffic, talk):
    """What the look found began when it rang."""
    traffic.spans.clear()
    rang = talk.wait(60 * SECOND).now
    talk.client(2000).wait(SECOND).server(200).wait(SECOND).client(2000).wait(300 * MS).server(200)
    traffic.look([talk.row()], talk.now, None, rang)
    assert traffic.spans == [(rang, talk.now)]


def test_spans_that_nobody_takes_are_bounded(traffic, talk):
    """They become one that covers them all: never a gap too many."""
    traffic.spans.clear()
    begin = talk.now
    for _ in range(3000):
        traffic.heard_ns = talk.wait(SECOND).now
        answered(traffic, talk, size=2000)
    assert len(traffic.spans) <= MOST_SPANS
    assert traffic.spans[0][0] <= begin + SECOND
    assert traffic.spans[-1][1] == talk.now
