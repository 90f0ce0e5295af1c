"""What `memscaler setup --remove` does: every GPU awake first, then what setup has written, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from memscaler.config.load import examine
from memscaler.config.schema import Settings
from memscaler.core.errors import DaemonRunning, MemscalerError
from memscaler.daemon import systemd
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.lock import CALIBRATION, DAEMON, acquire, refuse_beside_daemon
from memscaler.daemon.setup import files, manifest, steps
from memscaler.daemon.setup.install import GROUP, SERVERS_USER, Wish, has_group, has_user
from memscaler.daemon.setup.steps import Plan, Step
from memscaler.gpu.journal import Journal
from memscaler.gpu.restore import restore_from

# What --purge removes: what it was told, what it has counted, and what servers have left in their folders.
OWN = ("etc/memscaler", "var/lib/memscaler", "var/lib/memscaler-servers", "var/log/memscaler-servers")
RUNTIME = Path("/run/memscaler")  # RuntimeDirectory= of the unit


def plan(wish: Wish, *, purge: bool) -> Plan:
    """Nothing is changed. Raise MemscalerError if it is not known what is ours."""
    known = manifest.load(wish.root)
    if known is None or not (known.files or purge):
        stale = () if _governs(wish) else tuple(_runtime(wish))
        return Plan(stale, ("setup has installed nothing here",))
    changed = [name for name in known.files if _is_changed(wish.root, name, known)]
    kept = [name for name in changed if not purge or (wish.root / name[1:]).is_dir()]
    ours = [name for name in known.files if files.present(wish.root, name) is not None and name not in kept]
    made = [*_stop(wish, known)]
    made += [steps.remove(wish.root / name[1:], "changed since" * (name in changed)) for name in ours]
    trees = [path for name in OWN if (path := wish.root / name).exists()] if purge else []
    made += [Step(f"remove  {path}, with all that is in it", partial(shutil.rmtree, path)) for path in trees]
    if purge and known.user and has_user(wish.root):
        made.append(_remove_user(wish))
    made += _runtime(wish)
    if purge and known.group and has_group(wish.root):
        made.append(_remove_group(wish))
    empty = _emptied(wish.root, known, {*trees, *(wish.root / name[1:] for name in ours)})
    made += [Step(f"remove  {path}", partial(_remove_folder, path)) for path in empty]
    if not purge:
        left = manifest.Manifest({name: known.files[name] for name in kept}, known.folders, known.group, known.user)
        made.append(steps.note(wish.root, left, "what is left of it, for --purge"))
    if wish.is_live:
        made.append(steps.run("systemctl", "daemon-reload"))
    return Plan(tuple(made), tuple(_notes(wish, kept, purge=purge)))


def _notes(wish: Wish, kept: list[str], *, purge: bool) -> Iterator[str]:
    too = "" if purge else " (--purge removes it too)"
    for name in kept:
        yield f"{wish.root / name[1:]} was changed since, and is kept{too}"
    own = [str(wish.root / name) for name in OWN if (wish.root / name).exists()]
    if own and not purge:
        yield f"kept: {' and '.join(own)} (--purge removes them too)"


def _is_changed(root: Path, name: str, known: manifest.Manifest) -> bool:
    there = files.present(root, name)
    return there is not None and not known.is_ours(name, there)


def _stop(wish: Wish, known: manifest.Manifest) -> Iterator[Step]:
    """Disable and stop; and whatever is parked after that is woken before its tools are gone."""
    ours = ("memscaler-servers", files.GATEWAY)
    wanted = (wish.root / files.WANTS).glob("memscaler-*.service")
    for link in sorted(link for link in wanted if link.name.startswith(ours)):
        if wish.is_here:
            yield steps.run("systemctl", "disable", *(["--now"] if wish.is_live else []), link.name)
        else:
            yield steps.disable(wish.root, link.name)
    if f"/{files.UNIT}" in known.files and files.present(wish.root, files.UNIT) is not None:
        now = ["--now"] if wish.is_live else []
        if wish.is_here:
            yield steps.run("systemctl", "disable", *now, systemd.UNIT)
        elif (wish.root / files.WANTED).is_symlink():
            yield steps.disable(wish.root)
    if wish.is_here:
        yield Step("check   that every GPU is awake, and wake those that are not", _wake)


def _wake() -> None:
    settings = examine({}, {}).settings or Settings()
    for place in dict.fromkeys((settings.runtime_dir, RUNTIME)):  # the unit's goes before that of the configuration
        try:
            refuse_beside_daemon(place)
        except DaemonRunning as error:
            hint = "stop it first; nothing was removed"
            raise MemscalerError(str(error), hint=hint) from error
        journal = place / JOURNAL
        if journal.is_dir() and Journal(journal).entries():
            report = restore_from(journal)
            if not report.ok:
                raise MemscalerError(str(report), hint="nothing was removed; memscaler restore tries again")


def _governs(wish: Wish) -> bool:
    """Somebody does, here: a package's service, perhaps."""
    try:
        refuse_beside_daemon(RUNTIME)
    except DaemonRunning:
        return wish.is_here
    return False


def _runtime(wish: Wish) -> Iterator[Step]:
    if wish.is_here and RUNTIME.is_dir():
        yield Step(f"remove  {RUNTIME}, if nothing is parked", partial(remove_runtime, RUNTIME))


def remove_runtime(path: Path) -> None:
    """The folder that systemd keeps over a stop; but not what a GPU that is parked, or who works with it, needs."""
    with contextlib.ExitStack() as held, contextlib.suppress(DaemonRunning, FileNotFoundError):
        for name in (DAEMON, CALIBRATION):
            held.callback(os.close, acquire(path, name))
        if not Journal(path / JOURNAL).entries():
            shutil.rmtree(path)


def _emptied(root: Path, known: manifest.Manifest, gone: set[Path]) -> Iterator[Path]:
    """The folders made by setup that have nothing in them once these are gone, the inner ones first."""
    for name in sorted(known.folders, key=lambda name: name.count("/"), reverse=True):
        path = root / name[1:]
        if path not in gone and path.is_dir() and set(path.iterdir()) <= gone:
            gone.add(path)
            yield path


def _remove_folder(path: Path) -> None:
    """Unless somebody has put something there by now."""
    with contextlib.suppress(OSError):
        path.rmdir()


def _remove_user(wish: Wish) -> Step:
    """With the group of its name, which userdel may leave (login.defs(5), USERGROUPS_ENAB)."""
    own_root = [] if wish.is_here else ["--root", str(wish.root)]
    user = steps.run("userdel", *own_root, SERVERS_USER)

    def do() -> None:
        user.do()
        if has_group(wish.root, SERVERS_USER):
            steps.run("groupdel", *own_root, SERVERS_USER).do()

    return Step(user.text, do)


def _remove_group(wish: Wish) -> Step:
    own_root = [] if wish.is_here else ["--root", str(wish.root)]
    return steps.run("groupdel", *own_root, GROUP)
