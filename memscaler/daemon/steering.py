"""What operators may ask of the running daemon: holds, pauses, parking now. The governor stays the only decider.

Every answer is a JSON document, given when the daemon knows it: a park is answered when the GPU is parked, or when it
is clear that it will not be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from memscaler.core.errors import MemscalerError, UsageError
from memscaler.core.model import (
    FOR_EVER_NS,
    SECOND_NS,
    GovernorState,
    GpuState,
    Hold,
    Observation,
    ParkNow,
    Phase,
    Unhold,
)
from memscaler.core.public import public_state
from memscaler.core.snapshot import HoldSnapshot
from memscaler.daemon.leases import HOLD, PAUSE, TIED, Lease, Leases
from memscaler.daemon.requests import Document, HoldWanted, ParkWanted, PauseWanted, Peer, ResumeWanted, UnholdWanted
from memscaler.gpu.inventory import Device, resolve

log = structlog.get_logger()

PARK_WAIT_NS = 8 * SECOND_NS  # the control socket gives up after 10 s
SETTLING = frozenset({Phase.ARMING, Phase.PARKING})


@dataclass(slots=True)
class _Parking:
    """An operator waits for these GPUs to be parked. answers: of those about which all is clear."""

    answer: Future[Document]
    until_ns: int
    left: set[str]
    answers: dict[str, Document] = field(default_factory=dict)


class Steering:
    """Used by the loop's thread. `feed` gives the governor an observation; `state` tells what it knows."""

    def __init__(
        self,
        leases: Leases,
        feed: Callable[[Observation], None],
        state: Callable[[], GovernorState],
        why_awake: Callable[[str], str],
    ) -> None:
        """why_awake: a sentence about a GPU that is not parked."""
        self._leases = leases
        self._feed = feed
        self._state = state
        self._why_awake = why_awake
        self._devices: Mapping[str, Device] = {}
        self._waiting: list[_Parking] = []

    def govern(self, devices: Mapping[str, Device]) -> None:
        """These GPUs are governed now: whatever is in force holds for them too."""
        gone = self._devices.keys() - devices.keys()
        self._devices = devices
        if gone:
            self._leases.forget_gpus(gone)
        self.hold_on()

    def hold_on(self) -> None:
        """Let the governor know every lease (again): at the start, and when the clocks have gone apart."""
        for lease in self._leases:
            self._hold(lease)

    # ---- requests -------------------------------------------------------------------------------------------------

    def obey(
        self,
        request: HoldWanted | UnholdWanted | ParkWanted | PauseWanted | ResumeWanted,
        peer: Peer,
        answer: Future[Document],
    ) -> None:
        """Do it, and answer now or later. Raise MemscalerError for what cannot be done."""
        try:
            match request:
                case HoldWanted(gpus, for_s, reason, tied):
                    document = self._take(TIED if tied else HOLD, self._named(gpus), peer, reason, for_s)
                case PauseWanted(for_s, reason):  # in place of the pause that there is
                    before = [lease.id for lease in self._leases if lease.kind == PAUSE]
                    document = self._take(PAUSE, (), peer, reason, for_s)
                    self._end(before)
                case UnholdWanted(gpus, lease_id):
                    document = self._give_back(gpus, lease_id)
                case ResumeWanted():
                    document = self._resume()
                case ParkWanted(gpus):
                    self._park(self._named(gpus), answer)
                    return
        except OSError as error:
            hint = "nothing was changed; is the disk of the runtime directory full?"
            raise MemscalerError(f"it cannot be written down: {error}", hint=hint) from error
        answer.set_result(document)

    def tied_ended(self, lease_id: str) -> None:
        """The client of a tied hold has gone."""
        self._end([lease_id])

    def _named(self, specs: Sequence[str]) -> tuple[str, ...]:
        """UUIDs; all where none is named. Raise UsageError."""
        if not specs:
            return tuple(self._devices)
        return tuple(dict.fromkeys(self._resolved(spec) for spec in specs))

    def _resolved(self, spec: str) -> str:
        try:
            return resolve(spec, self._devices.values()).identity.uuid
        except UsageError as error:
            hint = f"governed are those that a watch names or a server uses; {error.hint}"
            raise UsageError(f"{spec!r} is none of the GPUs that are governed", hint=hint) from error

    def _take(self, kind: str, gpus: Iterable[str], peer: Peer, reason: str, for_s: float | None) -> Document:
        pid = peer.pid if kind == TIED else 0
        try:
            lease = self._leases.add(kind, gpus, peer.name, reason, for_s, pid)
        except ValueError as error:
            raise MemscalerError(str(error), hint="end some: memscaler unhold") from error
        self._hold(lease)
        names = self._names(lease)
        log.info("lease.began", id=lease.id, kind=kind, gpus=names, owner=lease.owner, reason=reason, for_s=for_s)
        return {"id": lease.id, "gpus": names, "expires_in_s": for_s}

    def _give_back(self, gpus: Sequence[str], lease_id: str) -> Document:
        holds = [lease for lease in self._leases if lease.kind != PAUSE]
        if lease_id:
            if lease_id not in [lease.id for lease in holds]:
                known = ", ".join(lease.id for lease in holds) or "none"
                raise UsageError(f"there is no hold {lease_id}", hint=f"known: {known}")
            return self._ended(self._end([lease_id]))
        if not gpus:
            return self._ended(self._end([lease.id for lease in holds]))
        gone = set(self._named(gpus))
        concerned = [lease for lease in holds if gone & set(lease.gpus)]
        self._leases.forget_gpus(gone, of=[lease.id for lease in concerned])
        for lease in concerned:
            for gpu in gone & set(lease.gpus):
                self._feed(Unhold(gpu, owner_of(lease)))
        log.info("lease.ended", ids=[lease.id for lease in concerned], gpus=[self._name(gpu) for gpu in sorted(gone)])
        return self._ended(concerned)

    def _resume(self) -> Document:
        return self._ended(self._end([lease.id for lease in self._leases if lease.kind == PAUSE]))

    def _ended(self, leases: Sequence[Lease]) -> Document:
        return {"ended": [{"id": lease.id, "owner": lease.owner, "reason": lease.reason} for lease in leases]}

    # ---- leases ---------------------------------------------------------------------------------------------------

    def _hold(self, lease: Lease) -> None:
        for gpu in self._devices:
            if lease.covers(gpu):
                self._feed(Hold(gpu, owner_of(lease), lease.expires_ns()))

    def _end(self, ids: Iterable[str]) -> tuple[Lease, ...]:
        ended = self._leases.end(ids)
        for lease in ended:
            for gpu in self._devices:
                if lease.covers(gpu):
                    self._feed(Unhold(gpu, owner_of(lease)))
            log.info("lease.ended", ids=[lease.id], gpus=self._names(lease))
        return ended

    def next_end_ns(self) -> int:
        """When something is to be ended or answered, in CLOCK_MONOTONIC; 0: nothing is."""
        times = [parking.until_ns for parking in self._waiting] + [self._leases.next_end_ns()]
        return min((at for at in times if at), default=0)

    def end_what_is_over(self, now_ns: int) -> None:
        """Leases whose time is up or whose process is gone, and operators who have waited long enough."""
        self._end([lease.id for lease in self._leases if lease.is_over()])
        self.look_at_parks(now_ns)

    def tidy(self) -> None:
        """Now and then: leases of processes that are gone (their connection may have been an earlier daemon's)."""
        self.end_what_is_over(time.monotonic_ns())
        self._leases.write_again()

    def paused(self) -> HoldSnapshot | None:
        """The pause that lasts longest, if there is one."""
        pauses = [lease for lease in self._leases if lease.kind == PAUSE]
        last = max(pauses, key=Lease.expires_ns, default=None)
        return None if last is None else HoldSnapshot(last.id, last.owner, last.reason, last.left_s())

    def holds_of(self, gpu: str, state: GpuState) -> tuple[HoldSnapshot, ...]:
        """What keeps a GPU awake besides its connections."""
        now_ns = time.monotonic_ns()
        leases = {owner_of(lease): lease for lease in self._leases if lease.covers(gpu)}
        return tuple(
            HoldSnapshot(lease.id, lease.owner, lease.reason, lease.left_s())
            if (lease := leases.get(owner)) is not None
            else HoldSnapshot(
                "", "memscaler", owner, None if until_ns >= FOR_EVER_NS else (until_ns - now_ns) / SECOND_NS
            )
            for owner, until_ns in state.holds.items()
            if until_ns > now_ns
        )

    # ---- parking now ----------------------------------------------------------------------------------------------

    def _park(self, gpus: Sequence[str], answer: Future[Document]) -> None:
        now_ns = time.monotonic_ns()
        self._waiting.append(_Parking(answer, now_ns + PARK_WAIT_NS, set(gpus)))
        for gpu in gpus:
            self._feed(ParkNow(gpu))

    def look_at_parks(self, now_ns: int) -> None:
        """Answer those who wait for a park, if it is clear what becomes of it."""
        for parking in tuple(self._waiting):
            for gpu in tuple(parking.left):
                state = self._state().gpus.get(gpu)
                if state is None or now_ns >= parking.until_ns or not self._may_still_park(state):
                    parking.left.remove(gpu)
                    parking.answers[gpu] = self._outcome(gpu, state)
            if not parking.left:
                self._waiting.remove(parking)
                told = [parking.answers[gpu] for gpu in sorted(parking.answers, key=self._name)]
                with suppress(InvalidStateError):  # the asker has given up
                    parking.answer.set_result({"gpus": told})

    def _may_still_park(self, gpu: GpuState) -> bool:
        return gpu.phase in SETTLING or (gpu.hurried_ns > 0 and not gpu.holds and not gpu.distrust)

    def _outcome(self, gpu: str, state: GpuState | None) -> Document:
        if state is not None and state.phase is Phase.PARKED:
            return {"gpu": self._name(gpu), "state": "parked", "reason": ""}
        public = "gone" if state is None else str(public_state(state))
        return {"gpu": self._name(gpu), "state": public, "reason": self._why_not(gpu, state)}

    def _why_not(self, gpu: str, state: GpuState | None) -> str:
        if state is None:
            return "it is not governed any more"
        if state.distrust:
            return state.distrust
        pauses = [lease.id for lease in self._leases if lease.kind == PAUSE]
        held = [
            f"{'paused' if hold.id in pauses else 'held'} by {hold.owner}" + f": {hold.reason}" * bool(hold.reason)
            for hold in self.holds_of(gpu, state)
        ]
        return "; ".join(held) or self._why_awake(gpu)

    # ---- names ----------------------------------------------------------------------------------------------------

    def _name(self, gpu: str) -> str:
        device = self._devices.get(gpu)
        return gpu if device is None else f"gpu{device.identity.index}"

    def _names(self, lease: Lease) -> list[str]:
        return [self._name(gpu) for gpu in self._devices if lease.covers(gpu)]


def owner_of(lease: Lease) -> str:
    """How the governor knows it: a pause ends by another command than a hold."""
    return f"{'pause' if lease.kind == PAUSE else 'lease'}:{lease.id}"
