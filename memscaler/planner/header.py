"""The header of one GGUF file: what it says of itself, and where its tensors are. Reads nothing else of the file.

The names, numbers and sizes come from the official `gguf` library, or from constants.py, which has them from there;
the bytes are read here. Its GGUFReader makes a NumPy array of every token of the vocabulary (for 150 000 tokens with
their merges: 15 s and 500 MB, this one 0.1 s), trusts every count in the file (2^40 of something is a loop that ends
with the memory), and answers a file that was cut off with whatever NumPy says. A subclass would have to replace all of
its reading.

Strings in arrays (the vocabulary) are stepped over; arrays of numbers are kept up to one per layer.
"""

from __future__ import annotations

import importlib.util
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from memscaler.core.errors import MemscalerError
from memscaler.planner import constants

if TYPE_CHECKING:
    from types import ModuleType

Value = int | float | bool | str | tuple[int | float | bool, ...] | None

# Far above what exists: the largest vocabularies make a header of 20 MB, the largest models have some 3000 tensors.
MOST_HEADER_BYTES = 256 << 20
MOST_FIELDS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_NAME_BYTES = 1 << 16
MOST_KEPT = 4096  # of an array
MOST_STRING_BYTES = 64 << 20  # a chat template; a whole tokenizer
DIMENSIONS = 4  # ggml's GGML_MAX_DIMS

AGAIN = "download it again, and compare its size and checksum with those at its source"

_CHUNK_BYTES = 1 << 20
_LEAST_BYTES = 24  # magic, version, two counts
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_TRUE_SIZES = {9: (32, 36)}  # Q8_1: two halves and 32 bytes; the library counts two floats


class ModelFileError(MemscalerError):
    """A file that is not there, no model, or a damaged one."""

    exit_code = 2  # a wrong argument
    hint = AGAIN


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. type: ggml's name of it, TYPE_n when the library knows none. offset: from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says. counts: lengths of arrays, kept or not. data_start: where the tensors begin.

    unsized: tensors of a type that nobody knows, their size taken from where the next one begins.
    """

    path: Path
    version: int
    fields: dict[str, Value]
    counts: dict[str, int]
    tensors: tuple[Tensor, ...]
    data_start: int
    file_bytes: int
    unsized: tuple[str, ...] = ()


def shown(text: str) -> str:
    """Text of a file, for a terminal: one short line, and nothing that moves the cursor."""
    return "".join(each if each.isprintable() else "?" for each in text[:80])


@cache
def library() -> ModuleType:
    """The official library's constants, where it is installed, else our copy of them.

    Its `gguf.constants` alone: the package around it imports NumPy, which it may have been installed without.
    """
    found = None
    with suppress(ImportError, ValueError):  # ValueError: somebody has put a module there that has no spec
        found = importlib.util.find_spec("gguf")
    for folder in (found.submodule_search_locations or ()) if found else ():
        spec = importlib.util.spec_from_file_location("_memscaler_gguf_constants", Path(folder, "constants.py"))
        if spec is not None and spec.loader is not None and Path(folder, "constants.py").is_file():
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return constants


def read_header(path: Path) -> Header:
    """Read it. Raise ModelFileError for what is no model, or cut off."""
    known = library()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _read(path, _Cursor(path, file, size), known)
    except OSError as err:
        hint = "name a .gguf file that this user can read"
        raise ModelFileError(f"{path}: {err.strerror or err}", hint=hint) from err


class _Cursor:
    """Moves through the header. Refuses to leave the file, or to go on for longer than a header can be."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self._file = file
        self._buffer = b""
        self._start = 0  # of the buffer, in the file
        self._at = 0  # in the buffer

    @property
    def offset(self) -> int:
        return self._start + self._at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._need(count)
        end = self._at + count
        if end > len(self._buffer):
            self._fill(count)
            end = count
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    def skip(self, count: int) -> None:
        """Step over bytes without reading them."""
        self._need(count)
        self._at += count
        if self._at > len(self._buffer):
            self._file.seek(self._start + self._at)
            self._start, self._buffer, self._at = self._start + self._at, b"", 0

    def number(self, layout: str = "<Q") -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def count(self, what: str, most: int, each_bytes: int = 1) -> int:
        """A count of things, each at least so long. Raise ModelFileError if it cannot be true."""
        count = self.number()
        if count > most:
            raise ModelFileError(f"{self.path}: damaged: {count} {what} at byte {self.offset - 8}")
        self._need(count * each_bytes)
        return count

    def text(self, what: str, most: int) -> str:
        return self.take(self.count(f"bytes in {what}", most)).decode(errors="replace")

    def skip_strings(self, count: int) -> None:
        """Step over strings: a vocabulary has a hundred thousand, so this looks at the buffer itself."""
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._buffer):
                self._need(8)
                self._fill(8)
            (size,) = length(self._buffer, self._at)
            self._at += 8
            if self._at + size > len(self._buffer):
                self.skip(size)
            else:
                self._at += size

    def _need(self, count: int) -> None:
        end = self.offset + count
        if end > self.size:
            raise ModelFileError(f"{self.path}: cut off or damaged: its header goes on after its {self.size} bytes")
        if end > MOST_HEADER_BYTES:
            raise ModelFileError(f"{self.path}: damaged: no header is longer than {MOST_HEADER_BYTES >> 20} MiB")

    def _fill(self, count: int) -> None:
        """Put at least that many bytes at the start of the buffer."""
        here = self.offset
        rest = self._buffer[self._at :]
        wanted = max(count - len(rest), _CHUNK_BYTES)
        self._buffer = rest + self._file.read(wanted)
        self._start, self._at = here, 0
        if len(self._buffer) < count:  # it shrank meanwhile
            raise ModelFileError(f"{self.path}: cut off at {here + len(self._buffer)} bytes while it was read")


