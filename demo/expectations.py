"""What must hold. Each expectation is a function of the evidence; the demo succeeds only if every one holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from demo.evidence import SECOND_NS, Connection, Parked, Sample, energy_j

WAKE_LIMIT_NS = 50_000_000  # far above the promise (1 ms), so that a busy machine does not fail the demo
GUARDIAN_LIMIT_MS = 1000
STOP_LIMIT_S = 1.5
WATTS_TOLERANCE = 0.5
COUNTER_TOLERANCE = 0.05
SAVED_TOLERANCE = 0.25  # a baseline taken within a second of work is too high on cards that report an average
MS_NS, US_NS = 1_000_000, 1_000


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation and whether it held."""

    held: bool
    text: str
    detail: str


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about a simulated board: watts idle with a server in its memory, and parked."""

    name: str
    idle_w: float
    parked_w: float
    counts_energy: bool  # has a counter of its own


@dataclass(frozen=True, slots=True)
class Alone:
    """A time in which only `gpu`'s server was asked."""

    gpu: int
    from_ns: int
    to_ns: int


@dataclass(slots=True)
class Evidence:
    """Everything that the expectations are about."""

    cards: tuple[Card, ...]
    quiet: list[tuple[str, list[bool], list[float]]] = field(default_factory=list)  # when, parked and watts per GPU
    connections: list[Connection] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    spans: list[list[Parked]] = field(default_factory=list)
    alone: list[Alone] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)  # by the governor: kernel's timestamp to driver's return
    accepted: int = 0  # by the governor's metrics
    most_connections: list[int] = field(default_factory=list)
    measured_ns: tuple[int, int] = (0, 0)  # the time that the next three are about
    used_j: list[float] = field(default_factory=list)  # by the governor's metrics
    simulator_j: list[float] = field(default_factory=list)
    saved_j: list[float] = field(default_factory=list)
    daemon_pid: int = 0
    killed_ns: int = 0
    parked_at_kill: list[bool] = field(default_factory=list)
    restarted: bool = False
    stop_status: int | None = None
    stop_s: float = 0.0
    locks_left: list[str] = field(default_factory=list)


def all_checks(seen: Evidence) -> list[Check]:
    """Every expectation, in the order of the promises."""
    return [
        _parked_when_quiet(seen),
        _watts_fell(seen),
        _never_parked_while_asked(seen),
        _parked_beside_silence(seen),
        _awake_before_the_answer(seen),
        _wake_latency(seen),
        _independent(seen),
        _every_connection_counted(seen),
        _all_answered(seen),
        _energy(seen),
        _saved(seen),
        _guardian(seen),
        _stopped(seen),
    ]


def _parked_when_quiet(seen: Evidence) -> Check:
    missed = [f"{seen.cards[gpu].name} {when}" for when, parked, _ in seen.quiet for gpu in _falses(parked)]
    detail = f"not parked: {', '.join(missed)}" if missed else f"{len(seen.quiet)} quiet times, both parked in each"
    return Check(bool(seen.quiet) and not missed, "both GPUs parked when their servers were quiet", detail)


def _watts_fell(seen: Evidence) -> Check:
    """From the first quiet time: the boards before the first park, and when parked."""
    told, held = [], bool(seen.quiet)
    for gpu, card in enumerate(seen.cards):
        spans, samples = seen.spans[gpu], seen.samples[gpu]
        before = [each.power_w for each in samples if not spans or each.at_ns < spans[0].from_ns]
        after_w = seen.quiet[0][2][gpu] if seen.quiet else 0.0
        before_w = before[-1] if before else 0.0
        near = abs(before_w - card.idle_w) <= WATTS_TOLERANCE and abs(after_w - card.parked_w) <= WATTS_TOLERANCE
        held = held and near
        told.append(
            f"{card.name} {before_w:.0f} -> {after_w:.0f} W (expected {card.idle_w:.0f} -> {card.parked_w:.0f})"
        )
    return Check(held, "the power fell as it should", ", ".join(told))


