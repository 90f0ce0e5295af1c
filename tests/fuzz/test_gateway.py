"""Hostile clients of a gateway whose backend sleeps: an answer of its own or a close, and nothing is leaked."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.cases import case, fuzzed, mutated
from tests.fuzz.test_http import WORDS, Sending, check_answers, spoken
from tests.gateway.gateways import Gateway, free_port
from tests.governor import eventually

SEEDS = [
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"HEAD http://a/health?b HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]
sendings = st.builds(
    Sending,
    mutated(SEEDS, WORDS) | st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 1 << 16), max_size=3).map(tuple),
    leaves=st.sampled_from([False] * 9 + [True]),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """One that holds nobody, before a port on which nobody listens."""
    folder = tmp_path_factory.mktemp("gateway")
    told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{free_port()}", "--no-hold", "--no-wake-path", "/health"]
    made = Gateway(folder, *told)
    made.wait_started()
    yield made
    made.stop()


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


@fuzzed(0.06)
@given(sending=sendings)
@example(sending=Sending(SEEDS[0]))
@example(sending=Sending(b"", leaves=True))
def hostile(gateway: Gateway, sending: Sending) -> None:
    with case("gateway"):
        client = socket.create_connection(gateway.address, 20)
        answer = b""
        with suppress(ConnectionError):
            answer = spoken(client, sending)
        statuses = check_answers(answer, whole=False)  # to HEAD there is no body
        assert statuses in ([], [503])
        body = answer.partition(b"\r\n\r\n")[2]
        if body:
            assert json.loads(body)["error"]["code"] in ("asleep", "waking", "failed")


def test_gateway(gateway):
    """Whatever comes."""
    before = descriptors(gateway)
    hostile(gateway)
    eventually(lambda: descriptors(gateway) <= before + 2, what=f"{descriptors(gateway)} descriptors, were {before}")
    assert not gateway.ended()
    text = gateway.log_path.read_text()
    assert "Traceback" not in text
    assert "gateway.mistake" not in text
