"""A history as the daemon writes it, by the real writer, of a GPU that was asked at the times given here."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.core.model import Public
from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.history.batch import Batch
from memscaler.history.retention import Limits
from memscaler.history.store import Store
from memscaler.history.tables import FILE, Hour, Park

HOUR_S = 3600
STATES = [str(state) for state in Public]


@dataclass(frozen=True)
class Card:
    """A GPU that draws this much. baseline_w: what it was seen to draw before each park, give or take noise_w."""

    uuid: str = "GPU-8f3a0c52-1111-2222-3333-444455556666"
    index: int = 0
    name: str = "NVIDIA A40"
    work_w: float = 220.0
    awake_w: float = 80.0
    parked_w: float = 18.0
    noise_w: float = 0.8
    source: str = "counter"


@dataclass
class Recording:
    """Collects what happened, and gives it to the writer."""

    batches: list[Batch] = field(default_factory=lambda: [Batch()])

    @property
    def batch(self) -> Batch:
        """With room for more: memory is bounded."""
        last = self.batches[-1]
        if last.is_full:
            last = Batch(gpus=dict(last.gpus))
            self.batches.append(last)
        return last

    def spend(self, card: Card, state: str, from_s: float, to_s: float, watts: float) -> None:
        """Seconds and joules, hour by hour."""
        while from_s < to_s:
            hour = int(from_s // HOUR_S)
            until_s = min(to_s, (hour + 1) * HOUR_S)
            seconds = until_s - from_s
            energy_j = seconds * watts
            saved_j = seconds * (card.awake_w - card.parked_w) if state == "parked" else 0.0
            self._hour(card, hour, {state: seconds}, {state: energy_j}, energy_j, saved_j)
            from_s = until_s

    def count(self, card: Card, at_s: float, parks: int = 0, wakes: int = 0) -> None:
        self._hour(card, int(at_s // HOUR_S), {}, {}, None, 0.0, parks, wakes)

    def _hour(self, card, hour, state_s, state_j, energy_j, saved_j, parks=0, wakes=0):  # noqa: PLR0913, PLR0917
        zeros = dict.fromkeys(STATES, 0.0)
        told = Hour(hour * HOUR_S, zeros | state_s, zeros | state_j, energy_j, saved_j, 0.0, parks, wakes)
        self.batch.add_hour(card.uuid, hour, told)

    def write(self, folder: Path, seen: Mapping[str, tuple[float, float]]) -> Path:
        """seen: when something was written of each GPU for the first and the last time, by the clock of then."""
        for batch in self.batches:
            Store(folder, Limits()).write(batch, 0.0)
        with contextlib.closing(sqlite3.connect(folder / FILE)) as file, file:
            for uuid, (first_s, last_s) in seen.items():
                row = (int(first_s * 1000), int(last_s * 1000), uuid)
                file.execute("UPDATE gpu SET first_ms = ?, last_ms = ? WHERE uuid = ?", row)
        return folder


def record(
    recording: Recording,
    card: Card,
    work: list[tuple[float, float]],
    until_s: float,
    idle_after_s: float = 60.0,
    seed: int = 1,
    lasts: bool = False,
) -> None:
    """work: (begin, end) of each piece, oldest first; the record begins with the first and ends at until_s."""
    noise = random.Random(seed)
    recording.batch.gpus[card.uuid] = (card.index, card.name)
    begins = [begin_s for begin_s, _ in work[1:]] + [until_s]
    for (begin_s, end_s), next_s in zip(work, begins, strict=True):
        recording.spend(card, "awake", begin_s, end_s, card.work_w)
        park_s, last = end_s + idle_after_s, next_s == until_s and lasts
        recording.spend(card, "cooling", end_s, min(park_s, next_s), card.awake_w)
        if park_s < next_s:
            recording.spend(card, "parked", park_s, next_s, card.parked_w)
            recording.count(card, park_s, parks=1)
            park = Park(
                at_unix_s=park_s,
                until_unix_s=None if last else next_s,
                idle_s=idle_after_s + noise.uniform(0, 0.01),
                reason="" if last else "connection",
                latency_s=None if last else 0.0001 * math.exp(noise.gauss(0, 0.8)),
                baseline_w=card.awake_w + noise.gauss(0, card.noise_w) if noise.random() > 0.05 else None,
                energy_j=(next_s - park_s) * card.parked_w,
                saved_j=(next_s - park_s) * (card.awake_w - card.parked_w),
                source=card.source,
            )
            recording.batch.add_park(card.uuid, int(park_s * 1000), park)
            if not last:
                recording.count(card, next_s, wakes=1)
        if next_s - end_s >= 0.25 and not last:
            recording.batch.add_gap(card.uuid, int(end_s * 1000), int((next_s - end_s) * 1000))


def requests(start_s: float, until_s: float, seed: int = 1, busy_per_hour: float = 25.0) -> list[tuple[float, float]]:
    """Spells of work: many by day, few at night and at the weekend; each request some seconds long."""
    noise, at_s, found = random.Random(seed), start_s + 5.0, [(start_s, start_s + 1.0)]
    while at_s < until_s - 60:
        hour, weekday = at_s / HOUR_S % 24, int(at_s // 86400 + 3) % 7
        rate = busy_per_hour * (1.0 if 8 <= hour < 19 else 0.06) * (0.15 if weekday >= 5 else 1.0)
        at_s += noise.expovariate(max(rate, 0.3) / HOUR_S / 3)
        for _ in range(noise.randint(1, 5)):
            end_s = at_s + noise.uniform(1, 12)
            if end_s >= until_s:
                return found
            found.append((at_s, end_s))
            at_s = end_s + noise.expovariate(1 / 15)
    return found


def month(folder: Path, end_s: float, days: int = 30) -> Path:
    """Three GPUs: one that works by day, one that is asked seldom and held now and then, one that is gone."""
    recording, start_s = Recording(), end_s - days * 86400
    a40, p40 = Card(), Card("GPU-11112222-aaaa", 1, "Tesla P40", 140.0, 50.0, 10.0, 0.4, "integrated")
    gone = Card("GPU-99990000-dead", 2, "NVIDIA L40S", 250.0, 90.0, 35.0, 2.5)
    down = (start_s + 11.3 * 86400, start_s + 12.1 * 86400)  # no daemon
    for card, per_hour, stop_s, seed in (
        (a40, 25.0, end_s, 1),
        (p40, 6.0, end_s, 2),
        (gone, 12.0, start_s + 9.5 * 86400, 3),
    ):
        before = [each for each in requests(start_s, stop_s, seed, per_hour) if each[1] < down[0]]
        record(recording, card, before, min(down[0], stop_s), seed=seed)
        if stop_s > down[1]:
            record(recording, card, requests(down[1], stop_s, seed + 9, per_hour), stop_s, seed=seed, lasts=True)
    held_s = start_s + 5 * 86400 + 9 * HOUR_S
    recording._hour(p40, int(held_s // HOUR_S), {"held": 2400.0}, {"held": 2400 * 50.0}, 2400 * 50.0, 0.0)
    seen = dict.fromkeys((a40.uuid, p40.uuid), (start_s, end_s)) | {gone.uuid: (start_s, start_s + 9.5 * 86400)}
    return recording.write(folder, seen)


def deeper(folder: Path, end_s: float) -> Path:
    """The month before, and its first GPU's server was stopped each night; the machine slept in one of them."""
    batch = Batch()
    a40, p40 = Card(), "GPU-11112222-aaaa"
    for nth in range(6):
        at_s = end_s // 86400 * 86400 - (nth + 1) * 86400 + 22 * HOUR_S
        chat = {"server": "chat", "port": 8080, "scope": "", "gpus": (a40.uuid,)}
        batch.add_spell(Spell(**chat, stage=Stage.SERVER_SLEEP, at_unix_s=at_s, until_unix_s=at_s + 1800, wake_s=0.4))
        night = Spell(
            **chat, stage=Stage.STOP_SERVER, at_unix_s=at_s + 1803, until_unix_s=at_s + 7 * HOUR_S, wake_s=11.0 + nth
        )
        batch.add_spell(night)
        batch.add_spell(Spell("other", 8081, "", Stage.SERVER_SLEEP, at_s, at_s + 3600, by="llama.cpp", gpus=(p40,)))
        for hour in range(7):
            at = int(at_s // HOUR_S) + hour
            spent = Spent(3600, 3590, 3590 * 7.5, 3590, 3590 * 10.5 - 900, 15, 900, int(hour == 0))
            batch.add_deep(a40.uuid, at, Stage.STOP_SERVER, spent)
        batch.add_deep(a40.uuid, int(at_s // HOUR_S), Stage.SERVER_SLEEP, Spent(1800, 0.0, entries=1))
    batch.add_spell(Spell("chat", 8080, "", Stage.CHECKPOINT, end_s - 86400, end_s - 86400, failed=True))
    batch.add_spell(Spell("", 0, "", Stage.SUSPEND, end_s - 40 * HOUR_S, end_s - 36 * HOUR_S))
    Store(folder, Limits()).write(batch, 0.0)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file, file:
        file.execute("UPDATE gpu SET last_ms = ? WHERE uuid = ?", (int(end_s * 1000), a40.uuid))
    return folder


if __name__ == "__main__":
    import sys
    import time

    print(month(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()), time.time()))
