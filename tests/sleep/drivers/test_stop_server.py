"""The stage stop-server: a real supervisor with a real llama.cpp, systemd's words on a real bus, and managers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from demo import model
from memscaler.core.stages import Stage
from memscaler.sleep.drivers.make import Around, drivers
from memscaler.sleep.drivers.protocol import Gone, Later, Stuck, Target, Undone, Where
from tests.asked import short_folder
from tests.servers.bench import PYTHON, alive, eventually, free_port
from tests.servers.steered import steered
from tests.servers.test_real import complete
from tests.sleep.drivers.benches import HERE, REPOSITORY, Announced, Started, listens, rule, within

RULE = rule(Stage.STOP_SERVER)


def driver_for(folder, announced=None, supervisors=()):
    around = Around(folder, announced or Announced(), supervisors=lambda: supervisors)
    return drivers(around)[Stage.STOP_SERVER]


# ---- described servers -----------------------------------------------------------------------------------------------


@pytest.fixture
def supervised():
    with steered() as made:
        yield made


def small(b, name="small", *words, **more):
    """Describe a small server, start the supervisor, and its target."""
    port = free_port()
    b.describe({"name": name, "command": b.small("--port", port, *words), "port": port, **more})
    b.begin()
    report = b.until(name, "ready")
    return Target(str(port), port, name=name, pids=(report["pid"],))


def test_a_real_llama(tmp_path):
    """It ends, and with it whatever it has of a GPU; it is started, loads its model, and completes."""
    with steered() as b:
        model.write(b.folder / "tiny.gguf")
        (b.folder / "tiny.gguf").chmod(0o644)
        port = free_port()
        b.describe(
            {"name": "tiny", "model": str(b.folder / "tiny.gguf"), "port": port, "options": {"ctx-size": 256}},
        )
        b.begin()
        first = b.until("tiny", "ready", 90)
        assert complete(port)["choices"]
        target = Target(str(port), port, name="tiny", pids=(first["pid"],))
        driver = driver_for(tmp_path, supervisors=[b.folder / "run"])
        assert driver.possible(target, RULE, within()) == ""
        memo = json.loads(json.dumps(driver.prepare(target, RULE, within())))
        driver.enter(memo, within())
        assert driver.look(memo, within()).where is Where.DOWN
        assert not alive(first["pid"])
        assert not listens(port)
        driver.enter(memo, within())
        driver.leave(memo, within(90))
        assert driver.look(memo, within()).where is Where.UP
        assert complete(port)["choices"]
        second = b.server("tiny")["pid"]
        assert second != first["pid"]
        driver.leave(memo, within())
        assert b.server("tiny")["pid"] == second


def test_another_supervisor_with_the_same_name(supervised, tmp_path):
    """Whose process listens there is asked; one that only claims the name is not."""
    target = small(supervised)
    with steered() as other:
        small(other)
        driver = driver_for(tmp_path, supervisors=[other.folder / "run", supervised.folder / "run"])
        memo = driver.prepare(target, RULE, within())
        assert memo["socket"] == str(supervised.folder / "run/control.sock")
        with pytest.raises(Later):
            driver_for(tmp_path, supervisors=[other.folder / "run"]).possible(target, RULE, within())


def test_somebody_comes_while_it_ends(supervised, tmp_path):
    """It takes its time to end: it is started at once, and is ready when Undone is raised."""
    target = small(supervised, "small", "--stubborn", stop_timeout="2s")
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())

    def came():
        return supervised.server("small")["state"] == "stopping"

    with pytest.raises(Undone, match="somebody came"):
        driver.enter(memo, within(abandoned=came))
    assert supervised.server("small")["state"] == "ready"
    with pytest.raises(Undone, match="before"):
        driver.enter(memo, within(abandoned=lambda: True))


def test_an_operator_has_started_it(supervised, tmp_path):
    """Then it is up, and leaving does nothing."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    driver.enter(memo, within())
    supervised.kill()
    supervised.begin()  # a new supervisor starts what is enabled
    supervised.until("small", "ready")
    pid = supervised.server("small")["pid"]
    assert driver.look(memo, within()).where is Where.UP
    driver.leave(memo, within())
    assert supervised.server("small")["pid"] == pid


