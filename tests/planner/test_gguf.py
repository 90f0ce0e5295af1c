"""What is read of a model's files, and what is said of those that are none."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from memscaler.planner import constants
from memscaler.planner.gguf import read_model
from memscaler.planner.header import ModelFileError, read_header
from tests.patience import patience
from tests.planner import tiny


def write(path: Path, fields=(), tensors=(), architecture: str = "llama") -> Path:
    """A file with these fields (name, its writer's method, value) and tensors (name, array, type)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, method, value in fields:
        getattr(writer, method)(key, value)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("models") / "llama.gguf", "llama")


def test_a_model_is_read(llama):
    """Layers, embedding and output, each with its bytes."""
    model = read_model(llama)
    width, kv = tiny.WIDTH, tiny.KV_HEADS * tiny.HEAD
    layer = 4 * (2 * width + 2 * width * width + 2 * width * kv + 3 * width * tiny.FEED_FORWARD)
    rope = 4 * tiny.HEAD // 2  # of all layers, counted once
    assert [each.tensor_bytes for each in model.layers] == [layer + rope, layer, layer]
    assert model.embedding_bytes == 4 * width * tiny.VOCABULARY
    assert model.output_bytes == model.embedding_bytes + 4 * width
    assert (model.name, model.architecture, model.tied) == ("tiny and random", "llama", False)
    assert (model.context_length, model.vocabulary, model.head_count) == (tiny.CONTEXT, tiny.VOCABULARY, tiny.HEADS)
    assert model.types == (("F32", 3 * layer + rope + model.embedding_bytes + model.output_bytes),)
    assert model.file_bytes == llama.stat().st_size
    assert model.paths == (llama,)
    assert model.warnings == ()


