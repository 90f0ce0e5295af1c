"""The state of a GPU in the words that users see: five of them for the governor's finer phases."""

from __future__ import annotations

from memscaler.core.governor import DOWN
from memscaler.core.model import GpuState, Phase, Public

PUBLIC = {
    Phase.AWAKE: Public.AWAKE,
    Phase.WAKING: Public.AWAKE,
    Phase.STOPPED: Public.AWAKE,
    Phase.COOLING: Public.COOLING,
    Phase.ARMING: Public.COOLING,
    Phase.PARKING: Public.COOLING,
    Phase.PARKED: Public.PARKED,
    Phase.UNMANAGED: Public.UNMANAGED,
}


def public_state(gpu: GpuState) -> Public:
    """Distrust shows above all; a hold unless the GPU is still down."""
    if gpu.distrust:
        return Public.UNMANAGED
    if gpu.holds and gpu.phase not in DOWN:
        return Public.HELD
    return PUBLIC[gpu.phase]
