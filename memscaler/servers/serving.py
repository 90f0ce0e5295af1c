"""What `memscaler serve` runs: the command lines and variables of a server, from what was asked for and its plan."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.core.errors import MemscalerError, UsageError
from memscaler.daemon.servers import option
from memscaler.planner.memory import Demand
from memscaler.planner.words import read
from memscaler.servers import flags
from memscaler.servers.health import Door, is_encrypted
from memscaler.servers.keep import User
from memscaler.servers.layout import Layout

HINT = "see `memscaler serve --help`"
HERE = "127.0.0.1"
_ALL = {"0.0.0.0": HERE, "::": "::1"}  # noqa: S104  # written for people, not listened on
API_KEY, KEY_FILE = "LLAMA_API_KEY", "--api-key-file"
_KEYS = frozenset({API_KEY, "LLAMA_ARG_API_KEY_FILE"})  # without them everybody is answered
# What serve decides: flags behind "--" that would decide otherwise -> its own option for it.
_OWN = {
    "model.path": "--model",
    "hostnames": "--host",
    "port": "--port",
    "model_alias": "--alias",
    "mmproj.path": "--mmproj",
    "api_keys": "--api-key",
    "n_ctx": "--n-ctx",
    "n_parallel": "--parallel",
    "n_batch": "--n-batch",
    "n_ubatch": "--n-ubatch",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
}
_PLACING = frozenset({"tensor_split", "split_mode", "main_gpu", flags.OVERRIDES})
_LAYERS = tuple(name for flag in flags.FLAGS if flag.field == "n_gpu_layers" for name in flag.names)
_DEVICE = ("-dev", "--device")  # not our engine's
# Variables for these would change what was planned for; as words behind "--" the planner has read them.
_PLANNED = _PLACING | {
    "n_gpu_layers",
    flags.CPU_MOE,
    "fit_params",
    "flash_attn_type",
    "kv_unified",
    "swa_full",
    "no_kv_offload",
}
_NOT_IN_TABLE = frozenset({"LLAMA_ARG_DEVICE", "LLAMA_ARG_KV_OFFLOAD"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. size, further: words for llama-server. alias, projector, api_key: "" for none."""

    model: Path
    host: str
    port: int
    size: tuple[str, ...]
    alias: str = ""
    projector: str = ""
    api_key: str = ""
    further: tuple[str, ...] = ()

    @property
    def demand(self) -> Demand:
        """What the planner has to know of it. Raise UsageError."""
        return read((*self.size, *self.further)).demand


def check_further(words: Sequence[str], *, placed: bool) -> None:
    """Raise UsageError for what would contradict the plan, or serve's own options."""
    for word in words:
        name = flags.spelled(word.partition("=")[0])
        flag = flags.BY_NAME.get(name)
        field = "split_mode" if name in _DEVICE else flag.field if flag else ""
        if field in _OWN and name != KEY_FILE:  # a key in a file is better than one in our own command line
            raise UsageError(f"{word} behind --: serve has {_OWN[field]} for it", hint=f"write {_OWN[field]} before --")
        if placed and field in _PLACING:  # -ngl and --n-cpu-moe are wishes that the planner follows
            raise UsageError(f"{word} contradicts the plan", hint="--no-smart-split leaves placing the model to you")


def own_option(flag: flags.Flag) -> str:
    """What serve calls this flag of llama-server's; "" if it has no option for it."""
    return "" if KEY_FILE in flag.names else _OWN.get(flag.field, "")


def check_host(host: str) -> None:
    """Raise UsageError for what cannot be governed by its port."""
    if host.endswith(".sock") or "," in host:
        raise UsageError(f"--host {host}: one address", hint="connections to a Unix socket cannot be counted")


def command(program: Sequence[str], wanted: Wanted, layout: Layout) -> tuple[str, ...]:
    """The server's command line, with the plan's words."""
    further, placing = _one_count_of_layers(wanted.further, layout)
    words = [*program, "-m", str(wanted.model), "--host", wanted.host, "--port", str(wanted.port)]
    words += ["--alias", wanted.alias] if wanted.alias else []
    words += ["--mmproj", wanted.projector] if wanted.projector else []
    return (*words, *wanted.size, *further, *placing)


def _one_count_of_layers(further: Sequence[str], layout: Layout) -> tuple[Sequence[str], Sequence[str]]:
    """The operator's words and the plan's with one -ngl between them: the operator's, unless less of it fits."""
    said, planned = option(further, *_LAYERS), option(layout.words, *_LAYERS)
    if not said or not planned:
        return further, layout.words
    is_all = bool(layout.document.get("whole")) and said.isdecimal() and int(said) >= int(planned)
    if said == planned or is_all:
        return further, _without_layers(layout.words)
    return _without_layers(further), layout.words


