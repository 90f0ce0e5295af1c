"""The governor's side of [[gpuctl]]: what it shows the arbiter, what it asks it first, and what happens to its child.

The real governor in its own process, with a child whose part the test plays (scripted_arbiter.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from memscaler.daemon.urgent import WAKE_WAIT_S
from tests.daemon.scripted_arbiter import environment, launch, scripted
from tests.daemon.scripted_sleeper import server
from tests.governor import alive, connect, eventually, governing, listener, port_of, stand_still, watch_table
from tests.patience import patience

UNMANAGED = '[gpu.gpu0]\nlever = "memory-clock"\n[[watch]]\nport = 1\ngpus = ["gpu1"]\n'  # an A100 has no such lever
BASE = 'idle_after = "300ms"\nmin_dwell = 0\n'
RULE = '[[gpuctl]]\nname = "batch"\nprocesses = ["unit:batch.service"]\nfreeze = true\n'
AT_ONCE_S = 1.0 * patience()


@contextmanager
def played(folder, text, *arguments, boards="a40", **more):
    """A governor, and its arbiter's part."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.toml"
    config.write_text(BASE + text)
    env = {**environment(folder), **more.pop("env", {})}
    with (
        scripted(folder) as arbiter,
        governing(
            folder / "run", boards, "--config", str(config), *arguments, prefix=launch(), env=env, **more
        ) as governor,
    ):
        governor.config = config
        arbiter.come()
        yield governor, arbiter


def status(governor):
    return json.loads(told(governor, "status", "--json").stdout)


def reported(governor):
    """Whether the arbiter has said its first word."""
    return all("is starting" not in rule["why_not"] for rule in status(governor)["gpuctl"]["rules"])


