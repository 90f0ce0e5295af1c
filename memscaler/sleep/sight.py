"""What the governor shows of one server, as the ladder goes by it: its GPUs together, and why it must be up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memscaler.child.link import GpuSeen, Seen, ServerSeen
from memscaler.sleep import moves
from memscaler.sleep.drivers.protocol import Target

LEASE, PAUSE = "lease:", "pause:"  # what the governor calls an operator's hold, or pause, before its id
LOWEST = frozenset({"parked", "unmanaged"})  # public states: as low as this GPU goes


def sight_of(server: ServerSeen, target: Target, seen: Seen, call: int, names: Mapping[str, str]) -> moves.Sight:
    """names: what people call a GPU, by UUID. A server whose GPUs nobody knows does not go down."""
    states = {uuid: seen.gpus[uuid] for uuid in target.gpus if uuid in seen.gpus}
    awake = next((uuid for uuid, gpu in states.items() if gpu.state not in LOWEST), None)
    why = "" if states else "its GPUs are not known"
    if awake is not None:
        why = f"{names.get(awake, awake)} is {states[awake].state}"
    return moves.Sight(
        at_s=seen.at_ns / 1e9,
        call=call,
        live=server.live,
        rang=server.rang,
        active_s=server.last_activity_ns / 1e9,
        touched_s=server.last_touch_ns / 1e9,
        parked=not why,
        unparked=why,
        held=_held(states, names),
        holds=tuple(sorted({hold for gpu in states.values() for hold in gpu.holds})),
        pids=server.pids,
    )


def _held(states: Mapping[str, GpuSeen], names: Mapping[str, str]) -> str:
    gpus = [names.get(uuid, uuid) for uuid, gpu in states.items() if gpu.held]
    return f"{', '.join(gpus)} {'is' if len(gpus) == 1 else 'are'} held awake" if gpus else ""


def hold_hint(holds: Iterable[str]) -> str:
    """How to end them. holds: as the governor calls them."""
    ids = [hold.removeprefix(LEASE) for hold in holds if hold.startswith(LEASE)]
    ends = [f"`memscaler unhold --id {each}`" for each in ids]
    others = [hold for hold in holds if not hold.startswith((LEASE, PAUSE))]
    parts = [f"end the hold with {' and '.join(ends)}"] if ends else []
    parts += ["end the pause with `memscaler resume`"] if any(hold.startswith(PAUSE) for hold in holds) else []
    parts += [f"wait for the end of {', '.join(others)}"] if others else []
    return "; ".join([*parts, "memscaler status tells whose it is"])
