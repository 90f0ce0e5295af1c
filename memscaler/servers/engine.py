"""llama.cpp's own HTTP server as a program with llama-server's flags, from the wheel xllamacpp.

    python -m memscaler.servers.engine -m MODEL --port 8080 ...   (or by the path of this file)

It says on standard output where it listens, once it does. Requests are answered from the first moment: /health with
503 while the model loads. SIGTERM, SIGINT and SIGHUP end it at once; the kernel takes its memory back, the GPU's too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from memscaler.adding import how_to_add
from memscaler.core.errors import MemscalerError, UsageError
from memscaler.servers import flags
from memscaler.servers.flags import Fields
from memscaler.servers.listening import free_port

NAME = "llama-server"
PR_SET_NAME = 15  # prctl(2)
PORT, HOST = 8080, "127.0.0.1"  # llama-server's
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # llama.cpp's own pattern of them
_ENUMS = {  # fields whose values are members of an enumeration: its name, and what stands before the word there
    "cache_type_k": ("ggml_type", "GGML_TYPE_"),
    "cache_type_v": ("ggml_type", "GGML_TYPE_"),
    "flash_attn_type": ("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_"),
    "split_mode": ("llama_split_mode", "LLAMA_SPLIT_MODE_"),
    "load_mode": ("llama_load_mode", "LLAMA_LOAD_MODE_"),
    "numa": ("ggml_numa_strategy", "GGML_NUMA_STRATEGY_"),
    "rope_scaling_type": ("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_"),
    "pooling_type": ("llama_pooling_type", "LLAMA_POOLING_TYPE_"),
    "reasoning_format": ("common_reasoning_format", "COMMON_REASONING_FORMAT_"),
}
_MEMBERS = {"on": "ENABLED", "1": "ENABLED", "off": "DISABLED", "0": "DISABLED", "dio": "DIRECT_IO"}
_THREADS = "cpuparams.n_threads"
_TURNED_ON = frozenset({"on", "1"})


def main(words: Sequence[str]) -> int:
    """Serve until a signal ends it; the exit status."""
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_help())
        return 0
    try:
        fields = flags.parse(words, os.environ)
        serve(fields)
    except MemscalerError as error:
        told = [f"memscaler: {error}", *([f"hint: {error.hint}"] if error.hint else [])]
        sys.stderr.write("\n".join([*told, ""]))
        return error.exit_code
    return 0


def serve(fields: Fields) -> None:
    """Serve, and end this process when a signal comes. Raise MemscalerError if it cannot be served."""
    _be_called(NAME)
    for number in ENDS:  # loading holds the interpreter, so no handler of Python's would run
        signal.signal(number, signal.SIG_DFL)
    xllamacpp = _library()
    parameters = _parameters(xllamacpp, fields)
    _check(parameters)
    try:
        server = xllamacpp.Server(parameters)
    except (RuntimeError, ValueError) as error:
        raise MemscalerError(f"cannot serve {parameters.model.path}", hint="llama.cpp says why, above") from error
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    with suppress(OSError):
        sys.stdout.write(f"listening on {server.listening_address}\n")
        sys.stdout.flush()
    signal.sigwait(ENDS)
    # Its own end would wait for answers that are being written. Nothing of it needs to outlive it.
    sys.stderr.flush()
    os._exit(0)


def _be_called(name: str) -> None:
    """For ps and top, and for a governor that discovers servers by their names."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _library() -> ModuleType:
    try:
        import xllamacpp  # type: ignore[import-untyped]  # it has none
    except ImportError as error:
        added = how_to_add("xllamacpp>=2025.1")
        hint = "install llama.cpp's llama-server" + (f", or: {added}" if added else "")
        raise MemscalerError(f"llama.cpp's library is missing: {error}", hint=hint) from error
    library: ModuleType = xllamacpp
    return library


