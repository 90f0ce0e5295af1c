"""`idle_after = "auto"`: how long a GPU is left awake in a gap, learned from the gaps there were. Pure.

Nobody knows how long a gap will be that has just begun (ski rental). Two things are known: what a park and its wake
cost, and how long the gaps of this GPU have been.

The price of a wake is `switch_j + wait_price_w * slow_s`: the energy of the switch, and that somebody waited. A timer
of `price / spared_w` seconds, the break-even timer, never costs more than twice what somebody pays who knows every gap
beforehand. That is what a GPU begins with.

After WARM_GAPS gaps wakes are bought like goods: for each idle time the recorded gaps say how many wakes it makes and
how many joules it saves. The wakes that save most come first, until SHARE of what could be saved at all is saved, the
next one saves less than a user's waiting is worth, or the limit of wakes per hour is reached. So of the idle times that
save almost everything it is the one with the fewest wakes.

Gaps are not all alike: short ones follow short ones (a spell of work), and some hours are calm. So wakes are bought
three times: from all gaps alike, with the gaps parted by the spell in which they began (the running mean of the
logarithms of the last gaps), and parted by the hour of the day. All three keep an account of what their idle times
would have cost in the gaps that came after; that with the best account is followed.

The promise does not rest on what was learned: `debt` is what the idle times cost more than the break-even timer would
have, in wakes. An idle time is taken only if its worst case keeps the debt within DEBT_WAKES, else it is the break-even
timer. So for any gaps whatever, with costs counted in the prices of their time:

    cost <= cost of the break-even timer + DEBT_WAKES * price <= 2 * cost of who knows all + DEBT_WAKES * price

unless the limit of wakes per hour makes it wait, which goes first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from memscaler.core.buying import EDGES_S, FIRST_S, LONGEST_S, SHORTEST_S, Cell, Gaps, Plan, Wanted, buy
from memscaler.core.costs import Costs, Outcome
from memscaler.core.text import idle_time

WARM_GAPS = 10
LEAST_PRICE_J = 1e-3
SHARE = 0.955
HALF_LIFE_GAPS = 1000.0
DEBT_WAKES = 24.0
PLAN_EVERY = 1.04  # plans are made anew when so many times more gaps are known, at the latest after PLAN_GAPS
PLAN_GAPS = 24
STAKE = 0.25  # of what is left of them, for waiting longer than the break-even timer in one gap
LEEWAY = 0.02
PROOF_WAKES = 4.0  # so much better an account must be than that of all gaps alike
FADE = 0.998  # of accounts, per gap
RATE_SHARE = 0.9  # of the limit of wakes per hour, for a plan
PULL_GAPS = 8.0  # as if every cell had seen so many gaps of the whole
SPELL_PULL = 0.3
LONGEST_SPELL = 12  # as a power of two seconds: an hour and more are alike
HOUR_S = 3600.0
DAY_S = 86400.0
DAY_PARTS = 8

BREAK_EVEN = "break-even with the price of waiting"
GROWTH = 2 ** (1 / HALF_LIFE_GAPS)
LARGEST_UNIT = 2.0**20

ALL, SPELL, HOUR = WAYS = range(3)  # how gaps are parted


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator sets. wait_price_w: joules that a second of a user's waiting is worth.

    ways: in which gaps may be parted; all, but to see what one of them is worth.
    """

    wait_price_w: float = 1200.0
    wakes_per_hour: float = 120.0
    min_dwell_s: float = 0.25
    ways: tuple[int, ...] = (ALL, SPELL, HOUR)

    @property
    def burst(self) -> float:
        """Wakes that may follow each other without a pause; the others of an hour come one by one."""
        return max(1.0, self.wakes_per_hour / 4)

    @property
    def refill_per_s(self) -> float:
        """So that an hour never has more wakes than allowed, its burst included."""
        return (self.wakes_per_hour - self.burst) / HOUR_S


@dataclass(frozen=True, slots=True)
class Decision:
    """What to go by until the next gap has ended. by: how the gaps were parted, None: the break-even timer.

    waits: the limit of wakes per hour makes it wait.
    """

    idle_after_s: float
    min_dwell_s: float
    by: int | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """Of one GPU, after its last gap.

    unit: the weight of the next gap, which grows instead of the others' falling. span_s: the time in which the gaps
    were, weighed like them; end_s: of the last one. spell: running mean of log2 of the gaps. now: the cell of each way
    to part the gaps in which the next one will be counted. accounts: what each way would have cost more than ALL, in
    wakes. debt: see the module. left: wakes that may follow each other at left_s. parked_s: the last park.
    """

    decision: Decision
    gaps: int = 0
    unit: float = 1.0
    span_s: float = 0.0
    end_s: float | None = None
    spell: float = 0.0
    now: tuple[Cell, ...] = (0, 0, 0)
    cells: tuple[Mapping[Cell, Gaps], ...] = ({}, {}, {})
    plans: tuple[Plan, ...] = (Plan(), Plan(), Plan())
    planned: tuple[int, ...] = (0, 0, 0)
    accounts: tuple[float, ...] = (0.0, 0.0, 0.0)
    debt: float = 0.0
    saved_j: float = 0.0
    possible_j: float = 0.0
    left: float = 0.0
    left_s: float = -math.inf
    parked_s: float = -math.inf


