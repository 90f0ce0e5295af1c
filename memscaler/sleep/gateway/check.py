"""What a gateway would find: whether its backend answers, where its packets would go, and what speaks against it."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from memscaler.config.stages import Gateway
from memscaler.sleep.gateway import packets
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


def check(gateway: Gateway, control: Path) -> Finding:
    """Connects to the backend, and wakes nothing. control: the governor's socket."""
    problems: list[str] = []
    warnings: list[str] = []
    facts: list[str] = []
    host = _resolved(gateway.to.host)
    if host is None:
        problems.append(f"{gateway.to.host} is no name that can be looked up")
    else:
        if leads_back(gateway, host):
            problems.append(f"{gateway.to} is where the gateway itself listens")
        answers = _connects(host, gateway.to.port, gateway.connect_timeout_s)
        facts.append(f"{gateway.to}: {answers}")
        if gateway.mac:
            _check_packets(gateway, host, warnings, facts)
    if gateway.server and not control.exists():
        warnings.append(f"no governor runs here ({control}): server {gateway.server} is brought back by nobody")
    if not gateway.server and not gateway.mac:
        warnings.append("neither server nor mac: the gateway waits for the backend, and wakes nothing")
    return Finding(name_of(gateway), tuple(problems), tuple(warnings), tuple(facts))


def leads_back(gateway: Gateway, host: str) -> bool:
    """Whether the backend, at this address, is the gateway."""
    if gateway.listen.port != gateway.to.port or not gateway.listen.port:
        return False
    listens = gateway.listen.host
    return listens == host or (listens in ("0.0.0.0", "::", "") and _is_local(host))  # noqa: S104  # compared


def _is_local(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _resolved(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


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