def test_an_operator_stops_it_while_it_is_asleep(supervised, tmp_path):
    """The next client does not undo that; until then it is said who stopped it."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    driver.enter(memo, within())
    assert supervised.server("small")["reason"].startswith("asleep")
    assert supervised.ask("stop", "small").returncode == 0
    assert supervised.server("small")["reason"] == "stopped by an operator"
    with pytest.raises(Gone, match="by an operator"):
        driver.leave(memo, within())
    assert supervised.server("small")["state"] == "stopped"


def test_an_operator_has_stopped_it(supervised, tmp_path):
    """It is not ours: who stopped it may start it, and no client of a gateway does."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    assert supervised.ask("stop", "small").returncode == 0
    supervised.until("small", "stopped")
    assert "not our doing" in driver.possible(replace(target, pids=()), RULE, within())
    assert supervised.ask("disable", "small").returncode == 0
    supervised.until("small", "disabled")
    assert "disabled by an operator" in driver.possible(replace(target, pids=()), RULE, within())


def test_it_cannot_be_started(supervised, tmp_path):
    """Its supervisor says why; once that is mended, the next try brings it back."""
    broken = supervised.folder / "broken"
    script = f"import os, sys; sys.exit(3) if os.path.exists({str(broken)!r}) else os.execv('{PYTHON}', sys.argv[1:])"
    port = free_port()
    command = [PYTHON, "-c", script, *supervised.small("--port", port)]
    supervised.describe({"name": "small", "command": command, "port": port, "restart_limit": 1})
    supervised.begin()
    report = supervised.until("small", "ready")
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(Target(str(port), port, name="small", pids=(report["pid"],)), RULE, within())
    driver.enter(memo, within())
    broken.touch()
    with pytest.raises(Stuck, match="exit status 3"):
        driver.leave(memo, within())
    broken.unlink()
    driver.leave(memo, within())
    assert supervised.server("small")["state"] == "ready"


def test_it_takes_too_long(supervised, tmp_path):
    """Not ready at the deadline: it is left to load, and found ready later."""
    target = small(supervised, "small", "--load", "5")
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    driver.enter(memo, within())
    with pytest.raises(Stuck):
        driver.leave(memo, within(1))
    driver.leave(memo, within())


def test_no_supervisor(supervised, tmp_path):
    """It has ended, as when it is being upgraded: nothing is known. What it ran, lives."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    supervised.kill()
    with pytest.raises(Later):
        driver.possible(target, RULE, within())
    with pytest.raises(Later):
        driver.enter(memo, within())
    with pytest.raises(Stuck):
        driver.leave(memo, within())
    assert driver.look(memo, within()).where is Where.UNKNOWN
    assert alive(target.pids[0])


def test_a_mute_supervisor(supervised, tmp_path):
    """Nobody waits longer than its deadline."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    supervised.send(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Later):
        driver.enter(memo, within(1))
    with pytest.raises(Stuck):
        driver.leave(memo, within(1))
    assert time.monotonic() - began < 20
    supervised.send(signal.SIGCONT)


def test_nobody_describes_it_any_more(supervised, tmp_path):
    """Its supervisor has forgotten it: nothing is left to leave."""
    target = small(supervised)
    driver = driver_for(tmp_path, supervisors=[supervised.folder / "run"])
    memo = driver.prepare(target, RULE, within())
    driver.enter(memo, within())
    supervised.describe()
    supervised.reload()
    eventually(lambda: "small" not in supervised.report())
    assert driver.look(memo, within()).where is Where.GONE
    with pytest.raises(Gone):
        driver.leave(memo, within())


def test_nobody_could_start_it(tmp_path):
    """Not described, no unit: not possible, and what to do about it."""
    reason = driver_for(tmp_path).possible(Target("8080", 8080), RULE, within())
    assert "describe it as a [[server]]" in reason
    assert "8080@unit:" in reason


# ---- units -----------------------------------------------------------------------------------------------------------


