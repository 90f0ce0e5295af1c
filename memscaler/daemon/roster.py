"""Which GPUs and ports are governed: GPUs that a reload brings or takes away, servers that come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from memscaler.core.errors import MemscalerError
from memscaler.core.model import Doubt, GpuPolicy, Phase, Policy, Stop
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.conflicts import Conflicts
from memscaler.daemon.fleet import Fleet
from memscaler.daemon.governing import Governing
from memscaler.daemon.hours import Hours
from memscaler.daemon.record import Recorder
from memscaler.daemon.reload import Plan
from memscaler.daemon.scout import Scout, WatchesFound
from memscaler.daemon.steering import Steering
from memscaler.daemon.watching import Watching
from memscaler.gpu.capability import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """Who has to know which GPUs and watches there are."""

    watching: Watching
    scout: Scout
    steering: Steering
    hours: Hours
    conflicts: Conflicts
    recorder: Recorder
    adaptive: Adaptive


class Roster:
    """Used by the loop's thread. look_at_hours: tells `hours` the time, and `follow_watches` then.

    still_alone: called for GPUs that were taken on; there may be no guardian to wake them.
    """

    def __init__(
        self,
        governing: Governing,
        fleet: Fleet,
        followers: Followers,
        look_at_hours: Callable[[], None],
        still_alone: Callable[[], None],
    ) -> None:
        self._governing = governing
        self._fleet = fleet
        self._watching, self._scout = followers.watching, followers.scout
        self._steering, self._hours = followers.steering, followers.hours
        self._conflicts, self._recorder = followers.conflicts, followers.recorder
        self._adaptive = followers.adaptive
        self._look_at_hours, self._still_alone = look_at_hours, still_alone

    # ---- servers --------------------------------------------------------------------------------------------------

    def found(self, found: WatchesFound) -> None:
        """The scout has looked for servers."""
        if found.generation != self._scout.generation:
            return  # looked for with settings that are no more
        if self._watching.apply(found.founds):
            self.follow_watches()
        for uuid in self._watching.restarted:
            self._governing.feed(Doubt("a server begins to listen", uuid))
        self._watching.restarted.clear()
        self._scout.expect_more(wanted=self._watching.expects_more)

    def follow_watches(self) -> None:
        """Let the governor and the doors know which watches there are now, and how long they may be quiet."""
        self._governing.policy = self._with_leaving(self._watching.policy(self._hours.quiet))
        self._scout.watches_changed()
        self._fleet.hear(self._governing.policy)
        self._governing.look()

    def follow_idle_times(self) -> None:
        """Let the governor know how long GPUs may be quiet now; their watches are the same as before."""
        self._governing.policy = self._with_leaving(self._watching.policy(self._hours.quiet))
        self._governing.look()

    # ---- GPUs -----------------------------------------------------------------------------------------------------

    def follow_governed(self) -> None:
        """Let everybody know which GPUs there are now, and what they go by."""
        mine = {uuid: each for uuid, each in self._fleet.governed.items() if uuid in self._watching.governed}
        self._hours.govern({uuid: each.settings for uuid, each in mine.items()})
        self._steering.govern({uuid: each.device for uuid, each in mine.items()})
        self._look_at_hours()

    def let_go(self) -> None:
        """GPUs that are not governed any more go when they are awake."""
        gone = [
            uuid
            for uuid, gpu in self._governing.state.gpus.items()
            if gpu.phase is Phase.STOPPED and uuid not in self._watching.governed
        ]
        if not gone:
            return
        policy = self._governing.policy
        left = {uuid: mine for uuid, mine in policy.gpus.items() if uuid not in gone}
        self._governing.regroup(replace(policy, gpus=left))
        for uuid in gone:
            self._fleet.let_go(uuid)
            self._recorder.let_go(uuid)
            self._conflicts.forget(uuid)
        self.follow_watches()

    def apply(self, plan: Plan) -> None:
        """A new configuration, which was checked as a whole. GPUs that did not change do not notice.

        Raise MemscalerError if it cannot be applied; then nothing was changed.
        """
        leaving = self._governing.state.gpus.keys() - self._watching.governed
        if leaving & plan.governed.keys():
            raise MemscalerError("a GPU that it wants is still being let go of", hint="try again when it is awake")
        before = dict(self._fleet.governed)
        fresh = {uuid: each for uuid, each in plan.governed.items() if uuid not in before}
        others = plan.other_levers(before)
        equipped = self._fleet.equip_all(fresh)
        for uuid in before.keys() - plan.governed.keys():
            self._governing.feed(Stop(uuid))
        self._fleet.governed |= plan.governed
        self._conflicts.pause_s = plan.settings.conflict_pause_s
        self._recorder.calibrated(plan.calibrations)
        self._adaptive.calibrated(plan.calibrations)
        self._recorder.take_on({uuid: each.device.identity for uuid, each in fresh.items()})
        self._watching.reconfigure(plan.settings, plan.governed, plan.named)
        self._adaptive.remember(plan.learned)
        self._scout.look_with(plan.look)
        self._watching.apply(plan.founds)
        self._fleet.take_on(equipped)
        self._governing.regroup(self._with_leaving(self._watching.policy()))
        self._still_alone()
        for uuid in others:
            self._choose_anew(uuid, before[uuid].choice, plan.governed[uuid].choice)
            self._fleet[uuid].use(plan.governed[uuid].choice.levers, plan.governed[uuid].settings.lever)
            self._governing.feed(Doubt("it has another lever now", uuid))
        self.follow_governed()

    def _choose_anew(self, uuid: str, before: Choice, after: Choice) -> None:
        """Another lever: a GPU may be parked that could not be, or the other way round."""
        if not after.levers or not before.levers:
            self._governing.trust(uuid, "" if after.levers else after.why)

    def _with_leaving(self, policy: Policy) -> Policy:
        """GPUs on their way out are nobody's."""
        leaving = self._governing.state.gpus.keys() - policy.gpus.keys()
        return replace(policy, gpus={**policy.gpus, **dict.fromkeys(leaving, GpuPolicy(frozenset()))})
