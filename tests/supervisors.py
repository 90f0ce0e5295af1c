"""The file in which a supervisor of servers says how they are, as the supervisor writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memscaler.core.servers import REPORT, SCHEMA, ServerReport, SupervisorReport

ROOT = "root"


def tell(
    root: Path,
    servers: Iterable[ServerReport],
    folder: str = "memscaler-servers",
    *,
    uid: int = 0,
    user: str = ROOT,
    pid: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> Path:
    """Below `root`, for a user, from this process if no other is named; the file. others: fields that it says as well."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    report = SupervisorReport(user, os.getpid() if pid is None else pid, 1_700_000_000.0, tuple(servers))
    file = place / REPORT
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps({"schema": SCHEMA, **asdict(report), **(others or {})}))
    os.chown(draft, uid, -1)
    draft.replace(file)
    os.chown(place, uid, -1)
    return file