def _never_parked_while_asked(seen: Evidence) -> Check:
    """By the driver's record of calls, and by samples of clients who wait for longer than the limit of a wake."""
    problems = []
    for connection in seen.connections:
        for from_ns, to_ns in connection.waits():
            for span in seen.spans[connection.gpu]:
                parked_meanwhile = from_ns < span.from_ns < to_ns
                too_long = span.covers(from_ns) and not _woken_within(span, from_ns)
                if parked_meanwhile or too_long:
                    name = seen.cards[connection.gpu].name
                    problems.append(f"{name} {'fell asleep' if parked_meanwhile else 'stayed'}")
    old = [each for samples in seen.samples for each in samples if each.waiting_ns > WAKE_LIMIT_NS]
    asleep = sum(each.locked for each in old)
    parks = sum(len(spans) for spans in seen.spans)
    detail = f"{parks} parks, none during an answer; {len(old)} samples with a client waiting, {asleep} of them parked"
    if problems:
        detail = f"parked while a client waited: {', '.join(problems)}; {asleep} of {len(old)} samples"
    return Check(bool(old) and not problems and not asleep, "no GPU was parked while a client waited", detail)


def _woken_within(span: Parked, asked_ns: int) -> bool:
    return span.to_ns is not None and span.to_ns - asked_ns <= WAKE_LIMIT_NS


def _parked_beside_silence(seen: Evidence) -> Check:
    """An open connection on which nothing is said lets its GPU sleep; its next question wakes the GPU."""
    told, held = [], False
    for connection in seen.connections:
        for from_ns, to_ns in connection.silences():
            spans = [each for each in seen.spans[connection.gpu] if from_ns < each.from_ns < to_ns]
            held = any(span.covers(to_ns) and _woken_within(span, to_ns) for span in spans)
            parked_s = sum(to_ns - span.from_ns for span in spans) / SECOND_NS
            told.append(
                f"{seen.cards[connection.gpu].name} slept for {parked_s:.1f} s of {(to_ns - from_ns) / SECOND_NS:.1f} s"
            )
    title = "a silent connection let its GPU sleep, and its next question woke it"
    return Check(held, title, ", ".join(told) or "no connection was silent")


def _awake_before_the_answer(seen: Evidence) -> Check:
    woke, late, margins_ms = 0, [], []
    for connection in seen.connections:
        span = next((each for each in seen.spans[connection.gpu] if each.covers(connection.started_ns)), None)
        if span is None:
            continue
        first_ns = connection.answers[0].first_token_ns if connection.answers else 0
        if span.to_ns is None or not first_ns or span.to_ns > first_ns:
            late.append(seen.cards[connection.gpu].name)
        else:
            woke += 1
            margins_ms.append((first_ns - span.to_ns) / MS_NS)
    detail = f"too late or never: {', '.join(late)}"
    if not late and margins_ms:
        detail = f"{woke} connections to a parked GPU; {min(margins_ms):.1f} ms or more between wake and answer"
    return Check(bool(woke) and not late, "each completion woke its GPU before the server answered", detail)


def _wake_latency(seen: Evidence) -> Check:
    times = sorted(seen.latencies_us)
    if not times:
        return Check(False, "every wake was quick", "no wake was measured")
    detail = (
        f"{len(times)} wakes: median {statistics.median(times):.0f} us, slowest {times[-1]} us "
        f"(limit here {WAKE_LIMIT_NS // MS_NS} ms), from the kernel's timestamp to the driver's return"
    )
    return Check(times[-1] * US_NS <= WAKE_LIMIT_NS, "every wake was quick", detail)


def _independent(seen: Evidence) -> Check:
    """While one server was asked, the other GPU was parked throughout."""
    disturbed = []
    for alone in seen.alone:
        for gpu, spans in enumerate(seen.spans):
            slept = any(each.covers(alone.from_ns) and each.covers(alone.to_ns) for each in spans)
            if gpu != alone.gpu and not slept:
                disturbed.append(seen.cards[gpu].name)
    detail = f"while only one server was asked ({len(seen.alone)} x)"
    return Check(
        bool(seen.alone) and not disturbed,
        "the other GPU stayed parked",
        f"woken without need: {', '.join(disturbed)}" if disturbed else detail,
    )


