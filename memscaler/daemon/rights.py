"""Whether [[gpuctl]] rules can reach the processes of other users.

Rights that nobody needs are given away at the start (privileges.py), and do not come back: a first rule that a reload
brings finds them gone.
"""

from __future__ import annotations

from collections.abc import Collection

from memscaler.config.gpuctl import GpuctlRule
from memscaler.daemon import privileges

ABOUT = "gpuctl rights"  # of the note in the status document
REMEDY = (
    "systemctl restart memscaler; if its unit lacks the drop-in memscaler.gpuctl.conf (MS-UNIT-01), "
    "sudo memscaler setup before that"
)


def lacking(rules: Collection[GpuctlRule]) -> tuple[str, ...]:
    """Names of capabilities that rules need and this process does not have; () without rules."""
    return tuple(privileges.lacking(privileges.CONTROLLING)) if rules else ()


def sentence(lacks: Collection[str]) -> str:
    """What that means, for people; "" if nothing is lacking."""
    return f"memscaler lacks {', '.join(lacks)}: processes of other users stay as they are" if lacks else ""