def _without_layers(words: Sequence[str]) -> list[str]:
    kept, left = [], list(words)
    while left:
        word = left.pop(0)
        if word in _LAYERS:
            del left[:1]
        elif word.partition("=")[0] not in _LAYERS:
            kept.append(word)
    return kept


def size_words(given: Mapping[str, str | int]) -> tuple[str, ...]:
    """llama-server's flags for how large it is to be, without those that are as they are anyway."""
    usual: dict[str, str | int] = {"-np": 0, "-b": 2048, "-ub": 512, "-ctk": "f16", "-ctv": "f16"}
    return tuple(word for flag, value in given.items() if usual.get(flag) != value for word in (flag, str(value)))


def environment(base: Mapping[str, str], wanted: Wanted, layout: Layout) -> dict[str, str]:
    """Its variables."""
    away = contradicting(base, layout)
    kept = {name: value for name, value in base.items() if name not in away}
    if wanted.api_key:
        kept[API_KEY] = wanted.api_key  # not on the command line, which everybody can read
    return {**kept, **layout.environment}


def contradicting(base: Mapping[str, str], layout: Layout) -> list[str]:
    """Variables that would change the plan."""
    planned = {flag.env for flag in flags.FLAGS if flag.env and flag.field in (_PLANNED | _OWN.keys())}
    planned |= {name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_", 1) for name in planned} | _NOT_IN_TABLE
    return sorted((planned - _KEYS) & base.keys()) if layout.words else []


def name_of(model: Path) -> str:
    """As people call it: its file without the ending, and without the number of a part."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", model.stem).replace(",", "_")


def door_of(wanted: Wanted, environment: Mapping[str, str]) -> Door:
    """An address that it answers at, from here; its health page is behind --api-prefix, too."""
    path = f"{option(wanted.further, '--api-prefix')}/health"
    encrypted = is_encrypted(wanted.further, environment)
    return Door(_ALL.get(wanted.host, wanted.host), wanted.port, path, encrypted)


def url(door: Door) -> str:
    """For a client on this machine."""
    return f"{'https' if door.encrypted else 'http'}://{door.name}"


@contextlib.contextmanager
def log_of(place: str, port: int, user: User | None) -> Iterator[tuple[int | None, str]]:
    """A descriptor for what the server says, and where that is. place: "-" is our own output, "" a temporary file.

    The temporary file goes at the end, unless an error ends this. Raise MemscalerError if it cannot be written.
    """
    if place == "-":
        yield None, ""
        return
    if place:
        fd, path = _opened_as(user, place), place
    else:
        fd, path = tempfile.mkstemp(prefix=f"memscaler-serve-{port}-", suffix=".log")
        if user is not None:
            os.fchown(fd, user.uid, user.gid)
    try:
        yield fd, path
    except MemscalerError:
        raise
    except BaseException:
        if not place:
            Path(path).unlink(missing_ok=True)
        raise
    else:
        if not place:
            Path(path).unlink(missing_ok=True)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _rights_of(user: User | None) -> Iterator[None]:
    """What is opened now is opened with that user's rights."""
    groups = os.getgroups()
    if user is not None:
        os.setgroups(user.groups)
        os.setegid(user.gid)
        os.seteuid(user.uid)
    try:
        yield
    finally:
        if user is not None:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def check_readable(path: Path, user: User | None) -> None:
    """Raise UsageError for a model that the server, which has that user's rights, could not read."""
    try:
        with _rights_of(user), path.open("rb"):
            return
    except OSError as error:
        hint = "name a GGUF file with --model"
        whose = ""
        if user is not None and isinstance(error, PermissionError):
            whose = f" as {user.name}, who called sudo"
            hint = f"the server runs as {user.name}: chmod or move the file, or call it as root without sudo"
        raise UsageError(f"cannot read {path}{whose}: {error.strerror}", hint=hint) from error


def _opened_as(user: User | None, path: str) -> int:
    """With that user's rights: a file that root would be lured into writing is not written."""
    flags = os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        with _rights_of(user):
            try:
                return os.open(path, os.O_RDWR | flags, 0o644)  # read for what it said last
            except PermissionError:
                return os.open(path, os.O_WRONLY | flags, 0o644)
    except OSError as error:
        raise MemscalerError(f"cannot write the log {path}: {error.strerror}") from error


def last_lines(log: int, count: int = 8) -> list[str]:
    """Of the server's log: usually what went wrong. log: its descriptor, for its name may be another file's by now."""
    try:
        said = os.pread(log, 8192, max(0, os.fstat(log).st_size - 8192))
    except OSError:
        return []
    return [line for line in said.decode(errors="replace").splitlines() if line.strip()][-count:]
