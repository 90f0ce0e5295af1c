"""The status page in a real browser, of a real daemon with simulated boards."""

import json
import pwd
import re
import subprocess
import threading
import time
import urllib.request
from dataclasses import replace
from functools import partial

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from memscaler.cli.client import Client
from memscaler.core.servers import ServerReport, ServerState
from tests.governor import Governor, connect, eventually, governing, listener, port_of
from tests.page.conftest import WAIT_MS
from tests.patience import patience
from tests.supervisors import tell

SIZES = {"desktop": (1280, 900), "phone": (375, 812)}
PUSHED_S = 1.0 * patience()  # who is not told at once learns of it 2 s after the view before
NEXT_VIEW = """() => new Promise((done) => new MutationObserver((_, watcher) => { watcher.disconnect(); done(); })
    .observe(document.querySelector("[data-field=uptime]"), {childList: true}))"""
REASON = "nobody-else-s-business"
SERVERS = (
    ServerReport(
        "chat", ServerState.READY, time.time() - 7200, 31337, 8080, model="/home/alice/secret.gguf", restarts=2
    ),
    ServerReport(
        "embed", ServerState.FAILED, time.time() - 60, port=8081, reason="it ended 6 times in 10 min (pid 31338)"
    ),
    ServerReport("a-name-as-long-as-a-name-of-a-server-can-be.which-is-63-letters", ServerState.STARTING, time.time()),
)


@pytest.fixture(scope="module")
def server():
    """A port that takes connections, and ends them when the client does."""
    accepting = listener()
    threading.Thread(target=serve, args=(accepting,), daemon=True).start()
    yield accepting
    accepting.close()


def serve(accepting):
    def until_end(connection):
        with connection:
            while connection.recv(1024):
                pass

    while True:
        try:
            connection = accepting.accept()[0]
        except OSError:
            return
        threading.Thread(target=until_end, args=(connection,), daemon=True).start()


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory):
    """Another user's, which says what it is told to say."""
    folder, nobody = tmp_path_factory.mktemp("page"), pwd.getpwnam("nobody")
    with subprocess.Popen(["sleep", "infinity"], user=nobody.pw_uid) as process:
        speak = partial(tell, folder, uid=nobody.pw_uid, user="nobody", pid=process.pid)
        speak(SERVERS)
        yield speak
        process.kill()


@pytest.fixture(scope="module")
def governor(server, supervisor):
    """One board behind the server, one held, one left alone, one without a lever; and what a supervisor says."""
    watch = ("--port", f"{port_of(server)}:gpu0", "--port", "9:gpu1,gpu3")
    folder = supervisor(SERVERS).parents[1] / "memscaler"
    with governing(folder, "a40,p40,t4,vgpu", *watch, "--idle-after", "1s", "--metrics", "127.0.0.1:0") as started:
        Client(folder).change("hold", gpus=["gpu1"], reason=REASON)
        yield started


@pytest.fixture
def url(governor):
    return f"http://{governor.events('metrics.served')[-1]['address']}/"


def card(page, gpu="gpu0"):
    return page.locator("article", has=page.get_by_role("heading", name=gpu))


def expect_state(page, state):
    expect(card(page).locator(".state")).to_have_text(state, timeout=WAIT_MS)


def parked(page):
    expect(page.locator("#live")).to_have_text("Live", timeout=WAIT_MS)
    expect_state(page, "parked")
    return page


def test_a_connection_is_shown_at_once(look, url, server):
    """From a real connection to the changed word on the page: less than a second, and it is said aloud."""
    page, delays_s = parked(look(url)), []
    for _ in range(2):
        page.evaluate(
            """() => { window.seen = new Promise((done) => new MutationObserver((_, watcher) => {
                if (document.querySelector("article .state").textContent !== "parked") {
                    watcher.disconnect();
                    done(performance.timeOrigin + performance.now());
                }
            }).observe(document.querySelector("article .state"), {childList: true, characterData: true, subtree: true})); }"""
        )
        page.evaluate(NEXT_VIEW)
        began_s = time.time()
        with connect(server):
            delays_s.append(page.evaluate("window.seen") / 1000 - began_s)
            expect_state(page, "awake")
            expect(page.locator("#said")).to_contain_text("gpu0 is awake now.")
            expect(page.locator("[data-list=changes] tr").first).to_contain_text("a client connected")
        expect_state(page, "parked")
    print("from the connection to the page, in seconds:", [round(delay_s, 3) for delay_s in delays_s])
    assert min(delays_s) < PUSHED_S


