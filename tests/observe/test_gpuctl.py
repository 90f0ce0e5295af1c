"""What is told of rules for other programs and of GVM: for programs, on the page, and nothing where there are none."""

import dataclasses
import json
import os
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse_text

from memscaler.core.gpuctl import NO_LIMIT, Gpuctl, GvmReading, Knob
from memscaler.observe import gpuctl, pages
from memscaler.observe.metrics import render
from memscaler.observe.status import document
from memscaler.observe.view import view
from tests.cli.test_status import keys_of
from tests.observe.conftest import A40, FROZEN

KEYS = Path(__file__).with_name("gpuctl.keys")
NOW_S = 1_700_003_600.0


def telling(snapshot, **changes):
    """The same with other words of the arbiter."""
    return dataclasses.replace(snapshot, gpuctl=dataclasses.replace(snapshot.gpuctl, **changes))


def told(snapshot, name):
    """{labels: value} of a metric."""
    families = parse_text(render(snapshot)[0].decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def test_the_keys_of_the_document(snapshot):
    """Are those of the golden file; MEMSCALER_UPDATE_GOLDEN=1 writes it anew."""
    found = gpuctl.document(snapshot, {}, NOW_S)
    text = "".join(f"{key}\n" for key in sorted(keys_of(found)))
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        KEYS.write_text(text)
    assert KEYS.read_text() == text
    json.dumps(found, allow_nan=False)


def test_every_key_is_in_the_manual():
    """docs/operating.md is the contract."""
    manual = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    part = manual[manual.index("`gpuctl` is null where") : manual.index("The answer to `GET /v1/verify`")]
    names = {key.rpartition(".")[2].removesuffix("[]") for key in KEYS.read_text().split()}
    assert not [name for name in names if f"`{name}`" not in part]


def test_what_the_document_says(snapshot):
    """Times from now, the names of GPUs, no number that means "none"."""
    found = gpuctl.document(snapshot, {A40.uuid: "gpu0"}, NOW_S)
    busy, quiet = found["rules"]
    assert (busy["holds"], busy["since_s"], busy["for"], busy["while"]) == (True, 600, ["8080"], "busy")
    assert busy["act"] == {"count": 3, "median_s": 0.0021, "worst_s": 0.004}
    assert (quiet["holds"], quiet["since_s"], quiet["act"]) == (False, None, None)
    frozen = found["controlled"][0]
    assert (frozen["gpu"], frozen["since_s"]) == ("gpu0", 0)
    limits = [(each["memory_limit_bytes"], each["limited"]) for each in found["readings"]]
    assert limits == [(6 << 30, True), (1 << 30, True), (None, False), (None, None)]
    assert found["read_s"] == 10


def test_a_process_that_gvm_has_twice_is_one(snapshot):
    """Under two of its threads: sums, and what holds for the whole of it."""
    web = ("4714", "0", A40.uuid)
    labels = {
        tuple(sample.labels[name] for name in ("pid", "gpu", "UUID")): sample.value
        for family in parse_text(render(snapshot)[0].decode())
        for sample in family.samples
        if sample.name == "memscaler_gvm_memory_limit_bytes"
    }
    assert labels[web] == 7 << 30
    assert labels["4715", "gvm8", ""] == float("inf")
    assert ("4716", "", "GPU-of-nobody") not in labels
    assert set(told(snapshot, "memscaler_gvm_memory_current_bytes").values()) == {6 << 30, 4096}
    assert set(told(snapshot, "memscaler_gvm_compute_priority").values()) == {2, 8}
    assert set(told(snapshot, "memscaler_gvm_compute_freeze").values()) == {0}  # one of its threads goes on
    assert set(told(snapshot, "memscaler_gvm_kernels_pending").values()) == {20}


def test_no_series_is_there_twice(snapshot):
    """Two boards of unknown UUID are two; Prometheus refuses a page with a series twice."""
    several = tuple(GvmReading(1, tid, number, "", "x", 1) for tid in (1, 2) for number in (0, 8))
    text = render(telling(snapshot, readings=several))[0].decode()
    lines = [line.partition("} ")[0] for line in text.splitlines() if line.startswith("memscaler_gvm")]
    assert len(lines) == len(set(lines)) == 2


def test_how_long_something_is_frozen(snapshot):
    """That which is so the longest; what could not be frozen is not; a rule that is gone is told until it is undone."""
    now_s = time.time()
    since = [dataclasses.replace(FROZEN, pid=pid, since_unix_s=now_s - ago_s) for pid, ago_s in ((1, 30), (2, 300))]
    wanted = dataclasses.replace(FROZEN, rule="nights", since_unix_s=0.0)
    failed = dataclasses.replace(wanted, problem="no")
    gone = dataclasses.replace(FROZEN, rule="gone", since_unix_s=now_s - 60, problem="it cannot be thawed")
    nice = dataclasses.replace(FROZEN, rule="nights", knob=Knob.CPU_NICE, since_unix_s=now_s - 900)
    found = told(telling(snapshot, controlled=(*since, wanted, failed, gone, nice)), "memscaler_gpuctl_frozen_seconds")
    assert 300 <= found["batch-waits",] < 600
    assert found["nights",] == 0
    assert 60 <= found["gone",] < 300


def test_nothing_where_there_is_no_rule(snapshot):
    """No metric, null in the document, no section on the page."""
    without = dataclasses.replace(snapshot, gpuctl=Gpuctl())
    text = render(without)[0].decode()
    assert not [name for name in ("_arbiter", "_gpuctl", "_gvm") if f"memscaler{name}" in text]
    assert document(without)["gpuctl"] is None
    assert '<section aria-labelledby="h-rules" data-when="rules" hidden>' in pages.page(view(without))


def test_gvm_alone(snapshot):
    """Its figures are told without a rule; limits that are none are no number of bytes."""
    alone = telling(snapshot, rules=(), controlled=())
    assert told(alone, "memscaler_arbiter_up") == {(): 1}
    assert not told(alone, "memscaler_gpuctl_rule_active")
    assert float(NO_LIMIT) not in told(alone, "memscaler_gvm_memory_limit_bytes").values()
    assert '<section aria-labelledby="h-rules" data-when="rules" hidden>' in pages.page(view(alone))


def test_an_arbiter_that_does_not_run(snapshot):
    """It is told as such, and not as a machine without rules; its words are not for the page."""
    down = dataclasses.replace(snapshot, gpuctl=Gpuctl(problem="it has died (signal 9, of alice's hand)"))
    assert told(down, "memscaler_arbiter_up") == {(): 0}
    assert document(down)["gpuctl"]["problem"] == "it has died (signal 9, of alice's hand)"
    (note,) = [each for each in view(down).lists["notes"] if each.fields["about"] == "Other programs:"]
    assert note.fields["text"] == "Nothing more is set, or let go: memscaler status tells why."


def test_the_page_tells_nobodys_words(snapshot):
    """Rules, counts and times; no names of programs or people, no process ids."""
    page = pages.page(view(snapshot))
    words = ("batch-waits", "in force", "1 stopped, 1 limited in memory, 1 with another CPU priority", "2.1 ms")
    assert not [word for word in words if word not in page]
    assert not [word for word in ("train", "bob", "alice's", "4711", "4714", "batch.service") if word in page]
    assert gpuctl.HINDERED in page
    assert gpuctl.NOTHING in pages.page(view(telling(snapshot, controlled=())))
