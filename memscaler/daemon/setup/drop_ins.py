"""Drop-ins of our unit that only some configurations need: one that does not, keeps the tighter unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memscaler import resources
from memscaler.config.schema import Settings
from memscaler.core.stages import Stage


@dataclass(frozen=True, slots=True)
class DropIn:
    """word: memscaler.WORD.conf, beside the unit, becomes WORD.conf in the unit's folder. why: who needs it."""

    word: str
    why: str
    is_needed: Callable[[Settings], bool]

    @property
    def name(self) -> str:
        """In the unit's folder."""
        return f"{self.word}.conf"

    @property
    def source(self) -> Path:
        """It may not be there in every build."""
        return resources.systemd_dir() / f"memscaler.{self.word}.conf"

    @property
    def keys(self) -> frozenset[str]:
        """What it sets."""
        lines = self.source.read_text(encoding="utf-8").splitlines()
        return frozenset(line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#"))


ALL = (
    DropIn("sleep", "[[stage]] tables", lambda settings: any(rule.stage is not Stage.PARK for rule in settings.stages)),
    DropIn("gpuctl", "[[gpuctl]] tables", lambda settings: bool(settings.gpuctl)),
)


def needed(settings: Settings | None) -> tuple[DropIn, ...]:
    """Those for this configuration."""
    return tuple(each for each in ALL if settings is not None and each.is_needed(settings) and each.source.is_file())
