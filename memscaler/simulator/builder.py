"""Compile the simulated driver against NVIDIA's own nvml.h, once per source, header and compiler.

The result is a folder with three libraries: `libnvidia-ml.so.1` and `libnvidia-api.so.1`, with the sonames of the real
ones, and `libmemscaler-simulator.so`, the remote control.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from memscaler.core.errors import SimulatorUnavailable

NVML_LIBRARY = "libnvidia-ml.so.1"
NVAPI_LIBRARY = "libnvidia-api.so.1"
REMOTE_LIBRARY = "libmemscaler-simulator.so"

_SOURCES = Path(__file__).resolve().parent / "driver"
_SHARED = ("calls.c", "state.c", "model.c")
_NVML = ("nvml.c", "nvml_identity.c", "nvml_clocks.c", "nvml_sensors.c", "nvml_processes.c", "nvml_events.c")
_LIBRARIES = {
    NVML_LIBRARY: (*_NVML, *_SHARED),
    NVAPI_LIBRARY: ("nvapi.c", *_SHARED),
    REMOTE_LIBRARY: ("control.c", "boards.c", *_SHARED),
}
_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread")


_built: dict[tuple[Path, tuple[str, ...]], Path] = {}


def build(target_dir: Path | None = None, *, without: Sequence[str] = ()) -> Path:
    """The folder with the three libraries, compiled if need be; several processes may call it at once.

    target_dir: where the cache is (default: MEMSCALER_SIM_CACHE, else the user's cache folder).
    without: NVML symbols to leave out, as in an older driver.
    Raise SimulatorUnavailable without a C compiler or without nvml.h.
    """
    cache = target_dir or _default_cache()
    asked = cache, tuple(sorted(without))
    if asked in _built and (_built[asked] / REMOTE_LIBRARY).is_file():  # the sources need not be readable any more
        return _built[asked]
    compiler, header = _find_compiler(), _find_header()
    folder = _built[asked] = cache / _fingerprint(compiler, header, asked[1])
    if (folder / REMOTE_LIBRARY).is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _workshop(cache) as workshop:
            _compile(compiler, header, workshop, without)
            with contextlib.suppress(OSError):  # somebody else was faster, with the same result
                workshop.rename(folder)
    except OSError as error:
        raise SimulatorUnavailable(f"cannot write the simulated driver to {cache}: {error}") from error
    return folder


@contextlib.contextmanager
def _workshop(cache: Path) -> Iterator[Path]:
    """A folder beside the final one, so that the last step is one rename. Gone afterwards if it was not renamed."""
    workshop = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    workshop.chmod(0o755)  # unprivileged clients load from here too
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _compile(compiler: str, header: Path, target: Path, without: Sequence[str]) -> None:
    """Compile the three libraries, in parallel."""
    script = target / "absent.map"
    absent = " ".join(f"{name};" for name in (*without, "no_such_symbol"))
    script.write_text(f"{{ global: *; local: {absent} }};\n")
    running = []
    for library, sources in _LIBRARIES.items():
        command = [compiler, *_FLAGS, "-isystem", str(header.parent), f"-Wl,-soname,{library}"]
        if without and library == NVML_LIBRARY:
            command.append(f"-Wl,--version-script,{script}")
        command += ["-o", str(target / library), *(str(_SOURCES / name) for name in sources)]
        running.append((library, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))  # noqa: S603
    outcomes = [(library, process.communicate()[1], process.returncode) for library, process in running]
    for library, errors, status in outcomes:
        if status:
            lines = errors.strip().splitlines() or [f"status {status}"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise SimulatorUnavailable(f"{compiler} could not compile {library}: {first}")


def _fingerprint(compiler: str, header: Path, without: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((compiler, _FLAGS, without)).encode())
    for path in (header, *sorted(_SOURCES.glob("*.[ch]"))):
        digest.update(path.name.encode() + _content(path))
    return digest.hexdigest()[:24]


def _content(path: Path) -> bytes:
    stat = path.stat()
    return _cached_content(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _cached_content(path: Path, _mtime_ns: int, _size: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _find_compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise SimulatorUnavailable("no C compiler for the simulated driver", hint="apt install gcc")


def _find_header() -> Path:
    """nvml.h: from MEMSCALER_NVML_H, the installed nvidia-nvml-dev of any CUDA version, or a CUDA toolkit."""
    explicit = os.environ.get("MEMSCALER_NVML_H")
    candidates = [Path(explicit)] if explicit else []
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or ()) if package else ():
        candidates += sorted(Path(root).glob("*/include/nvml.h"), reverse=True)
    candidates += [Path("/usr/local/cuda/include/nvml.h"), Path("/usr/include/nvml.h")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise SimulatorUnavailable(
        "no nvml.h for the simulated driver", hint=f"{sys.executable} -m pip install nvidia-nvml-dev"
    )


def _default_cache() -> Path:
    """A folder only this user can write: what is in it gets loaded."""
    explicit = os.environ.get("MEMSCALER_SIM_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path(os.environ.get("HOME") or "/nonexistent") / ".cache"
    if os.access(next(parent for parent in (home, *home.parents) if parent.exists()), os.W_OK):
        return home / "memscaler" / "simulator"
    return _private_temporary()


@functools.cache
def _private_temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="memscaler-simulator-"))
