"""What `memscaler setup` does: checked as a whole first, and then no more than is missing.

What it writes is noted down before, so that a setup that was interrupted can be repeated or removed.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memscaler.config.load import Examined, examine
from memscaler.config.schema import Settings
from memscaler.core.errors import ConfigError, DaemonNotRunning, MemscalerError, Unavailable
from memscaler.core.servers import SUPERVISOR
from memscaler.daemon import systemd
from memscaler.daemon.doctor import kernel, units
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import Result
from memscaler.daemon.requests import Document
from memscaler.daemon.setup import drop_ins, files, manifest, program, steps
from memscaler.daemon.setup.files import File
from memscaler.daemon.setup.manifest import Manifest, checksum
from memscaler.daemon.setup.steps import Plan, Step

GROUP = "memscaler"
SERVERS_USER = SUPERVISOR
SAFE = (
    "install it where only root may write: sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install "
    "memscaler; then sudo /usr/local/bin/memscaler setup"
)
TO_WATCH = "discover = true, or a [[watch]] table"


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for.

    start: enable and start it. force: replace files that are not ours. discover, ports: of a new configuration.
    """

    root: Path = Path("/")
    start: bool = True
    force: bool = False
    discover: bool = False
    ports: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Not an image."""
        return self.root == Path("/")

    @property
    def is_live(self) -> bool:
        """There is a systemd that can start something."""
        return self.is_here and systemd.is_running(self.root)

    def systemctl(self, verb: str) -> str:
        """A command for people, which leaves the machine alone on which an image is made."""
        own_root = "" if self.is_here else f" --root={shlex.quote(str(self.root))}"
        now = " --now" if self.is_here and verb == "enable" else ""
        return f"sudo systemctl{own_root} {verb}{now} memscaler"


def plan(wish: Wish, own: program.Program) -> Plan:
    """Everything checked, nothing changed. Raise MemscalerError for what stands in the way."""
    if not wish.root.is_dir():
        raise MemscalerError(f"{wish.root} is no folder")
    _check_program(own)
    _check_package(wish)
    found = examine({}, {}, default=wish.root / files.CONFIG)
    _check_bcc(wish, found)
    known = manifest.load(wish.root) or Manifest()
    wanted, kept = _wanted(wish, own), list[File]()
    for file in map(files.drop_in, drop_ins.needed(found.settings)):
        is_kept = not wish.force and files.is_foreign(wish.root, file, known)
        (kept if is_kept else wanted).append(file)
    _check_foreign(wish, wanted, known)
    if found.problems:
        raise ConfigError("\n".join(found.problems), hint="correct it first; memscaler config check tells the same")
    new_config = files.present(wish.root, files.CONFIG) is None
    watches = _watches(found.settings) or (new_config and bool(wish.discover or wish.ports))
    users = tuple(sorted({server.user for server in found.settings.servers})) if found.settings else ()
    made = tuple(_steps(wish, wanted, known, new_config=new_config, watches=watches, users=users))
    notes = [f"{wish.root / file.path} is kept as it is (--force replaces it)" for file in kept]
    notes += _notes(wish, own, found, new_config=new_config, watches=watches)
    return Plan(made, tuple(notes), _refusal(wish, own))


# ---- what stands in the way -----------------------------------------------------------------------------------------


def _refusal(wish: Wish, own: program.Program) -> MemscalerError | None:
    """Of an image nobody asks: it has a systemd of its own."""
    if not wish.is_here or systemd.has_tools():
        return None
    hint = f"let what starts services here run `{own.path} run`, and `{own.path} restore` whenever that has ended"
    return Unavailable("this machine has no systemd (no systemctl)", hint=hint)


def _check_program(own: program.Program) -> None:
    if not own.path.is_file():
        raise MemscalerError(f"{own.path} is not there, so the service could not start it", hint=SAFE)
    suspicions = program.suspicions(own)
    if suspicions:
        told = [f"root must not run this installation ({own.path}):", *suspicions[: program.MOST_TOLD]]
        told += ["and more of that kind"] if len(suspicions) > program.MOST_TOLD else []
        raise MemscalerError("\n".join(told), hint=SAFE)


def _check_package(wish: Wish) -> None:
    """Two installations would be one too many."""
    found = units.find(wish.root)
    if found is None:
        return
    if found.masked:
        raise MemscalerError(f"{found.path} is masked", hint=wish.systemctl("unmask"))
    if found.path != wish.root / files.UNIT:
        hint = f"remove one of the two; the package's own needs no setup: {wish.systemctl('enable')}"
        raise MemscalerError(f"{found.path} comes from a package", hint=hint)


def _check_bcc(wish: Wish, found: Examined) -> None:
    """Of an image nobody can tell which python it has."""
    if not wish.is_here:
        return
    context = Context(found.settings or Settings(), found, {}, os.geteuid(), _nobody)
    verdict = kernel.bcc(context)
    if verdict.result is not Result.PASS:
        raise Unavailable(f"no python here can import bcc ({verdict.seen})", hint=f"{verdict.remedy}; then this again")


def _nobody() -> Document:
    raise DaemonNotRunning("nobody is asked")


def _check_foreign(wish: Wish, wanted: list[File], known: Manifest) -> None:
    foreign = [str(wish.root / file.path) for file in wanted if files.is_foreign(wish.root, file, known)]
    if foreign and not wish.force:
        told = "\n".join(f"{name} is there, and not as setup has written it" for name in foreign)
        raise MemscalerError(told, hint="move it away, or have it replaced: --force")


# ---- what is to be done ---------------------------------------------------------------------------------------------


def _wanted(wish: Wish, own: program.Program) -> list[File]:
    place = own.path
    if not wish.is_here and place.is_relative_to(wish.root):
        place = Path("/", place.relative_to(wish.root))
    found = [files.unit(place), *(files.unit(place, each) for each in (files.SERVERS, files.SERVERS_OF, files.GATEWAY))]
    if systemd.version() >= files.PAUSES_SINCE:
        found.append(files.pauses())
    if not wish.is_here or shutil.which("systemd-sysusers"):  # an image does that when it starts
        found.append(files.users())
    return [*found, *files.shared(wish.root)]


def _watches(settings: Settings | None) -> bool:
    return settings is not None and bool(settings.watches or settings.discover)


def has_group(root: Path, name: str = GROUP) -> bool:
    """By its own file."""
    return _is_listed(root / "etc/group", name)


def has_user(root: Path) -> bool:
    """Who runs servers."""
    return _is_listed(root / "etc/passwd", SERVERS_USER)


def _is_listed(file: Path, name: str) -> bool:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{name}:") for line in lines)


def _steps(
    wish: Wish, wanted: list[File], known: Manifest, *, new_config: bool, watches: bool, users: tuple[str, ...]
) -> Iterator[Step]:
    """In this order: nothing is started before all that it needs is there. users: for whom servers are described."""
    root = wish.root
    missing = [file for file in wanted if files.present(root, file.path) != file.content]
    obsolete = sorted(set(known.files) - {file.name for file in wanted})
    config = [files.config(wish.discover, list(wish.ports))] if new_config else []
    group, user = not has_group(root), not has_user(root)
    final = _known(root, wanted, [*missing, *config], known, group=group, user=user)
    started = program.fingerprint() if wish.start and watches and wish.is_live else known.started
    tasks = [steps.write(root, file) for file in (*missing, *config)]
    gone = [name for name in obsolete if _is_ours(root, name, known)]
    tasks += [steps.remove(root / name[1:]) for name in gone]
    if group or user:
        tasks += _make_group(wish, group=group)
    changed = [*(file.path for file in missing), *(name[1:] for name in gone)]
    tasks += _service_steps(wish, changed, known, started=started, watches=watches)
    tasks += _servers_steps(wish, missing, users, is_new=started != known.started)
    tasks += _gateway_steps(wish, missing, is_new=started != known.started)
    final = replace(final, started=started)
    if tasks or final != known:
        meanwhile = {name: (*known.files.get(name, ()), *sums) for name, sums in final.files.items()}
        before = replace(final, files={**known.files, **meanwhile}, started=known.started)
        yield steps.note(root, before, "what is about to be written, so that --remove finds it")
        yield from tasks
        yield steps.note(root, final, "what was written")


def _known(
    root: Path, wanted: list[File], written: list[File], known: Manifest, *, group: bool, user: bool
) -> Manifest:
    made = [folder for file in written for folder in files.missing_folders(root, root / file.path)]
    folders = (*known.folders, *(f"/{folder.relative_to(root)}" for folder in made))
    sums = {file.name: (checksum(file.content),) for file in wanted}
    return replace(
        known, files=sums, folders=tuple(dict.fromkeys(folders)), group=known.group or group, user=known.user or user
    )


def _is_ours(root: Path, name: str, known: Manifest) -> bool:
    there = files.present(root, name)
    return there is not None and known.is_ours(name, there)


def _make_group(wish: Wish, *, group: bool) -> Iterator[Step]:
    """None in an image that is made without systemd-sysusers: that runs when the image starts, before memscaler."""
    own_root = [] if wish.is_here else [f"--root={wish.root}"]
    if shutil.which("systemd-sysusers"):
        yield steps.run("systemd-sysusers", *own_root, str(wish.root / files.USERS))
    elif wish.is_here:
        if group:
            yield steps.run("groupadd", "--system", GROUP)
        if not has_user(wish.root):
            home = f"/var/lib/{SERVERS_USER}"
            yield steps.run("useradd", "--system", "--home-dir", home, "--shell", "/usr/sbin/nologin", SERVERS_USER)


def _servers_steps(wish: Wish, missing: list[File], users: tuple[str, ...], *, is_new: bool) -> Iterator[Step]:
    """Supervisors of described servers: enabled, started; after an upgrade restarted, which servers survive."""
    written = {Path(file.path).name for file in missing}
    for user in users if wish.start else ():
        unit, file = files.unit_of(user), files.SERVERS_OF if user else files.SERVERS
        if not (wish.root / files.WANTS / unit).is_symlink():
            yield steps.run("systemctl", "enable", unit) if wish.is_here else steps.enable(wish.root, unit, file)
        if wish.is_live:
            is_active = systemd.active_state(unit) == "active"
            if not is_active or is_new or file in written:
                yield steps.run("systemctl", "restart" if is_active else "start", unit)


def _gateway_steps(wish: Wish, missing: list[File], *, is_new: bool) -> Iterator[Step]:
    """It is the operator who enables it, perhaps on another machine; after an upgrade one that runs is restarted."""
    is_written = any(Path(file.path).name == files.GATEWAY for file in missing)
    if wish.start and wish.is_live and (is_new or is_written) and systemd.active_state(files.GATEWAY) == "active":
        yield steps.run("systemctl", "restart", files.GATEWAY)


def _service_steps(wish: Wish, changed: list[str], known: Manifest, *, started: str, watches: bool) -> Iterator[Step]:
    """changed: paths of files that are written or removed."""
    unit_is_new = any(path.startswith(files.UNIT) for path in changed)
    if wish.is_live and any(path.startswith(files.UNITS) for path in changed):
        yield steps.run("systemctl", "daemon-reload")
    if not wish.start:
        return
    found = units.find(wish.root)
    if found is None or not found.enabled:
        if wish.is_here:
            yield steps.run("systemctl", "enable", systemd.UNIT)
        elif not (wish.root / files.WANTED).is_symlink():
            yield steps.enable(wish.root)
    if not (wish.is_live and watches):
        return
    is_active = systemd.active_state() == "active"
    if not is_active or unit_is_new or started != known.started:
        hint = (
            "systemctl status memscaler and memscaler doctor tell why; where the driver is missing, it is tried again"
        )
        yield steps.run("systemctl", "restart" if is_active else "start", systemd.UNIT, hint=hint)


def _notes(wish: Wish, own: program.Program, found: Examined, *, new_config: bool, watches: bool) -> Iterator[str]:
    config = wish.root / files.CONFIG
    if not new_config and (wish.discover or wish.ports):
        yield f"{config} is kept as it is, --discover and --port are for a new one: edit it ({TO_WATCH})"
    if not watches:
        again = ", then sudo memscaler setup once more" if wish.is_here else ""  # in an image nothing is started
        yield f"no port is watched yet: {TO_WATCH} in {config}{again}"
    if found.distrust:
        yield f"the service will refuse its configuration: {found.distrust} ({found.remedy})"
    if not wish.start:
        yield f"not enabled: {wish.systemctl('enable')}"
    elif not wish.is_here:
        yield "memscaler starts when the image does"
    elif not wish.is_live and systemd.has_tools():
        yield "systemd does not run here: memscaler starts when the machine does"
    if not wish.is_here and not (own.path.is_relative_to(wish.root) or (wish.root / str(own.path)[1:]).exists()):
        yield f"{wish.root} has no {own.path}: install memscaler at the same place there"