def _parameters(xllamacpp: ModuleType, fields: Fields) -> Any:
    """llama.cpp's parameters, with llama-server's defaults where its own differ."""
    parameters = xllamacpp.CommonParams()
    cores = len(os.sched_getaffinity(0))
    wanted: Fields = {"hostnames": (HOST,), "port": PORT, "n_parallel": -1, **fields}
    threads = int(str(wanted.get(_THREADS, 0)))
    wanted[_THREADS] = threads if threads > 0 else cores
    wanted.setdefault("cpuparams_batch.n_threads", wanted[_THREADS])
    if wanted.get("pooling_type") == "rank":
        wanted["embedding"] = True
    layers = wanted.pop(flags.CPU_MOE, None)
    if layers is not None:
        pattern = EXPERTS if layers == flags.ALL_LAYERS else None
        patterns = [pattern] if pattern else [rf"blk\.{layer}{EXPERTS}" for layer in range(int(str(layers)))]
        given = wanted.get(flags.OVERRIDES)
        wanted[flags.OVERRIDES] = ",".join([*([str(given)] if given else []), *(f"{each}=CPU" for each in patterns)])
    timeout = wanted.pop(flags.HTTP_TIMEOUT, None)
    if timeout is not None:
        wanted |= {"timeout_read": timeout, "timeout_write": timeout}
    for field, value in wanted.items():
        _set(xllamacpp, parameters, field, value)
    return parameters


def _set(xllamacpp: ModuleType, parameters: Any, field: str, value: object) -> None:
    """Raise UsageError for a value that llama.cpp does not take."""
    *path, last = field.split(".")
    holder = parameters
    for part in path:
        holder = getattr(holder, part)
    try:
        setattr(holder, last, _converted(xllamacpp, parameters, last, value))
    except (AttributeError, ValueError, OverflowError) as error:
        raise UsageError(f"{field} = {value}: {str(error) or 'llama.cpp does not take it'}", hint=flags.HINT) from error


def _converted(xllamacpp: ModuleType, parameters: Any, field: str, value: object) -> object:
    match field, value:
        case (("tensor_split" | "fit_params_target"), tuple()):
            slots = len(getattr(parameters, field))
            if len(value) > slots:
                raise ValueError(f"at most {slots} values")
            if field == "tensor_split":
                return [*value, *([0.0] * (slots - len(value)))]
            return list(value) * slots if len(value) == 1 else [*value, *([value[-1]] * (slots - len(value)))]
        case _, tuple():
            return set(value) if field == "model_alias" else list(value)
        case "fit_params", str():
            return value in _TURNED_ON
        case _, str() if field in _ENUMS:
            enumeration, prefix = _ENUMS[field]
            member = _MEMBERS.get(value, value.upper().replace("-", "_").replace("+", "_"))
            return getattr(getattr(xllamacpp, enumeration), prefix + member)
        case _:
            return value


def _filled(values: tuple[float, ...], rest: float, slots: int) -> list[float]:
    if len(values) > slots:
        raise ValueError(f"at most {slots} values")
    return [*values, *([rest] * (slots - len(values)))]


def _check(parameters: Any) -> None:
    """Say plainly what llama.cpp says in its log's last lines but one. Raise MemscalerError."""
    path = parameters.model.path
    if not path:
        raise UsageError("no model: name a GGUF file with -m", hint=flags.HINT)
    try:
        with Path(path).open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise MemscalerError(f"cannot read the model {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise MemscalerError(f"{path} is no GGUF file", hint="llama.cpp serves models in its own format only")
    for host in parameters.hostnames:
        if parameters.port and not host.endswith(".sock") and not parameters.reuse_port:
            free_port(host, parameters.port)


def _help() -> str:
    lines = ["usage: python -m memscaler.servers.engine -m MODEL [FLAG ...]", "", "llama-server's flags:"]
    for flag in flags.FLAGS:
        names = ", ".join((*flag.names, *flag.off))
        lines.append(f"  {names}" + f"  [{flag.env}]" * bool(flag.env))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
