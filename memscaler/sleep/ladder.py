"""What is to be done about one server's deeper sleep: pure, `step(standing, event, now_s, rules) -> Step`.

    RESTING --a stage is due, or wished for--> ARMING      (the governor guards its watch, and looks)
    ARMING --it was quiet at that look--> ENTERING         --not, or no answer--> RESTING
    ENTERING --entered--> LOOKING                          (a second look: a client may have come meanwhile)
    ENTERING --not possible, or undone--> RESTING          (what is above holds still)
    LOOKING --still quiet--> RESTING                       (one stage deeper)
    anything --a client, a hold, a wish, a doubt--> LEAVING    (of ENTERING, LOOKING: when the call has ended)
    LEAVING --left, the deepest first, until none is left--> RESTING     --could not be--> STUCK
    STUCK --a pause, then again, for ever--> LEAVING
    ENTERING, LEAVING --the call does not end--> HUNG      --it ends after all--> LEAVING

At most one call to the outside is under way, numbered: an answer with another number is late and changes nothing. The
watch is guarded as long as anything is entered, so a client who comes rings. A stage that is not possible for a reason
that lasts is passed over, and the next one may follow in its turn; one that failed bars the way for a growing pause.
While RESTING, `held` says how deep it is. Times are seconds of CLOCK_MONOTONIC, as the governor's.
"""

from __future__ import annotations

from dataclasses import replace

from memscaler.config.stages import StageRule
from memscaler.core.stages import Stage
from memscaler.sleep.moves import (
    CALLING,
    DEPTH,
    Action,
    Arm,
    Disarm,
    Down,
    End,
    Enter,
    Entered,
    Event,
    Failure,
    Gone,
    HalfWay,
    Leave,
    Left,
    Next,
    NotLeft,
    NotPossible,
    Phase,
    Sight,
    Standing,
    Step,
    Tick,
    Undone,
    Up,
)

ANSWER_S = 10.0  # for the governor's look: it compares sockets, which takes milliseconds
MARGIN_S = 15.0  # a driver keeps its deadline by itself; one that does not is hung
VISIT_S = 1.0  # wake_on = "work": a connection that is open for so long is more than a touch
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0  # between attempts to enter
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0  # between attempts to leave: somebody may be waiting
NOT_NOW_S = 30.0
PASSED_S = 600.0  # then a stage that was not possible is asked about again
STARTED = "it was started, and not by us"  # a reason to come up
NOBODY = "nobody listens on its port"  # a reason to leave alone what is up by name only


def found(held: tuple[StageRule, ...], now_s: float) -> Step:
    """How one begins that an earlier sleeper has left in these stages: they are left."""
    return _climb(Standing(held=held, since_s=now_s, up_for="an earlier memscaler left it there"), now_s)


def step(at: Standing, event: Event, now_s: float, rules: tuple[StageRule, ...]) -> Step:  # noqa: PLR0911  # one table
    """Never raises; an event that makes no sense now changes nothing. rules: of this server, in the ladder's order."""
    match event:
        case Sight():
            return _seen(at, event, now_s, rules)
        case Gone() if Stage.STOP_SERVER in (at.stage, at.entering and at.entering.stage):
            # A watch may end with its server, which is our own doing: nobody has come for it.
            return _rest(at, now_s, rules) if at.phase is Phase.LOOKING else Step(at)
        case Gone():
            why = "nobody watches it any more"
            return _up(_refuse(replace(at, seen=None), why), why, now_s)
        case Up(why):
            return _up(_refuse(replace(at, quiet_from_s=now_s), why), why, now_s, at_once=True)
        case End():
            why = "memscaler ends"
            return _up(_refuse(replace(at, ending=True), why), why, now_s, at_once=True)
        case Down():
            return _wished(at, event, now_s, rules)
        case Tick():
            return _due(at, now_s, rules)
        case Left() | NotLeft() if event.call == at.call and at.phase in CALLING and at.held and not at.entering:
            return _left(at, event, now_s)
        case Entered() | NotPossible() | Undone() | HalfWay() if event.call == at.call and at.entering:
            return _entered(at, event, at.entering, now_s, rules)
    return Step(at)


# ---- what the governor saw -----------------------------------------------------------------------------------------


