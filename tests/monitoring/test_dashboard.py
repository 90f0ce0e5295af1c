"""The dashboard and the alert rules against a real Prometheus that scrapes a real daemon."""

import contextlib
import http.server
import itertools
import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from memscaler.core.gpuctl import Gpuctl, GvmReading, RuleState
from memscaler.core.servers import ServerReport, ServerState
from memscaler.core.snapshot import GpuSnapshot, Identity, KernelSnapshot, Snapshot, StageWakes
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Spent, Stage, StageTotals
from memscaler.observe.histogram import Latencies
from memscaler.observe.metrics import render
from memscaler.observe.specs import STAGE_WAKE_BUCKETS_S
from tests.governor import connect, eventually, governing, listener, port_of
from tests.monitoring.test_alerts import ALERTS, METRICS, NAMES, RULES
from tests.supervisors import tell

DASHBOARD = json.loads((RULES.parents[1] / "grafana" / "memscaler.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EVERY = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
DEEPER = [each for each in EVERY if re.search(r"memscaler_(gpu_)?(stage|suspend|sleeper|gpuctl|gvm)", each[1])]
QUERIES = [each for each in EVERY if each not in DEEPER]
VARIABLES = {
    "$__rate_interval": "20s",
    "$__range": "5m",
    "$instance": ".*",
    "$gpu": ".*",
}
UNITS = {"short", "watt", "joule", "percentunit", "s", "hertz", "celsius", "cps", "bytes"}


class Prometheus:
    """One that listens on loopback; told of no target but the daemon."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        scrapes = [{"job_name": "memscaler", "static_configs": [{"targets": [target]}]}]
        timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": timing, "rule_files": [str(RULES)], "scrape_configs": scrapes}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / "log"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with self.log.open("wb") as log:
            listen = f"--web.listen-address={self._url.removeprefix('http://')}"
            self.process = subprocess.Popen([*command, listen], stdout=log, stderr=log)

    def api(self, path: str, **parameters):
        """The data of an answer."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def ask(self, query: str):
        return self.api("query", query=query)["result"]

    def over_time(self, query: str):
        now_s = time.time()
        return self.api("query_range", query=query, start=now_s - 60, end=now_s, step=2)["result"]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
            return answer.status == 200
        return False


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """After a park and a wake that it has seen."""
    server = listener()
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    watch = ("--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "3s", "--metrics", "127.0.0.1:0")
    folder, daemon = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("daemon")
    tell(daemon, [ServerReport("chat", ServerState.READY, time.time(), port=8080, restarts=1)])
    with server, governing(daemon / "memscaler", "a40,p40", *watch) as governor:
        started = Prometheus(folder, governor.events("metrics.served")[-1]["address"])
        try:
            eventually(started.is_ready, within_s=60)
            state = 'count(memscaler_gpu_state{state="%s"} == 1) == 2'
            eventually(lambda: started.ask(state % "parked"), within_s=60)
            with connect(server) as client:
                client.sendall(b"hello")
                eventually(lambda: started.ask(state % "awake"), within_s=60)
            eventually(lambda: started.ask(state % "parked"), within_s=60)
            eventually(lambda: started.ask("increase(memscaler_reset_latency_seconds_count[20s]) > 0"), within_s=60)
            yield started
        finally:
            started.process.terminate()
            started.process.wait(20)


def serve(server):
    with contextlib.suppress(OSError):
        while True:
            with server.accept()[0] as connection:
                while connection.recv(1024):
                    pass


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, "a variable that this test does not know"
    return expression


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[f"{title}-{n}" for n, (title, _) in enumerate(QUERIES)])
def test_every_panel_has_data(prometheus, title, expression):
    """Each query of each panel, with its variables filled in, returns numbers."""
    found = prometheus.over_time(filled_in(expression))
    numbers = [value for each in found for _, value in each["values"] if value != "NaN"]
    assert numbers, title


@pytest.fixture(scope="module")
def asleep(tmp_path_factory):
    """Of a machine with servers in deeper stages: what such a governor would tell, over HTTP; more each second."""
    began_s = time.monotonic()

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # as the library calls it
            body, content_type = render(ladder(time.monotonic() - began_s))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = Prometheus(tmp_path_factory.mktemp("asleep"), f"127.0.0.1:{server.server_address[1]}")
        try:
            eventually(started.is_ready, within_s=60)
            wakes = "increase(memscaler_stage_wake_seconds_count[20s]) > 0"
            eventually(lambda: started.ask(wakes), within_s=60)
            yield started
        finally:
            started.process.terminate()
            started.process.wait(20)
            server.shutdown()


def ladder(age_s: float) -> Snapshot:
    """One server that is stopped again and again, one that is stuck."""
    latencies, wakes = Latencies(STAGE_WAKE_BUCKETS_S), int(age_s)
    for _ in range(wakes):
        latencies.add(12.0)
    totals = {Stage.STOP_SERVER: StageTotals(wakes + 1, wakes, wakes, age_s)}
    stopped = SleepingServer("chat", 8080, gpus=("GPU-1",), stage=Stage.STOP_SERVER, rung=Rung.DOWN, totals=totals)
    stuck = SleepingServer("big", 8081, stage=Stage.CHECKPOINT, rung=Rung.STUCK)
    machine = MachineSleep(wanted=True, suspends=1, asleep_s=3600.0)
    (gpu,) = (GpuSnapshot(Identity(0, "GPU-1", "", "A40"), "parked", 0, "", "", 0, "", {}, {}, {}, None, "", 0.0, None, None, latencies.freeze(), stages={Stage.STOP_SERVER: Spent(100.0, 100.0, 800.0, 100.0, 900.0)}),)  # fmt: skip
    told = Sleep(1, (stopped, stuck), machine)
    leaving = (StageWakes(8080, "", "chat", Stage.STOP_SERVER, latencies.freeze()),)
    kernel = KernelSnapshot({"tracepoint": True}, {}, 0)
    rule = RuleState("batch", "busy", holds=bool(wakes % 2), applied=wakes, released=wakes, failed=1)
    reading = GvmReading(17, 17, 0, "GPU-1", "train", 1 << 30, None, 0, kernels_submitted=wakes)
    gpuctl = Gpuctl(2, gvm=True, rules=(rule,), readings=(reading,))
    more = {"sleep": told, "stage_wakes": leaving, "gpuctl": gpuctl}
    return Snapshot(0, 1.0, "1", "", "box", False, (gpu,), (), kernel, **more)


@pytest.mark.parametrize(("title", "expression"), DEEPER, ids=[title for title, _ in DEEPER])
def test_every_panel_of_the_deeper_stages_has_data(asleep, title, expression):
    """Numbers, of each of them."""
    found = asleep.over_time(filled_in(expression))
    numbers = [value for each in found for _, value in each["values"] if value != "NaN"]
    assert numbers, title


def test_the_figures_of_the_deeper_stages_are_right(asleep):
    """A stopped server is 3, one that is stuck is more than 10; leaving took between ten and twenty seconds."""
    said = {}
    for title, expression in DEEPER:
        said[title] = {
            each["metric"].get("server", ""): float(each["value"][1]) for each in asleep.ask(filled_in(expression))
        }
    assert said["Stages of servers"] == {"chat": 3, "big": 12}
    assert 10 < said["Leaving a stage"][""] <= 20
    assert said["Saved beyond parking"] == {"": 900}
    assert said["Time that machines slept"] == {"": 3600}
    assert said["Servers that could not go deeper"]["chat"] > 0


def test_the_alerts_of_the_deeper_stages_see_it(asleep):
    """Of this machine the server that is stuck, and the stage that fails, are told; the sleeper runs."""
    mine = [alert for alert in ALERTS if re.search("memscaler_(stage|sleeper|suspend)", alert["expr"])]
    assert len(mine) == 5

    def fired():
        asked = {alert["alert"]: asleep.ask(alert["expr"]) for alert in mine}
        return {name: {each["metric"].get("server") for each in told} for name, told in asked.items() if told}

    eventually(lambda: fired() == {"MemscalerStageStuck": {"big"}, "MemscalerStageFails": {"chat"}}, within_s=60)


def test_the_figures_are_right(prometheus):
    """What the panels say about this daemon: two GPUs, both parked, which have been woken once, and energy saved."""
    said = {}
    for title, expression in QUERIES:
        found = prometheus.ask(filled_in(expression))
        assert found, title
        said[title] = float(found[0]["value"][1])
    assert said["GPUs parked"] == 1
    assert said["Need an operator"] == 0
    assert said["Saved in this time"] > 0
    assert 0 < said["Time parked"] < 1
    assert 0 < said["Slowest wakes"] < 5
    assert said["States"] == 3
    assert said["Servers kept running"] == 1


def test_variables_find_what_there_is(prometheus):
    """The lists of instances and GPUs are filled from metrics that exist."""
    kinds = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(kinds) == ["datasource", "instance", "gpu"]
    assert kinds["datasource"]["type"] == "datasource"
    for name, values in (("instance", 1), ("gpu", 2)):
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", kinds[name]["query"]["query"]).groups()
        assert len({each["metric"][label] for each in prometheus.ask(filled_in(metric))}) == values


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_every_alert_can_be_asked(prometheus, alert):
    """Prometheus evaluates each expression; of a daemon that is well it finds nothing."""
    assert prometheus.ask(alert["expr"]) == []


def test_every_alert_is_loaded(prometheus):
    """A running Prometheus takes the file as it is, and evaluates every rule without an error."""
    eventually(lambda: all(rule["health"] == "ok" for rule in loaded(prometheus)), within_s=30)
    assert [rule["name"] for rule in loaded(prometheus)] == NAMES
    assert {rule["state"] for rule in loaded(prometheus)} == {"inactive"}


def loaded(prometheus):
    return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]


def test_the_dashboard_can_be_imported():
    """What Grafana 10 expects of a dashboard: a schema that it knows, own ids, panels beside each other, known units."""
    assert DASHBOARD["id"] is None
    assert 36 <= DASHBOARD["schemaVersion"] <= 39
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    kinds = {panel["type"] for panel in PANELS}
    assert kinds == {"stat", "state-timeline", "timeseries", "heatmap", "table"}
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\bmemscaler_\w+", target["expr"])) <= METRICS


def test_it_shows_what_matters():
    """States, power, saving, latencies, connections and trouble: each of these metrics is on it."""
    shown = " ".join(expression for _, expression in QUERIES)
    for wanted in (
        "memscaler_gpu_state{",
        "memscaler_gpu_power_watts",
        "memscaler_gpu_energy_saved_joules_total",
        "memscaler_reset_latency_seconds_bucket",
        "memscaler_port_connections",
        "memscaler_errors_total",
        "memscaler_gpu_conflict",
        "memscaler_server_state{",
    ):
        assert wanted in shown
