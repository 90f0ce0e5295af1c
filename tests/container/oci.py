"""What Docker makes of a service of compose.yaml, for an OCI runtime: the same namespaces, rights, mounts, seccomp.

Only what our file uses. The seccomp profile is the one that podman ships (golang-github-containers-common), which begins
as Docker's does: what it allows depends on the capabilities that are granted.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy/container/compose.yaml"
SECCOMP = Path("/usr/share/containers/seccomp.json")
NAMESPACES = {"pid": "pid", "network_mode": "network", "cgroup": "cgroup", "ipc": "ipc", "uts": "uts"}
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"]
NODEV = ["nosuid", "noexec", "nodev"]


def service(name: str) -> dict[str, Any]:
    """As the file says."""
    return copy.deepcopy(yaml.safe_load(COMPOSE.read_text())["services"][name])


def config(
    said: Mapping[str, Any],
    image: Path,
    command: Iterable[str],
    *,
    environment: Mapping[str, str],
    more: Mapping[str, Path],
    instead: Mapping[str, Path],
) -> dict[str, Any]:
    """The runtime's config.json. more: binds on top, target -> source; instead: another source for a target."""
    assert not said.get("privileged")
    granted = [f"CAP_{name}" for name in said["cap_add"]]
    assert said["cap_drop"] == ["ALL"]
    empty = {"inheritable": [], "ambient": []}
    capabilities = {"bounding": granted, "effective": granted, "permitted": granted, **empty}
    unlimited = (1 << 64) - 1
    limits = [
        {
            "type": f"RLIMIT_{name.upper()}",
            "hard": unlimited if most < 0 else most,
            "soft": unlimited if most < 0 else most,
        }
        for name, most in said.get("ulimits", {}).items()
    ]
    shared = {kind for key, kind in NAMESPACES.items() if said.get(key) == "host"}
    own = [kind for kind in ("pid", "network", "ipc", "uts", "cgroup") if kind not in shared]
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": capabilities,
            "rlimits": limits,
            "noNewPrivileges": "no-new-privileges:true" in said["security_opt"],
            "oomScoreAdj": said["oom_score_adj"],
        },
        "root": {"path": str(image), "readonly": said["read_only"]},
        "mounts": [
            *_system(said),
            *_volumes(said, instead),
            *(bind(str(source), target) for target, source in more.items()),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in (*own, "mount")],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp(granted),
        },
    }


def seccomp(granted: Iterable[str]) -> dict[str, Any]:
    """The default profile, as it is for who has these capabilities on this machine."""
    said, has = json.loads(SECCOMP.read_text()), set(granted)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    kept = []
    for rule in said["syscalls"]:
        only, never = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(only.get("caps", [])) <= has or machine not in only.get("arches", [machine]):
            continue
        if set(never.get("caps", [])) & has or machine in never.get("arches", []):
            continue
        kept.append({key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)})
    architecture = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}[machine]
    return {"defaultAction": said["defaultAction"], "architectures": [architecture], "syscalls": kept}


def _system(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every container has, and tmpfs."""
    assert said["cgroup"] == "host", "else the container would see its own part only"
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*NODEV, "mode=1777"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*NODEV, "ro"]},
        bind("/sys/fs/cgroup", "/sys/fs/cgroup", "ro"),
        *({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": NODEV} for path in said["tmpfs"]),
    ]


def _volumes(said: Mapping[str, Any], instead: Mapping[str, Path]) -> list[dict[str, Any]]:
    mounts = []
    for volume in said["volumes"]:
        target = volume["target"]
        source = instead.get(target, volume["source"] if volume["type"] == "bind" else None)
        assert source, f"a test must say where {target} is"
        mounts.append(bind(str(source), target, "ro" if volume.get("read_only") else "rw"))
    return mounts


def bind(source: str, target: str, how: str = "ro") -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": ["bind", how]}
