"""The remote control: make simulated boards, watch them, let things go wrong, from any process with the state file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from memscaler.core.errors import UsageError
from memscaler.simulator import binding, builder
from memscaler.simulator.binding import CallRecord, Remote
from memscaler.simulator.board import SimulatedBoard

_PERMISSIONS = {"euid": 0, "allow": 1, "deny": 2}
_MISMATCH, _NOT_LOADED = 18, 9
MAX_BOARDS = 16


def parse_boards(text: str) -> tuple[str, ...]:
    """`"a40,p40"` -> `("a40", "p40")`. Raise UsageError for a name that is not in the catalogue."""
    return check_boards([part.strip().lower() for part in text.split(",") if part.strip()])


def check_boards(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves, if all are in the catalogue."""
    known = known_boards()
    for name in names:
        if name not in known:
            raise UsageError(f"unknown simulated board {name!r}", hint=f"known boards: {', '.join(known)}")
    if not 1 <= len(names) <= MAX_BOARDS:
        raise UsageError(f"{len(names)} simulated boards", hint=f"one to {MAX_BOARDS}, separated by commas")
    return tuple(names)


def known_boards() -> tuple[str, ...]:
    """The catalogue. Builds the simulator if needed."""
    return binding.board_keys(builder.build())


class SimulatedDriver:
    """A simulated NVIDIA driver with its boards. Several processes may hold one for the same state file."""

    def __init__(self, remote: Remote, state_path: Path, library_dir: Path) -> None:
        self._remote = remote
        self.state_path = state_path
        self.library_dir = library_dir
        count = int(remote.get(-1, "board_count"))
        self.boards: tuple[SimulatedBoard, ...] = tuple(SimulatedBoard(remote, index) for index in range(count))

    @classmethod
    def create(  # noqa: PLR0913  # each is a property of the driver or its host
        cls,
        state_path: Path | str,
        boards: Sequence[str],
        *,
        context: bool = True,
        persistence: bool = False,
        settle_ms: float = 20.0,
        call_latency_ms: float = 0.0,
        read_latency_ms: float = 0.0,
        permission: str = "euid",
        driver_version: str = "580.95.05",
        mclk_fields: bool = False,
        nvapi_reversed: bool = False,
        log_everything: bool = False,
        library_dir: Path | None = None,
    ) -> SimulatedDriver:
        """Make a new driver state; the file appears complete.

        context: a server is resident on every board, so clocks are high until parked.
        settle_ms: from a call to its effect. call_latency_ms / read_latency_ms: how long setters / getters take.
        permission: euid (root may write), allow, deny.
        mclk_fields: every board answers NVML fields 298 and 299, as drivers from 610 on do.
        nvapi_reversed: NVAPI lists the boards in the other order. log_everything: the call log has the getters too.
        """
        path, folder = Path(state_path), library_dir or builder.build()
        names = check_boards(boards)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        remote = Remote(folder, unfinished, create=True)
        for name in names:
            remote.add_board(name)
        driver = cls(remote, path, folder)
        driver.set_permission(permission)
        driver.set_latency(call_ms=call_latency_ms, read_ms=read_latency_ms)
        remote.set_driver_version(driver_version)
        remote.set(-1, "answers_mclk", int(mclk_fields))
        remote.set(-1, "nvapi_reversed", int(nvapi_reversed))
        driver.log_everything(on=log_everything)
        for board in driver.boards:
            remote.set(board.index, "initial_persistence", int(persistence))
            remote.set(board.index, "persistence", int(persistence))
            board.set_settle(park_ms=0, wake_ms=0)
            board.set_context(context)
            board.set_settle(park_ms=settle_ms, wake_ms=settle_ms)
        remote.reload()  # the power history starts with the boards as they are now
        unfinished.rename(path)
        return driver

    @classmethod
    def attach(cls, state_path: Path | str, *, library_dir: Path | None = None) -> SimulatedDriver:
        """Take control of an existing state. Raise SimulatorError if there is none, or of another version."""
        path, folder = Path(state_path), library_dir or builder.build()
        return cls(Remote(folder, path, create=False), path, folder)

    def close(self) -> None:
        """Let go of the state file; the boards live on in it."""
        self._remote.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """With these variables any program finds the simulated driver instead of a real one."""
        folder = str(self.library_dir)
        inherited = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        search = ":".join([folder, *(part for part in inherited if part and part != folder)])
        return {"MEMSCALER_SIM_STATE": str(self.state_path), "LD_LIBRARY_PATH": search}

    @property
    def driver_version(self) -> str:
        """As nvmlSystemGetDriverVersion answers."""
        return self._remote.text(-1, "driver_version")

    # ---- the driver's troubles

    def reload(self, *, stale_code: int = 999) -> None:
        """Unload and load the driver: locks and counters gone; open sessions get stale_code until a new init."""
        self._remote.set(-1, "stale_code", stale_code)
        self._remote.reload()

    def set_loaded(self, loaded: bool) -> None:  # noqa: FBT001
        """Without a driver nvmlInit answers 9."""
        self._remote.set(-1, "init_code", 0 if loaded else _NOT_LOADED)

    def set_mismatch(self, mismatch: bool) -> None:  # noqa: FBT001
        """The library is newer than the kernel module: nvmlInit answers 18, NvAPI_Initialize -1."""
        self._remote.set(-1, "init_code", _MISMATCH if mismatch else 0)

    def set_permission(self, rule: str) -> None:
        """Who may write: euid (root), allow (everybody), deny (nobody)."""
        self._remote.set(-1, "permission", _PERMISSIONS[rule])

    def set_latency(self, *, call_ms: float = 0.0, read_ms: float = 0.0) -> None:
        """How long every setter and control call, and every getter, takes."""
        self._remote.set(-1, "setter_latency_us", round(call_ms * 1000))
        self._remote.set(-1, "getter_latency_us", round(read_ms * 1000))

    def inject(
        self,
        symbol: str,
        *,
        code: int | None = None,
        delay_ms: int = 0,
        hang: bool = False,
        ignore: bool = False,
        after: int = 0,
        times: int | None = None,
    ) -> None:
        """As SimulatedBoard.inject, on every board and for functions without one (nvmlInit, NvAPI_Initialize, ...)."""
        number = -1 if symbol == "*" else self._remote.symbol(symbol)
        self._remote.inject(-1, number, code, delay_ms, (hang, ignore), (after, times or 0))

    def clear_faults(self, symbol: str | None = None) -> None:
        """Remove all injected faults of the driver and of its boards; hanging calls go on."""
        self._remote.clear(-1, -1 if symbol is None else self._remote.symbol(symbol))

    # ---- what was called

    def log_everything(self, *, on: bool = True) -> None:
        """Log getters too; setters and control calls always are."""
        self._remote.set(-1, "log_everything", int(on))

    def log_mark(self) -> int:
        """The number of the newest record; for `call_log(after=...)`."""
        return self._remote.log_head()

    def call_log(self, symbols: Iterable[str] | str | None = None, *, after: int = 0) -> list[CallRecord]:
        """The last 16384 logged calls in order of entry, or those of the named functions."""
        records = self._remote.log(after)
        if symbols is None:
            return records
        wanted = {self._remote.symbol(name) for name in ([symbols] if isinstance(symbols, str) else symbols)}
        return [record for record in records if self._remote.symbol(record.symbol) in wanted]