def _read(path: Path, cursor: _Cursor, known: ModuleType) -> Header:
    version = _version(cursor, known)
    tensors = cursor.count("tensors", MOST_TENSORS, each_bytes=24)
    fields = cursor.count("fields", MOST_FIELDS, each_bytes=13)
    found: dict[str, Value] = {}
    counts: dict[str, int] = {}
    for _ in range(fields):
        key = cursor.text("a field's name", MOST_NAME_BYTES)
        found[key] = _value(cursor, key, counts)
    raw = [_tensor(cursor) for _ in range(tensors)]
    alignment = found.get(known.Keys.General.ALIGNMENT, known.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ModelFileError(f"{path}: damaged: an alignment of {alignment!r} bytes")
    start = -(-cursor.offset // alignment) * alignment
    sized, unsized = _sized(path, raw, max(0, cursor.size - start), known)
    return Header(path, version, found, counts, sized, start, cursor.size, unsized)


def _version(cursor: _Cursor, known: ModuleType) -> int:
    if cursor.size < _LEAST_BYTES:
        raise ModelFileError(f"{cursor.path}: {cursor.size} bytes are no model")
    magic = cursor.number("<I")
    if magic != known.GGUF_MAGIC:
        raise ModelFileError(
            f"{cursor.path}: not a GGUF file", hint="convert it with llama.cpp's convert_hf_to_gguf.py, or get its GGUF"
        )
    version = cursor.number("<I")
    if version and version & 0xFFFF == 0:
        raise ModelFileError(
            f"{cursor.path}: big-endian, which llama.cpp cannot load here",
            hint="convert it: gguf-convert-endian FILE little (in the Python package gguf)",
        )
    if version not in (2, 3):
        raise ModelFileError(
            f"{cursor.path}: GGUF version {version}; llama.cpp loads 2 and 3", hint="get or convert a newer file"
        )
    return version


def _value(cursor: _Cursor, key: str, counts: dict[str, int]) -> Value:
    kind = cursor.number("<I")
    if kind == _STRING:
        return cursor.text(f"the value of {shown(key)}", MOST_STRING_BYTES)
    if kind == _ARRAY:
        return _array(cursor, key, counts)
    return _scalar(cursor, key, kind)


def _scalar(cursor: _Cursor, key: str, kind: int) -> int | float | bool:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise ModelFileError(f"{cursor.path}: damaged: {shown(key)} is of type {kind}, which there is not")
    value: int | float | bool = struct.unpack(layout, cursor.take(struct.calcsize(layout)))[0]
    return value


def _array(cursor: _Cursor, key: str, counts: dict[str, int]) -> Value:
    """None when it is not kept."""
    kind = cursor.number("<I")
    if kind == _STRING:
        counts[key] = cursor.count(f"strings in {shown(key)}", MOST_HEADER_BYTES, each_bytes=8)
        cursor.skip_strings(counts[key])
        return None
    layout = _SCALARS.get(kind)
    if layout is None:
        raise ModelFileError(f"{cursor.path}: damaged: {shown(key)} has elements of type {kind}, which there is not")
    width = struct.calcsize(layout)
    counts[key] = cursor.count(f"numbers in {shown(key)}", MOST_HEADER_BYTES, each_bytes=width)
    if counts[key] > MOST_KEPT:
        cursor.skip(counts[key] * width)
        return None
    return tuple(struct.unpack(f"<{counts[key]}{layout[1]}", cursor.take(counts[key] * width)))


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Its name, shape, type and offset."""
    name = cursor.text("a tensor's name", MOST_NAME_BYTES)
    dimensions = cursor.number("<I")
    if dimensions > DIMENSIONS:
        raise ModelFileError(f"{cursor.path}: damaged: tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(cursor.number() for _ in range(dimensions))
    return name, shape, cursor.number("<I"), cursor.number()


def _sized(
    path: Path, raw: list[tuple[str, tuple[int, ...], int, int]], room: int, known: ModuleType
) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """The tensors with their sizes, and the names of those whose type is unknown."""
    names = {each.value: each.name for each in known.GGMLQuantizationType}
    blocks = {kind.value: size for kind, size in known.GGML_QUANT_SIZES.items()} | _TRUE_SIZES
    starts = sorted({offset for *_, offset in raw} | {room})
    after = dict(pairwise(starts))
    tensors, unsized, seen = [], [], set[str]()
    for name, shape, kind, offset in raw:
        if name in seen:
            raise ModelFileError(f"{path}: damaged: tensor {shown(name)} is there twice")
        seen.add(name)
        elements = 1
        for each in shape:
            elements *= each
        if kind in blocks:
            block, block_bytes = blocks[kind]
            if shape and shape[0] % block:
                raise ModelFileError(f"{path}: damaged: rows of {shape[0]} in {shown(name)} are no blocks of {block}")
            size = elements // block * block_bytes
        else:
            size = max(0, after.get(offset, offset) - offset)
            unsized.append(name)
        if offset + size > room:
            over = offset + size - room
            raise ModelFileError(f"{path}: cut off: tensor {shown(name)} ends {over} bytes after the file does")
        tensors.append(Tensor(name, shape, names.get(kind, f"TYPE_{kind}"), size, offset))
    return tuple(tensors), tuple(unsized)
