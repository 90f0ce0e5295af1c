"""Checks of the installation: the unit, its directory and group, and the configuration."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from memscaler.config import gpuctl_doubts
from memscaler.config.environment import unknown as unknown_variables
from memscaler.config.sleep_doubts import doubts
from memscaler.core.errors import PermissionMissing
from memscaler.daemon import systemd
from memscaler.daemon.doctor import units
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import Result, Verdict, failed, passed, unknown, warned
from memscaler.daemon.setup import drop_ins
from memscaler.daemon.setup.program import program_path
from memscaler.history.reader import HistoryMissing, HistoryUnreadable, open_history
from memscaler.history.store import DAMAGED
from memscaler.history.tables import FILE as HISTORY

GROUP = "memscaler"
NO_UNIT = "memscaler.service is not installed"
CLEANS = ("yes", "restart", "true", "1", "on")  # what keeps the directory


def installed(context: Context) -> Iterator[Verdict]:
    """The unit: there, enabled, active, alone, and starting a program that is there."""
    unit = units.find(context.root)
    for name in units.others(context.root):
        remedy = f"sudo systemctl disable --now {shlex.quote(name)}"
        yield warned(f"{name} runs memscaler, too: there can be one", remedy, name)
    if unit is None:
        yield warned(f"{NO_UNIT}; `memscaler run` needs none", _install())
        return
    if unit.masked:
        yield warned(f"{unit.path} is masked", "sudo systemctl unmask memscaler")
        return
    for path in unit.hidden:
        yield warned(f"{unit.path} hides {path}", "remove one of them, then sudo systemctl daemon-reload", path.name)
    program = unit.program("ExecStart")
    if program.startswith("/") and not context.at(program).exists():
        yield failed(f"{unit.path} starts {program}, which is not there", "systemctl edit memscaler: ExecStart=, twice")
        return
    names, keys = units.drop_ins(context.root)
    for each in drop_ins.needed(context.settings):
        if each.name not in names and not each.keys <= keys:
            place = f"/etc/systemd/system/{systemd.UNIT}.d/{each.name}"
            by_hand = f"sudo install -D -m 644 {shlex.quote(str(each.source))} {place}; sudo systemctl daemon-reload"
            is_setups = unit.path.is_relative_to(context.at("/etc"))  # setup refuses beside a package
            seen = f"{each.why} need more than the unit grants, and it has no {each.name}"
            yield warned(seen, _install() if is_setups else f"{by_hand}; sudo systemctl restart memscaler", each.name)
    yield _state(context, unit)


def _install() -> str:
    """By this very installation: sudo's PATH may lead to another, or to none."""
    return f"sudo {shlex.quote(str(program_path()))} setup"


def _state(context: Context, unit: units.Unit, name: str = "memscaler") -> Verdict:
    known = f"{unit.path} is {'enabled' if unit.enabled else 'not enabled'}"
    if not unit.enabled:
        return warned(known, f"sudo systemctl enable --now {name}")
    if not systemd.is_running(context.root):
        return unknown(f"{known}; systemd does not run here", "start it by what starts services on this machine")
    state = systemd.active_state(f"{name}.service")
    if state == "active":
        return passed(f"{known} and active")
    if not state:
        return unknown(f"{known}; systemd does not tell whether it is active", f"systemctl status {name}")
    tell = failed if state == "failed" else warned
    return tell(f"{known} and {state}", f"systemctl status {name} tells why; then sudo systemctl restart {name}")


