"""What is kept of the deeper stages for telling: totals, wakes, spells, and what each stage spares. It decides nothing.

Fed by the recorder, in the loop's thread. Where no stage is configured nothing is ever told, and nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog

from memscaler.core import stage_energy, stage_times
from memscaler.core.model import Public
from memscaler.core.snapshot import GpuReading, StageWakes
from memscaler.core.stage_energy import UP, Depth, StageAccount
from memscaler.core.stage_times import MOST_SERVERS, Followed, Key
from memscaler.core.stages import Rung, Sleep, SleepingServer, Spent, Stage
from memscaler.history.writer import History
from memscaler.observe.histogram import Latencies
from memscaler.observe.specs import STAGE_WAKE_BUCKETS_S


class SleepBook:
    """Of one run of the governor."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, history: History) -> None:
        self._log, self._history = log, history
        self._followed = Followed()
        self._wakes: dict[tuple[Key, Stage], tuple[str, Latencies]] = {}
        self._gpus: dict[str, StageAccount] = {}
        self._told: dict[str, Mapping[Stage, Spent]] = {}

    @property
    def sleep(self) -> Sleep:
        """The last report; its totals are since the governor started, however often the sleeper was started."""
        return stage_times.at_this_moment(self._followed, time.time())

    @property
    def wakes(self) -> tuple[StageWakes, ...]:
        """How long leaving each stage took."""
        return tuple(
            StageWakes(port, scope, name, stage, latencies.freeze())
            for ((port, scope), stage), (name, latencies) in self._wakes.items()
        )

    def spent(self, uuid: str) -> Mapping[Stage, Spent]:
        """What a GPU was in, since the start."""
        mine = self._gpus.get(uuid)
        return {} if mine is None else mine.spent

    def told(self, sleep: Sleep, states: Mapping[str, Public], now_ns: int) -> tuple[str, ...]:
        """The sleeper has reported. Answers with the GPUs whose depth has changed: sample them.

        states: of all GPUs that are governed.
        """
        before = self._followed.sleep
        self._followed, news = stage_times.follow(self._followed, sleep, time.time())
        self._say(before, sleep)
        for spell in news.spells:
            self._history.spell(spell)
        for wake in news.wakes:
            self._latencies(wake.key, wake.stage, wake.server).add(wake.seconds)
            if wake.stage is Stage.SUSPEND:
                self._log.info("machine.back", wake_s=round(wake.seconds, 3))
            else:
                self._log.info("stage.left", server=wake.server, stage=str(wake.stage), wake_s=round(wake.seconds, 3))
        for server in sleep.servers:
            for stage in server.totals:  # there from the first entry on, so that a rate sees the first wake
                self._latencies((server.port, server.scope), stage, server.name)
        if sleep.machine.wanted or sleep.machine.suspends:
            self._latencies((0, ""), Stage.SUSPEND, "")
        changed = []
        for uuid, state in states.items():
            depth = stage_energy.depth_of(uuid, sleep)
            mine = self._gpus.setdefault(uuid, StageAccount(state, now_ns))
            if mine.depth != depth:
                changed.append(uuid)
            self._gpus[uuid] = stage_energy.observe_depth(mine, state, depth, now_ns)
        return tuple(changed)

    def state(self, uuid: str, state: Public, now_ns: int) -> None:
        """The public state of a GPU."""
        mine = self._gpus.get(uuid)
        if mine is not None:
            self._gpus[uuid] = stage_energy.observe_depth(mine, state, mine.depth, now_ns)

    def sampled(self, uuid: str, reading: GpuReading) -> None:
        """A reading of a GPU."""
        mine = self._gpus.get(uuid)
        if mine is None:
            return
        self._gpus[uuid] = mine = stage_energy.observe_reading(mine, reading)
        self._keep(uuid, mine.spent)

    def let_go(self, uuid: str) -> None:
        """It is not governed any more."""
        mine = self._gpus.pop(uuid, None)
        if mine is not None:
            self._keep(uuid, mine.spent)
            self._told.pop(uuid, None)

    def depth(self, uuid: str) -> Depth:
        """Of a GPU, as far as is known."""
        mine = self._gpus.get(uuid)
        return UP if mine is None else mine.depth

    def _latencies(self, key: Key, stage: Stage, server: str) -> Latencies:
        """Empty at first; those of so many servers as are followed, and no more."""
        if (key, stage) not in self._wakes and len(self._wakes) >= MOST_SERVERS * len(Stage):
            return Latencies(STAGE_WAKE_BUCKETS_S)
        return self._wakes.setdefault((key, stage), (server, Latencies(STAGE_WAKE_BUCKETS_S)))[1]

    def _keep(self, uuid: str, spent: Mapping[Stage, Spent]) -> None:
        """What came to it since this was called last, for the history."""
        told = self._told.get(uuid, {})
        for stage, now in spent.items():
            more = now.minus(told.get(stage, Spent()))
            if more != Spent():
                self._history.deeper(uuid, stage, more)
        self._told[uuid] = spent

    def _say(self, before: Sleep, now: Sleep) -> None:
        """Changes, for the log."""
        known = {(server.port, server.scope): server for server in before.servers}
        for server in now.servers:
            was = known.get((server.port, server.scope))
            if was is None or (was.stage, was.rung) == (server.stage, server.rung):
                continue
            tell = self._log.error if server.rung is Rung.STUCK else self._log.info
            tell("stage.changed", **_words(server))


def _words(server: SleepingServer) -> Mapping[str, str]:
    stage = "" if server.stage is None else str(server.stage)
    said = {
        "server": server.name,
        "rung": str(server.rung),
        "stage": stage,
        "note": server.note,
        "by": server.asleep_by,
    }
    return {key: text for key, text in said.items() if text}
