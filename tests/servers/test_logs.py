"""Where servers write."""

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
import threading

import pytest

from memscaler.servers import logs
from tests.asked import short_folder
from tests.servers.bench import bench, eventually


class Journal:
    """A socket like journald's, and what was said to it, a stream each."""

    def __init__(self, path):
        self.streams = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.streams.append(b"")
            threading.Thread(target=self._read, args=(connection, len(self.streams) - 1), daemon=True).start()

    def _read(self, connection, number):
        with connection:
            while data := connection.recv(65536):
                self.streams[number] += data

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.fixture
def journal(folder):
    made = Journal(folder / "stdout")
    yield made
    made.close()


def test_a_server_writes_straight_to_the_journal(folder, journal):
    """In the words of systemd's protocol, under its own identifier; and on when we have closed our end."""
    for kind in ("auto", "journal"):
        output = logs.opened("llama.fan", kind, folder / "logs", folder / "stdout")
        assert output.place == logs.Place(identifier="memscaler-llama.fan")
        child = subprocess.Popen(
            ["sh", "-c", "sleep 0.2; echo hello; echo '<3>bad' >&2"], stdout=output.fd, stderr=output.fd
        )
        os.close(output.fd)
        child.wait()
    expected = b"memscaler-llama.fan\n\n6\n1\n0\n0\n0\nhello\n<3>bad\n"
    eventually(lambda: journal.streams == [expected, expected], what=lambda: journal.streams)
    assert not (folder / "logs").exists()


def test_without_a_journal_it_is_a_file_and_only_where_that_is_allowed(folder):
    """Where "auto" takes what there is; "journal" says that there is none; a link in the place of a file is not followed."""
    output = logs.opened("a", "auto", folder / "logs", folder / "stdout")
    os.write(output.fd, b"one\n")
    os.close(output.fd)
    again = logs.opened("a", "file", folder / "logs", folder / "stdout")
    os.write(again.fd, b"two\n")
    os.close(again.fd)
    assert (folder / "logs/a.log").read_text() == "one\ntwo\n"
    assert (folder / "logs/a.log").stat().st_mode & 0o777 == 0o640
    assert (output.begins, again.begins) == (0, 4)
    with pytest.raises(FileNotFoundError):
        logs.opened("a", "journal", folder / "logs", folder / "stdout")
    (folder / "logs/b.log").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        logs.opened("b", "file", folder / "logs", folder / "stdout")


# As llama.cpp and a server in Python end: the first says why and goes on, the second says why last, or nearly.
LLAMA = b"""\
load_tensors: loading model tensors, this can take a while
cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 4096
llama_model_load: error loading model: unable to allocate CUDA0 buffer
srv    load_model: failed to load model, 'x.gguf'
srv    operator(): cleaning up before exit...
main: exiting due to model loading error
"""
PYTHON = b"""\
Traceback (most recent call last):
  File "server.py", line 3, in <module>
    raise RuntimeError("invalid")
RuntimeError: CUDA driver too old
[rank0] shutting down
"""


@pytest.mark.parametrize(
    ("text", "begins", "said"),
    [
        (b"", 0, ""),
        (b"one\ntwo\n", 0, "two"),
        (b"one\ntwo\n\n  \n", 0, "two"),
        (b"old words\n", 10, ""),
        (b"cut short\n", 1000, "cut short"),
        (b"\x1b[31mred\x1b[0m\x00\xff\n", 0, "[31mred [0m \ufffd"),
        (b"x" * 100_000, 0, "x" * 159 + "…"),
        (LLAMA, 0, "cudaMalloc failed: out of memory"),
        (b"load failed\nbye\n", 0, "load failed"),
        (b"error: long ago\n" + b"well\n" * 20, 0, "well"),
        (PYTHON, 0, "RuntimeError: CUDA driver too old"),
    ],
)
def test_the_last_words(folder, text, begins, said):
    """The line that says why, else the last that says something, of this process, harmless on a terminal."""
    (folder / "a.log").write_bytes(text)
    assert logs.last_words(logs.Place(path=str(folder / "a.log")), begins) == said
    assert logs.last_words(logs.Place(identifier="a")) == ""


def test_who_was_killed_could_not_say_why(folder):
    """An earlier line that sounds like an error is not the reason, the last one is what it was at."""
    (folder / "a.log").write_bytes(b"warning: no such device, error ignored\nlistening\n")
    assert logs.last_words(logs.Place(path=str(folder / "a.log")), killed=True) == "listening"


