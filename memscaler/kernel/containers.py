r"""Containers without their engines: which of them a cgroup path belongs to, and what it is called.

No engine is asked, and none needs to run. Sources for the names of cgroups:

    docker-<id>.scope, /docker/<id>              Docker with systemd as cgroup manager, and without
    libpod-<id>.scope[/container], libpod-<id>   podman (libpod/container_internal_linux.go), the same two ways
    UNIT/libpod-payload-<id>                     podman --cgroups=split, which is what Quadlet does
    cri-containerd-<id>.scope, crio-<id>.scope, kubepods*/.../<id>   Kubernetes; ...slice:cri-containerd:<id> where
                                                 kubelet and containerd disagree about the cgroup manager
    nerdctl-<id>.scope, /default/<id>            containerd by nerdctl
    lxc.payload.NAME, /lxc/NAME                  LXC 4 and newer (Incus, LXD), and before
    machine-NAME.scope, systemd-nspawn@NAME.service   systemd-nspawn (systemd-machined)

The ids are 64 hexadecimal digits. The helpers beside a container (libpod-conmon-..., lxc.monitor...) are not in it.

An unprivileged user may make any cgroup below its own. So what is below a user's manager (user@UID.service) gives way
to a container or unit of the system that is called the same, and a user's own files name only that user's containers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORT_ID = 12  # as engines print them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")  # what docker, podman, nerdctl, incus and machined allow

_MOST_BYTES = 16 << 20
_MOST_FILES = 4096

_ID = "[0-9a-f]{64}"
_BY_ID = re.compile(rf"(?:(?:docker|libpod|libpod-payload|cri-containerd|crio|nerdctl)-)?({_ID})(?:\.scope)?")
_MISMANAGED = re.compile(rf".+\.slice:[a-z-]+:({_ID})")
_BY_NAME = re.compile(r"lxc\.payload\.(.+)|machine-(.+)\.scope|systemd-nspawn@(.+)\.service", re.DOTALL)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_USER = re.compile(r"user[@-](\d{1,10})\.(?:service|slice)")


@dataclass(frozen=True, slots=True)
class Container:
    """A container as its cgroup has it. key: the id, or the name if it has none. uid: its user, unless that is root."""

    key: str
    uid: int | None = None

    @property
    def has_id(self) -> bool:
        return re.fullmatch(_ID, self.key) is not None


def _home(uid: int) -> Path | None:
    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        return None


@dataclass(frozen=True, slots=True)
class System:
    """Where things are on this machine; tests have others. root: what paths of engines and namespaces begin with."""

    root: Path = Path("/")
    home: Callable[[int], Path | None] = _home

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


HERE = System()


def container_of(path: str) -> Container | None:
    """The innermost container of a cgroup path."""
    uid: int | None = None
    found: Container | None = None
    above = ""
    for part in path.split("/"):
        if user := _USER.fullmatch(part):
            uid = int(user[1]) or None
        if by_id := _BY_ID.fullmatch(part) or _MISMANAGED.fullmatch(part):
            found = Container(by_id[1], uid)
        elif (by_name := _BY_NAME.fullmatch(part)) and (name := _plain(next(filter(None, by_name.groups())))):
            found = Container(name, uid)
        elif above in ("lxc", "lxc.payload") and NAME.fullmatch(part):
            found = Container(part, uid)
        above = part
    return found


def _plain(escaped: str) -> str:
    r"""What systemd has escaped: "-" is \x2d in a unit's name. "" for what is no name of a container then."""
    name = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), escaped)
    return name if NAME.fullmatch(name) else ""


# ---- what engines call their containers -----------------------------------------------------------------------------


def name_of(container: Container, system: System = HERE) -> str:
    """What its engine calls a container; "" if no engine here knows it."""
    if not container.has_id:
        return container.key
    if container.uid is None:
        return _stored_name(container, system.at("/var/lib"), _docker_root(system), _podman_root(system))
    home = system.home(container.uid)  # a user's container is in no file of root's
    if home is None:
        return ""
    share = home / ".local/share"
    return _stored_name(container, share, share / "docker", share / "containers/storage")