class Systemd:
    """A private bus with a fake systemd on it, whose units are real processes."""

    def __init__(self, folder, **units):
        self.folder = folder
        self.port = free_port()
        shutil.copy(REPOSITORY / "tests/servers/small.py", folder / "small.py")
        self.units = {
            "llama.service": {"command": [PYTHON, str(folder / "small.py"), "--port", str(self.port)], **units}
        }
        self.write()
        address = f"unix:path={folder}/bus"
        self.bus = subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address={address}"])
        eventually((folder / "bus").exists)
        self.environment = {"DBUS_SYSTEM_BUS_ADDRESS": address}
        self.systemd = subprocess.Popen(
            [sys.executable, str(HERE / "fake_systemd.py"), str(folder)],
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        eventually((folder / "ready").exists)
        eventually(lambda: listens(self.port))

    def write(self):
        draft = self.folder / "units.new"
        draft.write_text(json.dumps(self.units))
        draft.rename(self.folder / "units.json")

    def calls(self):
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def target(self):
        pid = int((self.folder / "llama.service.pid").read_text())
        return Target(f"{self.port}@unit:llama.service", self.port, "unit:llama.service", pids=(pid,))

    def close(self):
        os.killpg(self.systemd.pid, signal.SIGKILL)
        self.systemd.wait()
        self.bus.kill()
        self.bus.wait()


@pytest.fixture
def systemd(monkeypatch):
    made = []
    with short_folder() as folder:

        def start(**units):
            made.append(Systemd(folder, **units))
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made[0].environment["DBUS_SYSTEM_BUS_ADDRESS"])
            return made[0]

        yield start
        for each in made:
            each.close()


def test_a_unit(systemd, tmp_path):
    """Stopped and started through systemd, ready when it answers; our looks at it are announced."""
    s = systemd()
    announced = Announced()
    driver = driver_for(tmp_path, announced)
    assert driver.possible(s.target, RULE, within()) == ""
    memo = json.loads(json.dumps(driver.prepare(s.target, RULE, within())))
    driver.enter(memo, within())
    driver.enter(memo, within())
    assert driver.look(memo, within()).where is Where.DOWN
    assert not listens(s.port)
    driver.leave(memo, within())
    driver.leave(memo, within())
    assert driver.look(memo, within()).where is Where.UP
    assert listens(s.port)
    assert s.calls() == ["StopUnit llama.service", "StartUnit llama.service"]
    assert announced.keys == {f"{s.port}@unit:llama.service"}


def test_a_unit_that_loads_its_model(systemd, tmp_path):
    """Active for systemd, and 503 to its clients still: not up yet."""
    s = systemd()
    s.units["llama.service"]["command"] += ["--load", "5"]
    s.write()
    driver = driver_for(tmp_path)
    memo = driver.prepare(s.target, RULE, within())
    driver.enter(memo, within())
    with pytest.raises(Stuck):
        driver.leave(memo, within(1))
    driver.leave(memo, within())


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"Transient": True}, "transient"),
        ({"CanStop": False}, "may not"),
        ({"RefuseManualStop": True}, "may not"),
        ({"Delegate": True}, "other services"),
        ({"LoadState": "masked"}, "no unit"),
    ],
)
def test_units_that_are_left_alone(systemd, tmp_path, properties, says):
    """Each for a reason."""
    s = systemd(properties=properties)
    assert says in driver_for(tmp_path).possible(s.target, RULE, within())
    assert not s.calls()


def test_no_services(tmp_path):
    """Scopes and slices cannot be started again, and a user's manager is a whole session."""
    for name in ("a.scope", "b.slice", "user@1000.service"):
        target = Target(f"1@unit:{name}", 1, f"unit:{name}")
        assert "started again" in driver_for(tmp_path).possible(target, RULE, within())


def test_systemd_refuses(systemd, tmp_path):
    """Nothing has happened on the way down; on the way back it is stuck, until systemd is willing."""
    s = systemd()
    driver = driver_for(tmp_path)
    memo = driver.prepare(s.target, RULE, within())
    (s.folder / "refuses").touch()
    with pytest.raises(Undone, match="Permission denied"):
        driver.enter(memo, within())
    (s.folder / "refuses").unlink()
    driver.enter(memo, within())
    (s.folder / "refuses").touch()
    with pytest.raises(Stuck, match="Permission denied"):
        driver.leave(memo, within())
    (s.folder / "refuses").unlink()
    driver.leave(memo, within())


def test_a_unit_that_fails(systemd, tmp_path):
    """It does not start, as systemd says."""
    s = systemd()
    driver = driver_for(tmp_path)
    memo = driver.prepare(s.target, RULE, within())
    driver.enter(memo, within())
    s.units["llama.service"]["start"] = "fail"
    s.write()
    with pytest.raises(Stuck, match="cannot be started"):
        driver.leave(memo, within())
    assert driver.look(memo, within()).where is Where.DOWN