def told(governor, *arguments, check=True):
    command = [sys.executable, "-m", "memscaler", *arguments, "--runtime-dir", str(governor.runtime_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


def parked(governor):
    board = governor.driver.boards[0]
    eventually(lambda: board.locks, what="the park")
    return board


def heard(arbiter, *first, **more):
    """The governor knows how things are."""
    arbiter.tell(first, **more)
    arbiter.answered(arbiter.say("look"))


@contextmanager
def client_of(web):
    """One that comes, and goes."""
    with connect(web) as client:
        accepted, _ = web.accept()
        with accepted:
            yield client


def armed(arbiter, key):
    """Guard a watch, and read what was said until that is so."""
    seen = server(arbiter.answered(arbiter.say("guard", keys=[key], on=True)), key)
    assert seen["guarded"]
    assert (seen["live"], seen["rang"]) == (0, False)


def test_it_is_told_the_rules_and_the_whole_picture(tmp_path):
    """First the settings, then every GPU and watch, with the processes that listen there; then each change."""
    gvm = '[gvm]\ngpu_map = {"8" = "GPU-00000000-0000-0000-0000-000000000001"}\n'
    with listener() as web, played(tmp_path, RULE + gvm + watch_table(web, "gpu0")) as (governor, arbiter):
        rules = arbiter.until("settings")
        assert [rule["name"] for rule in rules["rules"]] == ["batch"]
        assert rules["rules"][0]["processes"] == [{"kind": "unit", "text": "batch.service"}]
        assert rules["gvm"]["gpu_map"] == {"8": "GPU-00000000-0000-0000-0000-000000000001"}
        uuid = governor.driver.boards[0].uuid
        assert rules["gpu_names"]["gpu0"] == uuid
        seen = arbiter.until("seen")
        chat = server(seen, str(port_of(web)))
        assert (chat["gpus"], chat["pids"]) == ([uuid], [os.getpid()])
        arbiter.until("seen", lambda seen: seen["gpus"][uuid]["state"] == "parked")
        told(governor, "hold", "gpu0")
        arbiter.until("seen", lambda seen: seen["gpus"][uuid]["held"])


def test_before_its_first_word_no_rule_is_in_force(tmp_path):
    """Status says so, and shows the rules: else it would look as if none were configured."""
    gvm = '[gvm]\nroot = "/somewhere"\ngpu_map = {"8" = "GPU-00000000-0000-0000-0000-000000000001"}\n'
    with listener() as web, played(tmp_path, RULE + gvm + watch_table(web, "gpu0")) as (governor, arbiter):
        said = status(governor)["gpuctl"]
        (rule,) = said["rules"]
        assert (rule["name"], rule["while"], rule["holds"], rule["waits"]) == ("batch", "busy", False, True)
        assert rule["why_not"] == "the arbiter is starting: no rule is in force yet"
        assert "batch: the arbiter is starting: no rule is in force yet" in told(governor, "status").stdout
        assert said["gvm_at"]["root"] == "/somewhere"
        assert said["gvm_at"]["gpu_map"] == {"8": "GPU-00000000-0000-0000-0000-000000000001"}
        heard(arbiter, rules=[{"name": "batch", "when": "busy", "holds": True, "applied": 2}])
        said = status(governor)["gpuctl"]
        assert [(rule["holds"], rule["why_not"], rule["applied"]) for rule in said["rules"]] == [(True, "", 2)]
        assert said["gvm_at"]["root"] == "/somewhere", "the governor's word, whatever the arbiter tells"


def test_without_rules_there_is_no_arbiter(tmp_path):
    """Nothing of it runs; nor in a dry run."""
    config = tmp_path / "config.toml"
    with listener() as web:
        for text, more in (("", ()), (RULE, ("--dry-run",))):
            config.write_text(BASE + text + watch_table(web, "gpu0"))
            with governing(tmp_path / "run", "a40", "--config", str(config), *more) as governor:
                assert not governor.events("arbiter.started")


def test_gvm_alone_is_reason_enough(tmp_path):
    """For its figures; also when its driver is loaded later."""
    (tmp_path / "debug").mkdir()
    text = f'sample_every = "1s"\n[gvm]\nroot = "{tmp_path / "debug"}"\n'
    with listener() as web:
        config = tmp_path / "config.toml"
        config.write_text(BASE + text + watch_table(web, "gpu0"))
        with (
            scripted(tmp_path) as arbiter,
            governing(
                tmp_path / "run", "a40", "--config", str(config), prefix=launch(), env=environment(tmp_path)
            ) as governor,
        ):
            assert not governor.events("arbiter.started")
            (tmp_path / "debug" / "nvidia-uvm" / "processes").mkdir(parents=True)
            arbiter.come()
            assert arbiter.until("settings")["rules"] == []


# ---- who comes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["awake", "unmanaged"])
def test_who_comes_to_a_guarded_watch_is_told_at_once(tmp_path, state):
    """Though its GPU is up, because of somebody else's work or for good."""
    with listener() as web, listener() as busy:
        key, text = str(port_of(web)), RULE + watch_table(web, "gpu0")
        text += UNMANAGED if state == "unmanaged" else watch_table(busy, "gpu0")
        boards = "a100,a40" if state == "unmanaged" else "a40"
        with played(tmp_path, text, boards=boards) as (_, arbiter), connect(busy):
            (uuid,) = server(arbiter.until("seen"), key)["gpus"]
            arbiter.until("seen", lambda seen: seen["gpus"][uuid]["state"] == state)
            armed(arbiter, key)
            while not arbiter.nothing_for(0.3):
                arbiter.hear()
            began_s = time.monotonic()
            with connect(web):
                come = arbiter.until("seen", lambda seen: server(seen, key)["rang"])
                assert time.monotonic() - began_s < AT_ONCE_S
                assert server(come, key)["live"] == 1


def test_the_sleepers_guards_are_others(tmp_path):
    """What one lets go of stays armed for the other, and each is told of its own."""
    stage = '[[stage]]\nafter = "1h"\ndo = "server-sleep"\n'
    with (
        listener() as web,
        listener() as other,
        played(tmp_path, RULE + stage + watch_table(web, "gpu0") + watch_table(other, "gpu0")) as (governor, arbiter),
    ):
        keys = [str(port_of(each)) for each in (web, other)]
        assert governor.events("sleeper.started")
        with connect(other) as client:  # the GPU stays up
            armed(arbiter, keys[0])
            # the real sleeper guards what it takes down: made to by hand, it refuses, but has guarded before it looked
            told(governor, "sleep", keys[0], check=False)
            with connect(web):
                arbiter.until("seen", lambda seen: server(seen, keys[0])["rang"])
            client.close()


# ---- what is asked first -------------------------------------------------------------------------------------------------


def test_a_wake_asks_first(tmp_path):
    """For a client of a parked GPU: the question comes before the clocks rise, and the answer is waited for."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        uuid = governor.driver.boards[0].uuid
        heard(arbiter, uuid)
        board = parked(governor)
        began_s = time.monotonic()
        with client_of(web):
            question = arbiter.asked()
            assert (question["wake"], question["rang"]) == (uuid, True)
            arbiter.answer(question)
            eventually(lambda: not board.locks)
            assert time.monotonic() - began_s < AT_ONCE_S
        parked(governor)
        told(governor, "hold", "gpu0")
        question = arbiter.asked()
        assert (question["wake"], question["rang"]) == (uuid, False)  # nobody has come


def test_gpus_that_need_nothing_first_ask_nothing(tmp_path):
    """Not on the way up, nor, without GVM, on the way down."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        heard(arbiter)
        board = parked(governor)
        with client_of(web):
            eventually(lambda: not board.locks)
        parked(governor)
        assert arbiter.nobody_asks_for(0.1)


def test_with_gvm_a_park_is_asked_for(tmp_path):
    """And not done while the answer is no, or there is none."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        board = governor.driver.boards[0]
        uuid = board.uuid
        with client_of(web):
            eventually(lambda: not board.locks)
            heard(arbiter, gvm=True)
        question = arbiter.asked()
        assert question["park"] == uuid
        arbiter.answer(question, word="kernels pending: train (77)")
        while not board.locks:  # an answer may come too late
            arbiter.answer(arbiter.asked(), word="")
            time.sleep(0.1)
        assert governor.events("gpu.lever_applied")


def test_one_that_hangs_delays_a_wake_by_little(tmp_path):
    """SIGSTOP: the GPU wakes all the same, before the governor has found out; then that kills it."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        uuid = governor.driver.boards[0].uuid
        heard(arbiter, uuid)
        board = parked(governor)
        pid = arbiter.pid
        stand_still(pid)
        began_s = time.monotonic()
        with connect(web):
            eventually(lambda: not board.locks, within_s=1)
            assert time.monotonic() - began_s < WAKE_WAIT_S + AT_ONCE_S
            assert alive(pid)  # nobody was killed for that
            eventually(lambda: governor.events("arbiter.stands_still"), within_s=20)
            arbiter.come()
            assert arbiter.pid != pid


def test_one_that_has_died_delays_nothing(tmp_path):
    """Between its death and the next one's first word nobody is asked."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        uuid = governor.driver.boards[0].uuid
        parked(governor)
        with client_of(web):
            heard(arbiter, uuid, gvm=True)
        question = arbiter.asked()
        os.kill(arbiter.pid, signal.SIGKILL)  # instead of an answer
        assert question["park"] == uuid
        arbiter.come()
        board = parked(governor)
        with client_of(web):
            eventually(lambda: not board.locks)
        assert arbiter.nobody_asks_for(0.1)


# ---- life ---------------------------------------------------------------------------------------------------------------


def test_one_that_dies_is_replaced(tmp_path):
    """After a pause that doubles; the status says so meanwhile, and totals go on."""
    rule = {"name": "batch", "when": "busy", "applied": 3, "seconds": 2.5}
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        for turn in range(3):
            heard(arbiter, rules=[rule])
            os.kill(arbiter.pid, signal.SIGKILL)
            eventually(lambda turn=turn: len(governor.events("arbiter.died")) == turn + 1)
            arbiter.come()
        assert [event["again_in_s"] for event in governor.events("arbiter.died")] == [0.1, 0.2, 0.4]
        heard(arbiter, rules=[rule])
        (now,) = status(governor)["gpuctl"]["rules"]
        assert (now["applied"], now["seconds"]) == (12, 10.0)
        with connect(web):
            arbiter.until("seen", lambda seen: server(seen, str(port_of(web)))["live"])  # eyes as before
        governor.process.send_signal(signal.SIGTERM)
        arbiter.until("end")
        arbiter.bye()
        assert governor.process.wait(30) == 0


def test_readings_are_asked_for_when_somebody_looks(tmp_path):
    """And waited for, but not for long."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        command = [sys.executable, "-m", "memscaler", "status", "--json", "--runtime-dir", str(governor.runtime_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as asking:
            number = arbiter.until("read")["id"]
            arbiter.tell(problem="as of now")
            arbiter.say("done", id=number)
            assert b"as of now" in asking.communicate(timeout=30)[0]
        assert status(governor)  # nobody answers


def test_a_reload_tells_the_rules_begins_and_ends_it(tmp_path):
    """Without a rule it is told to end; with one again there is another."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        watch = watch_table(web, "gpu0")
        governor.config.write_text(BASE + RULE.replace("freeze = true", "cpu_nice = 5") + watch)
        assert "gpuctl batch: changed" in told(governor, "reload").stdout
        arbiter.until("settings", lambda told: told["rules"] and told["rules"][0]["cpu_nice"] == 5)
        governor.config.write_text(BASE + watch)
        assert "gpuctl batch: removed" in told(governor, "reload").stdout
        arbiter.until("end")
        arbiter.bye()
        eventually(lambda: governor.events("arbiter.ended"))
        governor.config.write_text(BASE + RULE + watch)
        assert "gpuctl batch: added, while busy" in told(governor, "reload").stdout
        arbiter.come()
        assert arbiter.until("settings")["rules"]


def test_a_first_rule_that_a_reload_brings_says_what_it_cannot_do(tmp_path):
    """The rights over other users' processes went when the governor started. A restart has them."""
    tmp_path.joinpath("run").mkdir()
    with listener() as web:
        config, watch = tmp_path / "config.toml", watch_table(web, "gpu0")
        config.write_text(BASE + watch)
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            config.write_text(BASE + RULE + watch)
            for _ in range(2):
                answer = told(governor, "reload").stdout
                assert ("memscaler lacks CAP_KILL, CAP_SYS_NICE, CAP_DAC_OVERRIDE" in answer) == (_ == 0)
                assert ("systemctl restart memscaler" in answer) == (_ == 0)
            eventually(lambda: reported(governor), what="the arbiter's report")
            (note,) = status(governor)["gpuctl"]["notes"]
            assert note["about"] == "gpuctl rights"
            assert "systemctl restart memscaler" in note["note"]
            assert "lacks CAP_KILL" in told(governor, "status").stdout
            (event,) = governor.events("gpuctl.rights_missing")
            assert event["lacking"] == ["CAP_KILL", "CAP_SYS_NICE", "CAP_DAC_OVERRIDE"]
            found = told(governor, "doctor", "MS-GVM-03", "--config", str(config), "--simulate", "a40", check=False)
            assert "lacks CAP_KILL" in " ".join(found.stdout.split())
            assert "systemctl restart memscaler" in " ".join(found.stdout.split())
        with governing(tmp_path / "again", "a40", "--config", str(config)) as governor:
            eventually(lambda: reported(governor), what="the arbiter's report")
            assert status(governor)["gpuctl"]["notes"] == []
            assert not governor.events("gpuctl.rights_missing")


def test_the_end_waits_for_it_and_wakes_gpus_at_once(tmp_path):
    """It is told to undo everything; the clocks wait for nobody."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        board = parked(governor)
        governor.process.send_signal(signal.SIGTERM)
        arbiter.until("end")
        eventually(lambda: not board.locks)
        time.sleep(0.3)
        assert not governor.ended()
        arbiter.bye()
        assert governor.process.wait(10) == 0


# ---- who undoes what it has left ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "slow"])
def test_the_guardian_lets_go_of_what_the_arbiter_has_left(tmp_path, how):
    """A governor that is killed with its arbiter; and one that ends before its arbiter, which stands still."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0")) as (governor, arbiter):
        board = parked(governor)
        journal = governor.runtime_dir / "gpuctl"
        journal.mkdir(exist_ok=True)
        (journal / "broken.json").write_text("{")  # gvm/undo.py tells of it, and fails
        pid, guardian = arbiter.pid, governor.guardian_pid
        if how == "killed":
            os.kill(pid, signal.SIGKILL)
            governor.process.kill()
        else:
            stand_still(pid)
            governor.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            governor.process.send_signal(signal.SIGTERM)  # it is not waited for
        governor.process.wait(30)
        eventually(lambda: not board.locks)
        eventually(lambda: not alive(guardian), within_s=60)
        assert "broken.json" in governor.log_path.read_text()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_its_log_has_the_governors_form(tmp_path):
    """Where that goes to a file, "auto" is JSON, for its children too."""
    with listener() as web, played(tmp_path, RULE + watch_table(web, "gpu0"), "--log-format", "auto") as (_, arbiter):
        words = Path(f"/proc/{arbiter.pid}/cmdline").read_bytes().split(b"\0")
        assert b"json" in words
        assert b"auto" not in words
