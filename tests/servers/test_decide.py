"""The decisions about one server, with every order of events that processes and operators can produce."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memscaler.config.servers import Server
from memscaler.core.servers import ServerState
from memscaler.servers import decide
from memscaler.servers.backoff import LONGEST_S, pause_s
from memscaler.servers.decide import (
    Answered,
    Clear,
    Cleared,
    Ended,
    Hindered,
    Launch,
    Launched,
    LaunchHooks,
    Probe,
    Refused,
    Restart,
    Standing,
    Start,
    Stop,
    Tick,
    Verdict,
    step,
)

RESTS = (ServerState.STOPPED, ServerState.DISABLED)


class World(RuleBasedStateMachine):
    """One server, and an edge that does what it is told, at any speed."""

    @initialize(
        restart=st.sampled_from(("always", "on-failure", "never")),
        limit=st.integers(0, 3),
        port=st.sampled_from((None, 8080)),
        timeout_s=st.sampled_from((0.0, 30.0)),
        every_s=st.sampled_from((0.0, 7.0)),
    )
    def begin(self, restart, limit, port, timeout_s, every_s):
        self.server = Server(
            name="a",
            command=("a",),
            restart=restart,
            restart_limit=limit,
            port=port,
            start_timeout_s=timeout_s,
            health_every_s=every_s,
        )
        self.now_s = 100.0
        self.at = Standing()
        self.launching = self.process = self.clearing = self.probing = self.hooked = False
        self.launches_by_itself = 0  # since an operator's wish, or a steady time
        self.wish = None

    def tell(self, event):
        done = step(self.at, event, self.now_s, self.server)
        self.at = done.standing
        for action in done.actions:
            match action:
                case Launch():
                    assert not any((self.process, self.clearing, self.launching)), "two at once"
                    assert not self.hooked
                    self.launching = True
                    if not isinstance(event, (Start, Restart)) and not (
                        isinstance(event, Cleared) and self.wish in ("start", "restart")
                    ):
                        self.launches_by_itself += 1
                    self.wish = None if isinstance(event, Cleared) else self.wish
                case Clear(patience_s):
                    assert patience_s >= 0
                    assert not self.clearing
                    self.clearing, self.launching, self.probing = True, False, False
                case Probe(after_s):
                    assert after_s >= 0
                    assert self.process
                    assert self.server.port is not None
                    self.probing = True
                case LaunchHooks():
                    assert self.process
                    assert not self.hooked, "hooks twice for one process"
                    assert self.at.state is ServerState.READY
                    self.hooked = True

    @rule()
    def start(self):
        if self.at.state is not ServerState.STARTING and self.at.state is not ServerState.READY:
            self.launches_by_itself = 0
            self.wish = "start"
        self.tell(Start())

    @rule(rest=st.sampled_from(RESTS))
    def stop(self, rest):
        self.wish = "stop"
        self.tell(Stop(rest))
        assert self.at.state in (rest, ServerState.STOPPING)

    @rule()
    def restart(self):
        self.launches_by_itself = 0
        self.wish = "restart"
        self.tell(Restart())

    @precondition(lambda self: self.launching)
    @rule(how=st.sampled_from((Launched(), Refused("no such file"), Hindered("taken"))))
    def launched(self, how):
        self.launching = False
        self.process = isinstance(how, Launched)
        self.tell(how)
        if isinstance(how, Refused):
            assert self.at.state is ServerState.FAILED, "what cannot be started is no crash loop"

    @precondition(lambda self: self.process)
    @rule(well=st.booleans())
    def ends(self, well):
        self.process = False
        self.tell(Ended("exit status", well))

    @precondition(lambda self: self.clearing)
    @rule()
    def cleared(self):
        self.clearing = self.process = self.hooked = False
        self.tell(Cleared())

    @precondition(lambda self: self.probing)
    @rule(verdict=st.sampled_from(Verdict))
    def answers(self, verdict):
        self.probing = False
        self.tell(Answered(verdict, "why"))

    @rule(seconds=st.sampled_from((0.01, 1.0, 31.0, 601.0)))
    def time_passes(self, seconds):
        self.now_s += seconds
        if self.at.ready_s is not None and self.now_s - self.at.ready_s >= self.server.restart_window_s:
            self.launches_by_itself = -1  # the end of this process is the first failure
        if self.at.due_s is not None and self.now_s >= self.at.due_s:
            self.tell(Tick())

    @rule(event=st.sampled_from((Launched(), Cleared(), Ended("late"), Answered(Verdict.READY), Tick())))
    def something_late_changes_nothing_at_rest(self, event):
        if self.at.state in decide.RESTING and self.at.due_s is None:
            before = self.at.state
            self.tell(event)
            assert self.at.state is before

    @invariant()
    def what_rests_has_no_process(self):
        if hasattr(self, "at") and self.at.state in decide.RESTING:
            assert not any((self.process, self.launching, self.clearing, self.probing))

    @invariant()
    def what_runs_is_not_being_ended(self):
        if hasattr(self, "at") and self.at.state in decide.RUNNING:
            assert not self.clearing
            assert self.process or self.launching

    @invariant()
    def what_stops_is_being_ended(self):
        if hasattr(self, "at") and self.at.state is ServerState.STOPPING:
            assert self.clearing
            assert self.at.next is not None

    @invariant()
    def somebody_will_wake_it(self):
        """Nothing waits for ever unless that is what it is for."""
        if not hasattr(self, "at"):
            return
        if self.at.state is ServerState.WAITING:
            assert self.at.due_s is not None
        if self.at.state is ServerState.STARTING and self.process:
            assert self.probing
            assert (self.at.due_s is not None) == bool(self.server.start_timeout_s)
        if self.at.state is ServerState.READY and self.server.health_every_s and self.server.port is not None:
            assert self.probing or self.at.due_s is not None

    @invariant()
    def it_gives_up(self):
        if not hasattr(self, "at") or not self.server.restart_limit:
            return
        assert self.launches_by_itself <= self.server.restart_limit

    @invariant()
    def never_means_never(self):
        if hasattr(self, "at") and self.server.restart == "never" and self.at.state is ServerState.WAITING:
            assert "taken" in self.at.reason  # it did not run at all yet

    def teardown(self):
        """Whatever has happened: who stops it gets his rest."""
        if not hasattr(self, "at"):
            return
        self.tell(Stop(ServerState.DISABLED))
        if self.clearing:
            self.cleared()
        assert self.at.state is ServerState.DISABLED
        assert self.at.due_s is None


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=50)


def run(server, *events, at=None):
    """Standing after these events, a second apart, and all actions."""
    at, actions, now_s = at or Standing(), [], 0.0
    for event in events:
        now_s += 1.0
        done = step(at, event, now_s, server)
        at = done.standing
        actions += done.actions
    return at, actions


READY = (Start(), Launched(), Answered(Verdict.READY))
PLAIN = Server(name="a", command=("a",), port=1)


def test_loading_is_no_failure_and_is_told():
    """503 leaves it STARTING, with the server's words as the reason, and another look soon."""
    at, actions = run(PLAIN, Start(), Launched(), *[Answered(Verdict.LOADING, "loading model")] * 50)
    assert at.state is ServerState.STARTING
    assert at.reason == "loading model"
    assert isinstance(actions[-1], Probe)
    assert actions[-1].after_s == decide.SLOWEST_PROBE_S