def test_figures_are_those_of_the_boards(look, url, governor):
    """Names, watts, clocks and the plot are those that the simulated boards have."""
    page, board = parked(look(url)), governor.driver.boards[0]
    expect(card(page)).to_contain_text(board.name)
    expect(card(page)).to_contain_text(f"{board.memory_clock_mhz} MHz")
    expect(card(page).locator(".watts")).to_have_text(f"{board.power_w:.1f} W", timeout=WAIT_MS)
    expect(card(page).locator("svg .curve")).not_to_have_count(0)
    expect(card(page).locator("svg .band")).not_to_have_count(0)
    expect(page.get_by_role("listitem")).to_contain_text("gpu2 is left alone: no watch names it")
    expect(card(page, "gpu1").locator(".state")).to_have_text("held")
    expect(card(page, "gpu3").locator(".state")).to_have_text("unmanaged")
    box = card(page).locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 10)
    expect(card(page).locator(".readout")).to_have_text(re.compile(r"^\d+\.\d W, \d+ s ago$"))


def test_servers_are_followed(look, url, supervisor):
    """A row for each, with its state, port, restarts and why; another state is there with the next view."""
    page = parked(look(url))
    row = page.locator("[data-list=servers] tr")
    expect(row).to_have_count(3)
    expect(row.nth(0)).to_contain_text("ready")
    expect(row.nth(0).locator("td").nth(1)).to_have_text("8080")
    expect(row.nth(0).locator("td").nth(3)).to_have_text("2")
    expect(row.nth(1)).to_contain_text("it ended 6 times in 10 min.")
    expect(row.nth(1).locator(".state")).to_have_attribute("data-is", "failed")
    try:
        supervisor([replace(SERVERS[1], state=ServerState.READY, reason=""), *SERVERS[:1]])
        expect(row).to_have_count(2, timeout=WAIT_MS)
        expect(row.nth(0).locator(".state")).to_have_text("ready")
        file = supervisor([])
        expect(page.get_by_role("region", name="Servers")).to_be_hidden(timeout=WAIT_MS)
        file.write_text("garbage")
        expect(page.get_by_role("listitem").last).to_contain_text("is no JSON", timeout=WAIT_MS)
    finally:
        supervisor(SERVERS)
    expect(row).to_have_count(3, timeout=WAIT_MS)


def test_it_tells_no_more_than_everybody_may_know(governor, url):
    """Who holds a GPU, what for, and under which process id, only the control socket tells."""
    status = Client(governor.runtime_dir).status()
    (hold,) = status["gpus"][1]["holds"]
    assert hold["reason"] == REASON
    with urllib.request.urlopen(url, timeout=10) as answer:
        told = answer.read().decode()
    with urllib.request.urlopen(f"{url}events", timeout=10) as answer:
        while "\n\n" not in told.partition("event: now")[2]:
            told += answer.readline().decode()
    assert "until that is ended" in told
    assert [each["model"] for each in status["servers"]] == [each.model for each in SERVERS]
    for secret in (REASON, hold["owner"], hold["id"], str(status["pid"]), "secret.gguf", "31337", "31338"):
        assert secret not in re.sub(r'"at":[\d.]+|\[\d+\.\d+,[\d.]+\]', "", told)


