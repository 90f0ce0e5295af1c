"""`memscaler servers ...`: real commands that ask a real supervisor."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memscaler.cli.servers import supervisors
from memscaler.cli.servers.supervisors import SupervisorNotRunning, chosen, running
from memscaler.core.errors import PermissionMissing, UsageError
from memscaler.daemon.requests import ReloadWanted
from memscaler.servers import places
from tests.asked import answering, short_folder
from tests.governor import eventually
from tests.servers.bench import NOBODY, alive, free_port
from tests.servers.steered import as_user, steered
from tests.servers.test_control import Answering


@pytest.fixture(scope="module")
def shared():
    """A supervisor for tests that change nothing, or put it back: a server with a port, one that is off, one failed."""
    with steered() as bench:
        bench.describe(
            {"name": "qwen", "command": bench.small("--port", free_port()), "environment": {"HF_TOKEN": "s3cret"}},
            {"name": "off", "command": bench.small(), "health": "off", "enabled": False},
            {"name": "broken", "command": bench.small("--exit", 3, "--say", "no such layer"), "restart_limit": 1},
        )
        bench.begin()
        bench.until("qwen", "ready")
        bench.until("broken", "failed")
        yield bench


@pytest.fixture
def bench():
    with steered() as made:
        yield made


# ---- looking -------------------------------------------------------------------------------------------------------


def test_list(shared):
    """States, ports, restarts, and why one has failed, with what to do next."""
    done = shared.ask("list")
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["qwen"][1] == "ready"
    assert rows["off"][1] == "disabled"
    assert rows["broken"][1] == "failed"
    assert str(shared.server("qwen")["port"]) in rows["qwen"]
    assert "exit status 3" in done.stdout
    assert "memscaler servers logs broken" in " ".join(done.stdout.split())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.returncode == 0


def test_described_and_not_applied(shared, tmp_path):
    """It is listed as what it is, with what to do; so is one whose own supervisor does not run."""
    file = tmp_path / "config.toml"
    tables = [f'[[server]]\nname = "{name}"\ncommand = "x"\n' for name in ("qwen", "new", "hers")]
    file.write_text("\n".join(tables) + 'user = "alice"\n')
    told = {each["name"]: each for each in shared.told("list", "--config", str(file))["servers"]}
    assert told["qwen"]["state"] == "ready"
    assert (told["new"]["state"], told["new"]["reason"]) == ("not running", "not applied yet: memscaler servers apply")
    assert "memscaler-servers@alice" in told["hers"]["reason"]


def test_list_json(shared):
    """What the supervisor reports, as it is."""
    told = shared.told("list")
    report = shared.report()
    assert {each["name"]: each["pid"] for each in told["servers"]} == {
        name: each["pid"] for name, each in report.items()
    }
    assert told["supervisors"][0]["pid"] > 1
    assert told["problem"] == ""


def test_show(shared):
    """One server, without the values of its variables."""
    done = shared.ask("show", "qwen")
    assert done.returncode == 0
    for word in ("ready for", "small.py", "HF_TOKEN", "on-failure", "qwen.log", "config.toml:1"):
        assert word in done.stdout, word
    told = shared.ask("show", "qwen", "--json")
    assert json.loads(told.stdout)["report"]["state"] == "ready"
    assert "s3cret" not in done.stdout + told.stdout


def test_a_name_that_nobody_has(shared):
    """The nearest one is named; nothing is done, not even with those that are there."""
    before = shared.server("qwen")["pid"]
    for words in (("show", "qwem"), ("restart", "qwen", "qwem"), ("logs", "qwem")):
        done = shared.ask(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "memscaler: no such server: 'qwem'\nhint: did you mean qwen?\n"
    assert "known: broken, off, qwen" in shared.ask("stop", "zzz").stderr
    assert shared.server("qwen")["pid"] == before


@pytest.mark.parametrize("words", [("stop",), ("restart", "qwen", "--all")])
def test_which_ones(shared, words):
    """All of them only when that is said."""
    done = shared.ask(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--all" in done.stderr


def test_who_may(shared):
    """Its own user may everything, another one nothing, and is told what to run."""
    assert shared.ask("list", user=NOBODY).returncode == 0
    assert shared.ask("restart", "qwen", user=NOBODY).returncode == 0
    for words in (("list",), ("restart", "qwen"), ("apply",)):
        done = shared.ask(*words, user=1)
        assert (done.returncode, done.stdout) == (4, ""), words
        assert "hint: root may do everything, members of group memscaler may look" in done.stderr


def test_a_reader_changes_nothing(monkeypatch):
    """Who may look and not change is told so before anybody is asked to change."""
    with short_folder() as folder:
        server = Answering(folder)
        try:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            with pytest.raises(PermissionMissing, match="may change qwen"):
                chosen(["qwen"], None, str(folder), to_change=True)
            with pytest.raises(PermissionMissing, match="may change these servers"):
                chosen([], None, str(folder), everything=True, to_change=True)
            with pytest.raises(PermissionMissing, match="may change these servers"):
                running(None, str(folder), to_change=True)
            assert [each.names for each in chosen(["qwen"], None, str(folder))] == [("qwen",)]
        finally:
            server.stop()


# ---- no supervisor -------------------------------------------------------------------------------------------------


def test_nobody_runs(bench):
    """`list` shows what is described all the same; who wants to steer learns what to run."""
    bench.describe(
        {"name": "qwen", "command": ["llama-server", "--port", "8080"]},
        {"name": "phi", "command": ["x"], "user": "alice"},
    )
    told = bench.told("list", "--config", str(bench.folder / "config.toml"))
    assert [(each["name"], each["state"], each["port"]) for each in told["servers"]] == [
        ("qwen", "unattended", 8080),
        ("phi", "unattended", None),
    ]
    assert told["supervisors"] == []
    text = " ".join(bench.ask("list", "--config", str(bench.folder / "config.toml")).stdout.split())
    assert "qwen: its supervisor does not run: sudo systemctl start memscaler-servers" in text
    assert "sudo systemctl start memscaler-servers@alice" in text
    for words in (("show", "qwen"), ("start", "--all"), ("apply",), ("reload",)):
        done = bench.ask(*words)
        assert (done.returncode, done.stdout) == (3, ""), words
        assert "hint: start it: sudo systemctl start memscaler-servers" in done.stderr


def test_a_broken_configuration_does_not_hide_what_runs(shared, tmp_path):
    """`list` says that it is broken, and shows the servers."""
    file = tmp_path / "config.toml"
    file.write_text("[[server]]\nnam = 3\n")
    done = shared.ask("list", "--config", str(file))
    assert "qwen" in done.stdout
    assert "cannot be read" in done.stdout


def test_root_does_not_run_servers(bench):
    """Exit code 2, with what to run."""
    done = bench.ask("run")
    assert done.returncode == 2
    assert "systemctl start memscaler-servers" in done.stderr


def test_a_second_supervisor(shared):
    """It does not start beside the first, and leaves it alone."""
    words = ["timeout", "60", *shared.command()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=shared.environ, cwd="/")
    assert done.returncode == 1
    assert f"a supervisor runs already (pid {shared.told('list')['supervisors'][0]['pid']})" in done.stderr


def test_several_supervisors(monkeypatch):
    """Each server is looked for at all of them; --user means one."""
    with short_folder() as folder:
        monkeypatch.setattr(places, "RUN", folder)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "mine"))
        made = {}
        for name, user in (("qwen", ""), ("phi", "-alice")):
            (folder / f"memscaler-servers{user}").mkdir()
            made[name] = Answering(folder / f"memscaler-servers{user}")
            made[name].answer = answer_with(name, user.removeprefix("-"))
        (folder / "memscaler-servers-gone").mkdir()
        try:
            assert {each.supervisor.user for each in chosen(["phi", "qwen"], None, None)} == {
                "memscaler-servers",
                "alice",
            }
            assert [each.supervisor.user for each in chosen([], "alice", None, everything=True)] == ["alice"]
            with pytest.raises(UsageError, match="no such server"):
                chosen(["qwen"], "alice", None)
            with pytest.raises(SupervisorNotRunning, match="no supervisor of user bob runs") as refused:
                running("bob", None)
            assert "memscaler-servers@bob" in refused.value.hint
        finally:
            for each in made.values():
                each.stop()
        with pytest.raises(SupervisorNotRunning, match="no supervisor runs"):
            running(None, None)
        assert supervisors.found(None, None) == []


def answer_with(name, user):
    async def answer(_):
        return {"user": user, "pid": 1, "started_unix_s": 0, "servers": [{"name": name, "state": "ready"}]}

    return answer


def test_root_finds_what_was_started_by_hand(bench):
    """Below the home of a user who has not logged in: all of it, and by --user."""
    home = bench.folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    bench.describe({"name": "a", "command": bench.small("--port", free_port())})
    own = [f"HOME={home}", *as_user(NOBODY), sys.executable, "-m", "memscaler", "servers", "run"]
    words = ["env", *own, "--config", str(bench.folder / "config.toml")]
    hand = subprocess.Popen(words, env=bench.environ, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(*more):
        command = [sys.executable, "-m", "memscaler", "servers", *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=bench.environ, cwd="/")

    try:
        eventually(lambda: "ready" in ask("list", "--user", "nobody").stdout)
        told = json.loads(ask("list", "--json").stdout)
        assert "nobody" in [each["user"] for each in told["supervisors"]]
        assert ask("restart", "a", "--user", "nobody").returncode == 0
        assert "no supervisor of user bob runs" in ask("list", "--user", "bob").stdout
    finally:
        hand.terminate()
        hand.wait(60)


def test_what_a_killed_supervisor_has_left(bench):
    """Whether the process lives, and what takes it over: here no unit, for it was started by hand."""
    bench.describe({"name": "a", "command": bench.small("--port", free_port())})
    file = str(bench.folder / "config.toml")
    words = ["servers", "run", "--config", file, "--runtime-dir", str(bench.runtime)]

    def told():
        return bench.told("list", "--config", file)["servers"][0]

    hand = subprocess.Popen(
        [*as_user(NOBODY), sys.executable, "-m", "memscaler", *words],
        env=bench.environ,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: told()["state"] == "ready")
        pid = told()["pid"]
        hand.kill()
        hand.wait(60)
        assert (told()["state"], told()["pid"]) == ("unattended", pid)
        assert told()["reason"] == (
            f"its supervisor does not run: memscaler servers run; its process runs on (pid {pid}), and is adopted then"
        )
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid))
        assert told()["reason"].endswith("memscaler servers run; its process has ended")
    finally:
        hand.kill()
        hand.wait(60)


# ---- steering ------------------------------------------------------------------------------------------------------


def test_apply_does_what_it_says_and_no_more(bench):
    """One is added, one removed, one changed; the fourth keeps its process. A dry run changes nothing."""
    port = free_port()

    def describe(**words):
        bench.describe(
            *(
                {"name": name, "command": bench.small("--port", free_port() if name != "kept" else port, *more)}
                for name, more in words.items()
            )
        )

    describe(kept=(), changed=("--load", 0.1), removed=())
    bench.begin()
    before = {name: bench.until(name, "ready")["pid"] for name in ("kept", "changed", "removed")}
    assert bench.ask("apply").stdout == "nothing differs: the servers are as they are described\n"
    describe(kept=(), changed=("--load", 0.7), added=("--load", 0.7))
    plan = "add     added\nremove  removed\nchange  changed: command, port\n"
    assert bench.ask("apply", "--dry-run").stdout == plan
    assert bench.ask("reload").stdout == plan
    assert {name: each["pid"] for name, each in bench.report().items()} == before
    assert "command, port (memscaler servers apply)" in bench.ask("show", "changed").stdout
    done = bench.ask("apply")
    assert done.returncode == 0
    assert done.stdout.startswith(plan)
    after = bench.report()
    assert {name: each["state"] for name, each in after.items()} == dict.fromkeys(("added", "changed", "kept"), "ready")
    assert after["kept"]["pid"] == before["kept"]
    assert after["changed"]["pid"] != before["changed"]
    assert not alive(before["removed"])
    assert "nothing differs" in bench.ask("apply").stdout


def test_apply_that_goes_wrong(bench):
    """A server that fails: exit code 1. A description that is wrong: 78, and no server is touched."""
    bench.describe({"name": "good", "command": bench.small("--port", free_port())})
    bench.begin()
    pid = bench.until("good", "ready")["pid"]
    table = (bench.folder / "config.toml").read_text()
    (bench.folder / "config.toml").write_text(
        table + '\n[[server]]\nname = "bad"\ncommand = ["/nothing/here"]\nrestart_limit = 0\n'
    )
    done = bench.ask("apply")
    assert done.returncode == 1
    assert "add     bad" in done.stdout
    assert "failed" in done.stdout
    (bench.folder / "config.toml").write_text(table.replace("command", "comand"))
    done = bench.ask("apply")
    assert done.returncode == 78
    assert "unknown key 'comand'" in done.stderr
    assert bench.server("good")["pid"] == pid
    (bench.folder / "config.toml").write_text(table)
    told = bench.told("apply")
    assert (told["removed"], told["added"], told["changed"]) == (["bad"], [], {})


def reloads(governor):
    return governor.requests.count(ReloadWanted())


def test_apply_tells_the_governor(bench):
    """Root's apply has it reload; somebody else is told what to run; without a change nobody is bothered."""
    bench.describe({"name": "a", "command": bench.small("--port", free_port())})
    bench.governor = bench.folder / "governor"
    bench.governor.mkdir()
    with answering(bench.governor) as governor:
        governor.answer = lambda _: {"discover": True, "watches": [], "pid": 1}  # it would find them by itself
        bench.begin()
        bench.until("a", "ready")
        bench.told("apply")
        assert reloads(governor) == 0
        bench.describe({"name": "a", "command": bench.small("--port", free_port())})
        assert "the governor has reloaded" in bench.ask("apply").stdout
        assert reloads(governor) == 1
        bench.describe({"name": "a", "command": bench.small("--port", free_port())})
        assert "sudo memscaler reload" in bench.ask("apply", user=NOBODY).stdout
        assert reloads(governor) == 1
    bench.describe({"name": "a", "command": bench.small("--port", free_port())})
    assert bench.told("apply")["governor"] is None


