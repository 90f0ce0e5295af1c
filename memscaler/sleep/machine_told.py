"""What is told of the machine's own stage: pure, from how it stands (machine.py)."""

from __future__ import annotations

from memscaler.core.stages import MachineSleep, Rung
from memscaler.sleep.machine import Now, Policy, Standing, State, look_s

RUNGS = {
    State.AWAKE: Rung.UP,
    State.PREPARING: Rung.ENTERING,
    State.GOING: Rung.ENTERING,
    State.RETURNING: Rung.LEAVING,
}


def document(it: Standing, now: Now, policy: Policy, no_bus: str = "") -> MachineSleep:
    """What is told of it. no_bus: why logind cannot be asked, "" if it can."""
    due_s = None if no_bus else look_s(it, policy)
    why_not = it.closed if policy.after_s is not None else ()  # else those of a request that is over
    if no_bus and it.state is State.AWAKE:
        why_not = tuple(dict.fromkeys((*why_not, no_bus)))
    if not why_not and policy.after_s is not None and it.quiet.since_s is None and it.state is State.AWAKE:
        why_not = (it.quiet.why_not,)
    return MachineSleep(
        wanted=policy.after_s is not None,
        rung=RUNGS[it.state],
        since_unix_s=round(it.since.unix_s, 3),
        next_unix_s=None if due_s is None or it.closed else float(round(now.unix_s + max(0.0, due_s - now.s))),
        why_not=why_not,
        never=it.never.reason if it.never else "",
        never_until_unix_s=it.never.until_unix_s if it.never else None,
        alarm_unix_s=it.alarm_unix_s,
        last=it.last,
        suspends=it.suspends,
        failed=it.failed,
        asleep_s=round(it.asleep_s, 3),
        left=it.left,
        wakes_s=it.wakes_s,
    )