def test_a_gpu_keeps_its_past(tmp_path):
    """However often other GPUs change their states: the plot shows when this one was parked, and when it was not."""
    with listener() as busy, listener() as other:
        watches = ("--port", f"{port_of(busy)}:gpu0", "--port", f"{port_of(other)}:gpu1", "--idle-after", "200ms")
        with governing(tmp_path, "a40,a40", *watches, "--metrics", "127.0.0.1:0") as governor:
            client, board = Client(tmp_path), governor.driver.boards[0]
            eventually(lambda: board.is_slow)
            with connect(busy):
                eventually(lambda: not board.is_slow)
            busy.accept()[0].close()
            eventually(lambda: board.is_slow)
            for _ in range(60):
                client.change("hold", gpus=["gpu1"])
                client.change("unhold", gpus=["gpu1"])
            status = client.status()
            assert {each["gpu"] for each in status["transitions"]} == {"gpu1"}
            address = governor.events("metrics.served")[-1]["address"]
            with urllib.request.urlopen(f"http://{address}/events", timeout=10) as answer:
                told = next(line for line in answer if line.startswith(b"data: {"))
            now = json.loads(told[len("data: ") :])
            states = now["plots"][status["gpus"][0]["uuid"]]["states"]
            assert [state for _, state in states][-4:] == ["parked", "awake", "cooling", "parked"]
            assert now["at"] - states[0][0] < status["uptime_s"] + 60, "nobody knows what was before"
            assert now["at"] - states[-1][0] == pytest.approx(status["gpus"][0]["since_s"], abs=10)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_use_it(look, url, size, scheme, tmp_path):
    """Nothing that axe complains about, nothing wider than the screen, and a picture for people who want to look."""
    page = parked(look(url, *SIZES[size], color_scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_with_the_keyboard(look, url):
    """The first Tab leads past the header, the next one to what can be followed; focus can be seen."""
    page = parked(look(url))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Metrics for Prometheus")).to_be_focused()


def test_landmarks_and_tables(look, url):
    """A screen reader finds regions by their names, and tables with headers for columns and rows."""
    page = parked(look(url))
    for name in ("GPUs", "Watched ports", "Servers", "Recent changes", "Notes"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    for header in ("Port", "Connections", "Restarts", "Change"):
        expect(page.get_by_role("columnheader", name=header, exact=True).first).to_be_visible()
    expect(page.get_by_role("rowheader").first).to_be_visible()
    assert page.get_by_role("img", name=re.compile("Power of the last 10 minutes: from .* watts")).count() >= 2


def test_without_javascript(look, url):
    """The server fills the page: everything but the plots can be read."""
    page = look(url, java_script_enabled=False)
    eventually(lambda: page.reload() and card(page).locator(".state").inner_text() == "parked", within_s=15)
    expect(page.locator("noscript p")).to_be_visible()
    expect(card(page).get_by_text("Power", exact=True)).to_be_visible()
    expect(page.get_by_role("columnheader", name="Connections")).to_be_visible()
    assert page.locator(".plot:visible").count() == 0


def test_live_and_static_are_the_same(look, url):
    """JavaScript fills the page by the same rules as the server: nothing appears or vanishes when it starts."""
    still = look(url, java_script_enabled=False)
    page = parked(look(url))
    for selector in ("dt:visible", "thead th:visible", "h2:visible", "h3:visible"):
        kept = [text for text in still.locator(selector).all_inner_texts() if text != "Power"]
        assert page.locator(selector).all_inner_texts() == kept


def test_nothing_moves_for_those_who_do_not_want_it(look, url):
    """With reduced motion there are no transitions."""
    page = parked(look(url, reduced_motion="reduce"))
    assert page.evaluate("getComputedStyle(document.querySelector('.state')).transitionDuration") == "0s"


def test_a_hidden_page_costs_nothing(look, url):
    """Nobody sees it: it hangs up; somebody does again: it goes on, with all that was missed."""
    page = parked(look(url))
    hide = """(hidden) => { Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
                            document.dispatchEvent(new Event("visibilitychange")); }"""
    with page.expect_event("requestfailed", lambda asked: asked.url.endswith("/events")):
        page.evaluate(hide, arg=True)
    with page.expect_response(lambda answer: answer.url.endswith("/events")):
        page.evaluate(hide, arg=False)
    expect(page.locator("html")).not_to_have_class(re.compile("stale"))


def test_it_survives_a_restart(look, server, tmp_path):
    """The daemon goes: that is said, and old figures look old. It comes again: the page goes on by itself."""
    watch = ("--port", f"{port_of(server)}:gpu0", "--idle-after", "1s")
    with governing(tmp_path / "1", "a40", *watch, "--metrics", "127.0.0.1:0") as first:
        address = first.events("metrics.served")[-1]["address"]
        page = parked(look(f"http://{address}/"))
        page.complaints.expected = ("net::ERR_",)
        assert first.stop() == 0
        expect(page.locator("#lost")).to_contain_text("Connection lost", timeout=WAIT_MS)
        expect(page.locator("#live")).to_have_text("Not connected")
        expect(page.locator("html")).to_have_class(re.compile("stale"))
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    again = start_again(tmp_path / "2", "l40s", address, watch)
    try:
        parked(page)
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#said")).to_have_text(re.compile("Connected again|gpu0"))
        expect(card(page)).to_contain_text(again.driver.boards[0].name)
    finally:
        again.stop()


def start_again(folder, boards, address, watch) -> Governor:
    """On the same port, as a service does."""
    governor = Governor(folder, boards, *watch, "--metrics", address)
    governor.wait_started()
    return governor