def test_verbs(bench):
    """Stop, start and restart act now; enable and disable also at the next start of the supervisor."""
    bench.describe(
        {"name": "a", "command": bench.small("--port", free_port())},
        {"name": "b", "command": bench.small("--port", free_port())},
    )
    bench.begin()
    first = bench.until("a", "ready")["pid"]
    bench.until("b", "ready")
    assert "stopped" in bench.ask("stop", "a").stdout
    assert not alive(first)
    assert "ready" in bench.ask("start", "a").stdout
    second = bench.server("a")["pid"]
    bench.told("restart", "a")
    assert not alive(second)
    assert bench.server("a")["state"] == "ready"
    assert "disabled" in bench.ask("disable", "a").stdout
    refused = bench.ask("start", "a")
    assert refused.returncode == 2
    assert "memscaler servers enable a" in refused.stderr
    bench.send(signal.SIGTERM)
    assert bench.ended() == 0
    bench.begin()
    bench.until("b", "ready")
    assert bench.server("a")["state"] == "disabled"
    assert bench.ask("enable", "--all").returncode == 0
    assert {each["state"] for each in bench.report().values()} == {"ready"}


def test_all_leaves_out_what_is_disabled(bench):
    """And says so; by name it is refused, before anything is done to the others."""
    bench.describe(
        {"name": "a", "command": bench.small("--port", free_port())},
        {"name": "m", "command": bench.small(), "enabled": False, "health": "off"},
        {"name": "z", "command": bench.small("--port", free_port())},
    )
    bench.begin()
    before = {name: bench.until(name, "ready")["pid"] for name in "az"}
    refused = bench.ask("restart", "a", "m", "z")
    assert refused.returncode == 2
    assert {name: bench.server(name)["pid"] for name in "az"} == before
    done = bench.ask("restart", "--all")
    assert (done.returncode, done.stderr) == (
        0,
        "memscaler: left out, for they are disabled: m; memscaler servers enable NAME\n",
    )
    for name in "az":
        assert bench.server(name)["state"] == "ready"
        assert bench.server(name)["pid"] != before[name]
    assert bench.server("m")["state"] == "disabled"


