"""What is good as a gateway, and yet hardly what somebody wants: for `config check`, doctor, `--check`, the log."""

from __future__ import annotations

from memscaler.config.gateway_loops import ANY, is_here
from memscaler.config.schema import Settings
from memscaler.config.stages import Gateway, ladder
from memscaler.core.stages import Stage
from memscaler.core.watch import HOST


def doubts_of(gateway: Gateway, settings: Settings) -> tuple[str, ...]:
    """Sentences, without the place."""
    return tuple(filter(None, (_misled(gateway, settings), _idle(gateway, settings), _usurps(gateway, settings))))


def _misled(gateway: Gateway, settings: Settings) -> str:
    """It asks for one server and connects to another."""
    ports = {server.name: server.port for server in settings.servers}
    port = ports.get(gateway.server)
    if port is None or port == gateway.to.port or not is_here(gateway.to.host):
        return ""
    return f"{gateway.server} listens on port {port}, and to is {gateway.to}"


def _idle(gateway: Gateway, settings: Settings) -> str:
    """It leads to a server that a stage stops, and has it brought back by nobody."""
    if gateway.server or gateway.mac or not is_here(gateway.to.host):
        return ""
    name, port = _on(gateway.to.port, settings)
    rule = next((each for each in ladder(settings.stages, {name, port}) if each.stage is Stage.STOP_SERVER), None)
    if rule is None or not port:
        return ""
    who = name or f"the server on port {port}"
    return f'{rule.origin} stops {who}, and this gateway wakes nobody: write server = "{name or port}"'


def _usurps(gateway: Gateway, settings: Settings) -> str:
    """Where it listens is the place of a server, which cannot begin anew then."""
    host = gateway.listen.host
    name, port = _on(gateway.listen.port, settings) if host in ANY or is_here(host) else ("", "")
    if not port:
        return ""
    who = f"server {name}" if name else "a server that is watched"
    return f"listen is {gateway.listen}, and port {port} is that of {who}: have one of them listen elsewhere"


def _on(port: int, settings: Settings) -> tuple[str, str]:
    """(name, port as text) of the server of this machine there, as configured; ("", "") for none."""
    found = next((each for each in settings.servers if each.enabled and each.port == port), None)
    if found is not None:
        return found.name, str(port)
    watched = any(each.port == port and each.scope == HOST for each in settings.watches)
    return "", str(port) if watched else ""
