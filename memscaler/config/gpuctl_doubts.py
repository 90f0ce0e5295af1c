"""Rules that are good as such, and yet hardly what somebody wants: for `config check`, doctor and the log."""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Iterator

from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.config.gpuctl_tables import is_port
from memscaler.config.schema import Settings
from memscaler.core.watch import HOST

_LEAST_BYTES = 1 << 20  # below it a unit was forgotten: no process on a GPU does with less
_WILD = frozenset("*?[")


def doubts(settings: Settings) -> Iterator[str]:
    """Sentences, with the place."""
    known = {str(server.port) for server in settings.servers if server.enabled and server.port is not None}
    known |= {str(watch.port) for watch in settings.watches}  # a port alone means it in whatever scope
    known |= {f"{watch.port}@{watch.scope}" for watch in settings.watches if watch.scope != HOST}
    yield from of_rules(settings.gpuctl)
    for rule in settings.gpuctl:
        if not settings.discover:
            yield from (
                f"{rule.origin}: nobody watches port {word}, so rule {rule.name} is for nobody there"
                for word in rule.watches
                if is_port(word) and word not in known
            )
    if settings.dry_run and settings.gpuctl:
        yield f"{settings.gpuctl[0].origin}: in a dry run no rule of [[gpuctl]] does anything"


def of_rules(rules: Iterable[GpuctlRule]) -> Iterator[str]:
    """What can be told of them alone: also where something else is wrong with the file, or with the rule."""
    for rule in rules:
        yield from _of_rule(rule)


def here(settings: Settings) -> Iterator[str]:
    """Sentences about what this machine does not have: for who asks, as a directory of users may be slow to answer."""
    for rule in settings.gpuctl:
        for match in rule.processes:
            if match.kind == "user" and not _WILD & set(match.text) and not _is_user(match.text):
                yield f"{rule.origin}: rule {rule.name}: there is no user {match.text} here"
    if settings.gvm.proc != Gvm().proc and not (settings.gvm.proc / "self").is_symlink():
        place = settings.origins.get("gvm.proc_root", "[gvm]")
        yield f"{place}: {settings.gvm.proc} is no /proc: GVM's threads cannot be told from processes by it"


def _is_user(name: str) -> bool:
    """A number is a user, with a name or without."""
    try:
        return name.isdecimal() or bool(pwd.getpwnam(name))
    except (KeyError, ValueError):
        return False


def _of_rule(rule: GpuctlRule) -> Iterator[str]:
    if not rule.values():
        yield f"{rule.origin}: rule {rule.name} sets nothing: write freeze = true, or cpu_nice = 10"
    if rule.memory_limit_bytes == 0:
        yield f'{rule.origin}: memory_limit = 0 moves all memory to the host; "max" is no limit'
    elif rule.memory_limit_bytes is not None and rule.memory_limit_bytes < _LEAST_BYTES:
        yield f'{rule.origin}: memory_limit is {rule.memory_limit_bytes} bytes: if GiB are meant, write "6G"'
    if rule.at_most_s and rule.when == "busy" and rule.at_most_s < rule.release_after_s:
        yield f"{rule.origin}: rule {rule.name}: at_most is shorter than release_after, so it always ends by at_most"