def test_restart_says_that_it_is_described_otherwise(bench):
    """It starts what was applied last; what `apply` would change is marked at once."""
    words = bench.small("--port", free_port())
    bench.describe({"name": "a", "command": words})
    bench.begin()
    bench.until("a", "ready")
    bench.describe({"name": "a", "command": [*words, "--say", "new"]})
    done = bench.ask("restart", "a")
    assert done.returncode == 0
    assert "ready*" in done.stdout
    assert "* described otherwise than it runs: a (command); sudo memscaler servers apply" in done.stdout
    assert bench.told("restart", "a")["servers"][0]["pending"] == ["command"]


def test_no_wait(bench):
    """What takes long goes on without the command."""
    bench.describe({"name": "slow", "command": bench.small("--port", free_port(), "--load", -1)})
    bench.begin()
    for words in (("restart", "slow"), ("start", "slow")):
        done = bench.ask(*words, "--no-wait", "--json")
        assert done.returncode == 0
        assert json.loads(done.stdout)["servers"][0]["state"] in ("starting", "stopping")


def test_progress_on_a_terminal(bench):
    """While a model loads, its state is shown and drawn anew; Ctrl-C ends the command and nothing else."""
    bench.describe({"name": "slow", "command": bench.small("--port", free_port(), "--load", -1)})
    bench.begin()
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        bench.words("start", "slow"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**bench.environ, "TERM": "xterm"},
        cwd="/",
    )
    os.close(theirs)
    seen = b""
    try:
        while b"loading model" not in seen:
            seen += os.read(ours, 65536)
        assert b"starting" in seen
        assert b"\x1b[" in seen
        command.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 65536):
                seen += more
        except OSError:  # all ends are closed
            pass
        assert command.wait(60) == 130
    finally:
        command.kill()
        command.wait()
        os.close(ours)
    assert b"the supervisor goes on without you" in seen
    assert bench.server("slow")["state"] == "starting"
    assert bench.told("list")["servers"]