# ---- begin, learn ----------------------------------------------------------------------------------------------------


def price_j(costs: Costs, limits: Limits) -> float:
    """Of one wake, in joules; above zero."""
    return max(LEAST_PRICE_J, costs.switch_j + limits.wait_price_w * costs.slow_s)


def break_even_s(costs: Costs, limits: Limits) -> float:
    """The timer that never costs more than twice the best; within SHORTEST_S and LONGEST_S."""
    price = price_j(costs, limits)
    return min(max(price / costs.spared_w, SHORTEST_S), LONGEST_S) if costs.spared_w else LONGEST_S


def begin(costs: Costs, limits: Limits, now_s: float = 0.0) -> Learned:
    """Nothing is known yet."""
    return decide(Learned(Decision(0.0, 0.0)), costs, limits, now_s)


def learn(known: Learned, start_s: float, gap_s: float, costs: Costs, limits: Limits) -> Learned:
    """A gap has ended. start_s: its begin, in seconds of local time since 1970."""
    if known.parked_s > start_s:  # the clock was set back: else no park would count until it has caught up
        known = replace(known, parked_s=start_s, left_s=start_s)
    known = _settle(known, start_s, gap_s, costs, limits)
    known = _remember(known, start_s, gap_s)
    by = min(WAYS, key=known.planned.__getitem__)  # one at a time: the loop's thread makes them
    planned = known.planned[by]
    if known.gaps >= WARM_GAPS and known.gaps >= min(planned * PLAN_EVERY, planned + PLAN_GAPS):
        plan = buy(known.cells[by], known.cells[ALL][0], _wanted(known, costs, limits), costs)
        known = replace(
            known,
            plans=(*known.plans[:by], plan, *known.plans[by + 1 :]),
            planned=(*known.planned[:by], known.gaps, *known.planned[by + 1 :]),
        )
    return decide(known, costs, limits, start_s + gap_s)


