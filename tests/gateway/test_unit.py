"""The gateway's unit, as systemd itself judges it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from memscaler.resources import systemd_dir

UNIT = systemd_dir() / "memscaler-gateway.service"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "gateway.md"


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_it_is_valid(tmp_path: Path) -> None:
    """Every line is understood by systemd (checked with a command that exists here)."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/memscaler", "/bin/true"))
    result = analyze("verify", str(copy))
    assert (result.returncode, result.stderr.replace(str(tmp_path), "")) == (0, "")


def test_it_is_hardened() -> None:
    """The exposure score of systemd is what the page says."""
    said = analyze("security", "--offline=true", "--no-pager", str(UNIT)).stdout
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    told = re.search(r"systemd-analyze security`: ([0-9.]+)", PAGE.read_text())
    assert found
    assert told
    assert found[1] == told[1]
