"""Who can ask a governor: the metrics port, and the control socket. Their threads outlive a release of the driver.

Neither decides whether GPUs are governed: where a port or a path cannot be had, the log says so, and the run goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import structlog

from memscaler.config.schema import Settings
from memscaler.core.errors import MemscalerError
from memscaler.core.servers import Supervised
from memscaler.core.snapshot import Snapshot
from memscaler.daemon.answers import SnapshotWanted
from memscaler.daemon.control import ControlServer
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.requests import SOCKET
from memscaler.observe.server import MetricsServer
from memscaler.observe.supervisors import Supervisors

log = structlog.get_logger()


def serve_metrics(settings: Settings, mailbox: Mailbox, stack: contextlib.ExitStack) -> Callable[[], None]:
    """What to call when a state has changed. Whoever holds the port must not decide whether GPUs are governed."""
    if settings.metrics is None:
        return _nothing
    try:
        server = MetricsServer(
            settings.metrics.host, settings.metrics.port, partial(_ask, mailbox), supervised(settings)
        )
    except MemscalerError as error:
        log.error("metrics.failed", err=str(error), hint=error.hint)
        return _nothing
    server.start()
    stack.callback(server.stop)
    log.info("metrics.served", address="{}:{}".format(*server.address))
    return server.changed


def serve_operators(settings: Settings, mailbox: Mailbox, stack: contextlib.ExitStack) -> None:
    """Without a control socket GPUs are governed all the same."""
    try:
        server = ControlServer(settings.runtime_dir / SOCKET, mailbox.put)
    except MemscalerError as error:
        log.error("control.failed", err=str(error), hint=error.hint)
        return
    server.start()
    stack.callback(server.stop)


def supervised(settings: Settings) -> Callable[[], Supervised]:
    """Supervisors have their folders beside ours."""
    return Supervisors(settings.runtime_dir.parent).look


def _ask(mailbox: Mailbox) -> Future[Snapshot]:
    answer: Future[Snapshot] = Future()
    mailbox.put(SnapshotWanted(answer))
    return answer


def _nothing() -> None:
    """There is nobody to tell."""
