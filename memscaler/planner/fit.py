r"""Asks llama.cpp's own `llama-fit-params`, where it is installed: it knows its buffers to the byte.

It loads no weights, but it opens the GPUs. Its answers, on standard output: a line of arguments,

    -c 4096 -ngl 37 -ts 20,17 -ot "blk\.3\.ffn_(up|down|gate)_(ch|)exps=CPU"

and, with `-fit-print on` (`--fit-print on --fit off`), a row per device in MiB: name, model, context, compute.
Everything else that it may do is a FitFailed with the reason, and the caller plans by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.planner.memory import Demand
from memscaler.planner.sizes import MIB

PROGRAM = "llama-fit-params"
TIMEOUT_S = 120.0
_MOST_OUTPUT = 1 << 20
_ROW = re.compile(r"(\S+) (\d{1,9}) (\d{1,9}) (\d{1,9}) ?")
_COUNTS = re.compile(r"\d{1,6}(?:\.0*)?(?:,\d{1,6}(?:\.0*)?)*")


class FitFailed(Exception):
    """It gave no usable answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Its arguments. gpu_layers: -1 is all. split: () is by free memory."""

    context: int
    gpu_layers: int
    split: tuple[int, ...] = ()
    overrides: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What a device needs, in bytes, in steps of a MiB. The last one is "Host"."""

    device: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int


def find(environ: Mapping[str, str]) -> str | None:
    """The installed program."""
    return shutil.which(PROGRAM, path=environ.get("PATH"))


def ask(
    program: str, model: Path, demand: Demand, reserve_bytes: int, environ: Mapping[str, str], timeout_s: float
) -> Answer:
    """What it proposes for the GPUs that `environ` shows. Raise FitFailed."""
    words = [program, *_words(model, demand), "-fitt", str(-(-reserve_bytes // MIB))]
    return parse_arguments(_run(words, environ, timeout_s))


def measure(
    program: str, model: Path, demand: Demand, arguments: Sequence[str], environ: Mapping[str, str], timeout_s: float
) -> tuple[Row, ...]:
    """What each device needs with these arguments. Raise FitFailed."""
    words = [program, *_words(model, demand), *arguments, "--fit", "off", "--fit-print", "on"]
    return parse_rows(_run(words, environ, timeout_s))


def parse_arguments(text: str) -> Answer:
    """The last line that begins with "-c ". Raise FitFailed."""
    lines = [line for line in text.splitlines() if line.startswith("-c ")]
    if not lines:
        raise FitFailed("it printed no arguments")
    try:
        words = shlex.split(lines[-1])
    except ValueError as error:
        raise FitFailed(f"it printed {_one_line(lines[-1])!r}: {error}") from error
    if len(words) % 2:
        raise FitFailed(f"it printed {_one_line(lines[-1])!r}")
    found = dict(zip(words[::2], words[1::2], strict=True))
    try:
        split = _counts(found.pop("-ts", ""))
        answer = Answer(int(found.pop("-c")), int(found.pop("-ngl")), split, found.pop("-ot", ""))
    except (KeyError, ValueError) as error:
        raise FitFailed(f"it printed {_one_line(lines[-1])!r}") from error
    if found or answer.context < 0:
        raise FitFailed(f"it printed {_one_line(lines[-1])!r}, with arguments that are not known here")
    return answer


def parse_rows(text: str) -> tuple[Row, ...]:
    """One row per device, then the host's. Raise FitFailed."""
    rows = []
    for line in text.splitlines():
        if found := _ROW.fullmatch(line):
            model, context, compute = (int(found[group]) * MIB for group in (2, 3, 4))
            rows.append(Row(found[1], model, context, compute))
    if not rows or rows[-1].device != "Host":
        raise FitFailed("it printed no table of memory")
    return tuple(rows)


def _counts(text: str) -> tuple[int, ...]:
    if text and not _COUNTS.fullmatch(text):
        raise ValueError(text)
    return tuple(int(word.partition(".")[0]) for word in text.split(",") if word)


def _words(model: Path, demand: Demand) -> list[str]:
    words = ["--model", str(model), "-c", str(demand.context), "-b", str(demand.batch), "-ub", str(demand.ubatch)]
    words += ["-ctk", demand.cache_type_k, "-ctv", demand.cache_type_v]
    if demand.slots:
        words += ["-np", str(demand.slots)]
    if demand.flash_attention != "auto":
        words += ["-fa", demand.flash_attention]
    if demand.swa_full:
        words.append("--swa-full")
    if not demand.offload_cache:
        words.append("-nkvo")
    return words


def _run(words: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> str:
    """Its standard output. It is killed with whatever it started when it takes too long."""
    try:
        process = subprocess.Popen(  # noqa: S603  # the operator's program
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environ),
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise FitFailed(f"it cannot be started: {error.strerror}") from error
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise FitFailed(f"it took longer than {timeout_s:.0f} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if process.returncode:
        raise FitFailed(_ending(process.returncode, err.decode(errors="replace")))
    return out[:_MOST_OUTPUT].decode(errors="replace")


def _ending(code: int, errors: str) -> str:
    said = [_one_line(line) for line in errors.splitlines() if line.strip()]
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return f"it ended with {how}" + (f": {said[-1]}" if said else "")


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:200]