def publisher_of(port: int, system: System = HERE) -> tuple[str, int] | None:
    """The running Docker container that this TCP port of the host leads to, and the port there; None if none does.

    Where Docker does without docker-proxy (`"userland-proxy": false`), no process listens on such a port.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: a path that cannot be one
        for path in (_docker_root(system) / "containers").iterdir():
            document = _json(path / "config.v2.json", None)
            ports = _get(document, "NetworkSettings", "Ports") if _get(document, "State", "Running") else None
            for inner, bindings in ports.items() if isinstance(ports, dict) else ():
                number, _, protocol = inner.partition("/")
                outer = [_get(each, "HostPort") for each in bindings] if isinstance(bindings, list) else []
                if str(port) in outer and protocol == "tcp" and re.fullmatch("[0-9]{1,5}", number):
                    return _docker_name(document) or path.name[:SHORT_ID], int(number)
    return None


def _stored_name(container: Container, share: Path, docker: Path, podman: Path) -> str:
    stored = _json(docker / "containers" / container.key / "config.v2.json", container.uid)
    return _docker_name(stored) or _podman_name(container, podman) or _nerdctl_name(container, share)


def _docker_name(document: object) -> str:
    """Docker's file has the name with a slash before it (moby: daemon/container)."""
    name = _get(document, "Name")
    return _valid(name.removeprefix("/")) if isinstance(name, str) else ""


def _docker_root(system: System) -> Path:
    """Where dockerd keeps its data; many a machine with GPUs has moved it to a larger disk."""
    moved = _get(_json(system.at("/etc/docker/daemon.json"), None), "data-root")
    return system.at(moved if isinstance(moved, str) and moved.startswith("/") else "/var/lib/docker")


def _podman_root(system: System) -> Path:
    moved = None
    with contextlib.suppress(ValueError, RecursionError):
        settings = tomllib.loads(_text(system.at("/etc/containers/storage.conf"), None))
        moved = _get(settings, "storage", "graphroot")
    return system.at(moved if isinstance(moved, str) and moved.startswith("/") else "/var/lib/containers/storage")


def _podman_name(container: Container, root: Path) -> str:
    """containers/storage has a list per driver; containers of `podman run --rm` are in the volatile one."""
    for driver in ("overlay", "btrfs", "zfs", "vfs"):
        for name in ("containers.json", "volatile-containers.json"):
            stored = _json(root / f"{driver}-containers" / name, container.uid)
            for each in stored if isinstance(stored, list) else ():
                names = _get(each, "names")
                if _get(each, "id") == container.key and isinstance(names, list) and names:
                    return _valid(names[0])
    return ""


def _nerdctl_name(container: Container, share: Path) -> str:
    """A file per name, with the id in it: <data root>/<hash of containerd's address>/names/<namespace>/<name>."""
    with contextlib.suppress(OSError):
        for path in itertools.islice((share / "nerdctl").glob("*/names/*/*"), _MOST_FILES):
            if _valid(path.name) and _text(path, container.uid).strip() == container.key:
                return path.name
    return ""


def _valid(name: object) -> str:
    return name if isinstance(name, str) and NAME.fullmatch(name) else ""


def _get(document: object, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _json(path: Path, uid: int | None) -> object:
    try:
        return json.loads(_text(path, uid) or "null")
    except (ValueError, RecursionError):
        return None


def _text(path: Path, uid: int | None) -> str:
    """A regular file of root's or of this user's, of sensible size; else "". May be called on what a user has made."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
    except (OSError, ValueError):
        return ""
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST_BYTES or about.st_uid not in (0, uid or 0):
            return ""
        with os.fdopen(file, "rb", closefd=False) as opened:
            return opened.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)
