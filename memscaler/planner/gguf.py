"""Reads a model's GGUF files into what the planner has to know of it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from memscaler.planner.header import AGAIN, Header, ModelFileError, Tensor, Value, library, read_header, shown
from memscaler.planner.model import Layer, Model
from memscaler.planner.shape import Metadata, cache_of, window_is_unknown

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LAYER = re.compile(r"^(?:enc\.|dec\.)?blk\.(?P<index>\d{1,5})\.(?P<rest>.+)$")
_EXPERT = re.compile(r"^ffn_.*_(?:exps|chexps)\.|^ffn_(?:gate|up|down)\.\d+\.")  # ffn_gate.7: one expert, old files

# What llama.cpp puts into its input layer, which is always on the CPU (llm_tensor_info_for); all else outside of the
# layers goes with the output.
_INPUT = frozenset({"token_embd", "token_embd_norm", "token_types", "position_embd", "per_layer_token_embd"})
_MOST_LAYERS = 4096

MODEL_HINT = "name the model's own .gguf file"


def read_model(path: Path, projector: Path | None = None) -> Model:
    """The model in a GGUF file, or in the parts of which one is named. projector: its mmproj file.

    Raise ModelFileError for what is no such file.
    """
    headers = _parts(Path(path))
    first = headers[0]
    architecture = _text(first, "general.architecture")
    _refuse_others(first, architecture)
    model = _model(headers, architecture)
    if projector is None:
        return model
    return _with_projector(model, read_header(Path(projector)))


def _parts(path: Path) -> list[Header]:
    """The headers of all its files, the first first."""
    named = _PART.match(path.name)
    if named is None:
        header = read_header(path)
        count = header.fields.get("split.count")
        if isinstance(count, int) and count > 1:
            raise ModelFileError(
                f"{path}: one of {count} parts, but its name does not say which",
                hint=f"give the parts the names they had: NAME-00001-of-{count:05d}.gguf and so on",
            )
        return [header]
    count = int(named["count"])
    if not 1 <= int(named["number"]) <= count:
        raise ModelFileError(
            f"{path}: part {int(named['number'])} of {count}", hint="give the parts the names they had"
        )
    paths = [path.with_name(f"{named['stem']}-{each:05d}-of-{count:05d}.gguf") for each in range(1, count + 1)]
    missing = [each.name for each in paths if not each.exists()]
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")  # noqa: PLR2004
        raise ModelFileError(f"{path.parent}: {some} is not there", hint="put all parts of the model into one folder")
    headers = [read_header(each) for each in paths]
    for number, header in enumerate(headers):
        _check_part(header, number, count)
    return headers


def _check_part(header: Header, number: int, count: int) -> None:
    says = header.fields.get("split.no", number), header.fields.get("split.count", count)
    if says != (number, count):
        raise ModelFileError(
            f"{header.path}: says that it is part {says[0]} (from 0) of {says[1]}",
            hint="give the parts their own names",
        )


def _refuse_others(header: Header, architecture: str) -> None:
    kind = header.fields.get("general.type")
    if kind == "adapter" or "adapter.type" in header.fields:
        raise ModelFileError(
            f"{header.path}: a LoRA adapter, no model", hint=f"{MODEL_HINT}; the adapter goes to --lora"
        )
    if architecture == "clip" or kind == "mmproj":
        raise ModelFileError(
            f"{header.path}: the part of a model that sees or hears (mmproj), no model",
            hint=f"{MODEL_HINT}, and this file as its projector",
        )
    if kind == "imatrix" or architecture == "imatrix":
        raise ModelFileError(f"{header.path}: an importance matrix, no model", hint=MODEL_HINT)


def _text(header: Header, key: str) -> str:
    value = header.fields.get(key)
    if not isinstance(value, str) or not value:
        raise ModelFileError(f"{header.path}: no model: it does not say its {key}", hint=MODEL_HINT)
    return shown(value)


def _model(headers: list[Header], architecture: str) -> Model:
    first = headers[0]
    fields: dict[str, Value] = dict(first.fields)
    meta = Metadata(fields, architecture)
    tensors = _all_tensors(headers)
    by_layer, rest = _by_layer(first.path, tensors, meta.number("block_count"))
    later = min(meta.number("nextn_predict_layers"), len(by_layer))
    layers = tuple(
        _layer(meta, index, len(by_layer) - later, by_layer[index]) for index in range(len(by_layer) - later)
    )
    unused = sum(each.size_bytes for index in range(len(by_layer) - later, len(by_layer)) for each in by_layer[index])
    embedding = sum(each.size_bytes for each in rest if _base(each.name) in _INPUT)
    output = sum(each.size_bytes for each in rest) - embedding
    token = next((each for each in rest if each.name == "token_embd.weight"), None)
    tied = token is not None and not any(each.name == "output.weight" for each in rest)
    if token is not None and tied:
        output += token.size_bytes
    return Model(
        paths=tuple(each.path for each in headers),
        name=shown(str(fields.get("general.name") or first.path.stem)),
        architecture=architecture,
        layers=layers,
        embedding_bytes=embedding,
        output_bytes=output,
        tied=tied,
        file_bytes=sum(each.file_bytes for each in headers),
        context_length=meta.number("context_length"),
        embedding_length=meta.number("embedding_length"),
        feed_forward_length=meta.largest("feed_forward_length"),
        head_count=meta.largest("attention.head_count"),
        vocabulary=_vocabulary(first, meta, token),
        experts=meta.number("expert_count"),
        experts_used=meta.number("expert_used_count"),
        unused_bytes=unused,
        later_layers=later,
        types=_types(tensors),
        warnings=_warnings(meta, tensors),
    )


def _all_tensors(headers: list[Header]) -> tuple[Tensor, ...]:
    tensors = tuple(each for header in headers for each in header.tensors)
    names = {each.name for each in tensors}
    if len(names) != len(tensors):
        raise ModelFileError(f"{headers[0].path}: its parts hold the same tensor twice", hint=AGAIN)
    if not tensors:
        raise ModelFileError(f"{headers[0].path}: a vocabulary without weights, no model", hint=MODEL_HINT)
    expected = headers[0].fields.get("split.tensors.count")
    if isinstance(expected, int) and expected != len(tensors):
        raise ModelFileError(f"{headers[0].path}: {len(tensors)} of its {expected} tensors are there", hint=AGAIN)
    return tensors


def _by_layer(path: Path, tensors: tuple[Tensor, ...], blocks: int) -> tuple[list[list[Tensor]], list[Tensor]]:
    """The tensors of each layer, and the rest. What belongs to every layer (rope_freqs) is the first one's."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    rest = []
    for each in tensors:
        if named := _LAYER.match(each.name):
            found[int(named["index"])].append(each)
        elif each.name.startswith("rope_"):
            found[0].append(each)
        else:
            rest.append(each)
    count = max([blocks, *(index + 1 for index in found)])
    if count > _MOST_LAYERS:
        raise ModelFileError(f"{path}: damaged: {count} layers")
    return [found[index] for index in range(count)], rest


