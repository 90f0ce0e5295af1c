"""A real governor, arbiter and guardian, a llama.cpp server and a batch job, all on one GPU.

The job stands still while somebody is connected to the server, and only then, whoever dies.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from demo import model
from tests.governor import alive, eventually, governing
from tests.gvm.batch import NAME, batching
from tests.gvm.scene import HEAD, RULE, scene, with_pid
from tests.patience import patience

MEANS = ["gvm", "cgroup", "signal"]
WAKE = "nvmlDeviceResetMemoryLockedClocks"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that a CPU computes in no time."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    model.write(path)
    return path


@pytest.mark.parametrize("how", MEANS)
def test_the_job_stands_still_while_somebody_is_connected(tmp_path, tiny, how):
    """First while it keeps the GPU up, then while the GPU is parked. bench/gpuctl.py tells how quickly."""
    with scene(tmp_path, tiny, how) as made:
        made.known()
        made.awake()
        for _ in range(2):
            with made.client() as client:
                last_ns = made.is_frozen()
                assert last_ns - client.asked_ns < 1e9 * patience()
                client.complete()
                assert made.batch.work.last_ns == last_ns
            made.is_free()
        made.board.set_utilization(0)
        made.parked()
        mark = made.driver.log_mark()
        with made.client() as client:
            last_ns = made.is_frozen()
            woken = eventually(lambda: made.driver.call_log(WAKE, after=mark))
            client.complete()
        assert last_ns - client.asked_ns < 1e9 * patience()
        assert last_ns < woken[0].entry_ns + 1e9 * patience()
        made.is_free()
        assert not list((made.run / "gpuctl").glob("*.json"))


def test_who_serves_is_never_touched(tmp_path, tiny):
    """The rule means everybody who is root and on the GPU."""
    with scene(tmp_path, tiny, "signal") as made, made.client() as client:
        made.is_frozen()
        client.complete()
        assert [each["pid"] for each in made.state()["controlled"]] == [made.batch.pid]


def test_a_job_that_comes_later_is_held_too(tmp_path, tiny):
    with scene(tmp_path, tiny, "signal") as made:
        made.known()
        with made.client(stays=True):
            made.is_frozen()
            with batching(tmp_path / "late", *made.arguments()) as late:
                eventually(late.stopped, within_s=30, what="the late one is found")
                late.stands_still()
                os.kill(made.governor.pid, signal.SIGTERM)
                late.works(within_s=30)
        made.is_free()


@pytest.mark.parametrize(
    ("how", "end"), [("gvm", signal.SIGTERM), ("cgroup", signal.SIGKILL), ("signal", signal.SIGKILL)]
)
def test_a_governor_that_ends_lets_go(tmp_path, tiny, how, end):
    """Although somebody is connected: nobody would tell when he leaves."""
    with scene(tmp_path, tiny, how) as made:
        made.known()
        with made.client() as client:
            made.is_frozen()
            made.governor.process.send_signal(end)
            made.is_free()
            client.complete()


@pytest.mark.parametrize("how", ["cgroup", "gvm"])
def test_another_arbiter_takes_over(tmp_path, tiny, how):
    """It lets go of what the dead one held, and holds it again while somebody is there."""
    with scene(tmp_path, tiny, how) as made:
        made.known()
        with made.client(stays=True):
            made.is_frozen()
            first = made.arbiter()
            made.kill("arbiter")
            eventually(lambda: made.arbiter() != first, within_s=30)
            eventually(lambda: made.frozen_by() == {how} and made.state()["controlled"], within_s=30)
            made.is_frozen()
        made.is_free()


@pytest.mark.parametrize("how", ["gvm", "signal"])
def test_the_guardian_lets_go_when_both_are_dead(tmp_path, tiny, how):
    with scene(tmp_path, tiny, how) as made:
        made.known()
        with made.client() as client:
            made.is_frozen()
            made.kill("governor", "arbiter")
            made.is_free()
            client.complete()


@pytest.mark.parametrize("how", ["cgroup", "signal"])
def test_restore_lets_go_when_all_are_dead(tmp_path, tiny, how):
    with scene(tmp_path, tiny, how) as made:
        made.known()
        with made.client():
            made.is_frozen()
            made.kill("governor", "arbiter", "guardian")
            made.is_frozen()
            done = made.told("restore", "--simulate", "a40")
            assert done.returncode == 0, done.stderr
            made.is_free()
            assert not list((made.run / "gpuctl").glob("*.json"))


def test_a_governor_without_rules_lets_go_of_what_a_crash_has_left(tmp_path, tiny):
    with scene(tmp_path, tiny, "signal") as made:
        made.known()
        with made.client():
            made.is_frozen()
            made.kill("governor", "arbiter", "guardian")
            with governing(made.run, "a40", "--port", f"{made.server.port}:gpu0"):
                made.is_free()


def test_a_reload_that_drops_the_rule_lets_go(tmp_path, tiny):
    """And one that brings it back holds again."""
    with scene(tmp_path, tiny, "signal") as made:
        made.known()
        with made.client(stays=True):
            made.is_frozen()
            made.config(rule="")
            assert made.told("reload").returncode == 0
            made.is_free()
            made.config()
            assert made.told("reload").returncode == 0
            made.is_frozen()
        made.is_free()


def test_an_arbiter_that_stands_still_is_replaced(tmp_path, tiny):
    """Clients are served meanwhile, and the job goes on when nobody is there."""
    with scene(tmp_path, tiny, "signal") as made:
        made.known()
        made.parked()
        first = made.arbiter()
        os.kill(first, signal.SIGSTOP)
        with made.client(stays=True) as client:
            client.complete()
            eventually(lambda: not made.board.locks, within_s=30)
            eventually(lambda: not alive(first), within_s=60, what="the end of the one that stood still")
            made.is_frozen(within_s=60)
        made.is_free()


def test_another_process_with_the_same_pid_is_left_as_it_is(tmp_path, tiny):
    """Somebody stopped it, and it was not us."""
    with scene(tmp_path, tiny, "signal") as made:
        made.known()
        pid = made.batch.pid
        with made.client():
            made.is_frozen()
            made.kill("governor", "arbiter", "guardian")
            made.batch.end()
            with_pid(pid, "sleep", "600")
            try:
                os.kill(pid, signal.SIGSTOP)
                eventually(made.batch.stopped)
                done = made.told("restore", "--simulate", "a40")
                assert done.returncode == 0, done.stderr
                assert made.batch.stopped()
                assert not list((made.run / "gpuctl").glob("*.json"))
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


LIMITED = RULE.format(who=f"name:{NAME}", how="gvm") + 'memory_limit = "1G"\ncompute_priority = 15\n'


def test_a_slow_limit_keeps_nobody_from_anything(tmp_path, tiny):
    """The kernel is in it for seconds; the job stands still at once, and is free at the end."""
    with scene(tmp_path, tiny, "gvm", rule=LIMITED, batch=("--bytes", str(8 << 30))) as made:
        assert made.fake
        made.fake.ask("evict", bytes_per_s=(7 << 30) / 4)
        with made.client(stays=True) as client:
            eventually(lambda: made.frozen_by() == {"gvm"}, within_s=30)
            assert made.fake.read(made.batch.tid, 0, "memory.limit") != str(1 << 30), "the limit is not there yet"
            client.complete()
            eventually(lambda: made.fake.read(made.batch.tid, 0, "memory.limit") == str(1 << 30), within_s=30)
            eventually(lambda: made.fake.read(made.batch.tid, 0, "compute.priority") == "15", within_s=30)
        made.is_free()

        def as_it_was():
            return [made.fake.read(made.batch.tid, 0, f) for f in ("memory.limit", "compute.priority")]

        eventually(lambda: as_it_was() == [str(2**64 - 1), "8"], within_s=30)


def test_a_governor_ends_in_time_though_a_limit_hangs(tmp_path, tiny):
    with scene(tmp_path, tiny, "gvm", rule=LIMITED, batch=("--bytes", str(8 << 30))) as made:
        assert made.fake
        made.fake.ask("evict", bytes_per_s=(7 << 30) / 20)
        with made.client():
            eventually(lambda: made.frozen_by() == {"gvm"}, within_s=30)
            start = time.monotonic()
            made.governor.stop(within_s=19 * patience())
            assert time.monotonic() - start < 19 * patience(), "it did not wait for the kernel"
            made.is_free()

        def as_it_was():
            return made.fake.read(made.batch.tid, 0, "memory.limit")

        eventually(lambda: as_it_was() == str(2**64 - 1), within_s=60, what="the limit goes when the kernel is done")


def test_a_positive_status_is_told_and_tried_again(tmp_path, tiny):
    with scene(tmp_path, tiny, "gvm") as made:
        assert made.fake
        made.fake.trap("write", "*/compute.freeze", status=0x1F)
        with made.client(stays=True):
            problems = lambda: [each["problem"] for each in made.state()["controlled"]]  # noqa: E731
            log = lambda: made.governor.log_path.read_text(errors="replace").lower()  # noqa: E731
            eventually(lambda: "0x1f" in log() or any("0x1f" in p.lower() for p in problems()), within_s=30)
            made.is_frozen(within_s=60)
        made.is_free()


def test_without_a_gpu_of_the_watch_a_job_is_left_alone(tmp_path, tiny):
    """It matches, but it computes on no GPU."""
    rule = RULE.format(who=f"name:{NAME}", how="signal")
    with scene(tmp_path, tiny, "signal", rule=rule) as made, batching(tmp_path / "elsewhere") as other, made.client():
        made.is_frozen()
        time.sleep(1.5)
        other.works()
        assert not other.stopped()


def test_nothing_is_started_where_there_is_nothing_to_do(tmp_path, tiny):
    """No rule, no driver of GVM's: no process more."""
    with scene(tmp_path, tiny, "signal", rule="") as made:
        time.sleep(1)
        assert not made.governor.events("arbiter.started")
        assert HEAD in (tmp_path / "config.toml").read_text()


