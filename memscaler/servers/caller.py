"""Whose rights a model server gets: never root's only because the governor needs them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from memscaler.core.errors import MemscalerError
from memscaler.servers.keep import User

_ABOUT_ROOT = ("SUDO_COMMAND", "SUDO_GID", "SUDO_UID", "SUDO_USER", "SUDO_HOME", "MAIL")


def caller(environ: Mapping[str, str]) -> User | None:
    """Who called sudo; None where nobody did: the server gets our own rights. Raise MemscalerError for nonsense."""
    if os.geteuid():
        return None
    told = environ.get("SUDO_UID", "")
    if told in ("", "0"):
        return None
    gid = environ.get("SUDO_GID", told)
    if not (_is_id(told) and _is_id(gid)):
        raise MemscalerError(f"SUDO_UID={told} SUDO_GID={gid} are no user's", hint="sudo sets them; unset them")
    try:
        entry = pwd.getpwuid(int(told))
    except (KeyError, OverflowError):
        return User(told, int(told), int(gid), (int(gid),))
    return User(entry.pw_name, entry.pw_uid, int(gid), tuple(os.getgrouplist(entry.pw_name, int(gid))))


def _is_id(text: str) -> bool:
    """The largest number is none: to the kernel it means that the user is to stay who it is, root."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < (1 << 32) - 1  # noqa: PLR2004


def environment_of(user: User | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what is for us; for another user with that one's name and home."""
    kept = {name: value for name, value in environ.items() if not name.startswith("MEMSCALER_")}
    if user is None:
        return kept
    for name in _ABOUT_ROOT:
        kept.pop(name, None)
    try:
        home = pwd.getpwuid(user.uid).pw_dir
    except KeyError:
        home = "/"
    for name in [name for name, value in kept.items() if name.startswith("XDG_") and _is_roots(value)]:
        del kept[name]
    return {**kept, "HOME": home, "USER": user.name, "LOGNAME": user.name}


def _is_roots(place: str) -> bool:
    """Where another user may not go."""
    return any(Path(place).is_relative_to(each) for each in ("/run/user/0", pwd.getpwuid(0).pw_dir))
