"""What is good as a configuration, and yet hardly what somebody wants: for `config check`, doctor and the log."""

from __future__ import annotations

from collections.abc import Iterator

from memscaler.config import gpuctl_doubts
from memscaler.config.gateway_doubts import doubts_of
from memscaler.config.schema import Settings
from memscaler.config.servers import Server
from memscaler.config.stages import ladder
from memscaler.core.stages import Stage


def doubts(settings: Settings) -> tuple[str, ...]:
    """Sentences, with the place."""
    return (*_unreachable(settings), *_misled(settings), *_unused(settings), *gpuctl_doubts.doubts(settings))


def _unreachable(settings: Settings) -> Iterator[str]:
    """Nobody can connect to a server that is stopped: only a gateway, or an operator, brings it back."""
    stops = any(rule.stage is Stage.STOP_SERVER for rule in settings.stages)
    if not stops:
        return
    # of one that leads there and wakes nobody gateway_doubts.py tells
    told = {gateway.server for gateway in settings.gateways} | {
        str(gateway.to.port) for gateway in settings.gateways if not gateway.mac
    }
    for name, port in _ends(settings):
        names = {name, port}
        rule = next((each for each in ladder(settings.stages, names) if each.stage is Stage.STOP_SERVER), None)
        if rule is not None and not names & told:
            yield (
                f"{rule.origin}: once {name or f'port {port}'} is stopped no [[gateway]] brings it back: "
                "a client finds nobody until `memscaler wake`"
            )


def _ends(settings: Settings) -> Iterator[tuple[str, str]]:
    """(name, port as text) of all servers that are known before they run."""
    described: dict[int, Server] = {
        server.port: server for server in settings.servers if server.enabled and server.port is not None
    }
    for port, server in described.items():
        yield server.name, str(port)
    for watch in settings.watches:
        if watch.port not in described:
            yield "", f"{watch.port}@{watch.scope}" if str(watch.scope) != "host" else str(watch.port)


def _misled(settings: Settings) -> Iterator[str]:
    """A gateway that does not do what it seems to be for; a stage for a port that nobody watches."""
    for gateway in settings.gateways:
        yield from (f"{gateway.origin}: {sentence}" for sentence in doubts_of(gateway, settings))
    known = {port.partition("@")[0] for _, port in _ends(settings)}
    for rule in () if settings.discover else settings.stages:
        for word in rule.servers:
            if word.partition("@")[0].isdecimal() and word.partition("@")[0] not in known:
                yield f"{rule.origin}: nobody watches port {word}, so its stage {rule.stage} is for nobody"


def _unused(settings: Settings) -> Iterator[str]:
    suspends = any(rule.stage is Stage.SUSPEND for rule in settings.stages)
    if settings.suspend.origin and not suspends:
        yield f'{settings.suspend.origin}: [suspend] without a [[stage]] that has do = "suspend": nothing is suspended'
    if settings.dry_run and settings.stages:
        yield f"{settings.stages[0].origin}: in a dry run no stage is entered"
