"""Random models are read as they were written; damaged headers end in our own errors, soon and in little memory."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memscaler.core.errors import UsageError
from memscaler.planner.gguf import read_model
from memscaler.planner.header import ModelFileError, library, read_header
from memscaler.planner.memory import CACHE_TYPES, Demand, needs
from tests.planner import tiny

SLOW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
scalars = st.one_of(
    st.tuples(st.just(0), st.integers(0, 255)),
    st.tuples(st.just(5), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(7), st.booleans()),
    st.tuples(st.just(10), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(12), st.floats(allow_nan=False)),
    st.tuples(st.just(8), names),
)
arrays = st.one_of(
    st.tuples(st.just(5), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30)),
    st.tuples(st.just(8), st.lists(names, max_size=30)),
)
kinds = st.sampled_from(sorted(library().GGML_QUANT_SIZES))
tensors = st.lists(
    st.tuples(names, kinds, st.integers(1, 4), st.integers(1, 5)), max_size=12, unique_by=lambda each: each[0]
)

_LAYOUTS = {0: "<B", 5: "<i", 7: "<?", 10: "<Q", 12: "<d"}


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def value(kind: int, content) -> bytes:
    return text(content) if kind == 8 else struct.pack(_LAYOUTS[kind], content)


def size(kind, blocks: int, rows: int) -> tuple[tuple[int, int], int]:
    """Shape and bytes."""
    block, block_bytes = library().GGML_QUANT_SIZES[kind]
    if kind.name == "Q8_1":
        block_bytes = 36
    return (blocks * block, rows), blocks * rows * block_bytes


def written(fields, lists, rows, version: int, alignment: int) -> bytes:
    """A file by hand, so that the reader is not checked with the library's own idea of the format."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(rows), len(fields) + len(lists) + 1)
    head += text("general.alignment") + struct.pack("<II", 4, alignment)
    for key, (kind, content) in fields.items():
        head += text(f"f.{key}") + struct.pack("<I", kind) + value(kind, content)
    for key, (kind, content) in lists.items():
        head += (
            text(f"l.{key}")
            + struct.pack("<IIQ", 9, kind, len(content))
            + b"".join(value(kind, each) for each in content)
        )
    offset = 0
    for name, kind, blocks, count in rows:
        shape, total = size(kind, blocks, count)
        head += text(name) + struct.pack("<IQQIQ", 2, *shape, kind.value, offset)
        offset += -(-total // alignment) * alignment
    return head + bytes(-len(head) % alignment) + bytes(offset)


@given(
    fields=st.dictionaries(names, scalars, max_size=8),
    lists=st.dictionaries(names, arrays, max_size=4),
    rows=tensors,
    version=st.sampled_from([2, 3]),
    alignment=st.sampled_from([8, 32, 64, 4096]),
)
@SLOW
def test_what_was_written_is_read(tmp_path, fields, lists, rows, version, alignment):
    """Every field, every tensor, and where its bytes are."""
    path = tmp_path / "random.gguf"
    path.write_bytes(written(fields, lists, rows, version, alignment))
    header = read_header(path)
    assert header.version == version
    assert {key: header.fields[f"f.{key}"] for key in fields} == {key: content for key, (_, content) in fields.items()}
    for key, (kind, content) in lists.items():
        assert header.counts[f"l.{key}"] == len(content)
        assert header.fields[f"l.{key}"] == (None if kind == 8 else tuple(content))
    assert [(each.name, each.type, each.shape, each.size_bytes) for each in header.tensors] == [
        (name, kind.name, *size(kind, blocks, count)) for name, kind, blocks, count in rows
    ]
    assert header.data_start % alignment == 0
    assert all(each.offset + each.size_bytes <= header.file_bytes - header.data_start for each in header.tensors)


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Real headers, each with the length of its file."""
    folder = tmp_path_factory.mktemp("models")
    found = []
    for kind in ("gemma3", "deepseek2", "qwen3next"):
        path = tiny.write(folder / f"{kind}.gguf", kind)
        start = read_header(path).data_start
        found.append((path.read_bytes()[:start], path.stat().st_size))
    return found


def read_all(path: Path) -> None:
    """Whatever is in the file: a model, or one of our errors; and what the model needs is a number."""
    try:
        model = read_model(path)
        needed = needs(model, Demand(slots=1, context=min(model.context_length or 512, 1 << 20)))
    except (ModelFileError, UsageError) as err:
        said = str(err)
    else:
        said = "a model"
        assert needed.weight_bytes >= 0
        assert needed.cache_bytes >= 0
        assert needed.compute.output_bytes >= needed.compute.middle_bytes > 0
    assert 0 < len(said) < 1000
    assert said.isprintable()


@given(data=st.data())
@SLOW
def test_flipped_bits_end_in_our_errors(tmp_path, headers, data):
    """Wherever they are; the tensors themselves are a hole."""
    head, length = data.draw(st.sampled_from(headers))
    changed = bytearray(head)
    for position in data.draw(st.lists(st.integers(0, len(head) - 1), min_size=1, max_size=6)):
        changed[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    with path.open("wb") as file:
        file.write(changed)
        file.truncate(length)
    read_all(path)


@given(data=st.data())
@SLOW
def test_a_header_cut_anywhere_ends_in_our_errors(tmp_path, headers, data):
    head, _ = data.draw(st.sampled_from(headers))
    path = tmp_path / "cut.gguf"
    path.write_bytes(head[: data.draw(st.integers(0, len(head)))])
    with pytest.raises(ModelFileError):
        read_model(path)


@given(content=st.binary(max_size=300))
@SLOW
def test_anything_behind_the_magic_ends_in_our_errors(tmp_path, content):
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    read_all(path)


def test_a_file_of_zeros_takes_neither_time_nor_memory(tmp_path):
    """Endless empty strings in 100 GB of nothing: it stops at the length that a header can have."""
    path = tmp_path / "zeros.gguf"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 28))
        file.truncate(100 << 30)
    code = (
        "import sys\nfrom pathlib import Path\nfrom memscaler.planner.gguf import read_model\n"
        "try: read_model(Path(sys.argv[1]))\nexcept Exception as err: print(err)\n"
    )
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "no header is longer" in done.stdout


demands = st.builds(
    Demand,
    context=st.integers(0, 1 << 20),
    slots=st.integers(0, 64),
    unified=st.sampled_from([None, True, False]),
    cache_type_k=st.sampled_from(CACHE_TYPES),
    cache_type_v=st.sampled_from(CACHE_TYPES),
    batch=st.integers(1, 4096),
    ubatch=st.integers(1, 4096),
    flash_attention=st.sampled_from(["on", "auto"]),
    swa_full=st.booleans(),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(tiny.write(tmp_path_factory.mktemp("models") / "gemma3.gguf", "gemma3"))


@given(demand=demands, more=st.integers(1, 1 << 18))
@SLOW
def test_more_asked_for_never_takes_less(model, demand, more):
    """A longer context; and rounding never gives less than was asked for."""
    from dataclasses import replace

    demand = replace(demand, context=demand.context or 4096)
    small, large = needs(model, demand), needs(model, replace(demand, context=demand.context + more))
    assert large.cache_bytes >= small.cache_bytes
    assert large.compute.output_bytes >= small.compute.output_bytes
    assert small.context >= demand.context
    assert small.context % 256 == 0
    full = needs(model, replace(demand, swa_full=True))
    assert full.cache_bytes >= small.cache_bytes
