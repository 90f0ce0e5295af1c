"""What `memscaler calibrate` has measured, by GPU, in one small file of the state directory.

It is read by the daemon at its start and with each reload. A file that is damaged, or of somebody else's making, counts
as none: it tells how much a park saves, not whether one may be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from memscaler.core.calibration import Calibration, Spread
from memscaler.files import read_own, write_own

FILE = "calibration.json"
FORMAT = 1
MOST_BYTES = 1 << 20  # of the file; a GPU takes 1500
MOST_GPUS = 256
TEXTS = frozenset({"uuid", "name", "version", "driver_version", "lever", "power_source", "energy_source"})
WHOLE = frozenset({"target", "rounds"})
NEEDED = frozenset({"uuid", "at_unix_s"})
SPREADS = frozenset({"awake_w", "parked_w", "down_s", "settled_s", "up_s", "back_s", "switch_j"})
MAY_BE_NEGATIVE = frozenset({"switch_j"})
MOST_TEXT = 200


def _nobody(_event: str, **_details: str) -> None:
    """Nobody wants to know."""


def load(state_dir: Path, complain: Callable[..., object] = _nobody) -> dict[str, Calibration]:
    """By UUID. Raises nothing: what cannot be read is left out, and told to `complain`, a method of a logger."""
    try:
        told = json.loads(read_own(state_dir / FILE, MOST_BYTES))
        if told["format"] != FORMAT:
            raise ValueError(f"it has format {told['format']!r}")  # noqa: TRY301  # of another memscaler
        entries = list(told["gpus"].values())[:MOST_GPUS]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _tell(complain, state_dir, error)
        return {}
    found = {}
    for entry in entries:
        try:
            calibration = _calibration(entry)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            _tell(complain, state_dir, error)
        else:
            found[calibration.uuid] = calibration
    return found


def save(state_dir: Path, measured: Iterable[Calibration]) -> None:
    """Beside those of other GPUs, in place of earlier ones of the same. Raise OSError."""
    gpus = load(state_dir) | {each.uuid: each for each in measured}
    newest = sorted(gpus.values(), key=lambda each: each.at_unix_s)[-MOST_GPUS:]
    document = {"format": FORMAT, "gpus": {each.uuid: asdict(each) for each in newest}}
    write_own(state_dir / FILE, json.dumps(document, indent=1).encode(), mode=0o644)  # watts are no secret


def _tell(complain: Callable[..., object], state_dir: Path, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"[:MOST_TEXT]
    complain("calibration.lost", file=str(state_dir / FILE), err=reason, hint="run `memscaler calibrate` again")


def _calibration(entry: Mapping[str, Any]) -> Calibration:
    """Raise ValueError, KeyError, TypeError, AttributeError or OverflowError for what we would not have written."""
    known: dict[str, Any] = {}
    for item in fields(Calibration):
        value = entry.get(item.name)
        if item.name in NEEDED and value in (None, ""):
            raise ValueError(f"it lacks {item.name}")
        if item.name in TEXTS:
            known[item.name] = "".join(char for char in str(value or "")[:MOST_TEXT] if char.isprintable())
        elif item.name in WHOLE:
            known[item.name] = int(_finite(value or 0))
        elif value is None:
            known[item.name] = None
        elif item.name in SPREADS:
            parts = (_finite(value[part], item.name in MAY_BE_NEGATIVE) for part in ("median", "low", "high"))
            known[item.name] = Spread(*parts)
        else:
            known[item.name] = _finite(value)
    return Calibration(**known)


def _finite(raw: Any, may_be_negative: bool = False) -> float:  # noqa: FBT001, FBT002
    value = float(raw)
    if not (-1e9 if may_be_negative else 0) <= value <= sys.float_info.max:
        raise ValueError(f"{value} is out of range")
    return value
