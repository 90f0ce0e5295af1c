"""llama-server's flags and variables, for our own engine: those that say what is served, where and how it is placed.

One table. What is not in it is refused by its name, with the nearest that is: a flag that is silently ignored would be
a server other than the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.config.near import nearest
from memscaler.core.errors import UsageError

Fields = dict[str, object]  # of xllamacpp.CommonParams, by their dotted names
OVERRIDES, CPU_MOE, ALL_LAYERS = "tensor_buft_overrides", "cpu_moe", 1 << 16
HINT = "the flags are llama-server's; python -m memscaler.servers.engine --help lists those that this engine knows"
HTTP_TIMEOUT = "timeout"  # one flag for two fields
_TRUE, _FALSE = frozenset({"1", "true", "on", "enabled"}), frozenset({"0", "false", "off", "disabled"})


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. read: turns its value into the field's, or raises ValueError; None: a switch.

    off: names that switch it off. bare: the value that it has without one. env: its variable.
    """

    names: tuple[str, ...]
    field: str
    read: Callable[[str], object] | None = None
    off: tuple[str, ...] = ()
    bare: str | None = None
    env: str = ""


def one_of(*words: str) -> Callable[[str], str]:
    """A word of a list."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return read


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError("a whole number") from error


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise ValueError("a port, 0 to 65535 (0: any free one)")
    return int(text)


def _fraction(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError("a number") from error


def _layers(text: str) -> int:
    return {"auto": -1, "all": -2}[text] if text in ("auto", "all") else _number(text)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(_fraction(part) for part in text.replace("/", ",").split(","))


def _sizes_mib(text: str) -> tuple[int, ...]:
    return tuple(_number(part) << 20 for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _content(text: str) -> str:
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"a file that can be read ({getattr(error, 'strerror', None) or error})") from error


def _keys(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in _content(text).splitlines() if line.strip() and line[0] != "#")


_CACHE = one_of("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_THREE = one_of("on", "off", "auto", "1", "0")
_TWO = one_of("on", "off", "1", "0")

FLAGS = (
    # what is served
    Flag(("-m", "--model"), "model.path", str, env="LLAMA_ARG_MODEL"),
    Flag(("-a", "--alias"), "model_alias", _words, env="LLAMA_ARG_ALIAS"),
    Flag(("-mm", "--mmproj"), "mmproj.path", str, env="LLAMA_ARG_MMPROJ"),
    Flag(("--mmproj-offload",), "mmproj_use_gpu", off=("--no-mmproj-offload",), env="LLAMA_ARG_MMPROJ_OFFLOAD"),
    Flag(("--no-mmproj",), "no_mmproj", off=("--mmproj-auto",)),
    # where
    Flag(("--host",), "hostnames", _words, env="LLAMA_ARG_HOST"),
    Flag(("--port",), "port", _port, env="LLAMA_ARG_PORT"),
    Flag(("--reuse-port",), "reuse_port", env="LLAMA_ARG_REUSE_PORT"),
    Flag(("--api-key",), "api_keys", _words, env="LLAMA_API_KEY"),
    Flag(("--api-key-file",), "api_keys", _keys, env="LLAMA_ARG_API_KEY_FILE"),
    Flag(("--api-prefix",), "api_prefix", str, env="LLAMA_ARG_API_PREFIX"),
    Flag(("--ssl-key-file",), "ssl_file_key", str, env="LLAMA_ARG_SSL_KEY_FILE"),
    Flag(("--ssl-cert-file",), "ssl_file_cert", str, env="LLAMA_ARG_SSL_CERT_FILE"),
    Flag(("-to", "--timeout"), HTTP_TIMEOUT, _number, env="LLAMA_ARG_TIMEOUT"),
    Flag(("--threads-http",), "n_threads_http", _number, env="LLAMA_ARG_THREADS_HTTP"),
    Flag(("--sse-ping-interval",), "sse_ping_interval", _number, env="LLAMA_ARG_SSE_PING_INTERVAL"),
    Flag(("--path",), "public_path", str, env="LLAMA_ARG_STATIC_PATH"),
    Flag(("--cors-origins",), "cors_origins", str, env="LLAMA_ARG_CORS_ORIGINS"),
    Flag(("--ui", "--webui"), "ui", off=("--no-ui", "--no-webui"), env="LLAMA_ARG_UI"),
    Flag(("--metrics",), "endpoint_metrics", env="LLAMA_ARG_ENDPOINT_METRICS"),
    Flag(("--slots",), "endpoint_slots", off=("--no-slots",), env="LLAMA_ARG_ENDPOINT_SLOTS"),
    Flag(("--props",), "endpoint_props", env="LLAMA_ARG_ENDPOINT_PROPS"),
    Flag(("--slot-save-path",), "slot_save_path", str, env="LLAMA_ARG_SLOT_SAVE_PATH"),
    Flag(("--sleep-idle-seconds",), "sleep_idle_seconds", _number),
    # how large
    Flag(("-c", "--ctx-size"), "n_ctx", _number, env="LLAMA_ARG_CTX_SIZE"),
    Flag(("-np", "--parallel"), "n_parallel", _number, env="LLAMA_ARG_N_PARALLEL"),
    Flag(("-b", "--batch-size"), "n_batch", _number, env="LLAMA_ARG_BATCH"),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", _number, env="LLAMA_ARG_UBATCH"),
    Flag(("-ctk", "--cache-type-k"), "cache_type_k", _CACHE, env="LLAMA_ARG_CACHE_TYPE_K"),
    Flag(("-ctv", "--cache-type-v"), "cache_type_v", _CACHE, env="LLAMA_ARG_CACHE_TYPE_V"),
    Flag(("-fa", "--flash-attn"), "flash_attn_type", _THREE, bare="on", env="LLAMA_ARG_FLASH_ATTN"),
    Flag(("-kvu", "--kv-unified"), "kv_unified", off=("-no-kvu", "--no-kv-unified"), env="LLAMA_ARG_KV_UNIFIED"),
    Flag(("--swa-full",), "swa_full", env="LLAMA_ARG_SWA_FULL"),
    Flag(("-cram", "--cache-ram"), "cache_ram_mib", _number, env="LLAMA_ARG_CACHE_RAM"),
    Flag(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "n_ctx_checkpoints", _number),
    # where it is placed
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", _layers, env="LLAMA_ARG_N_GPU_LAYERS"),
    Flag(("-ts", "--tensor-split"), "tensor_split", _shares, env="LLAMA_ARG_TENSOR_SPLIT"),
    Flag(("-sm", "--split-mode"), "split_mode", one_of("none", "layer", "row", "tensor"), env="LLAMA_ARG_SPLIT_MODE"),
    Flag(("-mg", "--main-gpu"), "main_gpu", _number, env="LLAMA_ARG_MAIN_GPU"),
    Flag(("-ot", "--override-tensor"), OVERRIDES, str, env="LLAMA_ARG_OVERRIDE_TENSOR"),
    Flag(("-cmoe", "--cpu-moe"), CPU_MOE, lambda _: ALL_LAYERS, bare="", env="LLAMA_ARG_CPU_MOE"),
    Flag(("-ncmoe", "--n-cpu-moe"), CPU_MOE, _number, env="LLAMA_ARG_N_CPU_MOE"),
    Flag(("-nkvo", "--no-kv-offload"), "no_kv_offload", off=("-kvo", "--kv-offload"), env="LLAMA_ARG_NO_KV_OFFLOAD"),
    Flag(("--no-op-offload",), "no_op_offload", off=("--op-offload",)),
    Flag(("-fit", "--fit"), "fit_params", _TWO, bare="on", env="LLAMA_ARG_FIT"),
    Flag(("-fitt", "--fit-target"), "fit_params_target", _sizes_mib, env="LLAMA_ARG_FIT_TARGET"),
    Flag(("-fitc", "--fit-ctx"), "fit_params_min_ctx", _number, env="LLAMA_ARG_FIT_CTX"),
    Flag(
        ("-lm", "--load-mode"),
        "load_mode",
        one_of("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        env="LLAMA_ARG_LOAD_MODE",
    ),
    Flag(("--no-mmap",), "load_mode", lambda _: "none", bare=""),
    Flag(("--mlock",), "load_mode", lambda _: "mmap+mlock", bare=""),
    # how it computes
    Flag(("-t", "--threads"), "cpuparams.n_threads", _number, env="LLAMA_ARG_THREADS"),
    Flag(("-tb", "--threads-batch"), "cpuparams_batch.n_threads", _number),
    Flag(("--numa",), "numa", one_of("distribute", "isolate", "numactl"), env="LLAMA_ARG_NUMA"),
    Flag(("--warmup",), "warmup", off=("--no-warmup",)),
    Flag(("--check-tensors",), "check_tensors"),
    Flag(("-cb", "--cont-batching"), "cont_batching", off=("-nocb", "--no-cont-batching")),
    Flag(("--context-shift",), "ctx_shift", off=("--no-context-shift",), env="LLAMA_ARG_CONTEXT_SHIFT"),
    Flag(("--cache-prompt",), "cache_prompt", off=("--no-cache-prompt",), env="LLAMA_ARG_CACHE_PROMPT"),
    Flag(("--cache-reuse",), "n_cache_reuse", _number, env="LLAMA_ARG_CACHE_REUSE"),
    Flag(("--rope-scaling",), "rope_scaling_type", one_of("none", "linear", "yarn"), env="LLAMA_ARG_ROPE_SCALING_TYPE"),
    Flag(("--rope-freq-base",), "rope_freq_base", _fraction, env="LLAMA_ARG_ROPE_FREQ_BASE"),
    Flag(("--rope-freq-scale",), "rope_freq_scale", _fraction, env="LLAMA_ARG_ROPE_FREQ_SCALE"),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", _number, env="LLAMA_ARG_YARN_ORIG_CTX"),
    # what it answers
    Flag(("--embedding", "--embeddings"), "embedding", env="LLAMA_ARG_EMBEDDINGS"),
    Flag(("--pooling",), "pooling_type", one_of("none", "mean", "cls", "last", "rank"), env="LLAMA_ARG_POOLING"),
    Flag(("--rerank", "--reranking"), "pooling_type", lambda _: "rank", bare="", env="LLAMA_ARG_RERANKING"),
    Flag(("--jinja",), "use_jinja", off=("--no-jinja",), env="LLAMA_ARG_JINJA"),
    Flag(("--chat-template",), "chat_template", str, env="LLAMA_ARG_CHAT_TEMPLATE"),
    Flag(("--chat-template-file",), "chat_template", _content, env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    Flag(
        ("--reasoning-format",),
        "reasoning_format",
        one_of("none", "auto", "deepseek", "deepseek-legacy"),
        env="LLAMA_ARG_THINK",
    ),
    Flag(("-n", "--predict", "--n-predict"), "n_predict", _number, env="LLAMA_ARG_N_PREDICT"),
    Flag(("-s", "--seed"), "sampling.seed", lambda text: _number(text) % (1 << 32)),
    Flag(("--temp", "--temperature"), "sampling.temp", _fraction, env="LLAMA_ARG_TEMPERATURE"),
    Flag(("--top-k",), "sampling.top_k", _number, env="LLAMA_ARG_TOP_K"),
    Flag(("--top-p",), "sampling.top_p", _fraction, env="LLAMA_ARG_TOP_P"),
    Flag(("--min-p",), "sampling.min_p", _fraction, env="LLAMA_ARG_MIN_P"),
    Flag(("--repeat-penalty",), "sampling.penalty_repeat", _fraction, env="LLAMA_ARG_REPEAT_PENALTY"),
    # what it says
    Flag(("-lv", "--verbosity", "--log-verbosity"), "verbosity", _number, env="LLAMA_ARG_LOG_VERBOSITY"),
    Flag(("-v", "--verbose", "--log-verbose"), "verbosity", lambda _: 5, bare=""),
    Flag(("--log-disable",), "verbosity", lambda _: -1, bare=""),
    Flag(("--offline",), "offline", env="LLAMA_ARG_OFFLINE"),
)

BY_NAME = {name: flag for flag in FLAGS for name in (*flag.names, *flag.off)}


def parse(words: Sequence[str], environment: Mapping[str, str]) -> Fields:
    """What the words, and where they say nothing the variables, set. Raise UsageError."""
    fields = _by_variables(environment)
    from_variables = dict(fields)
    left = list(words)
    while left:
        word = left.pop(0)
        flag = BY_NAME.get(name := spelled(word))
        if flag is None:
            raise _unknown(word)
        if flag.read is None:
            fields[flag.field] = name not in flag.off
            continue
        value = _value(flag, flag.read, word, left)
        if flag.field == OVERRIDES and fields.get(OVERRIDES) not in (None, from_variables.get(OVERRIDES)):
            value = f"{fields[OVERRIDES]},{value}"  # given several times, all of them hold
        fields[flag.field] = value
    return fields


def spelled(word: str) -> str:
    """As in the table: llama.cpp takes --ctx_size for --ctx-size."""
    return word.replace("_", "-") if word.startswith("--") else word


def _value(flag: Flag, read: Callable[[str], object], word: str, left: list[str]) -> object:
    """Of the flag that `word` names; taken from the words that are left."""
    if flag.bare is not None:
        takes = left and flag.bare and not left[0].startswith("-")
        text = left.pop(0) if takes else flag.bare
    elif not left:
        raise UsageError(f"{word} needs a value", hint=HINT)
    else:
        text = left.pop(0)
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{word} {text}: must be {error}", hint=HINT) from error


def _by_variables(environment: Mapping[str, str]) -> Fields:
    fields: Fields = {}
    for flag in FLAGS:
        if not flag.env:
            continue
        negated = flag.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_", 1)
        if flag.read is None and negated in environment:
            fields[flag.field] = False
        if flag.env not in environment:
            continue
        text = environment[flag.env]
        try:
            fields[flag.field] = _switched(text) if flag.read is None else flag.read(text)
        except ValueError as error:
            raise UsageError(f"{flag.env}={text}: must be {error}", hint=HINT) from error
    return fields


def _switched(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("on or off")


def _unknown(word: str) -> UsageError:
    name = spelled(word.partition("=")[0])
    if name in BY_NAME:
        return UsageError(f"{word}: a flag and its value are two words", hint=f"{name} {word.partition('=')[2]}")
    if not word.startswith("-"):
        return UsageError(f"{word!r} is no flag", hint=HINT)
    near = nearest(name, BY_NAME, likely=0.7)
    hint = f"did you mean {near}?" if near else f"install llama-server for all of its flags; {HINT}"
    return UsageError(f"unknown flag: {word}", hint=hint)
