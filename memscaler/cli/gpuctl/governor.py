"""What the governor that runs tells of itself: its rules, its names of GPUs, and where it looks for GVM and for boards.

So that these commands see what it sees, also where it was started with a configuration or simulated boards of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memscaler.core.errors import MemscalerError
from memscaler.core.gpuctl import NO_LIMIT

if TYPE_CHECKING:
    from memscaler.config.gpuctl import Gvm
    from memscaler.config.schema import Settings

LEFT = "a memscaler that is gone has left processes frozen, or otherwise set: `sudo memscaler restore` undoes that"
ASK_S = 3.0  # the governor, which may be busy or gone: all of this works without it
_MOST_NUMBER = 10_000  # of GVM's directories


def status_of(settings: Settings) -> tuple[Mapping[str, Any], str]:
    """The governor's; and what one that is gone has left."""
    from memscaler.cli.client import Client
    from memscaler.core.errors import DaemonNotRunning
    from memscaler.daemon.journals import CONTROLLED, tells_of_something

    try:
        return Client(str(settings.runtime_dir), ASK_S).status(), ""
    except DaemonNotRunning:
        return {}, LEFT if tells_of_something(settings.runtime_dir, CONTROLLED) else ""
    except MemscalerError:
        return {}, ""


def gpu_names(status: Mapping[str, Any]) -> dict[str, str]:
    """By UUID."""
    gpus = [*_dicts(status.get("gpus")), *_dicts(status.get("ungoverned"))]
    return {str(each.get("uuid")): str(each.get("gpu")) for each in gpus if each.get("gpu")}


def controlled(status: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """What its rules have set, or want to."""
    told = status.get("gpuctl")
    return tuple(map(_controlled, _dicts(told.get("controlled")) if isinstance(told, dict) else []))


def watched(settings: Settings, status: Mapping[str, Any]) -> frozenset[int]:
    """As configured, and as the governor has found."""
    from memscaler.core.watch import HOST

    told = {each.get("port") for each in _dicts(status.get("watches")) if each.get("scope") == str(HOST)}
    configured = {watch.port for watch in settings.watches if watch.scope == HOST}
    return frozenset(configured | {port for port in told if isinstance(port, int)})


def boards(settings: Settings, status: Mapping[str, Any]) -> tuple[str, ...]:
    """The simulated boards of the governor; none if its GPUs are real, or are not known."""
    from memscaler.simulator.binding import SimulatorError
    from memscaler.simulator.loading import STATE
    from memscaler.simulator.remote import SimulatedDriver

    state, uuids = settings.runtime_dir / STATE, gpu_names(status).keys()
    if not uuids or not state.exists():
        return ()
    try:
        with SimulatedDriver.attach(state) as driver:
            known = {board.uuid for board in driver.boards}
            return tuple(board.key for board in driver.boards) if uuids <= known else ()
    except (SimulatorError, OSError):
        return ()


def gvm_of(settings: Settings, status: Mapping[str, Any]) -> Gvm:
    """Where it looks for GVM's driver. What is configured here, if it does not tell, or is not to be trusted.

    Root writes below that directory: a socket that another user has made does not say where.
    """
    from memscaler.config.gpuctl import Gvm
    from memscaler.config.schema import CONTROL_SOCKET

    gpuctl = status.get("gpuctl")
    told = gpuctl.get("gvm_at") if isinstance(gpuctl, dict) else None
    try:
        owner = (settings.runtime_dir / CONTROL_SOCKET).stat().st_uid
        if isinstance(told, dict) and owner in (0, os.geteuid()):
            root, proc = Path(told["root"]), Path(told["proc_root"])
            numbers = {int(number): str(uuid) for number, uuid in dict(told["gpu_map"]).items()}
            is_sane = all(path.is_absolute() and str(path).isprintable() for path in (root, proc))
            if is_sane and all(0 <= each <= _MOST_NUMBER for each in numbers):
                return Gvm(root=root, proc=proc, gpu_map=numbers)
    except (OSError, KeyError, TypeError, ValueError):  # gone meanwhile; of another version
        pass
    return settings.gvm


def _dicts(value: object) -> list[dict[str, Any]]:
    """Of what another process has said: it may be of another version."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _controlled(told: Mapping[str, Any]) -> dict[str, Any]:
    """What we need of it, of the types that we need."""
    texts = {key: str(told.get(key) or "") for key in ("rule", "name", "gpu", "knob", "means", "problem")}
    pid, value, since_s = told.get("pid"), told.get("value"), told.get("since_s")
    return {
        **texts,
        "pid": pid if isinstance(pid, int) else 0,
        "value": value if isinstance(value, int) and abs(value) <= NO_LIMIT else None,
        "since_s": since_s if isinstance(since_s, (int, float)) and math.isfinite(since_s) else None,
    }