def test_every_type_has_its_true_size(tmp_path):
    """As ggml has it: the library counts four bytes too many for a block of Q8_1."""
    sizes = dict(gguf.GGML_QUANT_SIZES)
    rows = 256 * 7
    tensors = []
    for kind, (block, size) in sizes.items():
        stored = 36 if kind == gguf.GGMLQuantizationType.Q8_1 else size
        tensors.append((kind, rows // block * stored))
    path = _raw(
        tmp_path / "types.gguf", [(f"blk.{i}.x", (rows,), kind.value, total) for i, (kind, total) in enumerate(tensors)]
    )
    read = {each.type: each.size_bytes for each in read_header(path).tensors}
    assert read == {kind.name: total for kind, total in tensors}
    known = {"Q4_K": 1008, "Q8_0": 1904, "BF16": 3584, "MXFP4": 952, "Q6_K": 1470, "Q8_1": 2016, "IQ4_XS": 952}
    assert {kind: read[kind] for kind in known} == known


def test_a_type_that_nobody_knows_is_as_long_as_the_gap(tmp_path):
    """And a warning says so."""
    rows = [
        ("token_embd.weight", (32, 4), 0, 512),
        ("blk.0.a.weight", (64, 64), 999, 800),
        ("blk.0.b.weight", (8,), 0, 32),
    ]
    path = _raw(tmp_path / "new.gguf", rows, architecture="llama")
    model = read_model(path)
    assert model.layers[0].tensor_bytes == 800 + 32
    assert "TYPE_999" in model.warnings[0]


def _raw(path: Path, tensors: list[tuple[str, tuple[int, ...], int, int]], architecture: str = "llama") -> Path:
    """A file written by hand: tensors with name, shape (ggml's order), type and bytes."""
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()  # noqa: E731
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    offset = 0
    for name, shape, kind, size in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-size // 32) * 32
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(offset))
    return path


@pytest.fixture
def parts(llama, tmp_path):
    """The model in three files, as llama.cpp's gguf-split writes it."""
    header = gguf.GGUFReader(llama)
    thirds = [header.tensors[:3], header.tensors[3:15], header.tensors[15:]]
    paths = []
    for number, tensors in enumerate(thirds):
        path = tmp_path / f"big-model-{number + 1:05d}-of-00003.gguf"
        fields = [("split.no", "add_uint16", number), ("split.count", "add_uint16", 3)]
        fields.append(("split.tensors.count", "add_int32", len(header.tensors)))
        if number == 0:
            fields += [("llama.block_count", "add_uint32", 3), ("llama.embedding_length", "add_uint32", tiny.WIDTH)]
            fields += [
                ("llama.attention.head_count", "add_uint32", 8),
                ("llama.attention.head_count_kv", "add_uint32", 2),
            ]
            fields += [("llama.context_length", "add_uint32", tiny.CONTEXT)]
        paths.append(write(path, fields, [(each.name, each.data, None) for each in tensors]))
    return paths


def test_parts_are_one_model(llama, parts):
    """Whichever of them is named."""
    whole = read_model(llama)
    for path in parts:
        model = read_model(path)
        assert model.paths == tuple(parts)
        assert [each.tensor_bytes for each in model.layers] == [each.tensor_bytes for each in whole.layers]
        assert model.output_bytes == whole.output_bytes
        assert model.file_bytes == sum(each.stat().st_size for each in parts)


def test_a_missing_part_is_named(parts):
    parts[1].unlink()
    with pytest.raises(ModelFileError, match=r"big-model-00002-of-00003\.gguf is not there"):
        read_model(parts[0])


def test_parts_under_wrong_names_are_found_out(parts, tmp_path):
    """Swapped, renamed to a single file, or one of another model."""
    lone = shutil.copy(parts[0], tmp_path / "lone.gguf")
    with pytest.raises(ModelFileError, match="one of 3 parts"):
        read_model(Path(lone))
    shutil.copy(parts[1], parts[2])
    with pytest.raises(ModelFileError, match="says that it is part 1"):
        read_model(parts[0])


def test_a_tied_output_is_a_copy(tmp_path):
    """Where there is no output.weight, the embedding is on the CPU and again with the output."""
    model = read_model(tiny.write(tmp_path / "tied.gguf", "qwen2"))
    assert model.tied
    assert model.output_bytes == model.embedding_bytes + 4 * tiny.WIDTH


def test_experts_are_counted_apart(tmp_path):
    model = read_model(tiny.write(tmp_path / "moe.gguf", "qwen3moe"))
    each = 4 * tiny.EXPERTS * 3 * tiny.EXPERT_FEED_FORWARD * tiny.WIDTH
    assert {layer.expert_bytes for layer in model.layers} == {each}
    assert (model.experts, model.experts_used) == (tiny.EXPERTS, tiny.USED)


def test_layers_that_predict_further_tokens_are_not_loaded(tmp_path):
    model = read_model(tiny.write(tmp_path / "mtp.gguf", "glm4moe"))
    assert (len(model.layers), model.later_layers) == (3, 1)
    assert model.unused_bytes > model.layers[-1].tensor_bytes


def test_heads_may_differ_from_layer_to_layer(tmp_path):
    """And a layer without any keeps nothing."""
    model = read_model(tiny.write(tmp_path / "hybrid.gguf", "granitehybrid"))
    assert [each.kv_heads for each in model.layers] == [0, 2, 0, 0, 2]
    assert [each.state_bytes > 0 for each in model.layers] == [True, False, True, True, False]


def test_an_encoder_keeps_nothing(tmp_path):
    """Models for embeddings read a text at once."""
    fields = [("bert.block_count", "add_uint32", 1), ("bert.attention.head_count", "add_uint32", 4)]
    fields += [("bert.embedding_length", "add_uint32", 32), ("bert.context_length", "add_uint32", 512)]
    names = ("token_embd", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output", "blk.0.ffn_up")
    tensors = [(f"{name}.weight", np.zeros((32, 32), np.float32), None) for name in names]
    model = read_model(write(tmp_path / "bert.gguf", fields, tensors, "bert"))
    assert model.layers[0].kv_heads == 0
    assert model.layers[0].tensor_bytes == 5 * 4096


def test_a_window_that_cannot_be_placed_is_said(tmp_path):
    """An architecture that is not known here: its layers are counted with a full cache."""
    fields = [("novel.block_count", "add_uint32", 1), ("novel.attention.sliding_window", "add_uint32", 512)]
    fields += [("novel.attention.head_count", "add_uint32", 2), ("novel.embedding_length", "add_uint32", 32)]
    tensors = [
        ("token_embd.weight", np.zeros((8, 32), np.float32), None),
        ("blk.0.attn_output.weight", np.zeros((32, 32), np.float32), None),
    ]
    model = read_model(write(tmp_path / "novel.gguf", fields, tensors, "novel"))
    assert model.layers[0].window == 0
    assert model.layers[0].key_length == 16
    assert any("newer than the gguf library" in each for each in model.warnings)
    assert any("full cache" in each for each in model.warnings)
    assert any("how long a context" in each for each in model.warnings)


@pytest.mark.parametrize("stated", [[True, False], 2], ids=["one by one", "every second"])
def test_a_file_may_say_which_layers_slide(tmp_path, stated):
    fields = [("novel.block_count", "add_uint32", 2), ("novel.attention.sliding_window", "add_uint32", 512)]
    method = "add_array" if isinstance(stated, list) else "add_uint32"
    fields += [
        ("novel.attention.head_count", "add_uint32", 2),
        ("novel.attention.sliding_window_pattern", method, stated),
    ]
    tensors = [(f"blk.{i}.attn_output.weight", np.zeros((32, 32), np.float32), None) for i in range(2)]
    model = read_model(write(tmp_path / "novel.gguf", fields, tensors, "novel"))
    assert [each.window for each in model.layers] == [512, 0]


def projector(path: Path) -> Path:
    fields = [("clip.vision.image_size", "add_uint32", 336), ("clip.vision.patch_size", "add_uint32", 14)]
    fields += [
        ("clip.vision.embedding_length", "add_uint32", 1024),
        ("clip.vision.feed_forward_length", "add_uint32", 4096),
    ]
    fields += [("clip.vision.attention.head_count", "add_uint32", 16)]
    return write(path, fields, [("v.patch_embd.weight", np.zeros((64, 32), np.float32), None)], "clip")


def test_a_projector_is_added(llama, tmp_path):
    """With what it computes in."""
    path = projector(tmp_path / "mmproj.gguf")
    alone, model = read_model(llama), read_model(llama, path)
    assert model.projector_bytes == 8192
    assert 20 << 20 < model.projector_compute_bytes < 200 << 20
    assert model.paths == (llama, path)
    assert model.file_bytes == alone.file_bytes + path.stat().st_size
    assert (
        replace(model, projector_bytes=0, projector_compute_bytes=0, paths=alone.paths, file_bytes=alone.file_bytes)
        == alone
    )
    with pytest.raises(ModelFileError, match="no projector"):
        read_model(llama, llama)


def adapter(path: Path) -> Path:
    return write(
        path,
        [("general.type", "add_string", "adapter"), ("adapter.type", "add_string", "lora")],
        [("blk.0.attn_q.weight.lora_a", np.zeros((8, 32), np.float32), None)],
    )


def vocabulary(path: Path) -> Path:
    return write(path, [("llama.vocab_size", "add_uint32", 5)])


@pytest.mark.parametrize(
    ("make", "says"),
    [(adapter, "LoRA"), (projector, "mmproj"), (vocabulary, "without weights")],
)
def test_files_that_are_no_model(tmp_path, make, says):
    with pytest.raises(ModelFileError, match=says) as caught:
        read_model(make(tmp_path / "other.gguf"))
    assert caught.value.hint


GOOD = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + bytes(64)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes are no model"),
        (b"GGUF", "4 bytes"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0) + bytes(64), "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 4, 0, 0) + bytes(64), "version 4"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0) + bytes(64), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 40, 0) + bytes(64), "1099511627776 tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 62) + bytes(64), "fields"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 5) + bytes(8), "cut off or damaged"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 50) + bytes(64), "bytes in a field's name"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 1 << 40) + bytes(64), "strings in k"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 0, 1 << 60) + bytes(64), "numbers in k"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(64), "elements of type 9"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 13) + bytes(64), "type 13"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"t", 9) + bytes(64), "9 dimensions"),
        (GOOD, "general.architecture"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, content, says):
    """In one line, with a hint, at once, and without the memory that they ask for."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=re.escape(says)) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_file_that_ends_too_early(llama, tmp_path):
    """A download that stopped: the tensor that is not all there is named."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(llama.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"cut off: tensor .* ends .* bytes after the file does") as caught:
        read_model(cut)
    assert "download" in caught.value.hint


