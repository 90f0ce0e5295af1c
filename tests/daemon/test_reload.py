"""A new configuration while GPUs are governed: whole or not at all, and GPUs that did not change do not notice."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.errors import ConfigError
from tests.governor import Governor, alive, connect, eventually, governing, listener, port_of, watch_table

pytestmark = pytest.mark.usefixtures("quick_settings")
SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"


def write(path: Path, text: str) -> None:
    """As a whole, as an editor does."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)


def reload(governor: Governor) -> dict:
    return Client(str(governor.runtime_dir)).change("reload")


def calls_on(governor: Governor, index: int, after: int) -> list:
    return [call for call in governor.driver.call_log([SET, RESET], after=after) if call.gpu == index]


def test_what_did_not_change_is_not_touched(tmp_path):
    """Another idle time for one GPU: the other one stays parked, without a driver call."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        watches = watch_table(first, "gpu0") + watch_table(second, "gpu1")
        write(config, 'idle_after = "200ms"\n' + watches)
        with governing(tmp_path / "run", "a40,a40", "--config", str(config)) as governor:
            stays, changes = governor.driver.boards
            eventually(lambda: stays.locks and changes.locks)
            mark = governor.driver.log_mark()
            write(config, 'idle_after = "200ms"\n' + watches + '[gpu.gpu1]\nidle_after = "1h"\n')
            assert reload(governor)["changes"] == ["[gpu.gpu1] idle_after: 0.2s -> 3600s"]
            with connect(second):
                eventually(lambda: not changes.locks)
            second.accept()[0].close()
            time.sleep(0.6)
            assert not changes.locks
            assert not calls_on(governor, 0, mark)
            assert stays.locks


def test_a_wrong_file_changes_nothing(tmp_path):
    """Every mistake is refused as a whole, with the line; so is what needs a restart. The signal does the same."""
    config = tmp_path / "config.toml"
    with listener() as server:
        good = 'idle_after = "200ms"\n' + watch_table(server, "gpu0")
        write(config, good)
        with governing(tmp_path / "run", "a40", "--config", str(config), prefix=("setsid",)) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            mark = governor.driver.log_mark()
            for wrong, problem in (
                ('idle_after = "200 parsecs"\n' + watch_table(server, "gpu0"), "config.toml:1"),
                ('idle_after = "1h"\nidle_afte = "1s"\n' + watch_table(server, "gpu0"), "did you mean"),
                (watch_table(server, "gpu9"), "no GPU of this machine"),
                ('sample_every = "20s"\nlog_level = "debug"\n' + good, "cannot be changed while running: log_level"),
                ("", "no port to watch"),
                ("[[watch", "config.toml"),
            ):
                write(config, wrong)
                with pytest.raises(Exception, match=problem):
                    reload(governor)
            os.kill(governor.pid, signal.SIGHUP)
            eventually(lambda: len(governor.events("config.refused")) == 7)
            assert not calls_on(governor, 0, mark)
            with connect(server):
                eventually(lambda: not board.locks)
            server.accept()[0].close()
            eventually(lambda: board.locks, within_s=3)
            write(config, 'sample_every = "20s"\n' + good)
            os.kill(governor.pid, signal.SIGHUP)
            changed = eventually(lambda: governor.events("config.reloaded"))
            assert changed[0]["changes"] == ["sample_every: 15s -> 20s"]
            assert governor.stop() == 0


def test_gpus_and_ports_come_and_go(tmp_path):
    """A GPU that is left out is woken and let go of; one that is new is governed; a port moves to another GPU."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        write(config, 'idle_after = "200ms"\n' + watch_table(first, "gpu0"))
        with governing(tmp_path / "run", "a40,a40", "--config", str(config)) as governor:
            old, new = governor.driver.boards
            eventually(lambda: old.locks)
            write(config, 'idle_after = "200ms"\n' + watch_table(second, "gpu1"))
            reload(governor)
            eventually(lambda: not old.locks)
            eventually(lambda: new.locks)
            eventually(lambda: governor.events("gpu.let_go"))
            status = Client(str(governor.runtime_dir)).status()
            assert [gpu["gpu"] for gpu in status["gpus"]] == ["gpu1"]
            assert [each["port"] for each in status["watches"]] == [port_of(second)]
            with connect(second):
                eventually(lambda: not new.locks)
            second.accept()[0].close()
            time.sleep(0.6)
            assert not old.locks
            write(config, 'idle_after = "200ms"\n' + watch_table(first, "gpu0", "gpu1"))
            reload(governor)
            eventually(lambda: old.locks and new.locks)
            with connect(first):
                eventually(lambda: not old.locks and not new.locks)
            first.accept()[0].close()
            assert governor.stop() == 0
        assert not old.locks
        assert not new.locks