def gateway(context: Context) -> Verdict:
    """Its unit, where there are [[gateway]] tables."""
    count = len(context.settings.gateways)
    unit, name = units.find(context.root, systemd.GATEWAY), systemd.GATEWAY.removesuffix(".service")
    if not count:
        if unit is not None and unit.enabled and not unit.masked:
            seen = f"{unit.path} is enabled, and no [[gateway]] is configured: it cannot start"
            return warned(seen, f"add a [[gateway]] table, or sudo systemctl disable --now {name}")
        return passed("no [[gateway]] is configured")
    about = f"{count} [[gateway]] table{'s' * (count != 1)}, and "
    if unit is None:
        return warned(f"{about}{systemd.GATEWAY} is not installed; `memscaler gateway` needs none", _install())
    if unit.masked:
        return warned(f"{about}{unit.path} is masked", f"sudo systemctl unmask {name}")
    program = unit.program("ExecStart")
    if program.startswith("/") and not context.at(program).exists():
        return failed(f"{unit.path} starts {program}, which is not there", f"systemctl edit {name}: ExecStart=, twice")
    return _state(context, unit, name)


def directory(context: Context) -> Iterator[Verdict]:
    """The journal of what is parked has to outlive the daemon, and to be nobody else's."""
    path = context.settings.runtime_dir
    yield _directory(path)
    unit = units.find(context.root)
    if unit is None:
        return
    if f"/run/{next(iter(unit.words('RuntimeDirectory')), '')}" != str(path):
        remedy = f"RuntimeDirectory={shlex.quote(path.name)} in the unit, or runtime_dir in the configuration"
        yield warned(f"the unit's RuntimeDirectory= is not {path}", remedy, unit.path.name)
    elif not set(unit.words("RuntimeDirectoryPreserve")) & set(CLEANS):
        seen = "the unit throws the journal of parked GPUs away when it stops"
        yield warned(seen, "RuntimeDirectoryPreserve=yes in the unit", unit.path.name)
    if not any("restore" in line for line in unit.service.get("ExecStopPost", [])):
        remedy = "ExecStopPost=/usr/bin/memscaler restore in the unit"
        yield warned("the unit does not run `memscaler restore` when it ends", remedy, unit.path.name)