def _layer(meta: Metadata, index: int, layers: int, tensors: list[Tensor]) -> Layer:
    inside = {named["rest"]: each for each in tensors if (named := _LAYER.match(each.name))}
    cache = cache_of(meta, index, layers, frozenset(inside))
    experts = {name: each for name, each in inside.items() if _EXPERT.match(name)}
    return Layer(
        index=index,
        tensor_bytes=sum(each.size_bytes for each in tensors),
        expert_bytes=sum(each.size_bytes for each in experts.values()),
        kv_heads=cache.kv_heads,
        key_length=cache.key_length,
        value_length=cache.value_length,
        window=cache.window,
        state_bytes=cache.state_bytes,
        state_width=cache.state_width,
        heads=cache.heads,
        index_length=cache.index_length,
        query_length=cache.query_length,
        feed_forward=_inputs(inside, "ffn_down.weight") + _inputs(inside, "ffn_down_shexp.weight"),
        expert_feed_forward=_inputs(experts, "ffn_down_exps.weight", "ffn_down.0.weight"),
    )


def _inputs(tensors: dict[str, Tensor], *names: str) -> int:
    """How wide what goes into the first of these matrices is."""
    return next((tensors[name].shape[0] for name in names if name in tensors and tensors[name].shape), 0)


def _base(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _vocabulary(header: Header, meta: Metadata, token: Tensor | None) -> int:
    if token is not None and len(token.shape) > 1:
        return token.shape[1]
    return header.counts.get("tokenizer.ggml.tokens", meta.number("vocab_size"))


def _types(tensors: tuple[Tensor, ...]) -> tuple[tuple[str, int], ...]:
    """Bytes by type, the most first."""
    sums: dict[str, int] = defaultdict(int)
    for each in tensors:
        sums[each.type] += each.size_bytes
    return tuple(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def _warnings(meta: Metadata, tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
    found = []
    unsized = {each.name: each.type for each in tensors if each.type.startswith("TYPE_")}
    if unsized:
        found.append(
            f"{len(unsized)} tensors are of types that the gguf library does not know"
            f" ({', '.join(sorted(set(unsized.values())))}): their sizes are the distances between them in the file"
        )
    if meta.architecture not in library().MODEL_ARCH_NAMES.values():
        found.append(f"architecture {meta.architecture} is newer than the gguf library: its cache may be counted wrong")
    if any(each.name.endswith("ffn_down.0.weight") for each in tensors):
        found.append(
            "its experts are tensors of their own, as in files from before April 2024, which newer llama.cpp does not"
            " load: get or convert a newer file"
        )
    if window_is_unknown(meta):
        found.append(
            f"{meta.architecture} has a sliding window of {meta.number('attention.sliding_window')} tokens, but which"
            " layers use it is not known here: all are counted with a full cache"
        )
    if not meta.number("context_length"):
        found.append("the file does not say how long a context the model was made for")
    return tuple(found)


def _with_projector(model: Model, header: Header) -> Model:
    if header.fields.get("general.architecture") != "clip":
        raise ModelFileError(f"{header.path}: no projector (mmproj)", hint="name the mmproj file of this model")
    return replace(
        model,
        projector_bytes=sum(each.size_bytes for each in header.tensors),
        projector_compute_bytes=_image_bytes(Metadata(header.fields, "clip.vision")),
        paths=(*model.paths, header.path),
        file_bytes=model.file_bytes + header.file_bytes,
    )


def _image_bytes(meta: Metadata) -> int:
    """What one image of the projector's own size takes to compute: attention of all its patches to all, f32."""
    side = meta.number("image_size") // max(1, meta.number("patch_size", 1))
    patches = side * side
    wide = 3 * meta.number("feed_forward_length") + 5 * meta.number("embedding_length")
    return 4 * patches * (wide + meta.number("attention.head_count") * patches)
