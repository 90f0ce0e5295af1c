"""memscaler_gateway_*: the metrics of a gateway, for Prometheus, over a server of a few lines.

aiohttp would double the memory of a process that may live on a very small machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from memscaler import __version__
from memscaler.config.values import Address
from memscaler.core.errors import MemscalerError
from memscaler.daemon import http1
from memscaler.sleep.gateway.counts import WAKE_BUCKETS_S
from memscaler.sleep.gateway.decide import State
from memscaler.sleep.gateway.door import Door

KIND = "text/plain; version=0.0.4; charset=utf-8"
READ_S = 5.0

Doors = Callable[[], list[Door]]


class Collector:
    """What all doors of this process have counted."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def collect(self) -> Iterator[Metric]:
        """At a scrape."""
        doors = self._doors()
        yield _gauge("build_info", "The version that runs.", ("version",), [((__version__,), 1)])
        told = [((door.name, str(door.address), str(door.gateway.to)), 1.0) for door in doors]
        yield _gauge("info", "Where a gateway listens, and what is behind it.", ("gateway", "listen", "to"), told)
        states = [
            ((door.name, state.value), float(door.backend.standing.state is state)) for door in doors for state in State
        ]
        yield _gauge("backend_state", "1 for the state of the backend, else 0.", ("gateway", "state"), states)
        now: tuple[tuple[str, str, Callable[[Door], int]], ...] = (
            ("connections", "Clients that are connected.", lambda door: door.counts.connections),
            ("waiting_clients", "Clients that are held while the backend wakes.", lambda door: door.counts.waiting),
        )
        for name, text, value in now:
            yield _gauge(name, text, ("gateway",), [((door.name,), value(door)) for door in doors])
        totals: tuple[tuple[str, str, Callable[[Door], int]], ...] = (
            ("accepted", "Clients that connected.", lambda door: door.counts.accepted),
            ("wake_packets", "Magic packets that were sent.", lambda door: door.counts.packets),
            ("stalls", "Connections that had to wake a sleeping machine.", lambda door: door.counts.stalls),
            ("pauses", "Times that accepting or connecting lacked resources.", lambda door: door.counts.pauses),
        )
        for name, text, value in totals:
            yield _counter(name, text, ("gateway",), [((door.name,), value(door)) for door in doors])
        refused = [((door.name, why), count) for door in doors for why, count in sorted(door.counts.refused.items())]
        yield _counter(
            "refused", "Clients that the gateway answered itself, or closed.", ("gateway", "reason"), refused
        )
        passed = [
            ((door.name, way), float(value))
            for door in doors
            for way, value in zip(("to_backend", "to_client"), door.passed_bytes(), strict=True)
        ]
        yield _counter("bytes", "Bytes that were passed on.", ("gateway", "direction"), passed)
        wakes = [((door.name, how), door.counts.wakes[how]) for door in doors for how in ("done", "failed")]
        yield _counter("wakes", "Wakes of the backend, by how they ended.", ("gateway", "result"), wakes)
        yield _wake_times(doors)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float]]) -> Metric:
    return _filled(GaugeMetricFamily(f"memscaler_gateway_{name}", text, labels=labels), values)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float]]) -> Metric:
    return _filled(CounterMetricFamily(f"memscaler_gateway_{name}", text, labels=labels), values)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Sequence[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _wake_times(doors: list[Door]) -> Metric:
    text = "From the moment that the backend was wanted to the one in which clients were let through."
    family = HistogramMetricFamily("memscaler_gateway_wake_seconds", text, labels=("gateway",))
    for door in doors:
        running, buckets = 0, []
        for most_s, count in zip((*WAKE_BUCKETS_S, float("inf")), door.counts.buckets, strict=True):
            running += count
            buckets.append(("+Inf" if most_s == float("inf") else str(most_s), running))
        family.add_metric((door.name,), buckets, door.counts.wakes_s)
    return family


class Metrics:
    """Serves them. Raise MemscalerError if the address cannot be had."""

    def __init__(self, address: Address, doors: Doors) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collector(doors))
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            self._socket = socket.create_server((address.host, address.port), family=family)
        except OSError as error:
            hint = "choose another address with --metrics HOST:PORT, or --metrics off"
            raise MemscalerError(f"metrics cannot listen on {address}: {error.strerror}", hint=hint) from error
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> Address:
        """With the real port."""
        return Address(*self._socket.getsockname()[:2])

    async def start(self) -> None:
        """From now on."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=http1.HEAD_BYTES)

    def stop(self) -> None:
        """No longer."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, TimeoutError):
            try:
                async with asyncio.timeout(READ_S):
                    head = await http1.read_head(reader)
                    writer.write(self._answer(head))
                    await writer.drain()
            except http1.Refused as refused:
                writer.write(_told(refused.status, f"{refused}\n".encode(), "text/plain"))
        writer.close()

    def _answer(self, head: http1.Head) -> bytes:
        if head.path.partition("?")[0] != "/metrics":
            return _told(HTTPStatus.NOT_FOUND, b"only /metrics is here\n", "text/plain")
        if head.method not in ("GET", "HEAD"):
            return _told(HTTPStatus.METHOD_NOT_ALLOWED, b"GET\n", "text/plain")
        text = generate_latest(self._registry)
        return _told(HTTPStatus.OK, text, KIND, only_head=head.method == "HEAD")


def _told(status: HTTPStatus, body: bytes, kind: str, *, only_head: bool = False) -> bytes:
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + (b"" if only_head else body)
