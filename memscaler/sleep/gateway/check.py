"""What gateways would find: whether they could listen, whether backends answer, who wakes them, where packets go."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from memscaler.config.gateway_doubts import doubts_of
from memscaler.config.gateway_loops import LEADS_ELSEWHERE
from memscaler.config.schema import Settings
from memscaler.config.stages import Gateway
from memscaler.sleep.gateway import packets
from memscaler.sleep.gateway.holder import holder_of
from memscaler.sleep.gateway.known import ask, judge
from memscaler.sleep.gateway.listening import NEEDS_RIGHT, first_free_port, trouble
from memscaler.sleep.gateway.loops import loop_of
from memscaler.sleep.gateway.world import name_of

NEIGHBOURS = Path("/proc/net/arp")
_NOBODY = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one gateway. problems: it will not work; warnings: it may not, as it is meant. facts: the rest."""

    gateway: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of the gateways that are checked. control: the governor's socket. listen, config: what the command line says."""

    gateways: tuple[Gateway, ...]
    settings: Settings
    control: Path
    listen: str = ""
    config: str = ""


def check(around: Surroundings) -> list[Finding]:
    """Connects to the backends, and wakes nothing."""
    told, silence = ask(around.control) if any(each.server for each in around.gateways) else (None, "")
    findings = []
    for gateway in around.gateways:
        problems: list[str] = []
        warnings: list[str] = []
        facts: list[str] = []
        _check_place(gateway, around, problems, warnings, facts)
        hosts = _resolved(gateway.to.host)
        if not hosts:
            problems.append(f"{gateway.to.host} is no name that can be looked up")
        elif wrong := loop_of(gateway, around.gateways, hosts):
            problems.append(f"{wrong}: {LEADS_ELSEWHERE}")
        else:
            facts.append(f"{gateway.to}: {_connects(hosts[0], gateway.to.port, gateway.connect_timeout_s)}")
            if gateway.mac:
                _check_packets(gateway, hosts[0], warnings, facts)
        if gateway.server:
            if silence:
                warnings.append(f"server {gateway.server} is brought back by nobody: {silence}")
            wrong, doubt = judge(gateway.server, around.settings, told)
            problems += [wrong] if wrong else []
            warnings += [doubt] if doubt else []
        told_of_it = doubts_of(gateway, around.settings)
        warnings += told_of_it
        if not gateway.server and not gateway.mac and not told_of_it:
            warnings.append("neither server nor mac: the gateway waits for the backend, and wakes nothing")
        findings.append(Finding(name_of(gateway), tuple(problems), tuple(warnings), tuple(facts)))
    return findings


def _check_place(
    gateway: Gateway, around: Surroundings, problems: list[str], warnings: list[str], facts: list[str]
) -> None:
    """Where it is to listen."""
    free = first_free_port()
    if 0 < gateway.listen.port < free:
        warnings.append(f"listen: {NEEDS_RIGHT.format(free)}")
    wrong = trouble(gateway.listen)
    if wrong is None or wrong.number == errno.EACCES:
        return
    if wrong.number != errno.EADDRINUSE:
        problems.append(f"{wrong}: {wrong.hint}")
        return
    holder = holder_of(gateway.listen, listen=around.listen, config=around.config)
    if holder.is_ours:
        facts.append(f"{gateway.listen}: {holder.who} listens there already")
    else:
        problems.append(f"{gateway.listen} is taken by {holder.who}: end that (`ss -ltnp`), or write another `listen`")


def _resolved(host: str) -> tuple[str, ...]:
    try:
        return tuple(str(place[0]) for *_, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM))
    except OSError:
        return ()


def _connects(host: str, port: int, within_s: float) -> str:
    try:
        with socket.create_connection((host, port), timeout=within_s):
            return "answers now"
    except OSError as error:
        return f"does not answer now ({error.strerror or error})"


def _check_packets(gateway: Gateway, host: str, warnings: list[str], facts: list[str]) -> None:
    seen = neighbours().get(host, "")
    if seen and seen != gateway.mac:
        warnings.append(f"mac is {gateway.mac}, but {host} answers as {seen} at the moment")
    if gateway.wake_to is not None:
        facts.append(f"packets go to {gateway.wake_to}")
        return
    try:
        way = packets.way_to(host)
    except OSError as error:
        warnings.append(f"no route to {host}: {error.strerror or error}")
        return
    facts.append(f"packets go to everybody on {way.name}")
    if way.routed:
        warnings.append(f"{host} is behind a router, where no broadcast goes: set wake_to")


def neighbours() -> dict[str, str]:
    """Hardware addresses that this machine has heard of lately, by address."""
    found = {}
    with suppress(OSError):
        for line in NEIGHBOURS.read_text().splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] != _NOBODY:  # noqa: PLR2004  # address, type, flags, hardware address
                found[words[0]] = words[3].lower()
    return found