def test_the_supervisor_dies_while_it_is_waited_for(bench):
    """The command ends, and says so."""
    bench.describe({"name": "slow", "command": bench.small("--port", free_port(), "--load", -1)})
    bench.begin()
    command = subprocess.Popen(
        bench.words("start", "slow"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=bench.environ,
        cwd="/",
    )
    eventually(lambda: bench.events("control.asked"), within_s=60)
    time.sleep(0.3)
    bench.kill()
    said = command.communicate(timeout=60)[0]
    assert command.returncode == 1
    assert "supervisor" in said


# ---- logs ----------------------------------------------------------------------------------------------------------


def test_logs(shared):
    """The last lines of the file, also of one that has failed."""
    assert shared.ask("logs", "broken").stdout.splitlines()[-1] == "no such layer"
    assert shared.ask("logs", "broken", "-n", "1").stdout == "no such layer\n"
    assert shared.ask("logs", "broken", "-n", "0").stdout == ""
    done = shared.ask("logs", "broken", "-n", "x")
    assert done.returncode == 2
    nothing = shared.ask("logs", "off")
    assert nothing.returncode == 1
    assert "nothing has been written yet" in nothing.stderr


def test_long_logs(shared):
    """Exactly the lines that were asked for, out of a long file."""
    file = shared.folder / "logs" / "qwen.log"
    before = file.read_bytes()
    try:
        lines = [f"{number} {'x' * (number % 700)}" for number in range(3000)]
        file.write_text("\n".join(lines) + "\n")
        for count in (1, 7, 1000, 2999, 3000, 5000):
            assert shared.ask("logs", "qwen", "-n", str(count)).stdout.splitlines() == lines[-count:], count
        file.write_text("\n".join(lines))  # the last one is being written
        assert shared.ask("logs", "qwen", "-n", "2").stdout.splitlines()[-1] == lines[-1]
    finally:
        file.write_bytes(before)


def test_follow_logs(shared):
    """What comes is shown, also after the file was cut short by its rotation."""
    file = shared.folder / "logs" / "qwen.log"
    command = subprocess.Popen(
        shared.words("logs", "qwen", "--follow"), stdout=subprocess.PIPE, text=True, env=shared.environ, cwd="/"
    )
    try:
        for text in ("first", "second"):
            with file.open("a") as out:
                out.write(f"{text}\n")
            while command.stdout.readline() != f"{text}\n":
                pass
            time.sleep(0.5)
            os.truncate(file, 0)
            time.sleep(1)  # longer than between two looks
    finally:
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130


def test_logs_in_the_journal(bench, tmp_path):
    """The journal is asked for the server's lines, in its own place in the process: -f, Ctrl-C and exit codes are its."""
    fake = tmp_path / "journalctl"
    fake.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    fake.chmod(0o755)
    words = bench.words("logs", "qwen.tunnel", "-n", "20", "-f")
    environ = {**bench.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ, cwd="/")
    assert done.returncode == 7
    assert done.stdout == "--no-pager --no-hostname -o short-iso -t memscaler-qwen.tunnel -n 20 --follow\n"


def test_logs_of_nobody(bench, tmp_path):
    """No supervisor, no such server, no journal: the first two are what is wrong."""
    environ = {**bench.environ, "PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(bench.words("logs", "chat"), capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("memscaler: no supervisor runs, and no server chat has a log here\nhint: start it: ")


# ---- gppm ----------------------------------------------------------------------------------------------------------

GPPM = """\
- name: qwen
  enabled: True
  env:
    CUDA_VISIBLE_DEVICES: "0,1"
  command:
    llama-server --host 0.0.0.0 --port 8081 -m /models/qwen.gguf -ngl 99
  post_launch_hooks:
  - name: proxy
    enabled: True
    command:
      "socat TCP-LISTEN:9000,fork TCP:127.0.0.1:8081"
"""


def test_import(bench, tmp_path):
    """The files mean the same, are valid, and are never written over others."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/qwen.yaml").write_text(GPPM)
    (tmp_path / "configs/phi.yml").write_text(GPPM.replace("qwen", "phi").replace("8081", "8082"))
    output = tmp_path / "etc/servers.d"
    plain = [*bench.words("import")[:-2], str(tmp_path / "configs"), "--output", str(output)]

    def ask(*more):
        return subprocess.run([*plain, *more], capture_output=True, text=True, check=False, env=bench.environ, cwd="/")

    assert "[server.hook" in ask("--dry-run").stdout.replace("[[", "[") or "hook" in ask("--dry-run").stdout
    assert not output.exists()
    done = ask()
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(each.name for each in output.iterdir()) == ["phi.toml", "qwen.toml"]
    (output.parent / "config.toml").write_text("")
    from memscaler.config.load import load

    told = {server.name: server for server in load({}, {}, output.parent / "config.toml").servers}
    assert told["qwen"].port == 8081
    assert told["qwen"].hooks[0].command[0] == "socat"
    (output / "phi.toml").unlink()
    again = ask()
    assert again.returncode == 1
    assert "qwen.toml: there already" in again.stderr
    assert not (output / "phi.toml").exists()
    missing = subprocess.run(
        [*bench.words("import")[:-2], "/nothing.yaml"], capture_output=True, text=True, check=False, env=bench.environ
    )
    assert missing.returncode == 2


def test_import_of_nonsense(bench, tmp_path):
    """Exit code 78, and nothing is written."""
    file = tmp_path / "a.yaml"
    file.write_text("- name: [1\n")
    words = [*bench.words("import")[:-2], str(file), "--output", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=bench.environ)
    assert done.returncode == 78
    assert not Path(tmp_path / "out").exists()


def test_import_of_a_directory_with_a_bad_file(bench, tmp_path):
    """The others are imported; a template that nobody has filled in is one that is wrong."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/good.yaml").write_text(GPPM)
    (tmp_path / "configs/bad.yaml").write_text("- name: [1\n")
    (tmp_path / "configs/raw.yaml").write_text('- name: "{{ name }}"\n  command: x --port 1\n')
    words = [*bench.words("import")[:-2], str(tmp_path / "configs"), "--output", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=bench.environ)
    assert done.returncode == 1
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["good.toml"]
    assert "good.toml: qwen" in done.stdout
    assert "left out: " in done.stderr
    assert "bad.yaml:" in done.stderr
    assert "raw.yaml:1: name: '{{ name }}' is a template" in done.stderr


def test_import_of_a_model(bench, tmp_path):
    """A file that is no text at all is named as what it is not."""
    file = tmp_path / "chat.gguf"
    file.write_bytes(b"GGUF\x03\x00\x8c\xff" * 100)
    words = [*bench.words("import")[:-2], str(file), "--output", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=bench.environ)
    assert done.returncode == 78
    assert done.stderr.startswith(f"memscaler: {file} is no text, so it is no YAML\nhint: ")
