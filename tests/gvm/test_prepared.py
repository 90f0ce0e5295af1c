"""Why a rule finds nobody: told with what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from memscaler.child.link import ServerSeen
from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.gvm.prepared import Looking, Picture
from tests.gvm.governor_end import batch_rule

SERVER = ServerSeen("8080", 8080, gpus=("GPU-8f3a1c52-0000-4000-8000-000000000001",))


@pytest.mark.parametrize(
    ("rule", "needs_gvm"),
    [
        (batch_rule(how="gvm"), True),
        (batch_rule(freeze=False, memory_limit_bytes=1 << 30), True),
        (batch_rule(), False),
    ],
    ids=["freeze-by-gvm", "limit", "freeze"],
)
def test_a_rule_that_needs_gvm_says_that_it_is_gone(tmp_path: Path, rule: GpuctlRule, needs_gvm: bool) -> None:
    """Without it nobody may be known to be on the GPU, which alone would lead the wrong way."""
    found = Looking().look(Picture((rule,), (SERVER,), Gvm(root=tmp_path)))
    why_not = found.why_not["batch", "8080"]
    assert why_not.startswith("8080: none of the processes that it names is on its GPUs")
    assert ("; it needs GVM, and " in why_not) == needs_gvm
    assert (str(tmp_path) in why_not) == needs_gvm
