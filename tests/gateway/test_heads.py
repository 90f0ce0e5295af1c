"""Request lines, answers of the gateway's own, and magic packets: as they are on the wire."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.sleep.gateway import heads, packets
from memscaler.sleep.gateway.heads import Line, Odd


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"GET / HTTP/1.1\r\n", Line("GET", "/")),
        (b"\r\nPOST /v1/x?y=1 HTTP/1.0\nHost", Line("POST", "/v1/x")),
        (b"GET http://host:80/health#a HTTP/1.1\r\n", Line("GET", "/health")),
        (b"OPTIONS * HTTP/1.1\r\n", Line("OPTIONS", "*")),
        (b"GET http://host HTTP/1.1\r\n", Line("GET", "/")),
        (b"", Odd.PARTIAL),
        (b"GE", Odd.PARTIAL),
        (b"GET /" + b"a" * 5000, Odd.PARTIAL),
        (b"GET /" + b"a" * 9000, Odd.FOREIGN),
        (b"\x16\x03\x01", Odd.FOREIGN),
        (b"get / HTTP/1.1\r\n", Odd.FOREIGN),
        (b"PRI * HTTP/2.0\r\n\r\n", Odd.FOREIGN),
        (b"GET /a b HTTP/1.1\r\n", Odd.FOREIGN),
        (b"SSH-2.0-x\r\n", Odd.FOREIGN),
    ],
)
def test_what_a_connection_begins_with(said, found):
    """HTTP, the beginning of it, or something else."""
    assert heads.first_line(said) == found


@given(st.binary(max_size=200), st.integers(0, 200))
def test_in_pieces_it_is_the_same(data, cut):
    """Whoever decides early decides as for the whole."""
    early = heads.first_line(data[:cut])
    if early is not Odd.PARTIAL:
        assert heads.first_line(data) == early


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("model /srv/models/a.gguf: no such file", "model a.gguf: no such file"),
        ("(/etc/x.toml) and /run/a/b", "(x.toml) and b"),
        ("/health is answered with 500", "/health is answered with 500"),
        ("see http://host/a/b", "see http://host/a/b"),
        ("it takes 1/2/3", "it takes 1/2/3"),
    ],
)
def test_folders_are_for_the_log(said, told):
    """Of a file its name is left; paths of the web are as they were."""
    assert heads.without_folders(said) == told


def test_a_refusal():
    """As OpenAI's API has it; whole seconds, at least one; nothing of a reason becomes a header."""
    answer = heads.refusal('no\r\nX: "y"', "failed", 0.2)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Retry-After: 1\r\n" in head
    assert b"\nX: " not in head
    assert json.loads(body)["error"] == {
        "message": 'no\r\nX: "y"',
        "type": "server_error",
        "param": None,
        "code": "failed",
    }
    assert heads.refusal("x", "failed", 15, head=True).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; a=b\r\n\r\nok", ("text/plain; a=b", b"ok")),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", ("application/octet-stream", b"ok")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok", None),
        (b"HTTP/1.1 401 No\r\n\r\nok", None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000, None),
        (b"nonsense", None),
    ],
)
def test_what_is_remembered(answer, kept):
    """Whole answers with 200."""
    found = heads.remembered(answer)
    assert (found and (found.kind, found.body)) == kept


def test_a_magic_packet():
    """As the white paper draws it: 102 bytes, 108 with a password."""
    packet = packets.magic("00:11:22:aa:bb:cc")
    assert packet[:6] == b"\xff" * 6
    assert packet[6:] == bytes.fromhex("001122aabbcc") * 16
    assert packets.magic("00:11:22:aa:bb:cc", "01:02:03:04:05:06")[102:] == bytes(range(1, 7))


def test_the_way_to_a_machine():
    """As the kernel says: this one is reached by itself."""
    way = packets.way_to("127.0.0.1")
    assert (way.name, way.routed) == ("lo", False)
    assert packets.way_to("::1").name == "lo"
