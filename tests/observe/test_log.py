"""The log: for a person on a terminal, as JSON elsewhere, with priorities under systemd."""

import io
import json
import os
import pty
import sys
from pathlib import Path

import pytest
import structlog

from memscaler.observe import log


@pytest.fixture(autouse=True)
def restore_structlog():
    """Each test configures structlog for itself."""
    yield
    structlog.reset_defaults()


def lines(form="auto", level="info", environ=None, stream=None) -> list[str]:
    """What three events look like."""
    out = stream or io.StringIO()
    log.configure(form, level, environ or {}, out)
    logger = structlog.get_logger()
    logger.debug("connection.seen", port=8080)
    logger.info("gpu.parked", gpu="gpu0", power_w=18.5, path=Path("/x"))
    logger.warning("hook.lost", hook="sockops")
    return out.getvalue().splitlines() if isinstance(out, io.StringIO) else []


def test_json_when_nobody_looks():
    """Without a terminal, each line is one JSON object with time, level and event first."""
    parked, lost = (json.loads(line) for line in lines())
    assert list(parked)[:3] == ["timestamp", "level", "event"]
    assert parked["event"] == "gpu.parked"
    assert (parked["gpu"], parked["power_w"], parked["path"]) == ("gpu0", 18.5, "/x")
    assert (lost["level"], lost["event"]) == ("warning", "hook.lost")


def test_console_in_a_pipe_has_no_colours():
    """Asked for by name, the console form works in a pipe, plain."""
    parked, lost = lines("console")
    assert "gpu.parked" in parked
    assert "power_w=18.5" in parked
    assert "hook=sockops" in lost
    assert "\x1b" not in parked + lost


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal_only_if_wanted(environ, coloured):
    """NO_COLOR and a dumb terminal switch colours off."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        lines(environ=environ, stream=terminal)
        terminal.flush()
        text = os.read(ours, 4096).decode()
    os.close(ours)
    assert "gpu.parked" in text
    assert ("\x1b[" in text) is coloured


def test_levels():
    """The level is the least that is told."""
    assert len(lines(level="debug")) == 3
    assert len(lines(level="warning")) == 1
    assert lines(level="error") == []


def test_under_systemd(tmp_path):
    """In the journal there are priorities and no timestamps of our own."""
    file = tmp_path / "journal"
    with file.open("w") as stream:
        status = os.fstat(stream.fileno())
        lines(environ={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, stream=stream)
    parked, lost = file.read_text().splitlines()
    assert parked.startswith("<6>{")
    assert lost.startswith("<4>{")
    assert "timestamp" not in json.loads(parked[3:])


def test_exceptions_are_told():
    """An exception's traceback is in the event."""
    out = io.StringIO()
    log.configure("json", "info", {}, out)
    try:
        Path("/nowhere/at/all").read_text()
    except OSError:
        structlog.get_logger().exception("loop.failed")
    assert "FileNotFoundError" in json.loads(out.getvalue())["exception"]


def test_a_reader_that_went_away_stops_nothing():
    """A closed pipe or stream loses lines and raises nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as broken:
        lines(stream=broken)
        os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())
    closed = io.StringIO()
    closed.close()
    log.configure("json", "info", {}, closed)
    structlog.get_logger().info("gpu.parked")


def test_stderr_is_the_place(capfd):
    """Without a stream, events go to standard error."""
    log.configure("json", "info", {})
    structlog.get_logger().info("gpu.parked")
    sys.stderr.flush()
    assert "gpu.parked" in capfd.readouterr().err