def test_rotation_keeps_what_was_written_and_no_more_than_it_should(folder):
    """Three old files; a writer that goes on finds the new one; nothing is lost between."""
    path = folder / "a.log"
    with path.open("ab", buffering=0) as writer:
        for n in range(6):
            writer.write(str(n).encode() * 100)
            assert logs.rotate(path, most_bytes=99, kept=3)
            assert path.stat().st_size == 0
        writer.write(b"after")
        assert not logs.rotate(path, most_bytes=99, kept=3)
    assert path.read_text() == "after"
    assert [(folder / f"a.log.{n}").read_text()[0] for n in (1, 2, 3)] == ["5", "4", "3"]
    assert len(list(folder.iterdir())) == 4


def test_a_file_that_grows_is_rotated_and_a_quiet_one_wakes_nobody(folder):
    """One look for many writes, none where nobody writes."""

    async def main():
        looks = []
        rotation = logs.Rotation(most_bytes=1000, kept=2, again_s=0.05)
        before = rotation._look
        rotation._look = lambda path: (looks.append(path.name), before(path))
        for name in ("busy", "quiet"):
            (folder / name).write_text("")
            rotation.watch(folder / name)
        with (folder / "busy").open("ab", buffering=0) as writer:  # a file of the test's
            for _ in range(200):
                writer.write(b"x" * 20)
                await asyncio.sleep(0.002)
            while (folder / "busy").stat().st_size > 1000:  # noqa: ASYNC110  # no event of ours
                await asyncio.sleep(0.01)
        assert (folder / "busy.1").stat().st_size > 1000
        assert looks.count("quiet") == 1
        assert 2 <= looks.count("busy") < 50
        (folder / "busy").unlink()  # by somebody else
        rotation.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_servers_file_is_rotated_while_it_writes():
    """Ten megabytes and more, of a server that talks much and goes on."""
    with bench() as b:
        b.describe({"name": "a", "command": b.small("--talk", 12 * 1024)})
        b.start()
        pid = b.until("a", "ready")["pid"]
        eventually((b.folder / "logs/a.log.1").exists, 60)
        eventually(lambda: (b.folder / "logs/a.log").stat().st_size < logs.ROTATE_BYTES)
        assert b.server("a")["pid"] == pid
        b.send(signal.SIGTERM)
        assert b.ended() == 0


def test_a_journal_that_hangs_holds_nobody_up(folder):
    """It takes no more connections: the file is taken instead, where that is allowed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "stdout"))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(3)]
        assert [each.connect_ex(str(folder / "stdout")) for each in waiting][-1] == errno.EAGAIN
        opened = []

        def look():
            output = logs.opened("a", "auto", folder / "logs", folder / "stdout")
            os.close(output.fd)
            opened.append(output.place)

        threading.Thread(target=look, daemon=True).start()
        eventually(lambda: opened == [logs.Place(path=str(folder / "logs/a.log"))])
        for each in waiting:
            each.close()


@pytest.mark.usefixtures("journal")
def test_a_journals_stream_blocks_as_a_server_expects(folder):
    """What we set to be quick is not left to it."""
    output = logs.opened("a", "journal", folder / "logs", folder / "stdout")
    assert os.get_blocking(output.fd)
    os.close(output.fd)


def test_of_very_much_the_end_is_kept(folder):
    """A file that grew faster than we looked, or grows as fast as we copy, holds nobody up."""
    path = folder / "a.log"
    with path.open("wb") as file:
        file.truncate(20 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"the end\n")
    assert logs.rotate(path)
    with (folder / "a.log.1").open("rb") as file:
        assert file.seek(-8, os.SEEK_END) == logs.MOST_COPIED_BYTES - 8
        assert file.read() == b"the end\n"
    assert path.stat().st_size == 0


def test_a_disk_that_is_full_costs_no_old_words(folder):
    """What was rotated before is there still, and what is not rotated, too; here a limit of the process is the disk's."""
    path = folder / "a.log"
    path.write_bytes(b"new" * 100)
    (folder / "a.log.1").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        for _ in range(4):
            with pytest.raises(OSError, match="File too large"):
                logs.rotate(path, most_bytes=99)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "a.log.1").read_text() == "old"
    assert path.read_bytes() == b"new" * 100
    assert sorted(each.name for each in folder.iterdir()) == ["a.log", "a.log.1"]