def _every_connection_counted(seen: Evidence) -> Check:
    made = sum(bool(each.connected_ns) for each in seen.connections if each.started_ns < seen.measured_ns[1])
    detail = (
        f"{made} made, {seen.accepted} counted, at most {max(seen.most_connections, default=0)} at once in a scrape"
    )
    return Check(made > 0 and made == seen.accepted, "the kernel saw every connection", detail)


def _all_answered(seen: Evidence) -> Check:
    answers = [answer for each in seen.connections for answer in each.answers]
    good = [answer for answer in answers if answer.status == 200 and answer.tokens > 0]
    detail = f"{len(good)} of {len(answers)} completions, {sum(answer.tokens for answer in good)} tokens"
    return Check(bool(good) and len(good) == len(answers), "every completion was answered", detail)


def _energy(seen: Evidence) -> Check:
    """Held against cards that count their joules. Others are sampled, and work that comes and goes falls between."""
    told, held = [], False
    for card, ours, true in zip(seen.cards, seen.used_j, seen.simulator_j, strict=False):
        kind = "by its counter" if card.counts_energy else "sampled: not judged"
        told.append(f"{card.name} {ours:.0f} J ({true:.0f} J; {kind})")
        if card.counts_energy:
            held = abs(ours - true) <= COUNTER_TOLERANCE * true
    return Check(held, "the energy used is what the board used", ", ".join(told) or "not measured")


def _saved(seen: Evidence) -> Check:
    """Held against idle watts times the parked time, less what the boards drew. Cards without a counter claim less."""
    from_ns, to_ns = seen.measured_ns
    truth = []
    for gpu, card in enumerate(seen.cards[: len(seen.saved_j)]):
        saved = 0.0
        for span in seen.spans[gpu]:
            start, end = max(span.from_ns, from_ns), min(span.to_ns or to_ns, to_ns)
            if end > start:
                saved += card.idle_w * (end - start) / SECOND_NS - energy_j(seen.samples[gpu], start, end)
        truth.append(saved)
    told, held = [], bool(seen.saved_j)
    for card, ours, true in zip(seen.cards, seen.saved_j, truth, strict=False):
        least_j = true * (1 - SAVED_TOLERANCE) if card.counts_energy else 0.0
        held = held and least_j < ours <= true * (1 + SAVED_TOLERANCE)
        told.append(f"{card.name} {ours:.0f} J ({true:.0f} J)")
    took_s = (to_ns - from_ns) / SECOND_NS
    detail = f"{', '.join(told)} in {took_s:.0f} s; in brackets, what the simulator says" if told else "not measured"
    return Check(held, "energy was saved, and no more is claimed", detail)


def _guardian(seen: Evidence) -> Check:
    text = "killed with SIGKILL, its guardian woke what it left parked, and a new governor took over"
    delays_ms = []
    for gpu, spans in enumerate(seen.spans):
        span = next((each for each in spans if each.covers(seen.killed_ns)), None)
        if not seen.killed_ns or span is None or span.to_ns is None or not seen.parked_at_kill[gpu]:
            return Check(
                False, text, f"{seen.cards[gpu].name} " + ("was not parked" if span is None else "stayed parked")
            )
        if span.woken_by == seen.daemon_pid:
            return Check(False, text, f"{seen.cards[gpu].name}: woken by the dead daemon")
        delays_ms.append((span.to_ns - seen.killed_ns) / MS_NS)
    detail = f"awake {', '.join(f'{delay:.0f}' for delay in delays_ms)} ms after the kill"
    held = max(delays_ms) <= GUARDIAN_LIMIT_MS and seen.restarted
    return Check(held, text, detail if seen.restarted else f"{detail}; the new governor did not park again")


def _stopped(seen: Evidence) -> Check:
    detail = f"exit status {seen.stop_status} after {seen.stop_s * 1000:.0f} ms; "
    detail += (
        f"left: {', '.join(seen.locks_left)}" if seen.locks_left else "every GPU awake, no lock left, journal empty"
    )
    held = seen.stop_status == 0 and not seen.locks_left and seen.stop_s <= STOP_LIMIT_S
    return Check(held, "told to stop (SIGTERM), it woke everything before it ended", detail)


def _falses(values: Sequence[bool]) -> list[int]:
    return [index for index, value in enumerate(values) if not value]
