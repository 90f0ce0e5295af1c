"""llama-server's words for how a model is served: its options, read into a Demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memscaler.core.errors import UsageError
from memscaler.planner.memory import Demand

# What the planner decides; beside it they would say two things about one matter.
OURS = {
    "-ts": "--tensor-split",
    "-dev": "--device",
    "-sm": "--split-mode",
    "-mg": "--main-gpu",
    "-ot": "--override-tensor",
}
_NUMBERS = {
    "-c": "context",
    "--ctx-size": "context",
    "-np": "slots",
    "--parallel": "slots",
    "-b": "batch",
    "--batch-size": "batch",
    "-ub": "ubatch",
    "--ubatch-size": "ubatch",
    "-ncmoe": "experts_on_cpu",
    "--n-cpu-moe": "experts_on_cpu",
}
_TEXTS = {
    "-ctk": "cache_type_k",
    "--cache-type-k": "cache_type_k",
    "-ctv": "cache_type_v",
    "--cache-type-v": "cache_type_v",
}
_SWITCHES: dict[str, tuple[str, bool | int]] = {
    "--swa-full": ("swa_full", True),
    "-nkvo": ("offload_cache", False),
    "--no-kv-offload": ("offload_cache", False),
    "-kvu": ("unified", True),
    "--kv-unified": ("unified", True),
    "-no-kvu": ("unified", False),
    "--no-kv-unified": ("unified", False),
    "-cmoe": ("experts_on_cpu", -1),
    "--cpu-moe": ("experts_on_cpu", -1),
    "--no-mmap": ("mmap", False),
}
_ALL = ("auto", "all", "-1", "-2")
_LAYERS = ("-ngl", "--gpu-layers", "--n-gpu-layers")
_FLASH = ("-fa", "--flash-attn")
_FLASH_VALUES = {
    **dict.fromkeys(("on", "1", "true", "enabled"), "on"),
    **dict.fromkeys(("off", "0", "false", "disabled"), "off"),
    **dict.fromkeys(("auto", "-1"), "auto"),
}
_PROJECTOR = ("-mm", "--mmproj")
_ENVIRONMENT = {
    "LLAMA_ARG_CTX_SIZE": "-c",
    "LLAMA_ARG_N_PARALLEL": "-np",
    "LLAMA_ARG_BATCH": "-b",
    "LLAMA_ARG_UBATCH": "-ub",
    "LLAMA_ARG_CACHE_TYPE_K": "-ctk",
    "LLAMA_ARG_CACHE_TYPE_V": "-ctv",
    "LLAMA_ARG_N_GPU_LAYERS": "-ngl",
    "LLAMA_ARG_N_CPU_MOE": "-ncmoe",
    "LLAMA_ARG_FLASH_ATTN": "-fa",
    "LLAMA_ARG_MMPROJ": "-mm",
}


_ENVIRONMENT_SWITCHES = {
    "LLAMA_ARG_SWA_FULL": "--swa-full",
    "LLAMA_ARG_KV_UNIFIED": "--kv-unified",
    "LLAMA_ARG_NO_KV_UNIFIED": "--no-kv-unified",
    "LLAMA_ARG_NO_KV_OFFLOAD": "--no-kv-offload",
    "LLAMA_ARG_CPU_MOE": "--cpu-moe",
}
_TRUE = ("1", "true", "on", "enabled")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model is served. projector: of --mmproj."""

    demand: Demand
    projector: Path | None = None


def read(options: Sequence[str], environ: Mapping[str, str] | None = None) -> Wanted:
    """What matters to the planner of a server's options and variables; the rest is stepped over.

    Raise UsageError for an option that the planner decides itself, and for a value that is none.
    """
    known = environ or {}
    words = [each for name, flag in _ENVIRONMENT.items() if name in known for each in (flag, known[name])]
    words += [flag for name, flag in _ENVIRONMENT_SWITCHES.items() if known.get(name, "").lower() in _TRUE]
    wanted, pending = Wanted(Demand()), [*words, *options]
    while pending:
        word = pending.pop(0)
        name, equals, inline = word.partition("=")
        if name.startswith("--"):
            word = name.replace("_", "-")  # llama.cpp takes --ctx_size for --ctx-size
            pending[:0] = [inline] if equals else []
        if word in OURS or word in OURS.values():
            raise UsageError(
                f"{word}: the planner decides that", hint='leave it out, or name the GPUs instead of "auto"'
            )
        wanted = _read_one(wanted, word, pending)
    return wanted


def _read_one(wanted: Wanted, word: str, pending: list[str]) -> Wanted:
    if word in _PROJECTOR:
        return replace(wanted, projector=Path(_next(word, pending)))
    changed: dict[str, Any] = {}
    if word in _SWITCHES:
        key, changed_to = _SWITCHES[word]
        changed[key] = changed_to
    elif word in _FLASH:
        changed["flash_attention"] = _flash(pending)
    elif word in _NUMBERS:
        changed[_NUMBERS[word]] = _number(word, _next(word, pending))
    elif word in _TEXTS:
        changed[_TEXTS[word]] = _next(word, pending).lower()
    elif word in _LAYERS:
        text = _next(word, pending)
        changed["layers_on_gpu"] = None if text in _ALL else _number(word, text)
    return replace(wanted, demand=replace(wanted.demand, **changed))


def _flash(pending: list[str]) -> str:
    """Newer servers want a value; to older ones the word alone meant on."""
    return _FLASH_VALUES[pending.pop(0)] if pending and pending[0] in _FLASH_VALUES else "on"


def _next(word: str, pending: list[str]) -> str:
    if not pending:
        raise UsageError(f"{word} has no value")
    return pending.pop(0)


def _number(word: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise UsageError(f"{word} {text}: a whole number, 0 or more")
    return value
