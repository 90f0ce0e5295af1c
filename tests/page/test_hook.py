"""What tells the page of a change must never harm the governor."""

import structlog
from structlog.testing import capture_logs

from memscaler.core.model import GovernorState, GpuState, Phase
from memscaler.core.snapshot import Identity
from memscaler.daemon.portrait import Facts
from memscaler.daemon.record import Recorder
from memscaler.history.writer import History


def recorder(folder, changed) -> Recorder:
    facts = Facts("1", "", "", False, (), lambda _: (), lambda _: "", dict, tuple, bool)
    return Recorder(facts, {"GPU-1": Identity(0, "GPU-1", "", "")}, structlog.get_logger(), History(folder), changed)


def test_only_changes_are_told(tmp_path):
    """Once for each, however often the governor thinks."""
    told = []
    recording = recorder(tmp_path, lambda: told.append("changed"))
    for phase in (Phase.AWAKE, Phase.AWAKE, Phase.PARKED, Phase.PARKED):
        recording.states(GovernorState({"GPU-1": GpuState(phase)}), 1)
    assert told == ["changed"] * 2


def test_a_failure_to_tell_is_logged_and_nothing_else(tmp_path):
    """The governor learns of the change all the same."""

    def fail() -> None:
        raise RuntimeError("the page is on fire")

    with capture_logs() as events:
        assert recorder(tmp_path, fail).states(GovernorState({"GPU-1": GpuState(Phase.PARKED)}), 1) == ("GPU-1",)
    assert [event["event"] for event in events] == ["telling.failed"]