def test_three_silent_looks_at_a_ready_server_restart_it_and_two_do_not():
    """A look that succeeds in between begins the count anew."""
    silent = Answered(Verdict.SILENT, "no answer")
    at, _ = run(PLAIN, *READY, silent, silent, Answered(Verdict.READY), silent, silent)
    assert at.state is ServerState.READY
    at, actions = run(PLAIN, *READY, silent, silent, silent)
    assert at.state is ServerState.STOPPING
    assert Clear(PLAIN.stop_timeout_s) in actions
    at, _ = run(PLAIN, Cleared(), at=at)
    assert at.state is ServerState.WAITING


def test_a_process_that_was_ready_for_long_fails_for_the_first_time():
    """Six ends in a row are too many, unless it worked for the window in between."""
    at = Standing()
    now_s = 0.0
    for steady in (False, False, False, False, False, True, False):
        for event in (*READY, Ended("exit status 1"), Cleared()):
            if isinstance(event, Ended):
                now_s += 700.0 if steady else 1.0
            at = step(
                at, event if at.state is not ServerState.WAITING else Tick(), max(now_s, at.due_s or 0), PLAIN
            ).standing
            now_s = max(now_s, at.since_s)
        assert at.state is ServerState.WAITING
    assert at.failures == 2


@pytest.mark.parametrize(
    ("policy", "well", "state"),
    [
        ("always", True, ServerState.WAITING),
        ("always", False, ServerState.WAITING),
        ("on-failure", True, ServerState.STOPPED),
        ("on-failure", False, ServerState.WAITING),
        ("never", True, ServerState.STOPPED),
        ("never", False, ServerState.FAILED),
    ],
)
def test_the_restart_policy(policy, well, state):
    """What follows an end by itself, with how it ended as the reason."""
    server = Server(name="a", command=("a",), port=1, restart=policy)
    at, _ = run(server, *READY, Ended("exit status 3", well, "out of memory"), Cleared())
    assert at.state is state
    assert "exit status 3" in at.reason
    assert "out of memory" in at.reason
    assert at.ended == "exit status 3"


