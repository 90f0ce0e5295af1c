"""Programs beside a server: launched once it is ready, ended with it, each in a session of its own.

A hook's own hooks live as long as it does. None of them is started again: their ends are told in the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from memscaler.config.servers import Hook
from memscaler.servers import logs
from memscaler.servers.child import CannotStart, How, Process, send
from memscaler.servers.state import Ran

PATIENCE_S = 5.0  # for all hooks of a server together, after SIGTERM
SHORTEST_S = 0.2

Path_ = tuple[str, ...]
Open = Callable[[str], logs.Output]

log = structlog.get_logger()


class Hooks:
    """Those of one server."""

    def __init__(self, server: str, open_log: Open, changed: Callable[[], None], mark: Callable[[str], str]) -> None:
        """open_log: a place for what SERVER.HOOK says, and its mark. changed: called when one is there or gone."""
        self._server = server
        self._open_log = open_log
        self._changed = changed
        self._mark = mark
        self._dying: set[Process] = set()
        self._running: dict[Path_, tuple[Hook | None, Process]] = {}  # in the order in which they were launched
        self._ending: set[asyncio.Task[None]] = set()
        self._later: asyncio.Task[None] | None = None

    @property
    def ran(self) -> tuple[Ran, ...]:
        return tuple(
            Ran(process.pid, process.started, path, process.mark) for path, (_, process) in self._running.items()
        )

    def launch(self, hooks: Iterable[Hook], environment: Mapping[str, str], directory: str) -> None:
        """Those that do not run; those whose description has changed or gone are ended."""
        wanted = dict(_flat(hooks))
        for path, (hook, _) in reversed(list(self._running.items())):
            if path not in wanted or (hook is not None and _alone(hook) != _alone(wanted[path])):
                self._end_soon(path)
        self._wait_no_more()
        if self._ending:  # two of one kind may be in each other's way
            self._later = asyncio.get_running_loop().create_task(self._launch_later(wanted, environment, directory))
        else:
            self._launch_all(wanted, environment, directory)

    async def _launch_later(self, wanted: Mapping[Path_, Hook], environment: Mapping[str, str], directory: str) -> None:
        while self._ending:
            await asyncio.wait(set(self._ending))
        self._launch_all(wanted, environment, directory)

    def _launch_all(self, wanted: Mapping[Path_, Hook], environment: Mapping[str, str], directory: str) -> None:
        for path, hook in wanted.items():
            if path not in self._running and (len(path) == 1 or path[:-1] in self._running):
                self._launch(path, hook, environment, directory)

    def _wait_no_more(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _launch(self, path: Path_, hook: Hook, environment: Mapping[str, str], directory: str) -> None:
        name = ".".join((self._server, *path))
        try:
            output = self._open_log(name)
            try:
                variables = {**environment, **dict(hook.environment)}
                process = Process.start(hook.command, variables, directory, output.fd, self._mark(name))
            finally:
                os.close(output.fd)
        except (CannotStart, OSError) as error:
            log.warning("hook.failed", server=self._server, hook=".".join(path), err=str(error))
            return
        log.info("hook.started", server=self._server, hook=".".join(path), pid=process.pid)
        self._take(path, hook, process)

    def adopt(self, ran: Iterable[Ran], hooks: Iterable[Hook]) -> None:
        """Those that live still. hooks: as they were when they were launched."""
        known = dict(_flat(hooks))
        for each in ran:
            process = Process.adopt(each.pid, each.started, each.mark)
            if process is not None:
                self._take(each.path, known.get(each.path), process)

    def _take(self, path: Path_, hook: Hook | None, process: Process) -> None:
        self._running[path] = hook, process
        process.ended.add_done_callback(lambda ended: self._over(path, process, ended.result()))
        self._changed()

    def _over(self, path: Path_, process: Process, how: How) -> None:
        """By itself, or because we have ended it: then it is not ours any more."""
        if self._running.get(path, (None, None))[1] is process:
            say = log.info if how.well else log.warning
            say("hook.ended", server=self._server, hook=".".join(path), pid=process.pid, how=how.text)
            self._end_soon(path)

    def _end_soon(self, path: Path_) -> None:
        """With its own hooks, in the order against that of their launch."""
        below = [each for each in self._running if each[: len(path)] == path]
        gone = [self._running.pop(each)[1] for each in reversed(below)]
        task = asyncio.get_running_loop().create_task(self._end(gone, PATIENCE_S))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        self._changed()

    async def end(self, patience_s: float = PATIENCE_S) -> None:
        """All of them, the last one first, and wait until they are gone."""
        self._wait_no_more()
        gone = [process for _, process in reversed(self._running.values())]
        self._running.clear()
        await self._end(gone, patience_s)
        if self._ending:
            await asyncio.wait(set(self._ending))
        if gone:
            self._changed()

    def kill(self) -> None:
        """Those that are being ended, too."""
        for process in (*self._dying, *(process for _, process in self._running.values())):
            send(process.pid, process.started, signal.SIGKILL)

    def forget(self) -> None:
        """Let them live on."""
        self._wait_no_more()
        for _, process in self._running.values():
            process.forget()
        self._running.clear()

    async def _end(self, processes: Collection[Process], patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + patience_s
        self._dying.update(processes)
        for process in processes:
            await process.clear(max(end_s - loop.time(), SHORTEST_S))
            self._dying.discard(process)


def _flat(hooks: Iterable[Hook], above: Path_ = ()) -> Iterable[tuple[Path_, Hook]]:
    """Those that are enabled, each before its own."""
    for hook in hooks:
        if hook.enabled:
            path = (*above, hook.name)
            yield path, hook
            yield from _flat(hook.hooks, path)


def _alone(hook: Hook) -> tuple[object, ...]:
    """What makes it another program: not which hooks of its own it has."""
    return hook.command, hook.environment
