"""What is told of the deeper stages: for programs, on the page, and nothing where there are none."""

import dataclasses
import json
import os
from pathlib import Path

from memscaler.core.stages import Rung, Sleep, SleepingServer, Stage, standing
from memscaler.observe import pages, stages
from memscaler.observe.metrics import render
from memscaler.observe.status import document
from memscaler.observe.view import view
from tests.cli.test_status import keys_of

KEYS = Path(__file__).with_name("sleep.keys")
NOW_S = 1_700_003_600.0


def test_the_keys_of_the_document(snapshot):
    """Are those of the golden file; MEMSCALER_UPDATE_GOLDEN=1 writes it anew."""
    told = stages.document(snapshot, {}, NOW_S)
    text = "".join(f"{key}\n" for key in sorted(keys_of(told)))
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        KEYS.write_text(text)
    assert KEYS.read_text() == text
    json.dumps(told, allow_nan=False)


def test_what_the_document_says(snapshot):
    """Times from now, the names of GPUs, the times that leaving took."""
    told = stages.document(snapshot, {snapshot.gpus[0].identity.uuid: "gpu0"}, NOW_S)
    chat, stuck = told["servers"]
    assert (chat["standing"], chat["since_s"], chat["next_in_s"], chat["gpus"]) == ("stop-server", 3400, 3600, ["gpu0"])
    assert chat["stages"][0]["wake"] == {"count": 3, "median_s": 0.5, "worst_s": 0.6}
    assert (stuck["standing"], stuck["next_in_s"]) == ("stuck in checkpoint", None)
    assert [(each["gpu"], each["stage"], each["power_w"]) for each in told["gpus"]] == [
        ("gpu0", "server-sleep", 15.0),
        ("gpu0", "stop-server", None),
    ]


def test_nothing_where_no_stage_is_configured(snapshot):
    """No metric, null in the document, no section on the page."""
    without = dataclasses.replace(snapshot, sleep=Sleep())
    text = render(without)[0].decode()
    assert not [name for name in ("_stage", "_suspend", "_sleeper") if f"memscaler{name}" in text]
    assert document(without)["sleep"] is None
    page = pages.page(view(without))
    assert '<section aria-labelledby="h-asleep" data-when="asleep" hidden>' in page
    assert "Suspend:" not in page


def test_a_sleeper_that_does_not_run(snapshot):
    """It is told as such, and not as a machine without stages."""
    down = dataclasses.replace(snapshot, sleep=Sleep(problem="it has died (signal 9, of alice's hand)"))
    assert "memscaler_sleeper_up 0.0" in render(down)[0].decode()
    assert document(down)["sleep"]["problem"] == "it has died (signal 9, of alice's hand)"
    (note,) = [each for each in view(down).lists["notes"] if each.fields["about"].startswith("Deeper")]
    assert note.fields["text"] == "Nothing goes down the ladder now: memscaler status tells why."


def test_the_page_tells_nobodys_words(snapshot):
    """Servers, stages and times; not who holds a GPU, who is logged in, or what a program of somebody said."""
    page = pages.page(view(snapshot))
    told = "It could not be brought back: memscaler status tells why."
    assert not [words for words in ("stop-server", "stuck in checkpoint", told, "12.0 s") if words not in page]
    assert not [word for word in ("benchmark", "logged in", "cuda-checkpoint of") if word in page]


def test_standing():
    """In two words, for every rung; never longer than the column of `status`."""
    every = [
        standing(SleepingServer("s", 1, rung=rung, stage=stage, asleep_by=by))
        for rung in Rung
        for stage in (None, *Stage)
        for by in ("", "llama.cpp")
    ]
    assert all(every)
    assert max(map(len, every)) <= 21


def test_the_wakes_of_the_machine_are_a_metric_of_their_own(snapshot):
    """They are of no server, and no port."""
    (wakes,) = snapshot.stage_wakes
    mine = dataclasses.replace(wakes, port=0, server="", stage=Stage.SUSPEND)
    text = render(dataclasses.replace(snapshot, stage_wakes=(mine,)))[0].decode()
    assert "memscaler_suspend_wake_seconds_count " in text
    assert "memscaler_stage_wake_seconds_count{" not in text