def described(server, name: str, gpus: str, *, enabled: bool = True) -> str:
    """A server whose port is that of this listener."""
    return (
        f'[[server]]\nname = "{name}"\ncommand = "llama-server --port {port_of(server)}"\n'
        f"gpus = {gpus}\nenabled = {str(enabled).lower()}\n"
    )


def test_servers_come_and_go(tmp_path):
    """A configuration with servers alone is governed; ports and GPUs of those that change are followed and told."""
    config = tmp_path / "config.toml"
    with listener() as first, listener() as second:
        one, other = port_of(first), port_of(second)
        write(config, 'idle_after = "200ms"\n' + described(first, "chat", '["gpu0"]'))
        with governing(tmp_path / "run", "a40,a40", "--config", str(config)) as governor:
            old, new = governor.driver.boards
            eventually(lambda: old.locks)
            with connect(first):
                eventually(lambda: not old.locks)
            first.accept()[0].close()
            eventually(lambda: old.locks)
            (tmp_path / "servers.d").mkdir()
            write(tmp_path / "servers.d" / "embed.toml", f'model = "/m"\nport = {other}\ngpus = ["gpu1"]\n')
            assert reload(governor)["changes"] == [
                f"watch: {one}:gpu0 -> {one}:gpu0, {other}:gpu1",
                f"server embed: added, port {other}: gpu1",
            ]
            eventually(lambda: new.locks)
            with connect(second):
                eventually(lambda: not new.locks)
            second.accept()[0].close()
            write(config, 'idle_after = "200ms"\n' + described(first, "chat", '["gpu0", "gpu1"]'))
            (tmp_path / "servers.d" / "embed.toml").unlink()
            assert reload(governor)["changes"] == [
                f"watch: {one}:gpu0, {other}:gpu1 -> {one}:gpu0,gpu1",
                f"server chat: port {one}: gpu0 -> port {one}: gpu0, gpu1",
                "server embed: removed",
            ]
            eventually(lambda: old.locks and new.locks)
            with connect(first):
                eventually(lambda: not old.locks and not new.locks)
            first.accept()[0].close()
            write(config, 'idle_after = "200ms"\n' + described(first, "chat", '["gpu0", "gpu1"]', enabled=False))
            with pytest.raises(ConfigError, match="no port to watch is left"):
                reload(governor)
            write(config, 'idle_after = "200ms"\n' + described(first, "chat", '["gpu0", "gpu1"]') * 2)
            with pytest.raises(ConfigError, match="server chat is described twice"):
                reload(governor)
            assert governor.stop() == 0


def test_another_lever_is_taken_at_once(tmp_path):
    """A parked GPU whose lever is another one now is woken, and parked with that."""
    config = tmp_path / "config.toml"
    with listener() as server:
        write(config, 'idle_after = "200ms"\n' + watch_table(server, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.memory_lock)
            write(config, 'idle_after = "200ms"\nlever = "graphics-clock"\n' + watch_table(server, "gpu0"))
            reload(governor)
            eventually(lambda: board.graphics_lock and not board.memory_lock)
            assert governor.stop() == 0
            assert not board.locks


def test_a_reload_forgets_no_connection(tmp_path):
    """Connections that are open across a reload keep their GPU awake."""
    config = tmp_path / "config.toml"
    with listener() as server:
        write(config, 'idle_after = "200ms"\n' + watch_table(server, "gpu0"))
        with governing(tmp_path / "run", "a40,a40", "--config", str(config)) as governor, connect(server):
            with server.accept()[0]:
                write(config, 'idle_after = "300ms"\n' + watch_table(server, "gpu0", "gpu1"))
                reload(governor)
                time.sleep(1)
                assert not any(board.locks for board in governor.driver.boards)
            status = Client(str(governor.runtime_dir)).status()
            assert [each["gpus"] for each in status["watches"]] == [["gpu0", "gpu1"]]


def test_refused_by_type(tmp_path):
    """The command line ends with 78 for a bad file."""
    config = tmp_path / "config.toml"
    with listener() as server:
        write(config, watch_table(server, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config)) as governor:
            write(config, "nonsense = 1\n")
            with pytest.raises(ConfigError, match="nonsense"):
                reload(governor)


def test_a_terminal_that_goes_ends_it(tmp_path):
    """Started in a terminal, its hang-up is an end, not a reload: nobody would see it go on."""
    in_a_terminal = (sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])")
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        governor = Governor(tmp_path, "a40", *arguments, prefix=in_a_terminal)
        try:
            eventually((tmp_path / "simulator" / "state").exists)
            eventually(lambda: governor.driver.boards[0].locks)
            daemon = int((tmp_path / "lock").read_text())
            assert daemon != governor.pid
            governor.process.kill()
            eventually(lambda: not alive(daemon))
            assert not governor.driver.boards[0].locks
        finally:
            governor.process.kill()
            governor.process.wait()