def test_no_file_and_no_right(tmp_path):
    with pytest.raises(ModelFileError, match="No such file"):
        read_model(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="Is a directory"):
        read_model(tmp_path)


@pytest.mark.parametrize("lacks", ["gguf", "numpy"])
def test_without_the_library_a_model_is_read_all_the_same(llama, lacks):
    """As in the Debian package and after a plain `pip install memscaler`; without NumPy as after `--no-deps`."""
    code = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from pathlib import Path\n"
        "from memscaler.planner.gguf import read_model\n"
        "from memscaler.planner.header import library\n"
        "print(read_model(Path(sys.argv[1])))\n"
        "print(library().__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(llama), lacks], capture_output=True, text=True, check=True)
    read, used = done.stdout.splitlines()
    assert read == str(read_model(llama))
    assert used == ("memscaler.planner.constants" if lacks == "gguf" else "_memscaler_gguf_constants")


def test_the_copy_says_what_the_library_says():
    """When it fails: take over what is new in gguf.constants."""
    assert {each.name: each.value for each in constants.GGMLQuantizationType} == {
        each.name: each.value for each in gguf.GGMLQuantizationType
    }
    assert {each.name: size for each, size in constants.GGML_QUANT_SIZES.items()} == {
        each.name: size for each, size in gguf.GGML_QUANT_SIZES.items()
    }
    assert set(constants.MODEL_ARCH_NAMES.values()) == set(gguf.MODEL_ARCH_NAMES.values())
    assert constants.GGUF_MAGIC == gguf.GGUF_MAGIC
    assert constants.GGUF_DEFAULT_ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT
    assert constants.Keys.General.ALIGNMENT == gguf.Keys.General.ALIGNMENT


def test_a_large_vocabulary_takes_a_moment(tmp_path):
    """150 000 tokens and as many merges: about 0.1 s, where the library's own reader takes 15 s and 500 MB."""
    path = tmp_path / "words.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_token_list([f"token{number}" for number in range(151936)])
    writer.add_token_types([1] * 151936)
    writer.add_array("tokenizer.ggml.merges", [f"left{number} right{number}" for number in range(151387)])
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read_model(path)  # imports the library
    before = time.process_time()
    model = read_model(path)
    assert time.process_time() - before < 1.5 * patience()
    assert model.vocabulary == 151936
    assert read_header(path).counts["tokenizer.ggml.merges"] == 151387
