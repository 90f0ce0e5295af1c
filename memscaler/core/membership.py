"""Which GPUs the governor's state is about, and which of them it may park: what changes from outside of `step`.

At the start every GPU counts as awake, but for those that an earlier run left parked: they are woken first. A reload
brings and takes GPUs, and may choose other levers; a GPU that stays goes on as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from memscaler.core.model import GovernorState, GpuState, Phase, Policy


def initial(
    policy: Policy,
    now_ns: int,
    unmanaged: Mapping[str, str] | None = None,
    left_behind: Collection[str] = (),
    unsure: Collection[str] = (),
) -> GovernorState:
    """Every GPU awake, its idle timer starting now.

    unmanaged: GPU -> why no lever can work on it; unsure: of these, those whose driver failed to say, so that they are
    asked again. left_behind: GPUs that an earlier run left parked; they are to be woken first, for as long as it takes.
    """
    reasons = unmanaged or {}
    phases = dict.fromkeys(policy.gpus, Phase.AWAKE)
    phases |= dict.fromkeys(reasons, Phase.UNMANAGED) | dict.fromkeys(left_behind, Phase.WAKING)
    again_ns = {uuid: now_ns + mine.retry_after_ns if uuid in unsure else 0 for uuid, mine in policy.gpus.items()}
    gpus = {
        uuid: GpuState(
            phase=phases[uuid],
            since_ns=now_ns,
            due_ns=again_ns[uuid] if phases[uuid] is Phase.UNMANAGED else now_ns,
            quiet_floor_ns=now_ns,
            touched=phases[uuid] is Phase.WAKING,
            distrust=reasons.get(uuid, ""),
            trusted_again_ns=again_ns[uuid],
        )
        for uuid in policy.gpus
    }
    return GovernorState(gpus, now_ns + policy.reconcile_every_ns, now_ns - policy.survey_timeout_ns)


def regroup(
    state: GovernorState,
    policy: Policy,
    now_ns: int,
    unmanaged: Mapping[str, str] | None = None,
    left_behind: Collection[str] = (),
    unsure: Collection[str] = (),
) -> GovernorState:
    """The state for a policy that names other GPUs. Those that stay go on; those that go must have been stopped."""
    fresh = initial(policy, now_ns, unmanaged, left_behind, unsure)
    gpus = {uuid: state.gpus.get(uuid, fresh.gpus[uuid]) for uuid in policy.gpus}
    return replace(state, gpus=gpus)


def with_trust(state: GovernorState, uuid: str, why_not: str, now_ns: int) -> GovernorState:
    """Another choice of levers. why_not: none works, "" if one does; follow with a Doubt about this GPU."""
    gpu = state.gpus[uuid]
    if why_not:
        due_ns = 0 if gpu.phase is Phase.UNMANAGED else gpu.due_ns
        gpu = gpu.but(distrust=why_not, trusted_again_ns=0, due_ns=due_ns)
        if gpu.phase in (Phase.AWAKE, Phase.COOLING, Phase.ARMING):
            gpu = gpu.but(phase=Phase.UNMANAGED, since_ns=now_ns, due_ns=0, asked=False)
    elif gpu.phase is Phase.UNMANAGED:
        gpu = gpu.but(distrust="", trusted_again_ns=0, phase=Phase.AWAKE, since_ns=now_ns, due_ns=now_ns, alarmed="")
    return replace(state, gpus={**state.gpus, uuid: gpu})
