"""A filled history, made by the real writer: for tests of what reads it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from memscaler.core.energy import open_account
from memscaler.core.model import Public
from memscaler.history.batch import Batch, Saved
from memscaler.history.retention import Limits
from memscaler.history.store import Store
from memscaler.history.tables import HOUR_S, Hour, Park
from memscaler.history.writer import History

GPU, NAME = "GPU-a", "NVIDIA A40"


def fill(  # noqa: PLR0913  # a test names what it cares about
    state_dir: Path,
    uuid: str = GPU,
    *,
    gaps: Iterable[tuple[float, float]] = (),
    parks: Iterable[Park] = (),
    hours: Iterable[Hour] = (),
    saved_j: float = 0.0,
    index: int = 0,
    name: str = NAME,
    since_unix_s: float | None = None,
    limits: Limits | None = None,
) -> None:
    """Add to what is there. gaps: (start in seconds since 1970, length in seconds)."""
    batch = Batch(gpus={uuid: (index, name)}, saved={uuid: Saved(saved_j, saved_j, time.strftime("%Y-%m-%d"))})
    batch.gaps = [(uuid, round(start_s * 1e3), round(length_s * 1e3)) for start_s, length_s in gaps]
    batch.parks = {(uuid, round(park.at_unix_s * 1e3)): park for park in parks}
    batch.hours = {(uuid, int(hour.start_unix_s // HOUR_S)): hour for hour in hours}
    Store(state_dir, limits or Limits()).write(batch, time.time() if since_unix_s is None else since_unix_s)


def opened(state_dir: Path, uuid: str = GPU, **how: object) -> History:
    """A history that follows one GPU from now on: one followed since the boot would have hours to tell of."""
    history = History(state_dir, **how)  # type: ignore[arg-type]
    history.take_on(uuid, 0, NAME, open_account(Public.AWAKE, time.monotonic_ns()))
    return history