def test_somebody_comes_while_a_unit_ends(systemd, tmp_path):
    """It is started again."""
    s = systemd(stop_s=1)
    driver = driver_for(tmp_path)
    memo = driver.prepare(s.target, RULE, within())
    with pytest.raises(Undone, match="somebody came"):
        driver.enter(memo, within(abandoned=lambda: "StopUnit llama.service" in s.calls()))
    assert listens(s.port)


def test_no_bus(tmp_path, monkeypatch):
    """Nothing is known."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nowhere")
    target = Target("1@unit:a.service", 1, "unit:a.service")
    with pytest.raises(Later):
        driver_for(tmp_path).possible(target, RULE, within())


def test_a_mute_systemd(systemd, tmp_path):
    """Nobody waits longer than the deadline."""
    s = systemd()
    driver = driver_for(tmp_path)
    memo = driver.prepare(s.target, RULE, within())
    os.kill(s.systemd.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Stuck):
        driver.enter(memo, within(1))
    assert driver.look(memo, within(1)).where is Where.UNKNOWN
    assert time.monotonic() - began < 20
    os.kill(s.systemd.pid, signal.SIGCONT)


# ---- managers --------------------------------------------------------------------------------------------------------


class Managed:
    """A fake manager, and the server that it has started."""

    def __init__(self, folder, kind, loaded, *options):
        self.folder, self.port, self.child_port = folder, free_port(), free_port()
        name = {"llama-swap": "fake", "ollama": "serve", "router": "fake"}[kind]
        shutil.copy(HERE / "fake_managers.py", folder / name)
        shutil.copy(REPOSITORY / "tests/servers/small.py", folder / "small.py")
        called = {"llama-swap": "llama-swap", "ollama": "ollama", "router": "llama-server"}[kind]
        child = ["llama-server", str(folder / "small.py"), "-m", "tiny", "--port", str(self.child_port)]
        self.load(loaded)
        self.manager = Started(
            [called, name, *options],
            folder,
            executable=PYTHON,
            FAKE_KIND=kind,
            FAKE_PORT=str(self.port),
            FAKE_CHILD=json.dumps(child),
        )
        eventually(lambda: listens(self.port) and listens(self.child_port), what=(folder / "log").read_text)

    def load(self, loaded):
        filled = json.dumps(loaded).replace('"PORT"', f'"{self.child_port}"').replace(":PORT", f":{self.child_port}")
        (self.folder / "loaded.json").write_text(filled)

    @property
    def child(self):
        pid = int((self.folder / "child").read_text())
        return Target(str(self.child_port), self.child_port, pids=(pid,))

    @property
    def front(self):
        return Target(str(self.port), self.port, pids=(self.manager.pid,))


@pytest.fixture
def managed(tmp_path):
    made = []

    def start(kind, loaded, *options):
        folder = tmp_path / f"managed{len(made)}"
        folder.mkdir()
        made.append(Managed(folder, kind, loaded, *options))
        return made[-1]

    yield start
    for each in made:
        each.manager.kill()


def swap(ttl, model="qwen"):
    return {"model": model, "state": "ready", "cmd": "llama-server", "proxy": "http://localhost:PORT", "ttl": ttl}


def router(value="loaded"):
    return {"id": "qwen", "status": {"value": value, "args": ["llama-server", "--port", "PORT", "--alias", "qwen"]}}


SOON, NEVER = "2026-11-22T12:00:00.123456789+01:00", "2318-03-05T14:33:17.8+01:00"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("kind", "loaded", "owner"),
    [
        ("llama-swap", [swap(300)], "llama-swap unloads qwen"),
        ("llama-swap", [swap(-1)], "llama-swap unloads qwen"),
        ("llama-swap", [swap(0)], ""),
        ("ollama", [{"name": "qwen", "model": "qwen", "expires_at": SOON}], "Ollama unloads qwen"),
        ("ollama", [{"name": "qwen", "model": "qwen", "expires_at": NEVER}], ""),
        ("ollama", [{"name": "qwen", "model": "qwen", "expires_at": "soon"}], "Ollama unloads qwen"),
        ("router", [router()], ""),
    ],
)
def test_one_owner(managed, tmp_path, kind, loaded, owner):
    """Who unloads a model when it is idle owns it, on its own port and on the manager's; nobody asks it to unload."""
    m = managed(kind, loaded)
    around = Around(tmp_path, Announced())
    for target in (m.child, m.front):
        for stage, driver in drivers(around).items():
            reason = driver.possible(target, rule(stage), within())
            if owner and stage is not Stage.SERVER_SLEEP:  # which is for vLLM only
                assert owner in reason
            else:
                assert "unloads" not in reason
    assert not [call for call in m.manager.calls() if call.startswith("POST")]


