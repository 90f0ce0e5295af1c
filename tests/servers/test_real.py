"""The real llama.cpp under the supervisor, and GPUs of the simulated driver."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from demo import model
from tests.servers.bench import bench, eventually, free_port, ours


@pytest.fixture
def b():
    with bench(reads_all=True, simulate=("a40", "p40")) as made:
        model.write(made.folder / "tiny.gguf")
        (made.folder / "tiny.gguf").chmod(0o644)
        yield made


def complete(port):
    body = json.dumps({"prompt": "Hello", "n_predict": 4, "max_tokens": 4}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def environment(pid):
    return dict(each.split("=", 1) for each in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in each)


def words(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def test_three_servers_on_two_gpus_one_of_them_shared(b):
    """Each is ready by llama.cpp's own word and completes; each sees its GPUs; a kill of one leaves the others alone."""
    ports = {name: free_port() for name in ("both", "first", "shared")}
    gpus = {"both": ["gpu0", "gpu1"], "first": ["gpu0"], "shared": ["gpu1"]}
    b.describe(
        *(
            {
                "name": name,
                "model": str(b.folder / "tiny.gguf"),
                "port": port,
                "gpus": gpus[name],
                "options": {"ctx-size": 256},
            }
            for name, port in ports.items()
        )
    )
    b.start()
    reports = {name: b.until(name, "ready", 90) for name in ports}
    seen = {name: environment(report["pid"]) for name, report in reports.items()}
    assert {each["CUDA_DEVICE_ORDER"] for each in seen.values()} == {"PCI_BUS_ID"}
    shown = {name: each["CUDA_VISIBLE_DEVICES"].split(",") for name, each in seen.items()}
    assert shown["both"] == shown["first"] + shown["shared"]
    assert all(uuid.startswith("GPU-") for uuid in shown["both"])
    assert {name: report["gpus"] for name, report in reports.items()} == shown
    assert reports["both"]["model"] == str(b.folder / "tiny.gguf")
    for port in ports.values():
        assert complete(port)["choices"]
    os.kill(reports["first"]["pid"], signal.SIGKILL)
    eventually(lambda: b.server("first")["restarts"] == 1, what=b.said)
    b.until("first", "ready", 90)
    assert complete(ports["first"])["choices"]
    for name in ("both", "shared"):
        assert b.server(name)["pid"] == reports[name]["pid"]
    b.send(signal.SIGTERM)
    assert b.ended() == 0
    assert not ours(b.folder)


def test_a_bad_model_ends_in_failed_with_llamas_words(b):
    """A file that is no model, and one that is cut short."""
    bad = b.folder / "bad.gguf"
    bad.write_bytes((b.folder / "tiny.gguf").read_bytes()[:1000])
    bad.chmod(0o644)
    b.describe({"name": "a", "model": str(bad), "port": free_port(), "restart_limit": 1})
    b.start()
    report = b.until("a", "failed", 90)
    assert "its last words: " in report["reason"]
    assert report["restarts"] == 1


def test_gpus_auto_asks_the_planner_at_each_start(b):
    """Its words and variables are added; two at once are planned one after the other; what does not fit is told."""
    big = {"ctx-size": 100_000_000}
    auto = {"model": str(b.folder / "tiny.gguf"), "gpus": "auto"}
    b.describe(
        {**auto, "name": "one", "port": free_port(), "options": {"ctx-size": 256}},
        {**auto, "name": "two", "port": free_port(), "options": {"ctx-size": 256}},
        {**auto, "name": "big", "port": free_port(), "options": big},
    )
    b.start()
    for name in ("one", "two"):
        report = b.until(name, "ready", 90)
        assert "-ngl" in words(report["pid"])
        assert environment(report["pid"])["CUDA_VISIBLE_DEVICES"].split(",") == report["gpus"]
        assert len(report["gpus"]) == 1
    failed = b.until("big", "failed", 90)
    assert "does not fit" in failed["reason"]
    order = [(event["event"], event["server"]) for event in b.events("server.") if event["server"] in ("one", "two")]
    assert order.index(("server.ready", "one")) < order.index(("server.started", "two"))


def test_a_gpu_that_is_not_there_is_named(b):
    """With those that are."""
    b.describe({"name": "a", "model": str(b.folder / "tiny.gguf"), "port": free_port(), "gpus": ["gpu7"]})
    b.start()
    assert "'gpu7' is no GPU that can be used" in b.until("a", "failed")["reason"]
