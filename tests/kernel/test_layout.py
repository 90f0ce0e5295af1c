"""One layout on both sides: the C structs, their packing in Python, and the kernel's own structs in BTF."""

import re
import struct
import subprocess
from pathlib import Path

import pytest

from memscaler.core.gaps import SHORTEST_NS
from memscaler.kernel import counters, loader, records, work
from memscaler.kernel.bpf import NOEXIST, HashMap, map_sizes
from tests.kernel.worlds import BPF, world_of


@pytest.fixture(scope="module")
def world():
    with world_of("both") as made:
        yield made


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ports", records.PORT_WORD.size, records.PORT_BITS.size),
        ("watches", records.WATCH_KEY.size, records.SLOT.size),
        ("ignore", records.IGNORE_KEY.size, records.SLOT.size),
        ("connections", records.IDENTITY.size, records.CONNECTION.size),
        ("silent", 8, records.SLOT.size),
        ("slots", 4, counters.SLOT_WORDS * 8),
        ("work", 4, work.WORK_WORDS * 8),
    ],
)
def test_sizes_in_the_kernel(world, name, key, value):
    """The kernel's maps have the sizes that Python packs."""
    assert map_sizes(world.attached.fds[name])[:2] == (key, value)


def test_slot_fields_in_order():
    """The counters are read by position: the C struct and the dataclass list the same words in the same order."""
    body = (BPF / "connections.bpf.c").read_text().split("struct slot {")[1].split("};")[0]
    fields = [line.split()[1].rstrip(";") for line in body.splitlines() if line.strip().startswith("u64")]
    assert fields == list(counters.Slot.__dataclass_fields__)
    assert len(fields) == counters.SLOT_WORDS
    assert fields[counters._ARMED] == "armed"
    assert (fields[counters._TOUCH_NS], fields[counters._TOUCH_BYTES]) == ("touch_ns", "touch_bytes")


def test_words_of_work():
    """The spans are read by position, too; what user space marks and what is too short for a gap are the same numbers."""
    source = (BPF / "connections.bpf.c").read_text()
    assert re.findall(r"u64 (\w+);", source.split("struct span {")[1].split("};")[0]) == [
        "number",
        "begin_ns",
        "end_ns",
    ]
    assert "u64 count;" in source.split("struct work {")[1].split("};")[0].splitlines()[1]
    numbers = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)\b", source)}
    assert numbers["WORK_SPANS"] == work.SPANS
    assert numbers["SHORTEST_GAP_NS"] == SHORTEST_NS
    assert "enum heard { NOT_HEARD, JUDGED, OWED };" in source
    assert (records.NOT_HEARD, records.JUDGED, records.OWED) == (0, 1, 2)


def test_btf_of_the_running_kernel():
    """The parser finds the members that the hooks need, at plausible offsets."""
    known = loader.kernel_offsets()
    offsets = loader.netns_offsets(known)
    assert offsets is not None
    assert all(0 < offset < 65536 and offset % 8 == 0 for offset in (*offsets, known[b"tcp_sock", b"bytes_received"]))


def test_btf_of_a_compiler(tmp_path: Path):
    """Against gcc's own layout of a struct with bit fields, unions, enums, functions and arrays in its way."""
    source = """
    enum e { A, B = 70000 }; union u { int i; char c[16]; }; typedef int (*f)(const volatile struct s *, enum e);
    struct net { int before; union u u; f call; unsigned a : 3, b : 7; long long net_cookie; };
    struct sock_common { char c[5]; struct { void *net; } skc_net; };
    struct net n; struct sock_common sc; int fn(struct net *p) { return p->a + sc.c[0]; }
    """
    command = ["gcc", "-gbtf", "-O0", "-x", "c", "-", "-c", "-o", str(tmp_path / "o.o")]
    subprocess.run(command, input=source, text=True, check=True)
    assert loader.btf_structs(section(tmp_path / "o.o", b".BTF"), {b"net", b"sock_common"}) == {
        b"net": {b"before": 0, b"u": 4, b"call": 24, b"a": 32, b"b": 32, b"net_cookie": 40},
        b"sock_common": {b"c": 0, b"skc_net": 8},
    }


def section(path: Path, name: bytes) -> bytes:
    """A section of a 64-bit little-endian ELF file."""
    raw = path.read_bytes()
    table, size, count, names = struct.unpack_from("<Q", raw, 40)[0], *struct.unpack_from("<HHH", raw, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", raw, table + index * size) for index in range(count)]
    strings = headers[names][4]
    for header in headers:
        if raw[strings + header[0] :].split(b"\0", 1)[0] == name:
            return raw[header[4] : header[4] + header[5]]
    raise AssertionError(f"no section {name!r}")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x9f\xeb\x01\x00" + b"\xff" * 20, bytes(4096)])
def test_broken_btf(tmp_path: Path, content):
    """Whatever is wrong with it, the answer is: no offsets."""
    path = tmp_path / "btf"
    path.write_bytes(content)
    assert loader.kernel_offsets(str(path)) == {}
    assert loader.kernel_offsets(str(tmp_path / "missing")) == {}
    assert loader.netns_offsets({}) is None


def test_hash_map(world):
    """Put, get, delete and the batch read, over more entries than one batch takes."""
    entries = HashMap(world.attached.fds["connections"], 48, 32)
    wanted = {
        struct.pack("=QHHI16s16s", 1, 2, number % 65536, 0, bytes(16), number.to_bytes(16, "big")): number.to_bytes(
            32, "little"
        )
        for number in range(9000)
    }
    for key, value in wanted.items():
        entries.put(key, value, NOEXIST)
    assert dict(entries.entries()) == wanted
    some = next(iter(wanted))
    with pytest.raises(FileExistsError):
        entries.put(some, bytes(32), NOEXIST)
    assert entries.get(some) == wanted[some]
    assert all(entries.delete(key) for key in wanted)
    assert not entries.delete(some)
    assert entries.get(some) is None
    assert list(entries.entries()) == []
    with pytest.raises(ValueError, match="key of 3 bytes"):
        entries.get(b"abc")
