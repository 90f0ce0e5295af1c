"""Each expectation can fail: evidence of a good run, with one thing changed."""

import pytest

from demo.evidence import SECOND_NS, Answer, Connection, Parked, Sample
from demo.expectations import Alone, Card, Evidence, all_checks

DAEMON, GUARDIAN = 100, 200
CARDS = (Card("A40", 80, 18, counts_energy=True), Card("P40", 50, 10, counts_energy=False))


def s(seconds):
    return round(seconds * SECOND_NS)


def samples(idle_w, parked_w, spans, connection):
    """Twenty a second, for 20 s."""
    found = []
    for step in range(400):
        at_ns = s(step / 20)
        locked = any(span.covers(at_ns) for span in spans)
        waits = connection.waits() if connection else []
        waiting_ns = max((at_ns - from_ns for from_ns, to_ns in waits if from_ns <= at_ns < to_ns), default=0)
        found.append(Sample(at_ns, parked_w if locked else idle_w, locked, waiting_ns))
    return found


@pytest.fixture
def good():
    """Parked from 3 s on; the A40 is asked at 6 s and answers until 8 s, again at 12 s until 12.5 s; killed at 14 s."""
    answers = [Answer(s(6.0002), s(6.1), s(8), 200, 50), Answer(s(12), s(12.1), s(12.5), 200, 10)]
    connection = Connection(0, s(6), s(6.0001), s(12.5), answers)
    spans = [
        [Parked(s(3), s(6.0002), DAEMON), Parked(s(11), s(12.001), DAEMON), Parked(s(13.5), s(14.01), GUARDIAN)],
        [Parked(s(3), s(14.01), GUARDIAN)],
    ]
    boards = [samples(80, 18, spans[0], connection), samples(50, 10, spans[1], None)]
    return Evidence(
        CARDS, quiet=[("at first", [True, True], [18, 10])], connections=[connection], samples=boards, spans=spans,
        alone=[Alone(0, s(6), s(8))], latencies_us=[90, 120, 300], accepted=1, most_connections=[1, 0],
        measured_ns=(s(1), s(13)), used_j=[700, 200], simulator_j=[705, 260], saved_j=[310, 400],
        daemon_pid=DAEMON, killed_ns=s(14), parked_at_kill=[True, True], restarted=True, stop_status=0, stop_s=0.1,
    )  # fmt: skip


def failed(evidence):
    return [check.text for check in all_checks(evidence) if not check.held]


def test_a_good_run_holds(good):
    """All of them."""
    assert failed(good) == []


def change(path, value):
    def apply(evidence):
        *way, last = path.split(".")
        target = evidence
        for name in way:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return apply


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("quiet.0", ("at first", [True, False], [18, 10]), "both GPUs parked"),
        ("quiet.0", ("at first", [True, True], [18, 50]), "the power fell"),
        ("spans.0", [Parked(s(7), s(7.5), DAEMON), Parked(s(13), s(14.01), GUARDIAN)], "while a client waited"),
        ("spans.0", [Parked(s(3), s(6.2), DAEMON), Parked(s(13), s(14.01), GUARDIAN)], "before the server answered"),
        ("samples.0", [Sample(s(7), 18, True, s(1))], "while a client waited"),
        ("spans.0", [Parked(s(3), s(6.0002), DAEMON), Parked(s(13), s(14.01), GUARDIAN)], "let its GPU sleep"),
        ("spans.0", [Parked(s(3), s(6.0002), DAEMON), Parked(s(11), s(12.2), GUARDIAN)], "let its GPU sleep"),
        ("latencies_us", [90, 60_000], "every wake was quick"),
        ("latencies_us", [], "every wake was quick"),
        ("spans.1", [Parked(s(3), s(7), DAEMON), Parked(s(11), s(14.01), GUARDIAN)], "the other GPU stayed parked"),
        ("accepted", 0, "the kernel saw every connection"),
        ("connections.0.answers.0.status", 0, "every completion was answered"),
        ("used_j.0", 900, "the energy used"),
        ("saved_j.0", 600, "energy was saved"),
        ("saved_j.1", -1, "energy was saved"),
        ("spans.1", [Parked(s(3), None)], "killed with SIGKILL"),
        ("spans.1", [Parked(s(3), s(15.5), GUARDIAN)], "killed with SIGKILL"),
        ("restarted", False, "killed with SIGKILL"),
        ("stop_status", None, "told to stop"),
        ("locks_left", ["A40"], "told to stop"),
        ("stop_s", 5.0, "told to stop"),
    ],
)
def test_each_can_fail(good, path, value, text):
    """One thing is wrong, and its expectation says so."""
    change(path, value)(good)
    assert any(text in each for each in failed(good)), failed(good)


def test_nothing_seen_is_nothing_held():
    """A demo in which nothing happened must not succeed."""
    assert len(failed(Evidence(CARDS, samples=[[], []], spans=[[], []]))) == 13
