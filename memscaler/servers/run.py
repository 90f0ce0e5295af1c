"""The supervisor as a process: puts its parts together, listens to signals, and ends well.

SIGHUP          reads the descriptions anew and applies them
SIGTERM         ends all servers, unless systemd is restarting the unit: then they live on, and are adopted
SIGINT          ends all servers; so does SIGHUP where there is a terminal, which has gone then
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from memscaler.config.schema import Settings
from memscaler.config.servers import Server
from memscaler.core.errors import DaemonRunning, MemscalerError, PermissionMissing, UsageError
from memscaler.core.servers import ServerState
from memscaler.daemon import lock
from memscaler.daemon.notify import Notifier
from memscaler.daemon.signals import has_terminal
from memscaler.servers import child, marks
from memscaler.servers.aside import aside
from memscaler.servers.ending import is_restart
from memscaler.servers.places import Places, own_user
from memscaler.servers.supervisor import Supervisor

REREAD_S = 30.0

log = structlog.get_logger()


class Control(Protocol):
    """What answers operators."""

    async def start(self) -> None:
        """From now on."""

    async def stop(self) -> None:
        """No longer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A supervisor that runs. reread: the descriptions as they are now, for `apply`; raises MemscalerError."""

    supervisor: Supervisor
    reread: Callable[[], tuple[Server, ...]]


def run(
    settings: Settings,
    load: Callable[[], Settings],
    places: Places,
    *,
    user: str = "",
    control: Callable[[Running], Control] | None = None,
) -> None:
    """Keep the servers of this user until a signal comes. load: reads the configuration anew; may raise MemscalerError.

    user: that of the descriptions, "" for those without one. Raise MemscalerError for what keeps it from starting.
    """
    refuse_root()
    held = _alone(places)
    try:
        if settings.simulate:
            _simulate(settings.simulate, places)
        asyncio.run(_serve(settings, load, places, user, control))
    finally:
        os.close(held)


def _alone(places: Places) -> int:
    """The lock. Raise MemscalerError if another supervisor has it, or there can be none."""
    try:
        for folder in (places.runtime, places.state):
            lock.prepare_runtime_dir(folder)
        return lock.acquire(places.runtime)
    except DaemonRunning as error:
        hint = "stop it first, or give this one another --runtime-dir"
        raise MemscalerError(f"a supervisor runs already (pid {error.pid})", hint=hint) from error
    except PermissionMissing as error:
        raise PermissionMissing(str(error), hint="choose a --runtime-dir that is yours") from error


def _simulate(boards: tuple[str, ...], places: Places) -> None:
    from memscaler.simulator import start

    start(boards, places.runtime)


def refuse_root() -> None:
    """Raise UsageError (exit 2): servers get the rights of their supervisor."""
    if os.geteuid() == 0:
        hint = "systemctl start memscaler-servers; or by hand as somebody else: sudo -u USER memscaler servers run"
        raise UsageError("servers are never run as root", hint=hint)


async def _serve(
    settings: Settings,
    load: Callable[[], Settings],
    places: Places,
    user: str,
    control: Callable[[Running], Control] | None,
) -> None:
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    _listen(asked)
    notifier = Notifier()
    supervisor = Supervisor(places, changed=lambda: notifier.status(summary(supervisor)))

    def reread() -> tuple[Server, ...]:
        return mine(load(), user)

    async with contextlib.AsyncExitStack() as stack:
        answering = control(Running(supervisor, reread)) if control is not None else None
        servers = mine(settings, user)
        log.info("supervisor.started", servers=len(servers), user=own_user(), runtime_dir=str(places.runtime))
        supervisor.open(servers, await marks.lost(places.state))
        if answering is not None:
            await answering.start()
            stack.push_async_callback(answering.stop)
        notifier.ready(summary(supervisor))
        heartbeat = _Heartbeat(notifier)
        await _until_told_to_end(asked, supervisor, reread, notifier)
        heartbeat.stop()
    log.info("supervisor.stopped")


def mine(settings: Settings, user: str) -> tuple[Server, ...]:
    """Those that this supervisor keeps."""
    return tuple(server for server in settings.servers if server.user == user)


def summary(supervisor: Supervisor) -> str:
    """What `systemctl status` shows: "2 ready, 1 failed (llama)"."""
    states: dict[ServerState, list[str]] = {}
    for each in supervisor.report().servers:
        states.setdefault(each.state, []).append(each.name)
    parts = []
    for state in ServerState:
        if names := states.get(state):
            named = f" ({', '.join(names[:5])})" if state in (ServerState.FAILED, ServerState.WAITING) else ""
            parts.append(f"{len(names)} {state.value}{named}")
    return ", ".join(parts) or "no servers"


def _listen(asked: asyncio.Queue[signal.Signals]) -> None:
    """Nothing that we ignore is ignored by servers: a handler of ours is not theirs."""
    hung_up_unheard = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and has_terminal()  # nohup
    child.clean_signals()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.put_nowait, number)
    if hung_up_unheard:
        loop.add_signal_handler(signal.SIGHUP, _nothing)
    else:
        meant = signal.SIGINT if has_terminal() else signal.SIGHUP
        loop.add_signal_handler(signal.SIGHUP, asked.put_nowait, meant)


def _nothing() -> None:
    """The terminal has gone, and we were told not to mind."""


async def _until_told_to_end(
    asked: asyncio.Queue[signal.Signals],
    supervisor: Supervisor,
    reread: Callable[[], tuple[Server, ...]],
    notifier: Notifier,
) -> None:
    while True:
        match await asked.get():
            case signal.SIGHUP:
                await _reload(supervisor, reread, notifier)
            case number:
                notifier.stopping()
                await _end(number, asked, supervisor)
                return


async def _reload(supervisor: Supervisor, reread: Callable[[], tuple[Server, ...]], notifier: Notifier) -> None:
    """A mistake in the configuration changes nothing."""
    notifier.reloading()
    try:
        async with asyncio.timeout(REREAD_S):  # a signal to end waits for this
            described = await aside(reread)
        supervisor.apply(described)
    except TimeoutError:
        log.error("reload.refused", err=f"the configuration could not be read within {REREAD_S:g} s", hint="")
    except MemscalerError as error:
        log.error("reload.refused", err=str(error), hint=error.hint)
    except Exception:
        log.exception("reload.failed")
    notifier.ready(summary(supervisor))


async def _end(number: signal.Signals, asked: asyncio.Queue[signal.Signals], supervisor: Supervisor) -> None:
    if number is signal.SIGTERM:
        verdict = await aside(is_restart)
        if verdict.yes:
            log.info("supervisor.leaves", why=verdict.why, servers="live on, and are adopted by the next supervisor")
            supervisor.leave()
            return
        log.info("supervisor.stopping", signal=number.name, why=verdict.why, servers="are ended")
    else:
        log.info("supervisor.stopping", signal=number.name, servers="are ended")
    closing = asyncio.ensure_future(supervisor.close())
    again = asyncio.ensure_future(_asked_to_end(asked))
    await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        log.warning("supervisor.hurried", servers="are killed")
        supervisor.hurry()
    again.cancel()
    await closing


async def _asked_to_end(asked: asyncio.Queue[signal.Signals]) -> None:
    """Nothing is read anew at the end, and nobody who wants that is in a hurry."""
    while await asked.get() is signal.SIGHUP:
        pass


class _Heartbeat:
    """Tells systemd that the loop goes round, if it wants to know."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._timer: asyncio.TimerHandle | None = None
        if notifier.heartbeat_ns:
            self._beat()

    def _beat(self) -> None:
        self._notifier.alive()
        self._timer = asyncio.get_running_loop().call_later(self._notifier.heartbeat_ns / 1e9, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
