"""Gateways whose backend is one of them, by what names mean now."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress

from memscaler.config.gateway_loops import LEADS_ELSEWHERE, is_ours, leads_back
from memscaler.config.stages import Gateway
from memscaler.config.values import Address
from memscaler.core.errors import ConfigError
from memscaler.sleep.gateway.world import name_of

RESOLVE_S = 5.0  # whoever is not found by then is looked at when a connection comes back


def loop_of(gateway: Gateway, doors: Collection[Gateway], hosts: Collection[str]) -> str:
    """A sentence, "" if there is none. doors: all of the process. hosts: the addresses of the backend."""
    for host in hosts:
        to = Address(host, gateway.to.port)
        for door in doors:
            if leads_back(door.listen, to, is_ours):
                is_itself = door.listen == gateway.listen
                who = "the gateway itself" if is_itself else f"the gateway {name_of(door)}"
                return f"{gateway.to} is where {who} listens ({door.listen})"
    return ""


async def refuse(gateways: Collection[Gateway]) -> None:
    """Raise ConfigError for the first one that leads back."""
    ports = {each.listen.port for each in gateways}
    near = [each for each in gateways if each.to.port in ports]
    found = await _resolved({each.to.host for each in near})
    for each in near:
        wrong = loop_of(each, gateways, found.get(each.to.host, ()))
        if wrong:
            raise ConfigError(f"{each.origin or 'to'}: {wrong}", hint=LEADS_ELSEWHERE)


async def _resolved(hosts: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    async def one(host: str) -> tuple[str, ...]:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(RESOLVE_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, 0, type=socket.SOCK_STREAM)
                return tuple(str(place[0]) for *_, place in found)
        return ()

    return dict(zip(hosts, await asyncio.gather(*map(one, hosts)), strict=True))