@pytest.mark.parametrize(
    ("kind", "loaded", "asked"),
    [
        ("llama-swap", [swap(300)], "POST /api/models/unload/qwen"),
        ("ollama", [{"model": "qwen", "expires_at": SOON}], "POST /api/generate"),
        ("router", [router()], "POST /models/unload"),
    ],
)
@pytest.mark.parametrize("which", ["front", "child"])
def test_forced(managed, tmp_path, kind, loaded, asked, which):
    """The manager itself unloads it, and loads it at the next request: to leave, nothing needs to be done."""
    m = managed(kind, loaded)
    driver = driver_for(tmp_path)
    target = getattr(m, which)
    forced = replace(RULE, force=True)
    assert driver.possible(target, forced, within()) == ""
    memo = json.loads(json.dumps(driver.prepare(target, forced, within())))
    assert driver.look(memo, within()).where is Where.UP
    driver.enter(memo, within())
    driver.enter(memo, within())
    assert driver.look(memo, within()).where is Where.DOWN
    driver.leave(memo, within())
    m.load(loaded)
    assert driver.look(memo, within()).where is Where.UP
    assert [call for call in m.manager.calls() if call.startswith("POST")] == [asked]
    m.manager.kill()
    assert driver.look(memo, within()).where is Where.GONE


def test_a_manager_that_does_not_say(managed, tmp_path):
    """Then its model may be anybody's: not now."""
    m = managed("llama-swap", [swap(300)])
    os.kill(m.manager.pid, signal.SIGSTOP)
    with pytest.raises(Later):
        driver_for(tmp_path).possible(m.child, RULE, within(1))
    os.kill(m.manager.pid, signal.SIGCONT)
    (m.folder / "loaded.json").write_text("no JSON")
    with pytest.raises(Later):
        driver_for(tmp_path).possible(m.child, RULE, within())


def test_asleep_by_others(managed, tmp_path):
    """llama-swap has nothing loaded; a llama.cpp that sleeps is told by /props, which does not wake it."""
    from memscaler.sleep.drivers.make import managers

    told = managers(Around(tmp_path, Announced()))
    m = managed("llama-swap", [swap(300)])
    assert told.asleep_by(m.front, within()) == ""
    m.load([])
    assert told.asleep_by(m.front, within()) == "llama-swap"
    assert told.asleep_by(m.child, within()) == ""
    assert told.asleep_by(Target("1", 1), within()) == ""


@pytest.mark.usefixtures("machine")
def test_llama_that_sleeps_by_itself(tmp_path):
    """Its /props is believed; it is not checkpointed before it sleeps."""
    from memscaler.sleep.drivers.make import managers

    port = free_port()
    script = tmp_path / "props.py"
    script.write_text(
        "import http.server, json, pathlib, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        body = json.dumps({'is_sleeping': pathlib.Path('asleep').exists()}).encode()\n"
        "        assert self.path == '/props', self.path\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[2])), H).serve_forever()\n"
    )
    words = ["llama-server", str(script), "--port", str(port), "-m", "tiny", "--sleep-idle-seconds", "60"]
    server = Started(words, tmp_path, executable=PYTHON)
    try:
        eventually(lambda: listens(port))
        target = Target(str(port), port, pids=(server.pid,))
        around = Around(tmp_path, Announced())
        told, checkpoint = managers(around), drivers(around)[Stage.CHECKPOINT]
        assert told.asleep_by(target, within()) == ""
        with pytest.raises(Later, match="by itself after 60 s"):
            checkpoint.possible(target, rule(Stage.CHECKPOINT), within())
        asleep = drivers(around)[Stage.SERVER_SLEEP]
        assert "sleeps by itself" in asleep.possible(target, rule(Stage.SERVER_SLEEP), within())
        (tmp_path / "asleep").touch()
        assert told.asleep_by(target, within()) == "llama.cpp"
        assert "cuda-checkpoint" in checkpoint.possible(target, rule(Stage.CHECKPOINT), within())  # another gate
    finally:
        server.kill()
    assert not Path("asleep").exists()