def _seen(at: Standing, sight: Sight, now_s: float, rules: tuple[StageRule, ...]) -> Step:
    before, answers = at.seen, sight.call == at.call and at.phase in (Phase.ARMING, Phase.LOOKING)
    anew = before is not None and _listens_anew(at, before, sight)
    at = _heard(at, sight, now_s)
    if before is not None:
        if not sight.pids:
            sight = replace(sight, pids=before.pids)  # a stopped server has none; the next one has others
        elif sight.pids != before.pids:
            at = replace(at, barred={}, passed={})  # what was wrong with the first is no more
        if sight.active_s > before.active_s:
            at = replace(at if _forced(at) else _refuse(at, "a client came"), passed={})
    at = replace(at, seen=sight)
    if at.is_up and at.phase is Phase.RESTING:
        return _rest(at, now_s, rules)
    if anew and not _forced(at):
        return _up(at, STARTED, now_s, at_once=True)
    if came := "" if _forced(at) else sight.held or _came(at, sight):
        return _up(at, came, now_s)
    visited = sight.live and at.held and not _forced(at)
    at = replace(at, visit_s=(now_s if at.visit_s is None else at.visit_s) if visited else None)
    if answers and at.phase is Phase.ARMING:
        return _armed(at, sight, now_s, rules)
    if answers:
        return _rest(replace(at, calm_s=sight.at_s, phase=Phase.RESTING), now_s, rules)
    return _rest(at, now_s, rules) if at.phase is Phase.RESTING else Step(at)


def _listens_anew(at: Standing, before: Sight, sight: Sight) -> bool:
    """Somebody else has started what we have stopped: other processes listen than those that we knew."""
    if at.stage is not Stage.STOP_SERVER or at.phase not in (Phase.RESTING, Phase.STUCK):
        return False
    return bool(sight.pids and before.pids) and not set(sight.pids) & set(before.pids)


def _heard(at: Standing, sight: Sight, now_s: float) -> Standing:
    """Whether there is anybody: a server may end while it is up, and one whose pids nobody ever knew may not have."""
    if sight.pids:
        since_s = now_s if at.missing else at.since_s
        return replace(at, missing="", since_s=since_s, listened=at.is_up)
    if at.listened and at.is_up and at.phase is Phase.RESTING:
        return replace(at, missing=NOBODY, since_s=now_s, listened=False)
    return at


def _armed(at: Standing, sight: Sight, now_s: float, rules: tuple[StageRule, ...]) -> Step:
    """The look before. Its clients ring from now on."""
    ahead = next_stage(at, rules)
    if ahead.rule is None or ahead.ready_s is None or ahead.ready_s > now_s:
        return _rest(at, now_s, rules)
    call, due_s = at.call + 1, now_s + ahead.rule.enter_timeout_s + MARGIN_S
    at = replace(at, phase=Phase.ENTERING, entering=ahead.rule, call=call, due_s=due_s, calm_s=sight.at_s)
    return Step(replace(at, since_s=now_s), (Enter(call, ahead.rule),))


def _came(at: Standing, sight: Sight) -> str:
    """Why it must come up, "" if nobody came. A ring may have been lost; the time of the last work is not."""
    rule = at.entering or (at.held[-1] if at.held else None)
    if rule is None:  # being armed: the sight that answers will tell the quiet time
        return "a client came" if sight.rang or sight.live else ""
    # The end of a stopped server ends its silent connections, which looks like work.
    times = rule.stage is not Stage.STOP_SERVER
    if rule.wake_on == "work":
        came = sight.live > 0 and at.visit_s is not None and sight.at_s - at.visit_s >= VISIT_S
    else:
        came = sight.live > 0 or sight.rang or (times and sight.touched_s > at.calm_s)
    return "a client came" if came or (times and sight.active_s > at.calm_s) else ""


# ---- what follows, and when ----------------------------------------------------------------------------------------


def next_stage(at: Standing, rules: tuple[StageRule, ...]) -> Next:
    """What would be entered next, as it was seen last."""
    if at.ending:
        return Next()
    if at.seen is None:
        return Next(why_not="it has not been looked at yet")
    if at.missing:
        return Next(why_not=at.missing)
    if at.wished is not None and at.wished.rule is not None:
        rules = (at.wished.rule,)
    why_not = ""
    for rule in rules:
        if at.stage is not None and DEPTH[rule.stage] <= DEPTH[at.stage]:
            continue
        why = at.barred.get(rule.stage) or at.passed.get(rule.stage)
        if not why:
            return _when(at, rule, at.seen)
        why_not = why_not or why
    return Next(why_not=why_not)


