"""The energy account of one GPU: seconds and joules per public state, and what parking saved. Pure, like the governor.

Energy comes from the card's own counter (`source` "counter": the difference of two readings) or, where it has none,
from the trapezoid between two power readings ("integrated"). What neither tells is counted in `unknown_ns`, never
guessed: the time before the first reading, a gap longer than GAP_NS without a counter, a counter that went backwards
(driver reload) without power readings. Energy between two readings is shared among the states by their time in it: tell
the change of state first, then take a reading, and without a counter another one when the power has settled.

Without a counter the power of the last reading in `parked` is held until the park ends: the next reading comes when the
GPU works again, and a line between the two would book that work to the park.

The saving has a stated baseline: the watts of this GPU while quiet with its clocks up. `baseline_source` says whence:

    BEFORE      just before the park: the median (of two the lower one) of the last BASELINE_READINGS readings while
                `cooling`, with utilisation 0, and CALM_NS or more after whatever any client did (touches too), a
                reading under load and the last park: many cards report a one-second average, in which that still shows
    EARLIER     a park without such a reading: the same of the last park that had one
    CALIBRATED  there was none yet: what `memscaler calibrate` has measured on this GPU

A park without any of them claims nothing.

    net_saved_j   baseline_w * known parked seconds - energy while parked, over all parks; falls when a park costs
    saved_j       for a counter that must not fall: the highest value so far of the sum over all finished parks of
                  max(0, saving of that park), plus the same of the park that runs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading

GAP_NS = 60 * SECOND_NS
BASELINE_READINGS = 3
BEFORE, EARLIER, CALIBRATED = "before the park", "earlier", "calibrated"
LONG_ENOUGH_S = 60.0
CALM_NS = 3 * SECOND_NS // 2


def _zeros() -> Mapping[str, float]:
    return {str(state): 0.0 for state in Public}


def _no_time() -> Mapping[str, int]:
    return {str(state): 0 for state in Public}


@dataclass(frozen=True, slots=True)
class Account:
    """One GPU's account up to `at_ns`, in `state` since `since_ns`.

    energy_j is None until an interval is known, `source` is "" likewise.
    unsampled_ns: time per state since the last reading, whose energy is not known yet.
    calm_ns: from then on a reading may become the baseline; candidates: the last that may, as (time, watts).
    baseline_w: of the last park; baseline_source: whence it is, "" without one. earlier_w: the last one that was read
    before a park. calibrated_w: as was measured.
    park_saved_j: saving of the last park; finished_saved_j: of those before, each at least 0.
    """

    state: Public
    at_ns: int
    since_ns: int = 0
    state_ns: Mapping[str, int] = field(default_factory=_no_time)
    state_energy_j: Mapping[str, float] = field(default_factory=_zeros)
    energy_j: float | None = None
    source: str = ""
    unknown_ns: int = 0
    baseline_w: float | None = None
    baseline_source: str = ""
    earlier_w: float | None = None
    calibrated_w: float | None = None
    net_saved_j: float = 0.0
    saved_j: float = 0.0
    last: GpuReading | None = None
    unsampled_ns: Mapping[str, int] = field(default_factory=_no_time)
    calm_ns: int = 0
    candidates: tuple[tuple[int, float], ...] = ()
    park_saved_j: float = 0.0
    finished_saved_j: float = 0.0

    @property
    def state_s(self) -> Mapping[str, float]:
        """Seconds per state; they sum up to the time since the account was opened."""
        return {state: spent_ns / SECOND_NS for state, spent_ns in self.state_ns.items()}

    @property
    def unknown_s(self) -> float:
        """Seconds whose energy nobody knows."""
        return self.unknown_ns / SECOND_NS


def open_account(state: Public, now_ns: int, calibrated_w: float | None = None) -> Account:
    """An empty account that starts now. calibrated_w: what this GPU was measured to draw quiet, with its clocks up."""
    return calibrate(Account(state, now_ns, now_ns), calibrated_w)


def calibrate(account: Account, awake_w: float | None) -> Account:
    """The account from the next park on, with these watts as its last resort; None: there are none."""
    return replace(account, calibrated_w=sane(awake_w))


def observe_state(account: Account, state: Public, now_ns: int, heard_ns: int = 0) -> Account:
    """The account after the GPU's state was `state` at `now_ns`; the same state again brings the seconds up to date.

    heard_ns: when a client did something last, as far as is known: it may have come and gone while the GPU cooled.
    """
    account = _pass_time(account, now_ns)
    if state is account.state:
        return account
    if account.state is Public.PARKED:
        account = replace(_hold_power(account), calm_ns=account.at_ns + CALM_NS)
    account = replace(account, since_ns=account.at_ns)
    if state is Public.PARKED:
        account = _with_baseline(account, heard_ns + CALM_NS)
        return replace(
            account,
            state=state,
            park_saved_j=0.0,
            finished_saved_j=account.finished_saved_j + max(0.0, account.park_saved_j),
        )
    return replace(account, state=state, candidates=())


def observe_reading(account: Account, reading: GpuReading) -> Account:
    """The account after one sample. One older than the account counts as taken now; one without a figure is skipped."""
    account = _pass_time(account, reading.at_ns)
    if reading.power_w is None and reading.energy_j is None:
        return account
    reading = replace(reading, at_ns=account.at_ns)
    account = _settle(account, reading)
    power_w = sane(reading.power_w)
    if reading.utilization_ratio:
        account = replace(account, calm_ns=account.at_ns + CALM_NS)
    calm = account.state is Public.COOLING and account.at_ns >= account.calm_ns
    if calm and reading.utilization_ratio == 0 and power_w is not None:
        candidates = (*account.candidates, (account.at_ns, power_w))[-BASELINE_READINGS:]
        account = replace(account, candidates=candidates)
    return replace(account, last=reading, unsampled_ns=_no_time())


def parked_w(account: Account) -> float | None:
    """The mean over all parks; None before LONG_ENOUGH_S of them are known."""
    parked_s = account.state_s[Public.PARKED] - account.unknown_s
    return account.state_energy_j[Public.PARKED] / parked_s if parked_s >= LONG_ENOUGH_S else None


def _with_baseline(account: Account, calm_ns: int) -> Account:
    """For the park that begins now. calm_ns: an earlier reading may show work."""
    calm_w = tuple(power_w for at_ns, power_w in account.candidates if at_ns >= calm_ns)
    before_w = median_low(calm_w) if account.state is Public.COOLING else None
    if before_w is not None:
        return replace(account, baseline_w=before_w, baseline_source=BEFORE, earlier_w=before_w)
    if account.earlier_w is not None:
        return replace(account, baseline_w=account.earlier_w, baseline_source=EARLIER)
    source = CALIBRATED if account.calibrated_w is not None else ""
    return replace(account, baseline_w=account.calibrated_w, baseline_source=source)


def _hold_power(account: Account) -> Account:
    """As if the last reading had been taken again now; nothing for a card that counts its energy itself."""
    last = account.last
    if last is None or last.energy_j is not None or sane(last.power_w) is None:
        return account
    again = replace(last, at_ns=account.at_ns)
    return replace(_settle(account, again), last=again, unsampled_ns=_no_time())


def _pass_time(account: Account, now_ns: int) -> Account:
    """The seconds since the last observation go to the state of that time."""
    passed_ns = now_ns - account.at_ns
    if passed_ns <= 0:
        return account
    state = account.state
    return replace(
        account,
        at_ns=now_ns,
        state_ns={**account.state_ns, state: account.state_ns[state] + passed_ns},
        unsampled_ns={**account.unsampled_ns, state: account.unsampled_ns[state] + passed_ns},
    )


def _settle(account: Account, reading: GpuReading) -> Account:
    """The energy since the last reading goes to the states since then, and to the saving."""
    passed_ns = sum(account.unsampled_ns.values())
    spent_j, source = spent_between(account.last, reading)
    if spent_j is None:
        return replace(account, unknown_ns=account.unknown_ns + passed_ns)
    shares = {
        state: ns / passed_ns if passed_ns else float(state == account.state)
        for state, ns in account.unsampled_ns.items()
    }
    account = replace(
        account,
        state_energy_j={state: account.state_energy_j[state] + spent_j * share for state, share in shares.items()},
        energy_j=(account.energy_j or 0.0) + spent_j,
        source=source,
    )
    # Of the last park only: its baseline is a reading, which closed the others.
    parked_ns = account.unsampled_ns[Public.PARKED]
    if account.baseline_w is None or not parked_ns:
        return account
    saved_j = account.baseline_w * parked_ns / SECOND_NS - spent_j * parked_ns / passed_ns
    park_saved_j = account.park_saved_j + saved_j
    return replace(
        account,
        net_saved_j=account.net_saved_j + saved_j,
        park_saved_j=park_saved_j,
        saved_j=max(account.saved_j, account.finished_saved_j + max(0.0, park_saved_j)),
    )


def spent_between(last: GpuReading | None, now: GpuReading) -> tuple[float | None, str]:
    """The energy between two readings in joules and where the figure comes from; None if nobody knows."""
    if last is None:
        return None, ""
    before_j, after_j = sane(last.energy_j), sane(now.energy_j)
    if before_j is not None and after_j is not None and after_j >= before_j:
        return after_j - before_j, "counter"
    before_w, after_w = sane(last.power_w), sane(now.power_w)
    passed_ns = now.at_ns - last.at_ns
    if before_w is None or after_w is None or passed_ns > GAP_NS:
        return None, ""
    return (before_w + after_w) / 2 * passed_ns / SECOND_NS, "integrated"


def sane(value: float | None) -> float | None:
    """None for what no card can mean: negative, infinite, not a number."""
    return value if value is not None and 0 <= value < float("inf") else None


def median_low(values: tuple[float, ...]) -> float | None:
    """Of two the lower one; None without any."""
    return sorted(values)[(len(values) - 1) // 2] if values else None
