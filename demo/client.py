"""Clients: they ask for completions and note when what happened. While they wait for an answer, their GPU works."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from demo.evidence import Answer, Connection
from memscaler.simulator import SimulatedBoard

TIMEOUT_S = 20.0
BUSY_PERCENT = 90
# Long enough for the tiny model to think for some 50 ms, as real ones do at the least: a loaded machine needs longer
# than usual for its wakes, too.
PROMPT = "Once upon a time there was a graphics card that nobody asked anything, and " * 10


class Work:
    """The model of what a completion does to its GPU: busy from the request to the end of the answer."""

    def __init__(self, boards: tuple[SimulatedBoard, ...]) -> None:
        self._boards = boards
        self._running = [0] * len(boards)
        self._lock = threading.Lock()

    @contextmanager
    def on(self, gpu: int) -> Iterator[None]:
        """Busy as long as anybody's completion runs there."""
        self._add(gpu, 1)
        try:
            yield
        finally:
            self._add(gpu, -1)

    def _add(self, gpu: int, change: int) -> None:
        with self._lock:
            self._running[gpu] += change
            self._boards[gpu].set_utilization(BUSY_PERCENT if self._running[gpu] else 0)


class Clients:
    """Everybody who asks, and the record of it. Used by several threads."""

    def __init__(self, ports: tuple[int, ...], work: Work) -> None:
        self._ports = ports
        self._work = work
        self.connections: list[Connection] = []

    def waiting_since_ns(self, gpu: int) -> list[int]:
        """When those asked who wait for an answer now."""
        mine = [each for each in list(self.connections) if each.gpu == gpu]
        return [from_ns for each in mine for from_ns, to_ns in each.waits() if not to_ns]

    def ask(self, gpu: int, tokens: int, *, stream: bool = True) -> Connection:
        """One connection, one completion."""
        with self.conversation(gpu) as (record, connection):
            self._complete(record, connection, tokens, stream=stream, last=True)
        return record

    def ask_together(self, gpus: list[int], tokens: int) -> None:
        """Several clients at the same time, one for each entry."""
        threads = [threading.Thread(target=self.ask, args=(gpu, tokens)) for gpu in gpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def talk(self, gpu: int, tokens: int, pause_s: float) -> Connection:
        """One connection, two completions, and a long silence between them."""
        with self.conversation(gpu) as (record, connection):
            self._complete(record, connection, tokens, stream=False, last=False)
            time.sleep(pause_s)
            self._complete(record, connection, tokens, stream=False, last=True)
        return record

    @contextmanager
    def conversation(self, gpu: int) -> Iterator[tuple[Connection, http.client.HTTPConnection]]:
        """A connection with its record. A server that is gone is noted as an answer that did not come."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[gpu], timeout=TIMEOUT_S)
        record = Connection(gpu, time.monotonic_ns())
        self.connections.append(record)
        try:
            connection.connect()
            record.connected_ns = time.monotonic_ns()
            yield record, connection
        except (OSError, http.client.HTTPException):
            record.answers = record.answers or [Answer(record.started_ns)]
        finally:
            record.ended_ns = record.ended_ns or time.monotonic_ns()
            connection.close()

    def _complete(
        self, record: Connection, connection: http.client.HTTPConnection, tokens: int, *, stream: bool, last: bool
    ) -> None:
        wanted = {"prompt": PROMPT, "n_predict": tokens, "ignore_eos": True, "stream": stream, "cache_prompt": False}
        headers = {"Content-Type": "application/json", "Connection": "close" if last else "keep-alive"}
        answer = Answer(time.monotonic_ns())
        record.answers.append(answer)
        with self._work.on(record.gpu):
            connection.request("POST", "/completion", json.dumps(wanted), headers)
            response = connection.getresponse()
            answer.status = response.status
            read = _streamed if stream else _whole
            answer.tokens, answer.first_token_ns = read(response)
            answer.done_ns = time.monotonic_ns()
            if last:  # the server closes now; from here on the GPU may be quiet
                record.ended_ns = answer.done_ns


def _streamed(response: http.client.HTTPResponse) -> tuple[int, int]:
    """Read to the end; the number of tokens that came, and when the first one did."""
    tokens = first_ns = 0
    for line in response:
        if line.startswith(b"data: {"):
            first_ns = first_ns or time.monotonic_ns()
            event = json.loads(line[6:])
            tokens = event.get("tokens_predicted", 0) if event.get("stop") else tokens + 1
    return tokens, first_ns


def _whole(response: http.client.HTTPResponse) -> tuple[int, int]:
    answer = response.read()
    return json.loads(answer).get("tokens_predicted", 0), time.monotonic_ns()