def _when(at: Standing, rule: StageRule, seen: Sight) -> Next:
    # Who would bring it up again is waited for, too: a health check every minute would have it wake every minute.
    touched_s = seen.touched_s if rule.wake_on == "connection" else 0.0
    due_s, wished = max(seen.active_s, touched_s, at.quiet_from_s) + rule.after_s, _is_wished(at, rule)
    if wished:
        due_s = min(due_s, seen.at_s)
    failure = None if wished and at.wished is not None and at.wished.rule is None else at.failures.get(rule.stage)
    ready_s = due_s if failure is None else max(due_s, failure.again_s)
    if _forced(at):
        return Next(rule, due_s, ready_s)
    if seen.held:
        return Next(rule, due_s, None, seen.held)
    if seen.live:
        return Next(rule, None, None, f"{seen.live} connection{'s' * (seen.live > 1)}")
    if not seen.parked and not wished:
        return Next(rule, due_s, None, seen.unparked)
    return Next(rule, due_s, ready_s, failure.why if failure is not None and ready_s > seen.at_s else "")


def _is_wished(at: Standing, rule: StageRule) -> bool:
    wished = at.wished
    if wished is None:
        return False
    return wished.rule is rule or (wished.stage is not None and DEPTH[rule.stage] <= DEPTH[wished.stage])


def _forced(at: Standing) -> bool:
    return at.wished is not None and at.wished.force


def _wished(at: Standing, wish: Down, now_s: float, rules: tuple[StageRule, ...]) -> Step:
    """An operator's, or a suspend's; not beside what is under way."""
    if at.ending or at.phase is not Phase.RESTING:
        return Step(at)
    at = replace(at, passed={}, refused="")
    if wish.stage is None and wish.rule is None:
        wish = Down(_deeper(at, rules), further=True)
    return _rest(replace(at, wished=wish), now_s, rules)


def _refuse(at: Standing, why: str) -> Standing:
    """The wish, if there is one, comes to nothing."""
    return at if at.wished is None else replace(at, wished=None, refused=why)


def _deeper(at: Standing, rules: tuple[StageRule, ...]) -> Stage | None:
    ahead = next_stage(replace(at, wished=None), rules)
    return ahead.rule.stage if ahead.rule is not None else None


def _rest(at: Standing, now_s: float, rules: tuple[StageRule, ...]) -> Step:
    """As deep as it is, until something is due."""
    if at.passed and now_s - at.passed_s >= PASSED_S:
        at = replace(at, passed={})
    at = replace(at, phase=Phase.RESTING, due_s=None)
    if at.held and at.wished is None and at.stage not in {rule.stage for rule in rules}:
        return _up(at, "this stage is not configured any more", now_s)
    ahead = next_stage(at, rules)
    wished = ahead.rule is not None and ahead.ready_s is not None and _is_wished(at, ahead.rule)
    if at.wished is not None and at.wished.rule is None and not wished:
        why = ahead.why_not if ahead.rule is None or _is_wished(at, ahead.rule) else ""
        at = _refuse(at, why)  # as deep as it goes, or not now
        ahead = next_stage(at, rules)
    if at.visit_s is not None and now_s >= at.visit_s + VISIT_S:
        return _ask(at, Phase.LOOKING, now_s)
    if ahead.ready_s is not None and now_s >= ahead.ready_s:
        return _ask(at, Phase.ARMING, now_s)
    times = (
        ahead.ready_s,
        at.visit_s + VISIT_S if at.visit_s is not None else None,
        at.passed_s + PASSED_S if at.passed else None,
    )
    at = replace(at, due_s=min((each for each in times if each is not None), default=None))
    if at.armed and not at.held:
        return Step(replace(at, armed=False), (Disarm(),))
    return Step(at)


def _ask(at: Standing, phase: Phase, now_s: float) -> Step:
    """To guard what is guarded already is a look."""
    call = at.call + 1
    return Step(replace(at, phase=phase, call=call, armed=True, due_s=now_s + ANSWER_S), (Arm(call),))


def _due(at: Standing, now_s: float, rules: tuple[StageRule, ...]) -> Step:
    if at.phase is Phase.RESTING:
        return _rest(at, now_s, rules)
    if at.due_s is None or now_s < at.due_s:
        return Step(at)
    match at.phase:
        case Phase.ARMING | Phase.LOOKING:
            silent = "the governor does not answer"
            stage = next_stage(at, rules).rule
            at = at if stage is None else _fail(at, stage.stage, silent, now_s)
            return _up(replace(at, phase=Phase.RESTING), silent, now_s)
        case Phase.ENTERING | Phase.LEAVING:
            rule = at.entering or at.held[-1]
            said = f"{at.phase.value} {rule.stage} does not end"
            at = replace(at, phase=Phase.HUNG, due_s=None, since_s=now_s, said=said)
            return Step(replace(at, up_for=at.up_for or said))
        case Phase.STUCK:
            return _climb(at, now_s)
    return Step(at)


