"""The files that setup writes: what, where and from what. Nothing is made up here but the unit's program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from memscaler import resources
from memscaler.config.render import literal, sample
from memscaler.core.errors import MemscalerError
from memscaler.core.watch import HOST
from memscaler.daemon import systemd
from memscaler.daemon.setup.drop_ins import DropIn
from memscaler.daemon.setup.manifest import Manifest
from memscaler.files import write_own

UNITS = "etc/systemd/system/"
UNIT = f"{UNITS}{systemd.UNIT}"
PAUSES = f"{UNIT}.d/pauses.conf"
PAUSES_SINCE = 254  # RestartSteps=
USERS = "etc/sysusers.d/memscaler.conf"
SERVERS, SERVERS_OF = "memscaler-servers.service", "memscaler-servers@.service"  # the second for a user's own servers
GATEWAY = systemd.GATEWAY
WANTS = "etc/systemd/system/multi-user.target.wants"  # WantedBy= of the units
WANTED = f"{WANTS}/{systemd.UNIT}"
CONFIG = "etc/memscaler/config.toml"
SHARE = "usr/local/share"
FISH = "etc/fish"  # the only place of those that administrators may write where fish always looks
PACKAGED = "/usr/bin/memscaler"  # as the unit has it
_EXEC = re.compile(rf"^(Exec\w+=){re.escape(PACKAGED)}(?= |$)", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z0-9_./+:=@~,%-]+")
HEAD = "# Written by `memscaler setup`, which writes it anew after an upgrade: `systemctl edit memscaler` is kept.\n"


@dataclass(frozen=True, slots=True)
class File:
    """path: below the root, without a leading "/"."""

    path: str
    content: bytes
    about: str = ""

    @property
    def name(self) -> str:
        """As it will be on the machine."""
        return f"/{self.path}"


def unit(program: Path, unit_name: str = systemd.UNIT) -> File:
    """A unit that comes with memscaler, with this program. Raise MemscalerError for one that it cannot start."""
    if not _PLAIN.fullmatch(str(program)):
        hint = "install memscaler in a folder without blanks and the like"
        raise MemscalerError(f"{program} cannot stand in a unit", hint=hint)
    text = (resources.systemd_dir() / unit_name).read_text(encoding="utf-8")
    name = str(program).replace("%", "%%")
    head = HEAD.replace("edit memscaler", f"edit {unit_name.removesuffix('.service')}")
    path = f"etc/systemd/system/{unit_name}"
    return File(path, (head + _EXEC.sub(lambda found: found[1] + name, text)).encode(), f"starts {program}")


def unit_of(user: str) -> str:
    """The name of the unit that runs the servers of this user; "": those without one."""
    return SERVERS_OF.replace("@", f"@{user}") if user else SERVERS


def pauses() -> File:
    """For a systemd that knows its lines."""
    return File(PAUSES, (resources.systemd_dir() / "memscaler.pauses.conf").read_bytes())


def drop_in(each: DropIn) -> File:
    """For a configuration that needs it."""
    return File(f"{UNIT}.d/{each.name}", each.source.read_bytes(), f"needed by {each.why}")


def users() -> File:
    """The group, for systemd-sysusers."""
    return File(USERS, (resources.systemd_dir() / "memscaler.sysusers.conf").read_bytes())


def config(discover: bool, ports: list[str]) -> File:  # noqa: FBT001  # as it stands on the command line
    """What `memscaler config init` prints, with what was asked for."""
    from memscaler.config.ports import parse_watch

    text = sample()
    if discover:
        text = text.replace("\n#discover = false\n", "\ndiscover = true\n", 1)
    for watch in map(parse_watch, ports):
        text += f"\n[[watch]]\nport = {watch.port}\n"
        text += f"scope = {literal(str(watch.scope))}\n" if watch.scope != HOST else ""
        text += f"gpus = {literal(list(watch.gpus))}\n" if watch.gpus else ""
    return File(CONFIG, text.encode())


def shared(root: Path) -> list[File]:
    """Completion, manual, dashboard and alert rules."""
    completions, man, deploy = resources.completions_dir(), resources.man_dir(), resources.deploy_dir()
    sources = {
        f"{SHARE}/bash-completion/completions/memscaler": completions / "memscaler.bash",
        f"{SHARE}/zsh/site-functions/_memscaler": completions / "_memscaler",
        **{f"{SHARE}/man/man{page.suffix[1:]}/{page.name}": page for page in sorted(man.glob("*.[158]"))},
        f"{SHARE}/memscaler/grafana/memscaler.json": deploy / "grafana/memscaler.json",
        f"{SHARE}/memscaler/prometheus/alerts.yml": deploy / "prometheus/alerts.yml",
    }
    if (root / FISH).is_dir():
        sources[f"{FISH}/completions/memscaler.fish"] = completions / "memscaler.fish"
    return [File(path, source.read_bytes()) for path, source in sources.items()]


def present(root: Path, path: str) -> bytes | None:
    """What is there; None: nothing. A link, or whatever else is no file, is b"": nobody's. Raise OSError."""
    place = root / path.lstrip("/")
    if not place.is_symlink() and place.is_file():
        return place.read_bytes()
    return b"" if place.is_symlink() or place.exists() else None


def is_foreign(root: Path, file: File, manifest: Manifest) -> bool:
    """Whether something else is in its place, or somebody has changed it."""
    there = present(root, file.path)
    return there is not None and there != file.content and not manifest.is_ours(file.name, there)


def write(root: Path, file: File, mode: int = 0o644) -> None:
    """All of it or nothing, whatever the umask; a link in its place is replaced and not followed. Raise OSError."""
    path = root / file.path
    for folder in missing_folders(root, path):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    write_own(path, file.content, mode)


def missing_folders(root: Path, path: Path) -> list[Path]:
    """Those on the way to it that are not there, the outer ones first."""
    on_the_way = [each for each in path.parents if each.is_relative_to(root) and not each.exists()]
    return on_the_way[::-1]