def _directory(path: Path) -> Verdict:
    name = shlex.quote(str(path))
    try:
        status = path.lstat()
    except FileNotFoundError:
        return passed(f"{path} is not there yet; memscaler makes it")
    if not stat.S_ISDIR(status.st_mode):
        return failed(f"{path} is no directory", f"remove it: sudo rm {name}")
    if status.st_uid not in (0, os.geteuid()):
        return failed(f"{path} belongs to another user (uid {status.st_uid})", f"sudo chown root {name}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return failed(f"{path} may be written by others", f"sudo chmod go-w {name}")
    return passed(f"{path} is there and root's" if status.st_uid == 0 else f"{path} is there")


def history(context: Context) -> Iterator[Verdict]:
    """What the report and the adaptive idle time are made from."""
    folder = context.settings.kept_in
    place = _directory(folder)
    if place.result is not Result.PASS:
        yield place
        return
    try:
        with open_history(folder) as kept:
            count = len(kept.gpus())
        size_mb = (folder / HISTORY).stat().st_size / 1e6
    except HistoryMissing:
        if not _aside(folder):
            yield passed("there is no history yet; the daemon writes it every ten minutes")
    except PermissionMissing as error:
        yield unknown(str(error), error.hint)
    except (HistoryUnreadable, OSError) as error:
        yield warned(str(error), getattr(error, "hint", "see the log of the daemon"))
    else:
        yield passed(f"the history of {count} GPU{'s' * (count != 1)} has {size_mb:.1f} MB")
    if damaged := _aside(folder):
        seen = f"the history was damaged and begun anew; what it held until then is in {damaged}"
        yield warned(seen, f"is the disk sound (dmesg)? then sudo rm {shlex.quote(str(damaged))}")
    if os.geteuid() == 0 and folder.exists() and not os.access(folder, os.W_OK):
        yield warned(f"nothing can be written to {folder}", "mount it writable, or name another state_dir")


def _aside(folder: Path) -> Path | None:
    """The damaged history that was moved aside, if there is one."""
    damaged = folder / f"{HISTORY}{DAMAGED}"
    return damaged if damaged.exists() else None


def group(context: Context) -> Verdict:
    """Its members may read the status without root."""
    members = _members(context)
    if members is not None:
        return passed(f"group {GROUP} is there; members: {', '.join(members) or 'none'}")
    unit = units.find(context.root)
    by_sysusers = any(context.at(f"{folder}/sysusers.d/memscaler.conf").exists() for folder in ("/etc", "/usr/lib"))
    is_packaged = unit is not None and not unit.path.is_relative_to(context.at("/etc"))  # setup refuses beside one
    by_hand = f"sudo groupadd --system {GROUP}" if is_packaged or not systemd.has_tools() else _install()
    remedy = "sudo systemd-sysusers" if by_sysusers and shutil.which("systemd-sysusers") else by_hand
    if unit is not None and GROUP in unit.words("SupplementaryGroups"):
        return failed(f"there is no group {GROUP}, and without it the unit does not start (216/GROUP)", remedy)
    return warned(f"there is no group {GROUP}: only root may look at the status", remedy)


def _members(context: Context) -> list[str] | None:
    """None: there is no such group."""
    for line in context.text("/etc/group").splitlines():
        fields = line.split(":")
        if fields[0] == GROUP and len(fields) == 4:  # noqa: PLR2004  # group(5)
            return [name for name in fields[3].split(",") if name]
    if context.root == Path("/"):
        try:
            return list(grp.getgrnam(GROUP).gr_mem)  # it may come from elsewhere: nsswitch.conf(5)
        except KeyError:
            pass
    return None


# ---- the configuration ----------------------------------------------------------------------------------------------


def configuration(context: Context) -> Verdict:
    """What `memscaler config check` says."""
    found = context.examined
    if found is None:
        return unknown("the configuration may not be read by this user")
    if found.problems:
        return failed("; ".join(found.problems), "correct it; `memscaler config check` shows all of it line by line")
    name = found.names or "no file: the defaults and the environment"
    settings = found.settings or context.settings
    if not settings.watches and not settings.discover:
        return warned(f"{name}: good, but no port is watched", "add a [[watch]] table, or discover = true")
    ports = len(settings.watches)
    return passed(f"{name}: good, {ports} port{'s' * (ports != 1)}" + ", and what is found" * settings.discover)


def deeper(context: Context) -> Iterator[Verdict]:
    """What `config check` doubts, in the same words."""
    if context.examined is None:
        yield unknown("the configuration may not be read by this user")
        return
    sentences = (*doubts(context.settings), *gpuctl_doubts.here(context.settings))
    for sentence in sentences:
        yield warned(sentence, "change it if it is not meant so; `memscaler config check` tells the same")
    if not sentences:
        yield passed("nothing to doubt in [[stage]], [[gateway]] and [suspend]")


def trusted(context: Context) -> Verdict:
    """Nobody but root may write what decides what root does."""
    found = context.examined
    if found is None:
        return unknown("the configuration may not be read by this user")
    if not found.files:
        return passed("there is no file")
    if not found.opened:
        return failed("; ".join(found.problems), "name another file, or make it: memscaler config init")
    if found.distrust:
        return failed(found.distrust, f"sudo {found.remedy.replace(' && ', ' && sudo ')}")
    return passed(f"only {'their owners' if found.files[1:] else 'its owner'} may write {found.names}")


def variables(context: Context) -> Iterator[Verdict]:
    """Variables that look like ours, in this shell and in the unit."""
    sentences = list(unknown_variables(context.environ))
    unit = units.find(context.root)
    in_unit = unknown_variables(unit.environment()) if unit else ()
    sentences += [f"in the unit: {sentence}" for sentence in in_unit]
    for sentence in sentences:
        yield warned(sentence, "correct its name, or unset it", sentence.partition(":")[0])
    if not sentences:
        yield passed("no variable that nobody reads")