def decide(known: Learned, costs: Costs, limits: Limits, now_s: float) -> Learned:
    """With the decision for the next gap. now_s: local time since 1970, in seconds."""
    now = (0, min(max(math.floor(known.spell), 0), LONGEST_SPELL), int(now_s * DAY_PARTS // DAY_S) % DAY_PARTS)
    floor_s = break_even_s(costs, limits)
    known = replace(known, now=now)
    idle_after_s, by = floor_s, None
    if known.planned[ALL]:
        best = min(limits.ways, key=known.accounts.__getitem__)
        by = best if known.accounts[best] < -PROOF_WAKES else ALL
        idle_after_s = _timer_s(known, by, costs, limits)
        by = None if idle_after_s == floor_s and not _is_bin_of(_number(known, by), floor_s) else by
    left = min(limits.burst, known.left + max(0.0, now_s - known.left_s) * limits.refill_per_s)
    dwell_s = limits.min_dwell_s
    if left < 1:
        dwell_s = max(dwell_s, now_s + (1 - left) / limits.refill_per_s - known.parked_s)
    return replace(known, decision=Decision(idle_after_s, dwell_s, by, left < 1))


def _number(known: Learned, by: int) -> int:
    """The edge that a plan has chosen for the cell of now."""
    return known.plans[by].timers.get(known.now[by], known.plans[ALL].timers[0])


def _is_bin_of(number: int, seconds: float) -> bool:
    return EDGES_S[number] <= seconds < EDGES_S[number + 1]


def _timer_s(known: Learned, by: int, costs: Costs, limits: Limits) -> float:
    """The idle time of a plan if its worst case can be borne, else the nearest that can."""
    number, floor_s = _number(known, by), break_even_s(costs, limits)
    timer_s = floor_s if _is_bin_of(number, floor_s) else EDGES_S[number]
    if timer_s < floor_s:  # a gap that ends with the park: this timer pays the price and the other does not
        return timer_s if known.debt + 1 <= DEBT_WAKES else floor_s
    price_s = price_j(costs, limits) / costs.spared_w if costs.spared_w else math.inf
    return min(timer_s, floor_s + max(0.0, DEBT_WAKES - known.debt) * STAKE * price_s)  # a gap without end


def park_at_s(known: Learned, start_s: float) -> float:
    """When a GPU parks whose gap begins at start_s, if the gap lasts."""
    return max(start_s + known.decision.idle_after_s, known.parked_s + known.decision.min_dwell_s)


# ---- what a gap has cost -------------------------------------------------------------------------------------------


def _settle(known: Learned, start_s: float, gap_s: float, costs: Costs, limits: Limits) -> Learned:
    """The accounts after a gap under the decision that was in force."""
    price, spared_w, decision = price_j(costs, limits), costs.spared_w, known.decision
    park_s = park_at_s(known, start_s)
    if park_s < start_s + gap_s:
        left = min(limits.burst, known.left + max(0.0, park_s - known.left_s) * limits.refill_per_s) - 1
        known = replace(known, left=left, left_s=park_s, parked_s=park_s)

    def paid_j(idle_after_s: float, wake_j: float) -> float:
        return spared_w * gap_s if gap_s <= idle_after_s else spared_w * idle_after_s + wake_j

    more_j = paid_j(decision.idle_after_s, price) - paid_j(break_even_s(costs, limits), price)
    accounts = known.accounts
    if known.planned[ALL]:
        wake_j = costs.switch_j + max(known.plans[ALL].worth_j, price - costs.switch_j)
        all_j = paid_j(_timer_s(known, ALL, costs, limits), wake_j)
        others = [(paid_j(_timer_s(known, by, costs, limits), wake_j) - all_j) / wake_j for by in (SPELL, HOUR)]
        accounts = (0.0, *(old * FADE + new for old, new in zip(accounts[SPELL:], others, strict=True)))
    saved_j = known.saved_j + known.unit * (spared_w * gap_s - paid_j(decision.idle_after_s, costs.switch_j))
    possible_j = known.possible_j + known.unit * max(0.0, spared_w * gap_s - costs.switch_j)
    debt = max(-DEBT_WAKES, known.debt + more_j / price)
    return replace(known, debt=debt, accounts=accounts, saved_j=saved_j, possible_j=possible_j)


def _remember(known: Learned, start_s: float, gap_s: float) -> Learned:
    number = max(0, bisect_right(EDGES_S, gap_s) - 1)
    weight, length = known.unit, math.log2(max(gap_s, FIRST_S))
    cells = tuple(
        {**mine, cell: mine.get(cell, Gaps()).plus(number, gap_s, weight)}
        for mine, cell in zip(known.cells, known.now, strict=True)
    )
    busy_s = 0.0 if known.end_s is None else min(max(0.0, start_s - known.end_s), LONGEST_S)
    span_s, unit = known.span_s + weight * (gap_s + busy_s), known.unit * GROWTH
    if unit > LARGEST_UNIT:
        cells = tuple({cell: gaps.times(1 / unit) for cell, gaps in mine.items()} for mine in cells)
        known = replace(known, saved_j=known.saved_j / unit, possible_j=known.possible_j / unit)
        span_s, unit = span_s / unit, 1.0
    return replace(
        known,
        gaps=known.gaps + 1,
        unit=unit,
        span_s=span_s,
        end_s=start_s + gap_s,
        spell=known.spell + SPELL_PULL * (length - known.spell) if known.gaps else length,
        cells=cells,
    )


def _wanted(known: Learned, costs: Costs, limits: Limits) -> Wanted:
    """What was saved beyond SHARE so far may be lost now, and the other way round."""
    saved = known.saved_j / known.possible_j if known.possible_j else SHARE
    return Wanted(
        share=min(max(2 * SHARE - saved, SHARE - LEEWAY), SHARE + LEEWAY),
        waiting_j=limits.wait_price_w * costs.slow_s,
        break_even_s=break_even_s(costs, limits),
        most_wakes=RATE_SHARE * limits.wakes_per_hour / HOUR_S * known.span_s,
        pull=PULL_GAPS * known.unit,
    )


# ---- telling, replaying --------------------------------------------------------------------------------------------


def why(known: Learned, limits: Limits) -> str:
    """The reason of the decision, in words."""
    decision = known.decision
    if decision.waits:
        return f"{limits.wakes_per_hour:g} wakes an hour are used up"
    if not known.planned[ALL]:
        few = {0: "nothing", 1: "one gap"}.get(known.gaps, f"{known.gaps} gaps")
        return f"{few} known yet, {BREAK_EVEN}"
    if decision.by is None:
        return f"gaps are not what they were, {BREAK_EVEN}"
    gaps = known.cells[decision.by].get(known.now[decision.by], known.cells[ALL][0])
    whose = ("", "now ", "at this hour ")[decision.by]
    typical_s = gaps.median_s(decision.idle_after_s)
    longer = f"gaps longer than {idle_time(decision.idle_after_s)}"
    return f"{longer} {whose}last {idle_time(typical_s)} in the median" if typical_s else f"no {longer} {whose}so far"


def replay(
    gaps: Iterable[tuple[float, float]], costs: Costs, limits: Limits | None = None, utc_offset_s: float = 0.0
) -> Outcome:
    """What this would have made of (start in seconds since 1970, length in s), the oldest first; of nothing known."""
    rules, known = limits or Limits(), None
    count, quiet_s, wakes, parked_s = 0, 0.0, 0, 0.0
    for start_unix_s, gap_s in gaps:
        start_s = start_unix_s + utc_offset_s
        known = known or begin(costs, rules, start_s)
        park_s = park_at_s(known, start_s)
        count, quiet_s = count + 1, quiet_s + gap_s
        if park_s < start_s + gap_s:
            wakes, parked_s = wakes + 1, parked_s + start_s + gap_s - park_s
        known = learn(known, start_s, gap_s, costs, rules)
    saved_j = costs.spared_w * parked_s - costs.switch_j * wakes
    return Outcome(count, quiet_s, wakes, parked_s, costs.slow_s * wakes, saved_j)
