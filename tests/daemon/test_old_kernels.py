"""As on a kernel before 5.8: no ring buffer, so the counters are polled while a GPU is parked."""

from __future__ import annotations

import stat
from pathlib import Path

from memscaler.kernel.attachment import DISTRIBUTION_PYTHON
from tests.governor import connect, eventually, governing, listener, port_of

# Between the daemon and the real loader: asks it to do without what an old kernel lacks.
WRAPPER = f"""#!{DISTRIBUTION_PYTHON}
import json, os, sys
*rest, options = sys.argv[1:]
os.execv({DISTRIBUTION_PYTHON!r}, [{DISTRIBUTION_PYTHON!r}, *rest, json.dumps({{**json.loads(options), "without_ringbuf": True}})])
"""


def test_without_ring_buffers(tmp_path: Path) -> None:
    """It says so, parks, wakes within the polling interval for connections and for data, and follows servers."""
    wrapper = tmp_path / "python"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    with listener() as server:
        ports = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms", "--touch", "off"]
        arguments = [*ports, "--loader-python", str(wrapper)]
        with governing(tmp_path / "run", "a40", *arguments, by_connections=False) as governor:
            assert any("polled" in event["notice"] for event in governor.events("kernel.noticed"))
            board = governor.driver.boards[0]
            for _ in range(3):
                eventually(lambda: board.locks)
                with connect(server) as client:
                    eventually(lambda: not board.locks, within_s=1)
                    accepted = server.accept()[0]
                    eventually(lambda: board.locks)  # silent, and nothing is owed
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    eventually(lambda: not board.locks, within_s=1)
                    assert accepted.recv(100)
                    accepted.close()
            assert governor.stop() == 0