def test_only_on_the_gpus_of_the_watch(tmp_path, tiny):
    """GVM numbers GPUs in the order of their first use: here the second is 0, and the first is 8."""
    with scene(tmp_path, tiny, "gvm", gpus=2) as made, batching(tmp_path / "other", *made.arguments(0)) as other:
        assert made.fake
        assert made.fake.number(made.driver.boards[0].uuid) == 8
        with made.client():
            made.is_frozen()
            time.sleep(1.5)
            other.works()
            assert not made.fake.frozen(other.tid, 8)
        made.is_free()


def test_a_gpu_with_kernels_pending_is_not_parked(tmp_path, tiny):
    """Unless their process is frozen: then nobody waits for them."""
    with scene(tmp_path, tiny, "gvm", batch=("--counted",)) as made:
        made.known()
        eventually(lambda: "are pending" in str(made.governor.events("gpu.park_skipped")), within_s=30)
        (made.fake.processes / str(made.batch.tid) / "0" / "compute.freeze").write_text("1\n")
        made.parked()


QUIET = """
[[gpuctl]]
name = "rest"
while = "quiet"
processes = ["server"]
freeze = true
how = "{how}"
"""


@pytest.mark.parametrize(("how", "ends"), [("gvm", ""), ("signal", "governor"), ("gvm", "governor arbiter")])
def test_a_server_rests_while_its_gpu_is_parked(tmp_path, tiny, how, ends):
    """And is let go before anybody waits for it, whoever dies."""
    with contextlib.ExitStack() as kept:
        made = kept.enter_context(scene(tmp_path, tiny, how, rule=QUIET.format(how=how)))
        pid = made.server.pid
        if made.fake:
            device = made.fake.device()
            kept.callback(device.close)
            device.ask("open", tid=pid)
            number = device.ask("register", uuid=made.board.uuid)

        def rests():
            if made.fake:
                return made.fake.frozen(pid, number)
            return "State:\tT" in Path(f"/proc/{pid}/status").read_text()

        made.parked()
        eventually(rests, within_s=30, what="the server rests")
        if ends:
            made.kill(*ends.split())
            eventually(lambda: not rests(), within_s=30, what="it is let go")
        mark = made.driver.log_mark()
        with made.client() as client:
            client.complete()
            eventually(lambda: not rests(), what="it is let go")  # what answers here is not held by GVM's file
            if not ends:
                woken = eventually(lambda: made.driver.call_log(WAKE, after=mark))
                if made.fake:
                    thawed = made.fake.writes("compute.freeze")[-1]
                    assert thawed.text == "0\n"
                    assert thawed.at_ns < woken[0].entry_ns + 1e9 * patience()
        made.batch.works()
        if not ends:
            made.parked()
            eventually(rests, within_s=30, what="it rests again")
            made.governor.stop(within_s=30)
            assert not rests()