# ---- how a call went -----------------------------------------------------------------------------------------------


def _entered(
    at: Standing,
    event: Entered | NotPossible | Undone | HalfWay,
    rule: StageRule,
    now_s: float,
    rules: tuple[StageRule, ...],
) -> Step:
    stage, at = rule.stage, replace(at, entering=None)
    match event:
        case Entered():
            failures = {other: each for other, each in at.failures.items() if other is not stage}
            at = replace(at, held=(*at.held, rule), failures=failures, said="", since_s=now_s)
            return _climb(at, now_s) if at.up_for else _ask(at, Phase.LOOKING, now_s)
        case HalfWay(_, why):
            at = _fail(replace(at, held=(*at.held, rule)), stage, why, now_s)
            return _climb(replace(at, up_for=at.up_for or why), now_s)
        case NotPossible(_, why, lasting=True):
            at = replace(at, passed={**at.passed, stage: why}, passed_s=at.passed_s if at.passed else now_s)
            if at.wished is not None and at.wished.further:
                at = replace(at, wished=Down(_deeper(at, rules), further=True))
        case NotPossible(_, why):
            times = at.failures[stage].times if stage in at.failures else 0
            at = replace(at, failures={**at.failures, stage: Failure(times, now_s + NOT_NOW_S, why)})
            at = _refuse_operator(at, why)  # else it would be asked again at once, for an operator waits for no pause
        case Undone(_, why, for_good):
            at = _fail(at, stage, why, now_s)
            if for_good:
                at = replace(at, barred={**at.barred, stage: why})
    if at.up_for:
        return _climb(at, now_s)
    return _rest(replace(at, phase=Phase.RESTING), now_s, rules)


def _left(at: Standing, event: Left | NotLeft, now_s: float) -> Step:
    if isinstance(event, Left):
        return _climb(replace(at, held=at.held[:-1], retries=0, said="", missing=event.missing), now_s)
    pause_s = min(FIRST_RETRY_S * 2.0 ** min(at.retries, 16), LONGEST_RETRY_S)
    since_s = at.since_s if at.retries else now_s
    at = replace(at, phase=Phase.STUCK, due_s=now_s + pause_s, retries=at.retries + 1, said=event.why, since_s=since_s)
    return Step(at)


def _fail(at: Standing, stage: Stage, why: str, now_s: float) -> Standing:
    """Tried again after a pause, which grows."""
    times = at.failures[stage].times + 1 if stage in at.failures else 1
    pause_s = min(FIRST_PAUSE_S * 2.0 ** min(times - 1, 16), LONGEST_PAUSE_S)
    failures = {**at.failures, stage: Failure(times, now_s + pause_s, why)}
    return _refuse_operator(replace(at, failures=failures, said=why), why)


def _refuse_operator(at: Standing, why: str) -> Standing:
    """An operator's wish ends with what goes wrong; a suspend's is for the suspend to give up."""
    return _refuse(at, why) if at.wished is not None and at.wished.rule is None else at


# ---- up again ------------------------------------------------------------------------------------------------------


def _up(at: Standing, why: str, now_s: float, *, at_once: bool = False) -> Step:
    """at_once: do not wait for the end of a pause between attempts."""
    match at.phase:
        case Phase.ENTERING:
            return Step(replace(at, up_for=at.up_for or why))  # the call is told to give up, and will end
        case Phase.STUCK if at_once:
            return _climb(replace(at, up_for=why), now_s)
        case Phase.LEAVING | Phase.STUCK | Phase.HUNG:
            return Step(at)
    return _climb(replace(at, up_for=why), now_s)


def _climb(at: Standing, now_s: float) -> Step:
    """Leave the deepest; if there is none, it is up."""
    at = replace(_refuse(at, at.up_for), visit_s=None, entering=None, listened=False)
    if not at.held:
        actions: tuple[Action, ...] = (Disarm(),) if at.armed else ()
        since_s = now_s if at.phase is Phase.LEAVING or not at.is_up else at.since_s
        up = replace(at, phase=Phase.RESTING, due_s=now_s, armed=False, up_for="", since_s=since_s, retries=0)
        return Step(replace(up, quiet_from_s=now_s), actions)
    call, rule = at.call + 1, at.held[-1]
    since_s = at.since_s if at.phase in (Phase.LEAVING, Phase.STUCK, Phase.HUNG) else now_s
    due_s = now_s + rule.leave_timeout_s + MARGIN_S
    at = replace(at, phase=Phase.LEAVING, call=call, since_s=since_s, due_s=due_s)
    return Step(at, (Leave(call, rule, at.up_for),))