def test_too_slow_a_start_says_what_was_heard_last():
    """The timeout's reason holds the last answer."""
    at, _ = run(
        PLAIN, Start(), Launched(), Answered(Verdict.SILENT, "answers GET /health with status 404, not with 200")
    )
    done = step(at, Tick(), 1e6, PLAIN)
    assert done.standing.state is ServerState.STOPPING
    assert "not ready within 600 s: answers GET /health with status 404" in done.standing.reason


def test_no_port_is_ready_at_once():
    """There is nothing to ask."""
    at, actions = run(Server(name="a", command=("a",)), Start(), Launched())
    assert at.state is ServerState.READY
    assert actions == [Launch(), LaunchHooks()]


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
@pytest.mark.parametrize("how", ["ends", "is taken", "is slow", "is ill"])
def test_the_limit_is_that_of_restarts_in_a_row(limit, how):
    """So many restarts and no more, however it fails; 0 is no limit. Start begins anew."""
    server = Server(name="a", command=("a",), port=1, restart_limit=limit)
    ways = {
        "ends": (Launched(), Answered(Verdict.READY), Ended("exit status 1"), Cleared()),
        "is taken": (Hindered("taken"),),
        "is slow": (Launched(), Tick(), Cleared()),
        "is ill": (Launched(), Answered(Verdict.READY), *[Answered(Verdict.SILENT)] * decide.MISSES, Cleared()),
    }
    at, now_s = Standing(), 0.0
    for _ in range(2):
        at, launches = step(at, Start(), now_s, server).standing, 0
        while at.state is ServerState.STARTING and launches < 20:
            launches += 1
            for event in ways[how]:
                now_s = max(now_s + 0.1, at.due_s or 0 if isinstance(event, Tick) else 0)
                at = step(at, event, now_s, server).standing
            if at.state is ServerState.WAITING:
                now_s = at.due_s
                at = step(at, Tick(), now_s, server).standing
        assert launches == (limit + 1 if limit else 20)
        assert at.state is (ServerState.FAILED if limit else ServerState.STARTING)
        assert at.restarts == (limit or 20)
        at = at if limit else Standing()


@given(failures=st.integers(1, 10_000), first_s=st.floats(0, 1e6))
def test_pauses_grow_to_a_limit(failures, first_s):
    """Never shorter than the first, never longer than a minute unless the first one is."""
    assert first_s <= pause_s(failures, first_s) <= max(LONGEST_S, first_s)
    assert pause_s(failures + 1, first_s) >= pause_s(failures, first_s)
